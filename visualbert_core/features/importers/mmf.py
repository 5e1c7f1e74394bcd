"""Read what MMF's extract_features_*.py write: a folder of .npy files, or an LMDB that lmdb_conversion.py made from it.

Owns these two layouts (facebookresearch/mmf, tools/scripts/features).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from visualbert_core.errors import ConfigError, InputError
from visualbert_core.features.importers.sources import (
    FolderSource,
    MalformedError,
    Place,
    Source,
    floats,
    npy,
    refuse_pointer,
    unpickle,
    whole,
)
from visualbert_core.provenance import digest_file
from visualbert_core.schema import Regions


class NpySource(FolderSource):
    """Read a folder of NAME.npy and NAME_info.npy."""

    suffix = ".npy"

    def records(self) -> Iterator[tuple[str, Place]]:
        return (record for record in super().records() if not record[0].endswith("_info"))

    def read(self, image_id: str, place: Place) -> Regions:
        path = self.path / str(place)
        info = path.with_name(f"{path.stem}_info.npy")
        if not info.exists():
            raise MalformedError(f"{info.name} is missing: it must hold the boxes")
        return _mmf(image_id, npy(whole(path), path.name), npy(whole(info), info.name))


class LmdbSource(Source):
    """Read an LMDB of pickled records. The key `keys` holds the list of the other keys, and is skipped."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = path / "data.mdb" if path.is_dir() else path
        refuse_pointer(self._file)

    def records(self) -> Iterator[tuple[str, Place]]:
        with _environment(self.path).begin() as transaction:
            for key in transaction.cursor().iternext(values=False):
                name = bytes(key).decode(errors="backslashreplace")
                if name != "keys":
                    yield name.rpartition("/")[2], bytes(key).hex()  # a key may be a path; a place must be text

    def digest(self) -> str:
        return digest_file(self._file)

    def read(self, image_id: str, place: Place) -> Regions:
        with _environment(self.path).begin() as transaction:
            record = unpickle(transaction.get(bytes.fromhex(str(place))))
        if not isinstance(record, dict) or "features" not in record:
            raise MalformedError("it is not a record of features")
        return _mmf(image_id, record["features"], record)


@lru_cache
def _environment(path: Path) -> Any:
    """Open an LMDB, which a process may open only once."""
    try:
        import lmdb
    except ImportError as error:
        raise ConfigError(f"{path} needs the lmdb package: pip install lmdb") from error
    try:
        return lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise InputError(f"{path} is not an LMDB: {error}") from error


def _mmf(image_id: str, features: Any, info: Any) -> Regions:
    """Make a row of a record.

    `cls_prob` is [R, classes] from extract_features_vmb.py and [R] from extract_features_frcnn.py; the score is the
    largest probability.
    """
    if isinstance(info, np.ndarray) and info.shape == ():
        info = info.item()
    if not isinstance(info, dict) or not isinstance(features, np.ndarray) or features.ndim != 2:
        raise MalformedError("the record must have features [R, D] and a dictionary beside them")
    try:
        boxes = np.asarray(info["bbox"], np.float32)
        labels, scores = info.get("objects"), info.get("cls_prob")
        labels = np.full(len(boxes), -1) if labels is None else np.asarray(labels, np.int64)
        scores = np.full(len(boxes), np.nan) if scores is None else np.asarray(scores, np.float32)
        width, height = int(info["image_width"]), int(info["image_height"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise MalformedError(f"{type(error).__name__}: {error}") from None
    if scores.ndim == 2:
        scores = scores.max(axis=1, initial=0.0)
    return Regions(image_id, width, height, boxes, labels, scores, floats(features), "")
