"""A detector's folder: `config.json` (a frozen dataclass) beside `model.safetensors` (a network's state dict).

Owns how it is read, checked against the network and written; what the config means belongs to each detector.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from visualbert_core.config import from_mapping, read_json
from visualbert_core.errors import CheckpointError, ConfigError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

T = TypeVar("T")


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
