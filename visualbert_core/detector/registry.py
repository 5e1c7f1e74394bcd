"""The registry of detectors: it opens a detector folder with the class that the `builder` in `config.json` names.

Classes are imported on demand, so that opening one detector does not load the others.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from visualbert_core.detector.base import Detector
from visualbert_core.errors import CheckpointError, ConfigError
from visualbert_core.io.documents import read_json

_BUILDERS = {
    "vg_c4": ("vg_c4", "VgC4"),
    "pythia_fpn": ("fpn", "FPNDetector"),
    "detectron_fpn": ("fpn", "FPNDetector"),
    "r2c_resnet50": ("r2c_resnet50", "R2CDetector"),
}
"""`builder` → module and class. `TorchvisionRCNN` opens every other builder."""


def load_detector(folder: str | Path, device: str | None = None, precision: str = "float32") -> Detector:
    """Open a detector folder (`config.json` and `model.safetensors`) on `device` (default: CUDA where there is one).

    The `builder` in `config.json` names the detector. Its network computes in `precision`, float32 or bfloat16. Raise
    CheckpointError with the file that is missing or does not fit. Raise ConfigError for any other precision.
    """
    try:
        config = read_json(Path(folder) / "config.json")
    except ConfigError as error:
        raise CheckpointError(f"{folder}: not a detector folder: {error}") from error
    builder = config.get("builder") if isinstance(config, dict) else None
    module, name = _BUILDERS.get(str(builder), ("torchvision_rcnn", "TorchvisionRCNN"))
    kind = getattr(import_module(f"{__package__}.{module}"), name)
    detector: Detector = kind.from_pretrained(folder, device, precision)
    return detector
