"""Weights as they are published → detector folders: `visualbert convert detector`.

What the keys mean belongs to each detector: `CONVERTERS` names the function that knows.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Protocol

from visualbert_core.errors import CheckpointError
from visualbert_core.printable import printable

CONVERTERS = {
    "vg_c4": ("vg_c4_weights", "convert"),
    "pythia_fpn": ("fpn_weights", "convert_pythia"),
    "detectron_fpn": ("fpn_weights", "convert_detectron"),
    "r2c_resnet50": ("r2c_resnet50", "convert"),
}
"""Detector → the module and its function `(source: Path) -> (detector, notes for the reader)`."""


class Convertible(Protocol):
    """What a converter returns: a detector that can be saved."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write its folder."""


def convert(name: str, source: str | Path, target: str | Path) -> str:
    """Convert `source`, a weights file or a folder with one, into the new folder `target`; returns a report.

    Raises CheckpointError where `target` is not empty, or naming what in `source` cannot be read or does not fit.
    """
    source, target = Path(source), Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target}: exists and is not empty")
    module, function = CONVERTERS[name]
    load: Callable[[Path], tuple[Convertible, list[str]]]
    load = getattr(import_module(f"visualbert_core.detector.{module}"), function)
    detector, notes = load(source)
    detector.save_pretrained(target)
    return "\n".join(map(printable, [f"{source} → {target} ({name})", *notes]))
