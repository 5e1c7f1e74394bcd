"""A detector's folder: `config.json` (a frozen dataclass) beside `model.safetensors` (a network's state dict).

Owns how it is read, checked against the network and written, and what all detectors made of one do alike; what the
config means belongs to each detector.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from visualbert_core.config import from_mapping
from visualbert_core.detector.inference import checked
from visualbert_core.documents import read_json
from visualbert_core.errors import CheckpointError, ConfigError
from visualbert_core.provenance import digest_file
from visualbert_core.schema import Names

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

T = TypeVar("T")


class FolderConfig(Protocol):
    """What every `config.json` says."""

    @property
    def builder(self) -> str:
        """Which detector it is."""

    @property
    def space(self) -> str:
        """Name of the feature space."""


Network = TypeVar("Network", bound=nn.Module)
Config = TypeVar("Config", bound=FolderConfig)


class FolderDetector(ABC, Generic[Network, Config]):
    """A `detector.Detector` that is opened from its folder and saved as it was loaded; how it answers is its own."""

    config_class: ClassVar[type[Any]]

    def __init__(
        self, model: Network, config: Config, weights_digest: str, device: str | None, precision: str = "float32"
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.precision = checked(precision)
        self.model = model.eval()
        self.config = config
        self.space = config.space
        self.feature_size = self._feature_size()
        self._weights_digest = weights_digest

    @staticmethod
    @abstractmethod
    def empty(config: Config) -> Network:
        """The network of a config, untrained; maybe on the meta device."""

    @abstractmethod
    def _feature_size(self) -> int: ...

    @property
    @abstractmethod
    def names(self) -> Names:
        """See `detector.Naming`."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | None = None, precision: str = "float32") -> Self:
        """Open a detector folder. Raises CheckpointError naming what is missing or does not fit."""
        folder = Path(folder)
        config, state = read_folder(folder, cls.config_class)
        model = cls.empty(config)
        load_weights(model, state, folder / WEIGHTS_FILE, f"builder {config.builder!r}")
        return cls(model, config, digest_file(folder / WEIGHTS_FILE), device, precision)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the folder that `from_pretrained` reads, floating-point weights stored as `dtype`."""
        write_folder(Path(folder), self.config, self.model.state_dict(), dtype)


def read_folder(folder: Path, config_class: type[T]) -> tuple[T, dict[str, Tensor]]:
    """The config and the weights in float32. Raises CheckpointError naming what is missing or cannot be read."""
    path = folder / CONFIG_FILE
    try:
        config = from_mapping(config_class, read_json(path), where=str(path))
        state = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
    except (ConfigError, FileNotFoundError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: not a detector folder: {error}") from error
    return config, state


def write_folder(folder: Path, config: Any, state: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
    """Write what `read_folder` reads, floating-point weights stored as `dtype`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = _without_counters(state)
    save_file({k: v.to(dtype).contiguous().cpu() for k, v in weights.items()}, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def load_weights(network: nn.Module, state: dict[str, Tensor], source: Path, what: str) -> None:
    """Put `state` into `network`, which may be on the meta device.

    Raises CheckpointError with `source`, `what` it should be, and the tensors that do not fit.
    """
    every = network.state_dict()
    expected, found = _without_counters(every), _without_counters(state)
    missing = [f"missing {k}" for k in expected.keys() - found.keys()]
    unknown = [f"unknown {k}" for k in found.keys() - expected.keys()]
    shaped = [
        f"{k} is {list(found[k].shape)}, not {list(expected[k].shape)}"
        for k in expected.keys() & found.keys()
        if found[k].shape != expected[k].shape
    ]
    if wrong := sorted(missing + unknown + shaped):
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise CheckpointError(f"{source}: does not fit {what}: {'; '.join(wrong[:5])}{more}")
    counters = {name: torch.zeros((), dtype=torch.long) for name in every.keys() - expected.keys()}
    network.load_state_dict(found | counters, assign=True)


def _without_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what batch norms count while they train, which some files have and no forward reads."""
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
