"""How an image of a corpus becomes pixels, and the boxes that come with it.

Owns the one decode function of the library. A bad file is that image's failure (`DecodeError`), which the caller turns
into a row; a file that cannot be reached is not (`OSError` goes through as it is): a broken mount must never look like
a million bad images.

Pillow is the only decoder. Those that are faster (torchvision.io, TorchCodec, simplejpeg) wrap the same libjpeg-turbo,
give the same pixels of ordinary JPEGs and save a third of two milliseconds, where a detector takes seconds of a CPU or
five milliseconds of a GPU beside which many cores decode. For that, pixels are not to depend on what is installed, nor
odd files to take another path than ordinary ones. What becomes of odd files is a table in docs/features.md.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

import numpy as np
import xxhash
from PIL import Image as Pillow
from PIL import UnidentifiedImageError
from upath import UPath

from visualbert_core.corpus.parquet_images import Cell, read_rows
from visualbert_core.errors import ConfigError
from visualbert_core.io import lfs, storage
from visualbert_core.io.locations import is_address, location
from visualbert_core.schema import LARGEST_IMAGE, GivenObjects, Image

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")

_LARGEST_METADATA = 1 << 26  # bytes of a JSON file of boxes; VCR's have some thousands


class DecodeError(ValueError):
    """The bytes of this image, or of the boxes that come with it, cannot be used; the message is deterministic."""


def image_shape(image: Image) -> tuple[int, int]:
    """(H, W) in pixels from the file's header, without decoding it. Raises DecodeError, OSError."""
    with _file(image) as file, _blame(name(image)):
        width, height = _open(file).size
    return height, width


def name(image: Image) -> str:
    """What a message calls the place where an image lies; it holds no folder, as it is kept in stores."""
    file = PurePosixPath(image.path).name
    if image.row is not None:
        return f"{file} row {image.row}"
    return file if image.size is None else f"{file} at byte {image.start}"


def fetch(images: Sequence[Image]) -> list[Image]:
    """The same images, those in tables and object stores with their `data`, or the `trouble` why there are none: a
    table's in one pass, objects at once. An image whose row holds a path in place of bytes is the file of that path.

    Raises OSError where they cannot be read."""
    tables: dict[tuple[str, str | None], set[int]] = {}
    for image in images:
        if image.row is not None:
            tables.setdefault((image.path, image.column), set()).add(image.row)
    cells: dict[tuple[str, str | None, int | None], Cell] = {}
    for (path, column), rows in tables.items():
        cells |= {(path, column, row): cell for row, cell in read_rows(path, rows, column).items()}
    placed = [i if i.row is None else _placed(i, cells[i.path, i.column, i.row]) for i in images]
    objects = [image.path for image in placed if _is_object(image)]
    answers = dict(zip(objects, storage.gather(_object, objects), strict=True)) if objects else {}
    return [replace(image, data=answers[image.path]) if _is_object(image) else image for image in placed]


def _is_object(image: Image) -> bool:
    unread = image.row is None and image.data is None and image.trouble is None
    return unread and is_address(image.path)


def _object(address: str) -> bytes:
    return location(address).read_bytes()


def _placed(image: Image, cell: Cell) -> Image:
    """An image of a table with what its row holds."""
    if isinstance(cell, bytes):
        return replace(image, data=cell)
    if cell is None:
        return replace(image, trouble="has neither bytes nor a path")
    lacks = f"has no bytes, and its path {cell!r}"
    whole = is_address(cell) or Path(cell).is_absolute()
    try:
        place = location(cell) if whole else location(image.path).parent / cell
        found = storage.kind(place) if isinstance(place, Path) else _object_kind(place)
    except ConfigError:
        return replace(image, trouble=f"{lacks} is an address that is not read")
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: NUL, which no path has
        tried = "" if whole else " in the table's folder"
        return replace(image, trouble=f"{lacks} is not there{tried}")
    if found is not None:
        return replace(image, trouble=f"{lacks} is {found}")
    return replace(image, path=str(place), row=None, column=None)


def _object_kind(place: UPath) -> str | None:
    size = storage.size(place)
    if size is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(place))
    return None if size <= LARGEST_IMAGE else f"larger than {LARGEST_IMAGE:,} bytes"


def identify(image: Image) -> tuple[str, tuple[int, int] | None]:
    """Return the digest (xxh3-128) of the file's bytes, and (W, H) by its header; None for no image that can be read.

    Raises DecodeError where there are no bytes, OSError where the file cannot be read.
    """
    data = _bytes(image)
    try:
        with _blame(name(image)):
            size = _open(BytesIO(data)).size
    except DecodeError:  # decoding will say what is wrong with it
        return xxhash.xxh3_128_hexdigest(data), None
    return xxhash.xxh3_128_hexdigest(data), size


def image_digest(image: Image) -> str:
    """The digest (xxh3-128) of the file's bytes. Raises OSError and DecodeError as `read_image` does."""
    return xxhash.xxh3_128_hexdigest(_bytes(image))


def read_image(image: Image) -> tuple[np.ndarray, str]:
    """The pixels, uint8 [H, W, 3] RGB, and the digest (xxh3-128) of the file's bytes.

    Raises DecodeError for bytes that are no image, cut short, or of a kind that is refused, and OSError where the file
    cannot be read.
    """
    data = _bytes(image)
    if lfs.is_pointer(data):
        raise DecodeError(f"{name(image)} is {lfs.REASON}")
    with _blame(name(image)):
        pixels = np.array(_rgb(_open(BytesIO(data))))
    return pixels, xxhash.xxh3_128_hexdigest(data)


def read_boxes(path: str | Path) -> np.ndarray:
    """Boxes of a VCR metadata file, {"boxes": [[x1, y1, x2, y2, …], …], "width": W, "height": H, …}.

    Returns float32 [R, 4] xyxy in pixels: region 0 is the whole image [0, 0, W, H], object i is region i + 1.
    Raises DecodeError where the file is missing or malformed, OSError where it cannot be read.
    """
    return _boxes(_metadata(path), path)


def read_objects(path: str | Path, classes: Sequence[str]) -> GivenObjects:
    """Boxes, classes and outlines of a VCR metadata file: as above, and "names": [class, …], "segms": [[polygon, …], …]
    with polygons [[x, y], …]. A label is the index of the name in `classes`, that of the whole image is 0.

    Raises DecodeError as above, and for a name that is not among `classes`.
    """
    record = _metadata(path)
    boxes = _boxes(record, path)
    width, height = boxes[0, 2:].tolist()
    with _blame_metadata(path):
        names = [str(name) for name in record["names"]]
        outlines = [[np.array(polygon, np.float64) for polygon in outline] for outline in record["segms"]]
    if not len(names) == len(outlines) == len(boxes) - 1:
        found = f"{len(boxes) - 1} boxes, {len(names)} names and {len(outlines)} segms"
        raise DecodeError(f"{Path(path).name} has {found}: each object needs one of each")
    if any(p.shape[1:] != (2,) or not np.isfinite(p).all() for outline in outlines for p in outline):
        raise DecodeError(f"{Path(path).name} has segms that are not polygons of finite points")
    if unknown := sorted(set(names) - set(classes)):
        raise DecodeError(f"{Path(path).name} names {unknown[0]!r}, which is no class of the detector")
    labels = np.array([0, *map(list(classes).index, names)], np.int16)
    whole = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    return GivenObjects(boxes, labels, ((whole,), *map(tuple, outlines)))


def _boxes(record: Any, path: str | Path) -> np.ndarray:
    with _blame_metadata(path):
        objects = [box[:4] for box in record["boxes"]]
        boxes = np.array([[0, 0, record["width"], record["height"]], *objects], np.float32)
    if boxes.shape[1:] != (4,) or not np.isfinite(boxes).all():
        raise DecodeError(f"{Path(path).name} has boxes that are not four finite numbers")
    return boxes


def _metadata(path: str | Path) -> Any:
    with _blame_metadata(path):
        with _opened(path, _LARGEST_METADATA) as file:
            data = file.read(_LARGEST_METADATA)
        if lfs.is_pointer(data):
            raise DecodeError(f"{Path(path).name} is {lfs.REASON}")
        return json.loads(data)


@contextmanager
def _blame_metadata(path: str | Path) -> Iterator[None]:
    try:
        yield
    except DecodeError:
        raise
    except FileNotFoundError as error:
        raise DecodeError(f"{Path(path).name} with its boxes is missing") from error
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DecodeError(f"{Path(path).name} is not a VCR metadata file: {error!r}") from error
    except RecursionError:  # whose text depends on where it struck
        raise DecodeError(f"{Path(path).name} is not a VCR metadata file: it is nested too deeply") from None


def _file(image: Image) -> IO[bytes]:
    """A whole file on a disk is not read for its header alone."""
    whole = image.size is None and image.row is None and image.data is None and image.trouble is None
    return _opened(image.path) if whole and not is_address(image.path) else BytesIO(_bytes(image))


def _bytes(image: Image) -> bytes:
    if image.trouble is not None:
        raise DecodeError(f"{name(image)} {image.trouble}")
    if image.data is None and (image.row is not None or is_address(image.path)):
        return _bytes(*fetch([image]))
    data = _read(image) if image.data is None else image.data
    _check_size(len(data), name(image))
    if not data:
        raise DecodeError(f"{name(image)} is empty, no image")
    return data


def _read(image: Image) -> bytes:
    whole = image.size is None
    with _opened(image.path, LARGEST_IMAGE if whole else None) as file:
        size = os.fstat(file.fileno()).st_size if image.size is None else image.size
        _check_size(size, name(image))
        file.seek(image.start)
        return file.read(size)


def _check_size(size: int, where: str, limit: int = LARGEST_IMAGE) -> None:
    if size > limit:
        raise DecodeError(f"{where} has {size:,} bytes, more than the {limit:,} that are read")


def _opened(path: str | Path, limit: int | None = LARGEST_IMAGE) -> BinaryIO:
    """A file on a disk of no more than so many bytes. What is no file is never opened: a pipe would wait for its
    writer, and a device need not end. A link that leads nowhere, and did not when the corpus was listed, is a disk that
    is gone, and so is not there."""
    path = Path(path)
    found = storage.kind(path)
    if found == storage.NOWHERE:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    if found is not None:
        raise DecodeError(f"{path.name} is {found}, not a file")
    if limit is not None:
        _check_size(path.stat().st_size, path.name, limit)
    return storage.open_file(path)


def _open(file: IO[bytes]) -> Pillow.Image:
    picture = Pillow.open(file, formats=FORMATS)
    # Pillow itself only warns up to twice its limit.
    if Pillow.MAX_IMAGE_PIXELS and picture.width * picture.height > Pillow.MAX_IMAGE_PIXELS:
        raise DecodeError(f"{picture.width} × {picture.height} pixels are more than Pillow's limit")
    return picture


def _rgb(picture: Pillow.Image) -> Pillow.Image:
    deep = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG")
    if picture.mode in ("I", "F") and not deep:
        raise DecodeError(f"{picture.format} of samples of 32 bits, of which nobody knows what is white")
    if deep:  # convert("RGB") would clip them at 255
        picture = Pillow.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return picture.convert("RGB")


@contextmanager
def _blame(where: str) -> Iterator[None]:
    """Turn whatever a decoder raises into DecodeError, and let the machine's own troubles through."""
    try:
        yield
    except (DecodeError, MemoryError):
        raise
    except UnidentifiedImageError as error:  # its own text holds a memory address
        raise DecodeError(f"{where} is no image that Pillow knows") from error
    except Exception as error:
        # Pillow raises bare OSErrors for broken data; one with an errno comes from the operating system.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DecodeError(f"{where}: {type(error).__name__}: {error}") from error
