"""Finds and reads the weight files of a checkpoint: a folder or a Hub id, one file or shards, safetensors or torch.

Owns the files, not the meaning of their keys. An index may name only files in its own folder, so a downloaded
checkpoint cannot read outside its folder. It cannot run code either (see `io.weights`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from visualbert_core.errors import CheckpointError
from visualbert_core.io.documents import read_json
from visualbert_core.io.hub import HUB_ID, snapshot
from visualbert_core.io.weights import load
from visualbert_core.models.visualbert.config import CONFIG_FILE
from visualbert_core.provenance import digest_file, digest_files

SAFETENSORS_FILE = "model.safetensors"
TORCH_FILE = "pytorch_model.bin"
INDEX = ".index.json"
WEIGHTS = (SAFETENSORS_FILE, SAFETENSORS_FILE + INDEX, TORCH_FILE, TORCH_FILE + INDEX)
"""The names of weight files, the preferred one first."""

_CONVERT = "visualbert convert checkpoint IN OUT"
_BESIDE = (CONFIG_FILE, "visualbert_core.json", "vocab.txt", "tokenizer.json", "answers.txt")


def checkpoint_folder(source: str | Path, revision: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """Return the folder `source`, or the snapshot of the Hub id `source` ("name/name") in Hugging Face's cache.

    Only the files that a VisualBERT reads are downloaded. Torch files are downloaded only if there is no safetensors
    file. With HF_HUB_OFFLINE nothing is downloaded, and the cache must hold the files. Raise CheckpointError if there
    is no such folder and no such snapshot.
    """
    if Path(source).is_dir():
        return Path(source)
    if Path(source).exists():
        raise CheckpointError(f"{source}: is a file; `{_CONVERT}` makes a checkpoint folder of an original .th file")
    if not HUB_ID.fullmatch(str(source)):
        raise CheckpointError(f"{source}: no such folder, and not a Hub id (name/name)")
    return snapshot(str(source), revision, cache_dir, _BESIDE)


def weights_file(folder: str | Path) -> Path:
    """Return the file with the weights, or the index of their shards. Raise CheckpointError if there is neither."""
    for name in WEIGHTS:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise CheckpointError(f"{folder}: neither {SAFETENSORS_FILE} nor {TORCH_FILE} is there")


def weights_digest(folder: str | Path) -> str:
    """Return the xxh3-128 digest of the bytes of the weights, for provenance. Shards give one digest together."""
    path = weights_file(folder)
    if path.name.endswith(INDEX):
        return digest_files(sorted({path.parent / name for name in _shards(path).values()}))
    return digest_file(path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a weights file, or of all shards of an index.

    Floating-point tensors become float32 and are copied into memory. Raise CheckpointError if a file is damaged or a
    shard contradicts the index.
    """
    if not path.name.endswith(INDEX):
        return _read(path)
    shard_of = _shards(path)
    found: dict[str, Tensor] = {}
    for name in sorted(set(shard_of.values())):
        held = _read(path.parent / name)
        listed = {key for key, shard in shard_of.items() if shard == name}
        if differing := sorted(held.keys() ^ listed):
            raise CheckpointError(
                f"{path.parent / name}: the shard and {path.name} do not list the same weights: {shown(differing)}; "
                "download both again"
            )
        found |= held
    return found


def shown(names: list[str], limit: int = 6) -> str:
    """Join names into one line, at most `limit` of them."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def _shards(index: Path) -> Mapping[str, str]:
    """Read the `weight_map` of an index: key → name of a file in the same folder.

    Raise CheckpointError if it names anything else, or if a file is missing.
    """
    found = read_json(index, CheckpointError)
    weight_map = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map must map every weight to its file")
    suffix = Path(index.name.removesuffix(INDEX)).suffix
    for name in weight_map.values():
        # A plain name cannot lead out of the folder of the index. Symbolic links are allowed: the Hub's cache has them.
        if not isinstance(name, str) or not re.fullmatch(rf"\w[\w.-]*{re.escape(suffix)}", name, re.ASCII):
            raise CheckpointError(f"{index}: a shard must be the plain name of a {suffix} file, got {name!r}")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index}: the shard {name} is missing")
    return weight_map


def _read(path: Path) -> dict[str, Tensor]:
    found = load(path)
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path}: must hold named tensors and nothing else")
    # Both readers map the file into memory. A copy keeps the weights valid if the file is replaced later.
    return {
        key: value.to(torch.float32, copy=True) if value.is_floating_point() else value for key, value in found.items()
    }
