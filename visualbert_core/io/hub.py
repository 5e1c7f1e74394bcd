"""Checkpoints on the Hugging Face Hub: a Hub id becomes the folder of its snapshot in Hugging Face's cache.

The cache is a folder `models--OWNER--NAME/snapshots/COMMIT`, so a snapshot's path says where it comes from. Weights are
downloaded as safetensors, and as torch files only where there are no others; no file that holds code is downloaded
(huggingface.co/docs/huggingface_hub, "Manage your cache").
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from visualbert_core.errors import CheckpointError, first_line

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

INGREDIENT = None

Config = TypeVar("Config", bound="DataclassInstance")

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_BARE_ID = re.compile(r"\w[\w.-]*", re.ASCII)
"""An id of the Hub's first models, which have no owner, such as bert-base-uncased."""
_SNAPSHOT = re.compile(r".*/models--([^/]+)/snapshots/([0-9a-f]{40})")
_TEXT = ("*.json", "*.txt", "*.jinja", "tokenizer.model")
_SAFE = ("model*.safetensors", "model.safetensors.index.json")
_TORCH = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


def snapshot(
    hub_id: str, revision: str | None = None, cache_dir: str | Path | None = None, beside: Sequence[str] = _TEXT
) -> Path:
    """Return the folder with the weights of a Hub id and the files `beside` them, and download what is not there.

    With HF_HUB_OFFLINE nothing is downloaded, and the cache must hold the files. Raise CheckpointError where there is
    no such id, or no connection.
    """
    folder = _download(hub_id, revision, cache_dir, [*beside, *_SAFE])
    if any(folder.glob(_SAFE[0])) or (folder / _SAFE[1]).is_file():
        return folder
    # folder.name is the commit. By the branch name, the second download could get a newer commit than the first.
    return _download(hub_id, folder.name, cache_dir, list(_TORCH))


def with_folder(config: Config) -> Config:
    """Replace a Hub id in `model` of a configuration by the folder of its snapshot. A folder that exists stays.

    Raise CheckpointError where the Hub has no such model or cannot be reached.
    """
    model: Any = config.model  # type: ignore[attr-defined]
    text = str(model)
    if Path(model).exists() or not (HUB_ID.fullmatch(text) or _BARE_ID.fullmatch(text)):
        return config
    return replace(config, model=snapshot(text))


def hub_origin(folder: Path) -> dict[str, str] | None:
    """Return the Hub id and the commit of a snapshot in Hugging Face's cache, or None for another folder."""
    found = _SNAPSHOT.fullmatch(folder.as_posix())
    return None if found is None else {"id": found[1].replace("--", "/", 1), "commit": found[2]}


def checkpoint_name(folder: Path) -> str:
    """Return the name of a checkpoint: that of its folder, or the last word of its Hub id."""
    origin = hub_origin(folder)
    return folder.name if origin is None else origin["id"].rpartition("/")[2]


def _download(hub_id: str, revision: str | None, cache_dir: str | Path | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, revision=revision, cache_dir=cache_dir, allow_patterns=patterns))
    except Exception as error:  # noqa: BLE001  (the errors of its HTTP library have no common, lasting base)
        why = first_line(error)
        raise CheckpointError(f"{hub_id}: no such folder, and cannot be downloaded from the Hub ({why})") from None
