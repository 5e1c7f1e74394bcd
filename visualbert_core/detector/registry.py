"""The registry of detectors: opens a detector folder by the `builder` of its `config.json`."""

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
"""`builder` of a folder's config.json → module, class; any other is a builder of torchvision's."""


def load_detector(folder: str | Path, device: str | None = None, precision: str = "float32") -> Detector:
    """Open a detector folder (`config.json` + `model.safetensors`) on `device` (default: CUDA where there is one).

    Its `builder` says which detector it is; `precision` (float32 or bfloat16) is what its network computes in. Raises
    CheckpointError naming the file that is missing or does not fit, ConfigError for another precision.
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
