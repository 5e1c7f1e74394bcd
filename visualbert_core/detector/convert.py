"""Converts published weights into detector folders, for `visualbert convert detector`.

Each detector knows the keys of its own published files. `CONVERTERS` names the function for each detector.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from visualbert_core.detector.folder import FolderDetector
from visualbert_core.errors import CheckpointError
from visualbert_core.printable import printable

CONVERTERS = {
    "vg_c4": ("vg_c4_weights", "convert"),
    "pythia_fpn": ("fpn_weights", "convert_pythia"),
    "detectron_fpn": ("fpn_weights", "convert_detectron"),
    "r2c_resnet50": ("r2c_resnet50", "convert"),
}
"""Detector → module and function. The function is `(source: Path) -> (detector, notes for the user)`."""


def convert(name: str, source: str | Path, target: str | Path) -> str:
    """Convert `source`, a weights file or a folder with one, into the new folder `target`. Return a report.

    Raise CheckpointError where `target` is not empty, or where `source` cannot be read or does not fit the detector.
    """
    source, target = Path(source), Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target}: exists and is not empty; name a new or an empty folder")
    module, function = CONVERTERS[name]
    load: Callable[[Path], tuple[FolderDetector[Any, Any], list[str]]]
    load = getattr(import_module(f"visualbert_core.detector.{module}"), function)
    detector, notes = load(source)
    detector.save_pretrained(target)
    return "\n".join(map(printable, [f"{source} → {target} ({name})", *notes]))
