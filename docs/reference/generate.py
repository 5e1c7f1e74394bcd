"""Write the reference of the commands, of a matrix and of the Python API beside this file, from their declarations.

    python docs/reference/generate.py

A test compares the pages with the output of this file.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import visualbert_core
from visualbert_core.cli import COMMANDS
from visualbert_core.commands.declarations import Flag, field_docstrings, flags, subcommands
from visualbert_core.config import CellConfig, CorpusConfig, GateConfig, NightlyConfig, PoolConfig, SyntheticConfig

MATRIX = {
    "The file": NightlyConfig,
    "One of `corpora`": CorpusConfig,
    "One of `cells`": CellConfig,
    "`gate`": GateConfig,
    "`synthetic`": SyntheticConfig,
    "`pool`": PoolConfig,
}
"""Heading → the declaration of the keys below it."""

NOTE = "<!-- Written by `python docs/reference/generate.py`. Change the declarations, and run it again. -->"


def commands() -> str:
    """Describe every subcommand and flag, in the words of `--help`."""
    return _page(_commands())


def matrix() -> str:
    """Describe the keys of the YAML file that `visualbert nightly` takes."""
    return _page(_matrix())


def api() -> str:
    """Describe every name of `visualbert_core.__all__` by its signature and docstring."""
    return _page(_api())


def _page(blocks: Iterator[str]) -> str:
    return "\n\n".join([NOTE, *blocks]) + "\n"


def _commands() -> Iterator[str]:
    yield "# Commands"
    yield (
        "A flag without a type is a switch. `--batch-size 8` and `--batch_size=8` mean the same. The scripts in "
        "`jobs/` take the same flags, for `ray job submit`. If a command or a flag is wrong, one line says so, and the "
        "exit code is 2."
    )
    yield _table(
        ("command", "what it does"),
        [(f"[`visualbert {name}`](#visualbert-{_first(name)})", does) for name, (_, does) in COMMANDS.items()],
    )
    for name in COMMANDS:
        for below, declaration in _below(name).items():
            yield f"## {' '.join(filter(None, ('visualbert', name, below)))}"
            yield inspect.cleandoc(declaration.__doc__)
            yield _table(("flag", "type", "default", "meaning"), [_row(flag) for flag in flags(declaration)])


def _below(command: str) -> dict[str, Any]:
    module, _ = COMMANDS[command]
    return subcommands(import_module(f"visualbert_core.commands.{module}").Command)


def _first(command: str) -> str:
    """Return the end of the anchor of a command's first heading. `store` has a heading for each subcommand only."""
    return "-".join(filter(None, (command, next(iter(_below(command))))))


def _matrix() -> Iterator[str]:
    yield "# The keys of a matrix"
    yield (
        "`visualbert nightly FILE.yaml` reads these keys. An error names a key that is unknown or has a value of the "
        "wrong type. [Nights](../nightly.md) explains the gate."
    )
    for heading, declaration in MATRIX.items():
        yield f"## {heading}"
        yield inspect.cleandoc(declaration.__doc__ or "")
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(declaration))).body
        assert isinstance(node, ast.ClassDef)
        sentences = field_docstrings(declaration)
        rows = [_field(each, sentences) for each in node.body if isinstance(each, ast.AnnAssign)]
        yield _table(("key", "type", "default", "meaning"), rows)


def _row(flag: Flag) -> tuple[str, ...]:
    default = "required" if flag.default is None else _code(flag.default)
    return ", ".join(map(_code, flag.names)), _code(flag.kind), default, flag.help


def _api() -> Iterator[str]:
    yield "# Python API"
    yield (
        "Import each name from `visualbert_core`. [examples/](../../examples) uses them. Progress and warnings are "
        'records of the logger `visualbert_core`. `logging.basicConfig(level="INFO")` shows them.'
    )
    for name in visualbert_core.__all__:
        found = getattr(visualbert_core, name)
        yield f"## {name}"
        yield f"In `{found.__module__}`."
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(found))).body
        yield from _class(found, node) if isinstance(node, ast.ClassDef) else _function(node)


def _class(found: type, node: ast.ClassDef) -> Iterator[str]:
    yield inspect.cleandoc(found.__doc__ or "")
    sentences = field_docstrings(found)
    rows = [_field(each, sentences) for each in node.body if isinstance(each, ast.AnnAssign)]
    if rows:
        yield _table(("field", "type", "default", "meaning"), rows)
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and not each.name.startswith("_"):
            yield f"### {node.name}.{each.name}"
            yield from _function(each)


def _field(node: ast.AnnAssign, sentences: dict[str, str]) -> tuple[str, ...]:
    default = "required" if node.value is None else _code(ast.unparse(node.value))
    name = ast.unparse(node.target)
    return _code(name), _code(ast.unparse(node.annotation)), default, sentences.get(name, "")


def _function(node: Any) -> Iterator[str]:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    decorators = "".join(f"@{ast.unparse(each)}\n" for each in node.decorator_list)
    yield f"```python\n{decorators}def {node.name}({ast.unparse(node.args)}){returns}\n```"
    yield inspect.cleandoc(ast.get_docstring(node) or "")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


if __name__ == "__main__":
    here = Path(__file__).parent
    (here / "commands.md").write_text(commands(), encoding="utf-8")
    (here / "matrix.md").write_text(matrix(), encoding="utf-8")
    (here / "api.md").write_text(api(), encoding="utf-8")
