"""Where the weights are: a folder or a Hub id, in one file or in shards, as safetensors or as torch wrote them.

Owns finding and reading weight files, never what their keys mean. An index may only name files that lie beside it, so
that a downloaded checkpoint can as little reach outside as it can run code (`weights`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from visualbert_core.errors import CheckpointError, first_line
from visualbert_core.io.documents import read_json
from visualbert_core.io.weights import load, shapes
from visualbert_core.models.visualbert.config import CONFIG_FILE
from visualbert_core.provenance import digest_file, digest_files

SAFETENSORS_FILE = "model.safetensors"
TORCH_FILE = "pytorch_model.bin"
INDEX = ".index.json"
WEIGHTS = (SAFETENSORS_FILE, SAFETENSORS_FILE + INDEX, TORCH_FILE, TORCH_FILE + INDEX)
"""In order of preference."""

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_CONVERT = "visualbert convert checkpoint IN OUT"
_BESIDE = (CONFIG_FILE, "visualbert_core.json", "vocab.txt", "tokenizer.json", "answers.txt")


def checkpoint_folder(source: str | Path, revision: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """The folder `source`, or else the snapshot of the Hub id `source` ("name/name") in Hugging Face's cache.

    Of a Hub id only what a VisualBERT reads is downloaded, torch files only where there is no safetensors; under
    HF_HUB_OFFLINE nothing is, and the cache must have it. Raises CheckpointError where there is neither.
    """
    if Path(source).is_dir():
        return Path(source)
    if Path(source).exists():
        raise CheckpointError(f"{source}: is a file; `{_CONVERT}` makes a checkpoint folder of an original .th file")
    if not _HUB_ID.fullmatch(str(source)):
        raise CheckpointError(f"{source}: no such folder, and not a Hub id (name/name)")
    folder = _snapshot(str(source), revision, cache_dir, [*_BESIDE, "model*.safetensors", WEIGHTS[1]])
    if any((folder / name).is_file() for name in WEIGHTS[:2]):
        return folder
    # By its commit: the branch may have moved since.
    return _snapshot(str(source), folder.name, cache_dir, ["pytorch_model*.bin", WEIGHTS[3]])


def _snapshot(hub_id: str, revision: str | None, cache_dir: str | Path | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, revision=revision, cache_dir=cache_dir, allow_patterns=patterns))
    except Exception as error:  # noqa: BLE001  (the errors of its HTTP library have no common, lasting base)
        why = first_line(error)
        raise CheckpointError(f"{hub_id}: no such folder, and not to be had from the Hub ({why})") from None


def weights_file(folder: str | Path) -> Path:
    """The file with the weights or the index of its shards. Raises CheckpointError if there is none."""
    for name in WEIGHTS:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise CheckpointError(f"{folder}: neither {SAFETENSORS_FILE} nor {TORCH_FILE} is there")


def weights_digest(folder: str | Path) -> str:
    """xxh3-128 of the weights' bytes, for provenance; shards give one digest together."""
    path = weights_file(folder)
    if path.name.endswith(INDEX):
        return digest_files(sorted({path.parent / name for name in _shards(path).values()}))
    return digest_file(path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Every tensor of a weights file, or of all shards of an index, floating ones as float32 in memory of their own.

    Raises CheckpointError.
    """
    if not path.name.endswith(INDEX):
        return _read(path)
    shard_of = _shards(path)
    found: dict[str, Tensor] = {}
    for name in sorted(set(shard_of.values())):
        held = _read(path.parent / name)
        listed = {key for key, shard in shard_of.items() if shard == name}
        if differing := sorted(held.keys() ^ listed):
            raise CheckpointError(f"{path.parent / name}: {path.name} says otherwise of {shown(differing)}")
        found |= held
    return found


def weight_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that `read_weights` would read, without reading any. Raises CheckpointError."""
    if not path.name.endswith(INDEX):
        return shapes(path)
    files = sorted(set(_shards(path).values()))
    return {key: shape for name in files for key, shape in shapes(path.parent / name).items()}


def shown(names: list[str], limit: int = 6) -> str:
    """A list of names in one line."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def _shards(index: Path) -> Mapping[str, str]:
    """The `weight_map` of an index: key → name of a file in the same folder."""
    found = read_json(index, CheckpointError)
    weight_map = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map must map every weight to its file")
    suffix = Path(index.name.removesuffix(INDEX)).suffix
    for name in weight_map.values():
        # A plain name, so that an index cannot lead out of its folder; links are fine, the Hub's cache is made of them.
        if not isinstance(name, str) or not re.fullmatch(rf"\w[\w.-]*{re.escape(suffix)}", name, re.ASCII):
            raise CheckpointError(f"{index}: a shard must be the plain name of a {suffix} file, got {name!r}")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index}: the shard {name} is missing")
    return weight_map


def _read(path: Path) -> dict[str, Tensor]:
    found = load(path)
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path}: must hold named tensors and nothing else")
    # copy: both readers map the file, and weights must survive its replacement.
    return {
        key: value.to(torch.float32, copy=True) if value.is_floating_point() else value for key, value in found.items()
    }
