"""The declarations of the commands as data: their subcommands and flags, for the reference pages and error messages.

tyro (github.com/brentyi/tyro) makes the parser and `--help` from the same declarations. Its help depends on the width
of the terminal, so the reference pages are made from this file.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo
from upath import UPath

from visualbert_core.io.locations import Locations, location

T = TypeVar("T")

Flat = Annotated[T, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes]
"""A configuration whose fields, and the fields of its configurations, are flags of the command itself."""
REGISTRY = ConstructorRegistry()
"""Rules by which tyro reads further types."""
_POSITIONAL = get_args(tyro.conf.Positional[str])[1]
_SUPPRESSED = get_args(tyro.conf.Suppress[str])[1]


@REGISTRY.primitive_rule
def _location(flag: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Return the rule that reads a location, or several. Without it tyro would read an address as a Path."""
    if UPath not in get_args(flag.type):
        return None
    several = _are_several(flag.type)
    return PrimitiveConstructorSpec(
        nargs="*" if several else 1,
        metavar="PATH [PATH …]" if several else "PATH",
        instance_from_str=_locations if several else lambda words: location(words[0]),
        is_instance=lambda value: value is None or isinstance(value, Path | UPath | tuple),
        str_from_instance=lambda value: [str(each) for each in (value if isinstance(value, tuple) else (value,))],
    )


def _are_several(hint: Any) -> bool:
    """Return whether a type is `Locations`: one location, or a tuple of them."""
    return any(get_origin(each) is tuple for each in get_args(hint))


def _locations(words: list[str]) -> Locations:
    if not words:
        raise ValueError("name at least one path")
    found = tuple(map(location, words))
    return found if len(found) > 1 else found[0]


@dataclass(frozen=True)
class Flag:
    """A flag or a positional argument of a command."""

    names: tuple[str, ...]
    """`--number` and its short forms, or the name of a positional argument in capitals."""
    kind: str
    """The type, such as `int`, or the choices; "" for a switch."""
    default: str | None
    """The default as a user would type it; "" where it is empty, and None for a required flag."""
    help: str


def subcommands(command: Any) -> dict[str, Any]:
    """Return name → declaration for each subcommand. A command that is not a union, as `store` is, has one named ""."""
    if isinstance(command, UnionType):
        return {each.__name__.lower(): each for each in get_args(command)}
    return {"": command}


def flags(declaration: Any) -> Iterator[Flag]:
    """Yield the flags of a declaration in their order. A `Flat` configuration yields its flags at its place."""
    hints, sentences = typing.get_type_hints(declaration, include_extras=True), field_docstrings(declaration)
    for field in fields(declaration):
        hint, marks = _unwrapped(hints[field.name])
        if _SUPPRESSED in marks:
            continue
        if is_dataclass(hint):
            yield from flags(hint)
        else:
            yield _flag(field, hint, marks, sentences.get(field.name, ""))


def field_docstrings(declaration: Any) -> dict[str, str]:
    """Return field → docstring, read from the source, because Python does not keep these strings."""
    (body,) = (node for node in ast.parse(textwrap.dedent(inspect.getsource(declaration))).body)
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return found


def _flag(field: Field[Any], hint: Any, marks: list[Any], sentence: str) -> Flag:
    metavar = next((mark.metavar for mark in marks if getattr(mark, "metavar", None)), field.name.upper())
    aliases = [alias for mark in marks for alias in getattr(mark, "aliases", None) or ()]
    names = (metavar,) if _POSITIONAL in marks else (f"--{field.name.replace('_', '-')}", *aliases)
    return Flag(names, _kind(hint), _default(field), sentence)


def _unwrapped(hint: Any) -> tuple[Any, list[Any]]:
    """Split an Annotated type into the type and its annotations."""
    return (get_args(hint)[0], list(hint.__metadata__)) if get_origin(hint) is Annotated else (hint, [])


def _kind(hint: Any) -> str:
    hint, _ = _unwrapped(hint)
    if hint is bool:
        return ""
    if UPath in get_args(hint):  # a location, which is Path | UPath
        return "path [path …]" if _are_several(hint) else "path"
    if get_origin(hint) is Literal:
        return " | ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"{_kind(get_args(hint)[0])} …"
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(_kind(each) for each in get_args(hint) if each is not NoneType)
    return str(hint.__name__).lower()


def _default(field: Field[Any]) -> str | None:
    if field.default is MISSING:
        return None if field.default_factory is MISSING else ""
    return "" if field.default in (None, False, ()) else str(field.default)
