"""What a result was made of: digests of files, values and code, library versions, and how two runs differ.

Owns the one hash of the project (xxh3-128 in hex: integrity and identity, not security) and the one wording for
"these two are not comparable, because …". Imports nothing heavy: versions come from package metadata, torch stays out.

A package or module declares beside its code which number that code can change first, and what lies below it inherits:

    INGREDIENT = "features"       of an image: detector, images, corpus, …
    INGREDIENT = "predictions"    made from given features; the default, declared in visualbert_core/__init__.py
    INGREDIENT = "scores"         of given predictions: tasks, metrics
    INGREDIENT = None             no number: report, nightly, synthetic, …
"""

from __future__ import annotations

import ast
import json
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xxhash

from visualbert_core.errors import ConfigError

_CHUNK = 1 << 24
_PACKAGE = __name__.partition(".")[0]
_PACKAGES = ("torch", "torchvision", "pyarrow", "ray", "numpy", "pillow", "tokenizers")

INGREDIENTS = {
    "model": ("model",),
    "features": ("features",),
    "images": ("images",),
    "annotations": ("annotations",),
    "scorer": ("protocol", "code.scores", "code.task"),
    "code": ("code.predictions", "code.features", "schema"),
    "versions": ("versions",),
    "settings": ("spec",),
}
"""What a run is made of, for people → the parts of its provenance."""


def digest_file(path: str | Path) -> str:
    """xxh3-128 of a file's bytes. Raises OSError."""
    state = xxhash.xxh3_128()
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    return state.hexdigest()


def digest_bytes(data: bytes) -> str:
    """The same of bytes in memory."""
    return xxhash.xxh3_128_hexdigest(data)


def digest_files(paths: Iterable[str | Path]) -> str:
    """One digest over several files' names and bytes; neither their order nor their folders matter."""
    return digest_json(sorted([Path(path).name, digest_file(path)] for path in paths))


def digest_json(value: Any) -> str:
    """xxh3-128 of a JSON value, whatever the order of its keys. Raises TypeError or ValueError where it is not JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return xxhash.xxh3_128_hexdigest(text.encode())


@cache
def code_digests() -> dict[str, str]:
    """A digest of the Python sources of each declared ingredient: features, predictions, scores.

    Comments, docstrings, layout, and where a file lies do not count: a digest changes where what is computed may have.
    """
    package = Path(__file__).parent
    modules = {path: ast.parse(path.read_bytes()) for path in sorted(package.rglob("*.py"))}
    sources: dict[str, list[str]] = {"features": [], "predictions": [], "scores": []}
    for path, module in modules.items():
        ingredient = _ingredient(path, modules)
        if ingredient is not None:
            sources[ingredient].append(digest_json(_essence(module)))
    return {ingredient: digest_json(sorted(digests)) for ingredient, digests in sources.items()}


def outside_code(kind: type) -> dict[str, str]:
    """Return {"task": a digest} of the sources of a class that come from outside this package; empty where none do.

    Raises ConfigError for a class without a source file, as one typed into a console: its runs could not be told apart.
    """
    modules = {base.__module__ for base in kind.__mro__}
    outside = [name for name in modules if name.partition(".")[0] not in {_PACKAGE, *sys.stdlib_module_names}]
    files = [getattr(sys.modules[name], "__file__", None) for name in outside]
    if None in files:
        raise ConfigError(f"{kind.__name__} has no source file, by which its runs are told apart: write it into one")
    digests = [digest_json(_essence(ast.parse(Path(str(file)).read_bytes()))) for file in files]
    return {"task": digest_json(sorted(digests))} if digests else {}


def _ingredient(path: Path, modules: Mapping[Path, ast.Module]) -> str | None:
    """What a module declares, or else the nearest package around it."""
    for file in (path, *(folder / "__init__.py" for folder in path.parents)):
        for statement in modules[file].body if file in modules else ():
            match statement:
                case ast.Assign(targets=[ast.Name(id="INGREDIENT")], value=ast.Constant(value=declared)):
                    return declared if isinstance(declared, str) else None
    raise AssertionError(f"{path}: no package around it declares an INGREDIENT")


def _essence(node: Any) -> Any:
    """A syntax tree as JSON, the same in every version of Python; the own package's modules are not told apart."""
    if isinstance(node, list):
        return [_essence(item) for item in node if not _is_text(item)]
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("visualbert_core."):
        node = ast.ImportFrom(module="visualbert_core", names=node.names, level=0)
    if isinstance(node, ast.AST):
        # Newer versions of Python add fields, which are empty for code that older ones can read.
        fields = {name: value for name, value in ast.iter_fields(node) if value is not None and value != []}
        return [type(node).__name__, {name: _essence(value) for name, value in fields.items()}]
    return repr(node)


def _is_text(node: Any) -> bool:
    """Whether a statement is a docstring, of a module, class, function or attribute."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def versions() -> dict[str, str]:
    """Versions of Python and of every library that can change a number; "absent" where one is not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """One line for each ingredient in which two provenance dictionaries differ: `versions.torch: 2.11.0 → 2.12.0`."""
    before, after = dict(_leaves(a)), dict(_leaves(b))
    names = sorted(before.keys() | after.keys())
    pairs = ((name, before.get(name, "(absent)"), after.get(name, "(absent)")) for name in names)
    return [f"{name}: {old} → {new}" for name, old, new in pairs if old != new]


def changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[str]]:
    """`differences` of two runs' provenance by ingredient, those without any left out; the same order always."""
    lines = differences(a, b)
    found = {
        name: [line for line in lines if any(re.match(rf"{re.escape(part)}[.:]", line) for part in parts)]
        for name, parts in INGREDIENTS.items()
    }
    return {name: lines for name, lines in found.items() if lines}


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, leaf in value.items():
        if isinstance(leaf, Mapping):
            yield from _leaves(leaf, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", leaf if isinstance(leaf, str) else json.dumps(leaf, sort_keys=True)
