"""Read what MILVLG's bottom-up-attention.pytorch writes: a folder with one NAME.npz per image.

Owns this layout: the names of the arrays, and which versions of the program write features as [R, D] or [D, R].
"""

from __future__ import annotations

import io
import zipfile
import zlib
from typing import Any

import numpy as np

from visualbert_core.features.importers.sources import FolderSource, MalformedError, Place, floats, npy, whole
from visualbert_core.schema import Regions

_LARGEST = 1 << 28  # bytes of an unpacked array; 100 boxes of 2048 features take under 1 MB


class NpzSource(FolderSource):
    """Read a folder of NAME.npz, with `x`, `bbox`, `num_bbox`, `image_h`, `image_w` and sometimes `info`."""

    suffix = ".npz"

    def read(self, image_id: str, place: Place) -> Regions:
        path = self.path / str(place)
        arrays = _npz(whole(path), path.name)
        try:
            boxes = np.asarray(arrays["bbox"], np.float32)
            width, height, count = (int(arrays[name]) for name in ("image_w", "image_h", "num_bbox"))
            info = arrays["info"].item() if isinstance(arrays.get("info"), np.ndarray) else arrays.get("info")
            info = info if isinstance(info, dict) else {}
            labels = np.asarray(info.get("objects_id", np.full(len(boxes), -1)), np.int64)
            scores = np.asarray(info.get("objects_conf", np.full(len(boxes), np.nan)), np.float32)
            both = "attrs_id" in info and "attrs_conf" in info  # the store has attributes with scores or not at all
            attributes = np.asarray(info["attrs_id"], np.int64) if both else None
            attribute_scores = np.asarray(info["attrs_conf"], np.float32) if both else None
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise MalformedError(f"{path.name}: {type(error).__name__}: {error}") from None
        if count != len(boxes):
            raise MalformedError(f"{path.name}: num_bbox is {count}, but there are {len(boxes)} boxes")
        features = _rows(arrays.get("x"), count, path.name)
        return Regions(
            *(image_id, width, height, boxes, labels, scores, features, ""),
            attributes=attributes,
            attribute_scores=attribute_scores,
        )


def _rows(x: Any, count: int, name: str) -> np.ndarray:
    """Return features as [R, D] float32; some versions of the program write [D, R]. Raise MalformedError."""
    if not isinstance(x, np.ndarray) or x.ndim != 2 or count not in x.shape:
        shape = x.shape if isinstance(x, np.ndarray) else None
        raise MalformedError(f"{name}: x has shape {shape}, but there are {count} boxes")
    if x.shape[0] == x.shape[1]:
        raise MalformedError(f"{name}: x has shape {x.shape}, so either side may be the boxes")
    return floats(x if x.shape[0] == count else x.T)


def _npz(data: bytes, name: str) -> dict[str, Any]:
    """Read the arrays of an .npz file, by name. Raise MalformedError."""
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.infolist():
                if member.file_size > _LARGEST:
                    raise MalformedError(
                        f"{name}: {member.filename} has {member.file_size:,} bytes, more than the limit of {_LARGEST:,}"
                    )
                array = member.filename.removesuffix(".npy")
                arrays[array] = npy(archive.read(member), f"{name}: {array}")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise MalformedError(f"{name}: {error}") from None
    return arrays
