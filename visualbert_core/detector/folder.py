"""The detector folder: `config.json` (a frozen dataclass) beside `model.safetensors` (the network's state dict).

This file reads the folder, checks it against the network, and writes it. It also owns what all detectors with a folder
do in the same way. Each detector owns the meaning of its config. The methods `from_pretrained` and `save_pretrained`
have Hugging Face's names.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from visualbert_core.config_mapping import from_mapping
from visualbert_core.detector.base import Detection
from visualbert_core.detector.inference import PRECISIONS, Columns, cast_to_bfloat16, detect_in_slices, prepare
from visualbert_core.detector.weight_loading import read_weights
from visualbert_core.errors import CheckpointError, ConfigError, InputError, first_line
from visualbert_core.io.documents import brief, read_json
from visualbert_core.io.weights import blocks, unbuilt, without_numbers
from visualbert_core.provenance import digest_file
from visualbert_core.schema import LabelNames

LONGEST_SIDE = 10_000
"""The longest side, in pixels, to which a config may resize images. With longer sides one image takes gigabytes."""
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

_NAMES = ("labels", "attributes")  # keys of a config that hold names; a name changes no feature

# What torch and torchvision raise where they cannot build a network with the given sizes and arguments.
_UNBUILDABLE = (TypeError, ValueError, RuntimeError, AttributeError, LookupError, OverflowError, AssertionError)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """What every `config.json` states."""

    builder: str
    """Name of the detector; `registry.py` finds its class by this name."""
    space: str
    """Name of the feature space. Evaluation refuses a checkpoint that was trained in a different space."""


Network = TypeVar("Network", bound=nn.Module)
Config = TypeVar("Config", bound=FolderConfig)


class FolderDetector(ABC, Generic[Network, Config]):
    """A `detector.Detector` that lives in a folder. A subclass adds the network and the recipe."""

    config_class: ClassVar[type[Any]]
    stages: ClassVar[tuple[str, ...]] = ()
    """Where `config.blocks` counts residual blocks: how the names of the weights of each stage begin."""

    def __init__(
        self, model: Network, config: Config, weights_digest: str, device: str | None, precision: str = "float32"
    ) -> None:
        if precision not in PRECISIONS:
            raise ConfigError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.precision = precision
        self.model = model.eval()
        self.config = config
        self.space = config.space
        self.feature_size = self._feature_size()
        self._weights_digest = weights_digest

    @staticmethod
    @abstractmethod
    def empty(config: Config) -> Network:
        """Return the untrained network of a config."""

    @abstractmethod
    def _feature_size(self) -> int: ...

    @abstractmethod
    def recipe(self) -> dict[str, Any]:
        """Return what changes a feature and stands neither in the config nor in the weights, for the fingerprint."""

    @staticmethod
    @abstractmethod
    def bfloat16_parts(network: Network) -> Sequence[Sequence[nn.Module]]:
        """Return what may compute in bfloat16: chains of modules that run one after another."""

    @abstractmethod
    def _detect(self, pixels_BHWC: Tensor, given: Any) -> Sequence[Columns]:
        """Return the regions of some images, uint8 on the device. `given` are their boxes, or None."""

    @property
    def names(self) -> LabelNames:
        """See `detector.HasLabelNames`."""
        return LabelNames(*(getattr(self.config, key, ()) for key in _NAMES))

    def fingerprint(self) -> dict[str, Any]:
        """See `detector.Detector`."""
        return {
            **{key: value for key, value in asdict(self.config).items() if key not in _NAMES},
            # float32 has no entry, so that stores from before bfloat16 keep their fingerprint.
            **({} if self.precision == "float32" else {"precision": self.precision}),
            **self.recipe(),
            "feature_size": self.feature_size,
            "weights": self._weights_digest,
            "dtype": "float16",
            "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        }

    def detect(self, images: Sequence[np.ndarray], boxes: Sequence[np.ndarray] | None = None) -> list[Detection]:
        """See `detector.Detector`. Raise ValueError for images of different shapes."""
        return detect_in_slices(self._detect, self.device, images, boxes)

    @cached_property
    def _ready(self) -> Network:
        """The network on the device, for inference only."""
        network = prepare(self.model, self.device)
        for part in self.bfloat16_parts(network) if self.precision == "bfloat16" else ():
            cast_to_bfloat16(*part)
        return network

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | None = None, precision: str = "float32") -> Self:
        """Open a detector folder. Raise CheckpointError with what is missing or does not fit."""
        folder = Path(folder)
        path, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
        try:
            config = from_mapping(cls.config_class, read_json(path), where=str(path))
            state = read_weights(weights)
        except (ConfigError, CheckpointError) as error:
            raise CheckpointError(f"{folder}: not a detector folder: {error}") from error
        # Building a layer takes time even without memory, so their numbers are compared before.
        if cls.stages and config.blocks != (held := blocks(state, *cls.stages)):
            raise CheckpointError(f"{path}: blocks is {brief(list(config.blocks))}, the weights have {list(held)}")
        try:
            with unbuilt():  # a network of absurd sizes takes no memory, and `load_weights` refuses it
                model = cls.empty(config)
        except (InputError, *_UNBUILDABLE) as error:
            raise CheckpointError(f"{path}: {first_line(error)}") from error
        load_weights(model, state, weights, f"builder {config.builder!r}")
        return cls(model, config, digest_file(weights), device, precision)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the folder that `from_pretrained` reads. Store floating-point weights as `dtype`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = without_counters(self.model.state_dict())
        save_file({k: v.to(dtype).contiguous().cpu() for k, v in weights.items()}, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps(asdict(self.config), indent=2) + "\n")


def check_colours(config: object, *names: str) -> None:
    """Raise ConfigError where a key does not hold three numbers, one for each colour.

    The numbers of `std` must be positive, because pixels are divided by them.
    """
    for name in names:
        values = getattr(config, name)
        if len(values) != 3 or (name == "std" and min(values) <= 0):
            what = "three positive numbers" if name == "std" else "three numbers"
            raise ConfigError(f"{name} is {brief(list(values))}: it must be {what}, one for each colour")


def load_weights(network: nn.Module, state: Mapping[str, Tensor], source: Path, what: str) -> None:
    """Put `state`, read from `source`, into `network`, which may be on the meta device.

    Raise CheckpointError where names, shapes or types of the tensors do not fit. It lists the first five faults, and
    calls the network `what`.
    """
    every = network.state_dict()
    expected, found = without_counters(every), without_counters(state)
    wrong = [f"missing {k}" for k in expected.keys() - found.keys()]
    wrong += [f"unknown {k}" for k in found.keys() - expected.keys()]
    wrong += [
        f"{k} is {list(found[k].shape)}, not {list(expected[k].shape)}"
        for k in expected.keys() & found.keys()
        if found[k].shape != expected[k].shape
    ]
    wrong += [f"{each} instead of floating-point numbers" for each in without_numbers(found)]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise CheckpointError(f"{source}: does not fit {what}: {'; '.join(sorted(wrong)[:5])}{more}")
    # `load_state_dict` is strict and asks for the counters, too.
    counters = {name: torch.zeros((), dtype=torch.long) for name in every.keys() - found.keys()}
    network.load_state_dict(found | counters, assign=True)


def without_counters(state: Mapping[str, T]) -> dict[str, T]:
    """Leave out the batch counters of batch norms, which only training reads.

    Some published files have them (Hugging Face's, not detectron2's).
    """
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
