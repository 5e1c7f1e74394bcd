"""Read the HDF5 files that were made from bottom-up attention's TSV for VQA: `val36.hdf5` and `val36_imgid2idx.pkl`.

Owns this layout. A row of `image_features`, `image_bb` and `spatial_features` is one image. With `pos_boxes`, a row is
one box, and `pos_boxes` holds the rows [start, stop) of each image. The file has no sizes of images. They follow
from `spatial_features`, which are the boxes as parts of the image's sides (x1, y1, x2, y2, width, height). Where these
do not fit the boxes, each image gets the smallest size that holds its boxes, and a note says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from visualbert_core.errors import ConfigError, InputError
from visualbert_core.features.importers.sources import MalformedError, Place, Source, floats, refuse_pointer
from visualbert_core.io.safe_pickle import BROKEN, load_arrays
from visualbert_core.provenance import digest_file, digest_json
from visualbert_core.schema import Regions

# This text is a part of fingerprints: a change of it would move stores to other folders.
NO_SIZES = "the sizes of the images are not in it: the least that holds their boxes stands in for each"

_LOOK = 16  # images that are read to find out whether sizes follow
_SMALL = 8  # pixels; a smaller side means that the boxes are not in pixels


class Hdf5Source(Source):
    """Read NAME.hdf5 and NAME_imgid2idx.pkl beside it. Raise InputError where one of them is missing or malformed."""

    files = r"\.(hdf5|h5)$"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.ids_path = path.with_name(f"{path.stem}_imgid2idx.pkl")
        if not path.is_file():
            raise InputError(f"{path} is not a file: name the .hdf5 file")
        if not self.ids_path.is_file():
            raise InputError(f"{self.ids_path} is missing: it must say which row is which image")
        refuse_pointer(path)
        refuse_pointer(self.ids_path)
        file = _file(path)
        for name in ("image_features", "image_bb"):
            if name not in file:
                raise InputError(f"{path} has no {name}, only {', '.join(file) or 'nothing'}")
        self._rows = _ids(self.ids_path)
        self.sizes_known = self._has_sizes()
        self.notes = () if self.sizes_known else (NO_SIZES,)

    def records(self) -> Iterator[tuple[str, Place]]:
        for name, row in self._rows.items():
            yield name, (row,)

    def digest(self) -> str:
        return digest_json([[path.name, digest_file(path)] for path in (self.path, self.ids_path)])

    def read(self, image_id: str, place: Place) -> Regions:
        boxes, features, spatial = self._arrays(int(place[0]))
        size = _size(boxes, spatial) if self.sizes_known else _least(boxes)
        if size is None:
            raise MalformedError("spatial_features and image_bb do not agree on a size of the image")
        count = len(boxes)
        labels, scores = np.full(count, -1), np.full(count, np.nan)
        return Regions(image_id, *size, boxes.astype(np.float32), labels, scores, floats(features), "")

    def _arrays(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return the boxes, the features and the spatial features of one image."""
        file = _file(self.path)
        index: Any = row
        try:
            count = len(file["pos_boxes"] if "pos_boxes" in file else file["image_bb"])
            if not 0 <= row < count:
                raise MalformedError(f"its row is {row}, but the file has {count} rows")
            if "pos_boxes" in file:
                start, stop = map(int, file["pos_boxes"][row])
                index = slice(start, stop)
            boxes, features = np.asarray(file["image_bb"][index]), np.asarray(file["image_features"][index])
            spatial = np.asarray(file["spatial_features"][index]) if "spatial_features" in file else None
        except MalformedError:
            raise
        except (OSError, ValueError, TypeError, IndexError) as error:
            raise MalformedError(f"{type(error).__name__}: {error}") from None
        if boxes.ndim != 2 or boxes.shape[1] != 4 or features.ndim != 2:
            raise MalformedError(f"image_bb has shape {boxes.shape} and image_features {features.shape}, not [R, …]")
        return boxes, features, spatial

    def _has_sizes(self) -> bool:
        """Return whether a size follows for each of the first images that can be read."""
        for row in list(self._rows.values())[:_LOOK]:
            try:
                boxes, _, spatial = self._arrays(row)
            except MalformedError:
                continue
            if _size(boxes, spatial) is None:
                return False
        return True


def _size(boxes: np.ndarray, spatial: np.ndarray | None) -> tuple[int, int] | None:
    """Return the (width, height) that turns the spatial features into the boxes, or None where the boxes disagree."""
    if spatial is None or spatial.shape[-1] < 4 or len(spatial) != len(boxes):
        return None
    sides = []
    for axis in (2, 3):
        with np.errstate(all="ignore"):
            found = boxes[:, axis].astype(np.float64) / spatial[:, axis]
        found = found[(spatial[:, axis] > 0) & np.isfinite(found)]
        if not len(found) or np.ptp(found) > max(1.0, 0.01 * found.max()) or found.max() < _SMALL:
            return None
        side = float(np.median(found))
        # x1 or y1 may be 0, which gives no size. But x1 and y1 must fit the size that x2 and y2 give.
        apart = np.abs(boxes[:, axis - 2] - spatial[:, axis - 2] * side)
        if not (apart <= max(1.0, 0.01 * side)).all():
            return None
        sides.append(round(side))
    return sides[0], sides[1]


def _least(boxes: np.ndarray) -> tuple[int, int]:
    """Return (width, height) of the smallest image that holds the boxes."""
    far = np.nan_to_num(boxes, posinf=0, neginf=0).max(axis=0, initial=1.0)
    return int(np.ceil(max(far[0], far[2]))), int(np.ceil(max(far[1], far[3])))


def _ids(path: Path) -> dict[str, int]:
    """Read the row of each image id, in the order of the rows."""
    try:
        with path.open("rb") as file:
            found = load_arrays(file)
        rows = {name if isinstance(name, str) else str(int(name)): int(row) for name, row in found.items()}
    except BROKEN as error:
        raise InputError(f"{path} is not a dictionary from image ids to rows: {error}") from error
    return dict(sorted(rows.items(), key=lambda item: item[1]))


@lru_cache
def _file(path: Path) -> Any:
    """Open an HDF5 file, once per process."""
    try:
        import h5py
    except ImportError as error:
        raise ConfigError(f"{path} needs the h5py package: pip install h5py") from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path} is not an HDF5 file: {error}") from error
