"""Opens checkpoint folders that Hugging Face transformers reads, without running code that a folder holds.

transformers is an extra of this package. Some of its defaults would change an answer silently: it computes in the
number format of the file, and it makes up weights that a folder lacks (seen in 5.23). Here the format is always named,
and a folder without a weight is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from visualbert_core.errors import CheckpointError, UnfinishedError, first_line
from visualbert_core.io.documents import read_json
from visualbert_core.provenance import digest_file, installed_version

T = TypeVar("T")
CONFIG_FILE = "config.json"
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LIBRARIES = ("transformers", "tokenizers", "torchvision", "pillow")
"""The libraries that prepare text and images."""
_READ = (".json", ".jinja", ".txt", ".model", ".safetensors", ".bin")
"""Endings of the files that transformers may read."""
_LAYER = re.compile(r"(?<=\.)[0-9]+(?=\.)")
"""The number of a layer in the name of a weight."""


def require_transformers(source: Path | str) -> None:
    """Make transformers log errors only. Raise CheckpointError where it is not installed to open the `source`."""
    try:
        import transformers
    except ImportError:
        raise CheckpointError(
            f"{source}: Hugging Face transformers runs this model and is not installed: pip install "
            "'visualbert-core[transformers]'"
        ) from None
    logs: Any = transformers.logging
    logs.set_verbosity_error()  # its INFO messages hold whole configurations
    logs.disable_progress_bar()


def read_config(folder: Path) -> dict[str, Any]:
    """Return the `config.json` of a folder.

    Raise CheckpointError if the folder wants its own code to be run, and if transformers is not installed.
    """
    require_transformers(folder)
    config = read_json(folder / CONFIG_FILE, CheckpointError)
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / CONFIG_FILE}: must be a JSON object")
    if "auto_map" in config:
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: auto_map: this checkpoint needs code from its folder to be run, which is never "
            "done: name a checkpoint of a model type that transformers has"
        )
    return config


def opened(folder: Path | str, what: str, read: Callable[[], T]) -> T:
    """Return what `read` reads of a folder. Raise CheckpointError, with `what` it is, where transformers raises."""
    try:
        return read()
    except (CheckpointError, UnfinishedError):  # a signal may end the job while a folder is read
        raise
    except Exception as error:  # noqa: BLE001  (its loaders raise errors of many libraries without a common base)
        raise CheckpointError(
            f"{folder}: {what} cannot be read ({type(error).__name__}: {first_line(error)})"
        ) from None


def load_network(
    kind: Any, folder: Path, precision: str, device: torch.device, unread: str | None = None, **settings: Any
) -> Any:
    """Return a network of the class `kind` with the weights of a folder, in evaluation mode.

    Raise CheckpointError where the folder lacks a weight of the network, holds one of another shape, or holds more
    layers. transformers would leave such layers out and say nothing. Weights whose names begin with `unread` may be
    missing, because no answer depends on them.
    """

    def read() -> Any:
        network, found = kind.from_pretrained(
            folder,
            dtype=PRECISIONS[precision],
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # its error would not name them
            **settings,
        )
        _check_weights(folder, network, found, unread)
        return network

    network = opened(folder, "the network", read)
    return network.eval().requires_grad_(False).to(device)


def _check_weights(folder: Path, network: Any, found: dict[str, Any], unread: str | None) -> None:
    """Raise CheckpointError where the weights are not those that the configuration describes.

    A weight that the network does not know may be a buffer of an older version, so only whole layers count.
    """
    missing = found["missing_keys"]
    if lacking := sorted(name for name in missing if unread is None or not name.startswith(unread)):
        raise CheckpointError(
            f"{folder}: the weights lack {few(lacking)}: it is not a checkpoint of {type(network).__name__}"
        )
    shapes = [f"{name} {list(held)} and not {list(wanted)}" for name, held, wanted in found["mismatched_keys"]]
    if shapes:
        raise CheckpointError(f"{folder}: the weights have other sizes than config.json says: {few(sorted(shapes))}")
    known = {_LAYER.sub("0", name) for name in network.state_dict()}
    if further := sorted(name for name in found["unexpected_keys"] if _LAYER.sub("0", name) in known):
        raise CheckpointError(f"{folder}: the weights have more layers than config.json says: {few(further)}")


def few(names: Sequence[str]) -> str:
    """Join names into one line, at most three of them."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def folder_fingerprint(folder: Path) -> dict[str, Any]:
    """Return the digests of all files that transformers may read, and the versions of the libraries that read them."""
    files = sorted(path for path in folder.iterdir() if path.suffix in _READ and path.is_file())
    return {
        "files": {path.name: digest_file(path) for path in files},
        "libraries": {name: installed_version(name) for name in LIBRARIES},
    }
