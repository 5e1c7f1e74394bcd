"""The detector folder: `config.json` (a frozen dataclass) beside `model.safetensors` (the network's state dict).

This file reads the folder, checks it against the network, and writes it. It also owns what all detectors with a folder
do in the same way. Each detector owns the meaning of its config. The methods `from_pretrained` and `save_pretrained`
have Hugging Face's names.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from visualbert_core.config_mapping import from_mapping
from visualbert_core.detector.inference import validate_precision
from visualbert_core.errors import CheckpointError, ConfigError, InputError, first_line
from visualbert_core.io.documents import brief, read_json
from visualbert_core.io.weights import Shapes, load, shapes, without_numbers
from visualbert_core.provenance import digest_file
from visualbert_core.schema import LabelNames

LONGEST_SIDE = 10_000
"""The longest side, in pixels, to which a config may resize images. With longer sides one image takes gigabytes."""
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

# What torch and torchvision raise where they cannot build a network with the given sizes and arguments.
_UNBUILDABLE = (TypeError, ValueError, RuntimeError, AttributeError, LookupError, OverflowError, AssertionError)

T = TypeVar("T")


class FolderConfig(Protocol):
    """What every `config.json` states."""

    @property
    def builder(self) -> str:
        """Return the name of the detector; `registry.py` finds its class by this name."""

    @property
    def space(self) -> str:
        """Return the name of the feature space."""


Network = TypeVar("Network", bound=nn.Module)
Config = TypeVar("Config", bound=FolderConfig)


class FolderDetector(ABC, Generic[Network, Config]):
    """A `detector.Detector` that lives in a folder. A subclass adds the network, the fingerprint and `detect`."""

    config_class: ClassVar[type[Any]]

    def __init__(
        self, model: Network, config: Config, weights_digest: str, device: str | None, precision: str = "float32"
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.precision = validate_precision(precision)
        self.model = model.eval()
        self.config = config
        self.space = config.space
        self.feature_size = self._feature_size()
        self._weights_digest = weights_digest

    @staticmethod
    @abstractmethod
    def empty(config: Config) -> Network:
        """Return the untrained network of a config. It may be on the meta device, where it takes no memory."""

    @abstractmethod
    def _feature_size(self) -> int: ...

    @property
    @abstractmethod
    def names(self) -> LabelNames:
        """See `detector.HasLabelNames`."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | None = None, precision: str = "float32") -> Self:
        """Open a detector folder. Raise CheckpointError with what is missing or does not fit."""
        folder = Path(folder)
        config, weights = read_config(folder, cls.config_class), folder / WEIGHTS_FILE
        try:
            # The shapes come first: with them a config of absurd sizes is refused before its network takes memory.
            held = shapes(weights)
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: not a detector folder: {error}") from error
        try:
            cls.check_sizes(config, held)
            model = cls.empty(config)
        except (InputError, *_UNBUILDABLE) as error:
            raise CheckpointError(f"{folder / CONFIG_FILE}: {first_line(error)}") from error
        fits = f"builder {config.builder!r}"
        check_weights(model, held, weights, fits)
        load_weights(model, read_weights(weights), weights, fits)
        return cls(model, config, digest_file(weights), device, precision)

    @classmethod
    def check_sizes(cls, config: Config, held: Shapes) -> None:
        """Raise ConfigError where the config states more or fewer layers than the weights hold.

        This comes before the network is built, because building a layer takes time even on the meta device. All other
        sizes are compared after the network is built.
        """

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the folder that `from_pretrained` reads. Store floating-point weights as `dtype`."""
        write_folder(Path(folder), self.config, self.model.state_dict(), dtype)


def read_config(folder: Path, config_class: type[T]) -> T:
    """Read the folder's `config.json`. Raise CheckpointError with what is missing or cannot be read."""
    path = folder / CONFIG_FILE
    try:
        return from_mapping(config_class, read_json(path), where=str(path))
    except ConfigError as error:
        raise CheckpointError(f"{folder}: not a detector folder: {error}") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the weights, floating-point ones as float32. Raise CheckpointError where they cannot be read."""
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in load(path).items()}


def check_blocks(stated: tuple[int, ...], held: tuple[int, ...]) -> None:
    """Raise ConfigError where the config states other numbers of residual blocks than the weights hold."""
    if stated != held:
        raise ConfigError(f"blocks is {brief(list(stated))}, the weights have {list(held)}")


def check_colours(config: object, *names: str) -> None:
    """Raise ConfigError where a key does not hold three numbers, one for each colour.

    The numbers of `std` must be positive, because pixels are divided by them.
    """
    for name in names:
        values = getattr(config, name)
        if len(values) != 3 or (name == "std" and min(values) <= 0):
            what = "three positive numbers" if name == "std" else "three numbers"
            raise ConfigError(f"{name} is {brief(list(values))}: it must be {what}, one for each colour")


def write_folder(folder: Path, config: Any, state: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
    """Write what `read_config` and `read_weights` read. Store floating-point weights as `dtype`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = _without_counters(state)
    save_file({k: v.to(dtype).contiguous().cpu() for k, v in weights.items()}, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def check_weights(network: nn.Module, held: Shapes, source: Path, what: str) -> None:
    """Raise CheckpointError where names or shapes of the tensors `held` by `source` do not fit `network`.

    `what` names the network in the message. The message lists the first five faults.
    """
    expected, found = _without_counters(network.state_dict()), _without_counters(held)
    missing = [f"missing {k}" for k in expected.keys() - found.keys()]
    unknown = [f"unknown {k}" for k in found.keys() - expected.keys()]
    shaped = [
        f"{k} is {list(found[k])}, not {list(expected[k].shape)}"
        for k in expected.keys() & found.keys()
        if found[k] != tuple(expected[k].shape)
    ]
    _refuse(sorted(missing + unknown + shaped), source, what)


def load_weights(network: nn.Module, state: dict[str, Tensor], source: Path, what: str) -> None:
    """Put `state` into `network`, which may be on the meta device.

    Raise CheckpointError where `check_weights` does, and where a weight has an integer type.
    """
    check_weights(network, {name: tuple(tensor.shape) for name, tensor in state.items()}, source, what)
    found, every = _without_counters(state), network.state_dict()
    _refuse([f"{each} instead of floating-point numbers" for each in without_numbers(found)], source, what)
    # `load_state_dict` is strict and asks for the counters, too.
    counters = {name: torch.zeros((), dtype=torch.long) for name in every.keys() - found.keys()}
    network.load_state_dict(found | counters, assign=True)


def _refuse(wrong: list[str], source: Path, what: str) -> None:
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise CheckpointError(f"{source}: does not fit {what}: {'; '.join(wrong[:5])}{more}")


def _without_counters(state: Mapping[str, T]) -> dict[str, T]:
    """Leave out the batch counters of batch norms. Some files have them (Hugging Face's, not detectron2's).

    Only training reads them.
    """
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
