"""What a result was made of: digests of files, values and code, library versions, and how two runs differ.

Owns the one hash of the project and the one wording for a difference between two runs. The hash is xxh3-128 in hex
(github.com/Cyan4973/xxHash). It serves integrity and identity, not security. The versions come from the metadata of the
packages, so that this file imports neither torch nor Ray.

A package or module declares beside its code the first stage whose result that code can change. The modules of a package
inherit its declaration.

    INGREDIENT = "features"       the features of an image: detector, corpus, …
    INGREDIENT = "predictions"    the predictions over given features: the default, from visualbert_core/__init__.py
    INGREDIENT = "scores"         the scores of given predictions: tasks, metrics
    INGREDIENT = "training"       the weights that a training gives, but no number of a given checkpoint
    INGREDIENT = None             no number: report, nightly, synthetic, …
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xxhash

from visualbert_core.errors import ConfigError

_PACKAGE = __name__.partition(".")[0]
_DECLARATION = re.compile(rb'^INGREDIENT = (?:None|"(\w+)")', re.MULTILINE)
_PACKAGES = ("torch", "torchvision", "pyarrow", "ray", "numpy", "pillow", "tokenizers")

INGREDIENTS = {
    "model": ("model", "code.model"),
    "answering": ("answering",),
    "features": ("features",),
    "images": ("images",),
    "annotations": ("annotations",),
    "scorer": ("protocol", "code.scores", "code.task"),
    "code": ("code.predictions", "code.features", "schema"),
    "versions": ("versions",),
    "settings": ("spec",),
}
"""Name of an ingredient of a run, as shown to users → its keys in the provenance."""


def digest_file(path: str | Path) -> str:
    """Return the xxh3-128 of a file's bytes. Raise OSError where the file cannot be read."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def digest_bytes(data: bytes) -> str:
    """Return the xxh3-128 of bytes in memory."""
    return xxhash.xxh3_128_hexdigest(data)


def digest_files(paths: Iterable[str | Path]) -> str:
    """Return one digest over the names and bytes of several files. Their order and their folders do not matter."""
    return digest_json(sorted([Path(path).name, digest_file(path)] for path in paths))


def digest_json(value: Any) -> str:
    """Return the xxh3-128 of a JSON value. The order of keys does not matter.

    Raise TypeError or ValueError where the value is not JSON.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return xxhash.xxh3_128_hexdigest(text.encode())


def code_digests(ingredients: tuple[str, ...] = ("features", "predictions", "scores")) -> dict[str, str]:
    """Return a digest of the Python sources of each of these declared ingredients.

    Comments, docstrings, layout and the path of a file do not count. So a digest changes only with code that may change
    a result.
    """
    return {ingredient: _code_digest(ingredient) for ingredient in ingredients}


@cache
def _code_digest(ingredient: str) -> str:
    texts = [text for declared, text in _sources() if declared == ingredient]
    return digest_json(sorted(digest_json(_essence(ast.parse(text))) for text in texts))


@cache
def _sources() -> tuple[tuple[str | None, bytes], ...]:
    """Return the ingredient and the text of every module of this package."""
    texts = {path: path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py"))}
    declared = {path: found[1] for path, text in texts.items() if (found := _DECLARATION.search(text))}
    return tuple((_ingredient(path, declared), text) for path, text in texts.items())


def _ingredient(path: Path, declared: Mapping[Path, bytes | None]) -> str | None:
    """Return what a module declares or, where it declares nothing, what the nearest package around it declares."""
    places = (path, *(folder / "__init__.py" for folder in path.parents))
    nearest = next(declared[place] for place in places if place in declared)
    return None if nearest is None else nearest.decode()


def outside_code(name: str, kind: type) -> dict[str, str]:
    """Return {name: digest} over the sources of a class that lie outside this package; {} where there are none.

    Raise ConfigError for a class without a source file, such as one typed into a console. Without a digest, runs of two
    versions of the class would look alike.
    """
    modules = {base.__module__ for base in kind.__mro__} - set(sys.builtin_module_names)
    own = (str(Path(__file__).parent), sysconfig.get_path("stdlib"))
    files = [getattr(sys.modules.get(each), "__file__", None) for each in modules]
    # A file of the user may have the name of a module of Python, so the place decides.
    files = [file for file in files if file is None or not _lies_in(Path(file), own)]
    if None in files:
        raise ConfigError(f"{kind.__name__} has no source file, whose digest a run records: write the class to a file")
    sources = [Path(str(file)) for file in files if str(file).endswith(".py")]  # a compiled base is a library's
    digests = [digest_json(_essence(ast.parse(path.read_bytes()))) for path in sources]
    return {name: digest_json(sorted(digests))} if digests else {}


def _lies_in(file: Path, folders: tuple[str, ...]) -> bool:
    return "site-packages" not in file.parts and any(file.is_relative_to(folder) for folder in folders)


def _essence(node: Any) -> Any:
    """Return a syntax tree as JSON, the same in every version of Python.

    An import from this package does not name its module, so that moving a file changes no digest.
    """
    if isinstance(node, list):
        return [_essence(item) for item in node if not _is_text(item)]
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("visualbert_core."):
        node = ast.ImportFrom(module="visualbert_core", names=node.names, level=0)
    if isinstance(node, ast.AST):
        # Newer versions of Python add fields. They are empty for code that older versions can parse.
        fields = {name: value for name, value in ast.iter_fields(node) if value is not None and value != []}
        return [type(node).__name__, {name: _essence(value) for name, value in fields.items()}]
    return repr(node)


def _is_text(node: Any) -> bool:
    """Return whether a statement is the docstring of a module, class, function or attribute."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def versions() -> dict[str, str]:
    """Return the versions of Python and of each library that can change a number, or "absent" if not installed."""
    return {"python": platform.python_version()} | {name: installed_version(name) for name in _PACKAGES}


def installed_version(name: str) -> str:
    """Return the version of an installed library, or "absent"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Return a line for each key in which two provenance mappings differ, as `versions.torch: 2.11.0 → 2.12.0`."""
    before, after = dict(leaves(a)), dict(leaves(b))
    names = sorted(before.keys() | after.keys())
    pairs = ((name, before.get(name, "(absent)"), after.get(name, "(absent)")) for name in names)
    return [f"{name}: {old} → {new}" for name, old, new in pairs if old != new]


def changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[str]]:
    """Group the `differences` of two runs by ingredient, in the order of INGREDIENTS, without ingredients that are
    equal."""
    lines = differences(a, b)
    found = {
        name: [line for line in lines if any(re.match(rf"{re.escape(part)}[.:]", line) for part in parts)]
        for name, parts in INGREDIENTS.items()
    }
    return {name: lines for name, lines in found.items() if lines}


def leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (name, text) of everything in a provenance, in the order of the names, such as versions.torch."""
    for name, leaf in sorted(value.items()):
        if isinstance(leaf, Mapping):
            yield from leaves(leaf, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", leaf if isinstance(leaf, str) else json.dumps(leaf, sort_keys=True)
