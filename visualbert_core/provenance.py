"""What a result was made of: digests of files, values and code, library versions, and how two runs differ.

Owns the one hash of the project (xxh3-128 in hex: integrity and identity, not security) and the one wording for
"these two are not comparable, because …". Imports nothing heavy: versions come from package metadata, torch stays out.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xxhash

_CHUNK = 1 << 24
_NO_NUMBERS = ("report", "world", "nightly")  # they show finished runs and make data, which has a digest of its own
_FEATURES = ("detector", "images.py", "corpus.py")
_SCORES = ("tasks", "metrics")
_PACKAGES = ("torch", "torchvision", "pyarrow", "ray", "numpy", "pillow", "tokenizers")

INGREDIENTS = {
    "model": ("model",),
    "features": ("features",),
    "annotations": ("annotations",),
    "scorer": ("protocol", "code.scores"),
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


def digest_files(paths: Iterable[str | Path]) -> str:
    """One digest over several files' names and bytes; neither their order nor their folders matter."""
    return digest_json(sorted([Path(path).name, digest_file(path)] for path in paths))


def digest_json(value: Any) -> str:
    """xxh3-128 of a JSON value, whatever the order of its keys. Raises TypeError or ValueError where it is not JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return xxhash.xxh3_128_hexdigest(text.encode())


def code_digests() -> dict[str, str]:
    """Digests of the Python sources that can change a number, by the first number they change: the `features` of an
    image, the `predictions` made from given features, or the `scores` of given predictions."""
    package = Path(__file__).parent
    sources: dict[str, list[list[str]]] = {"features": [], "predictions": [], "scores": []}
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package)
        if name.parts[0] not in _NO_NUMBERS:
            kind = "features" if name.parts[0] in _FEATURES else "scores" if name.parts[0] in _SCORES else "predictions"
            sources[kind].append([name.as_posix(), digest_file(path)])
    return {kind: digest_json(files) for kind, files in sources.items()}


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
