"""Decode the images of a corpus, and read the boxes that lie beside them.

Owns the only function of the library that decodes an image. A bad file raises `DecodeError`, which the caller turns
into a failure row of that image. A file that cannot be reached raises `OSError`, which no caller turns into a row: a
disk that is not mounted must not look like a million bad images.

Pillow is the only decoder. torchvision.io, TorchCodec and simplejpeg are faster, but they wrap the same libjpeg-turbo
and give the same pixels for ordinary JPEGs. They would save a third of the two milliseconds that an image takes. A
detector takes seconds per image on a CPU; on a GPU it takes five milliseconds, while many cores decode. With one
decoder, pixels do not depend on the packages that are installed, and odd files take the same path as ordinary files.
A table in docs/features.md says what each kind of odd file becomes.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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

_LARGEST_METADATA = 1 << 26  # bytes of a JSON file with boxes; a file of VCR has a few thousand


class DecodeError(ValueError):
    """The bytes of an image, or of its boxes, cannot be used.

    The same bytes always give the same message, because the message becomes part of a store.
    """


def image_shape(image: Image) -> tuple[int, int]:
    """Return (H, W) in pixels from the file's header, without decoding the pixels. Raise DecodeError or OSError."""
    with _file(image) as file, _blame(_name(image)):
        width, height = _open(file).size
    return height, width


def address(image: Image) -> str:
    """Return where an image lies, for messages."""
    if image.row is not None:
        return f"{image.path} row {image.row}"
    return image.path if image.size is None else f"{image.path} at byte {image.start}"


def _name(image: Image) -> str:
    """Return `address` without the folder. A store keeps it, and must not depend on where its images lie."""
    return PurePosixPath(address(image)).name


def fetch(images: Sequence[Image]) -> list[Image]:
    """Return the same images; those in tables and object stores have their bytes in `data`.

    An image without bytes has the reason in `trouble`. Where a row of a table holds a path in place of bytes, the image
    is the file at that path. Each table is read in one pass, and all objects are requested at once. Raise OSError where
    a table or an object cannot be read.
    """
    tables: dict[tuple[str, str | None], set[int]] = {}
    for image in images:
        if image.row is not None:
            tables.setdefault((image.path, image.column), set()).add(image.row)
    cells: dict[tuple[str, str | None, int | None], Cell] = {}
    for (path, column), rows in tables.items():
        cells |= {(path, column, row): cell for row, cell in read_rows(path, rows, column)}
    placed = [i if i.row is None else _placed(i, cells[i.path, i.column, i.row]) for i in images]
    objects = [image.path for image in placed if _is_unread_file(image) and is_address(image.path)]
    answers = dict(zip(objects, storage.gather(lambda address: location(address).read_bytes(), objects), strict=True))
    return [replace(i, data=answers[i.path]) if _is_unread_file(i) and i.path in answers else i for i in placed]


def _is_unread_file(image: Image) -> bool:
    """Return whether an image is a whole file or object that has not been read yet."""
    return image.size is None and image.row is None and image.data is None and image.trouble is None


def _placed(image: Image, cell: Cell) -> Image:
    """Return an image of a table with its bytes, as the file at the path in its row, or with the trouble it has."""
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
        return replace(image, trouble=f"{lacks} is an address of an unsupported kind")
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL character in the path
        tried = "" if whole else " in the table's folder"
        return replace(image, trouble=f"{lacks} is not there{tried}")
    if found is not None:
        return replace(image, trouble=f"{lacks} is {found}")
    return replace(image, path=str(place), row=None, column=None)


def _object_kind(place: UPath) -> str | None:
    """Return why an object cannot be an image; None where it can be one."""
    return None if place.stat().st_size <= LARGEST_IMAGE else f"larger than {LARGEST_IMAGE:,} bytes"


def identify(image: Image) -> tuple[str, tuple[int, int] | None]:
    """Return the digest (xxh3-128) of the file's bytes, and (W, H) from its header or None where no header can be read.

    Raise DecodeError where there are no bytes, OSError where the file cannot be read.
    """
    data, size = _bytes(image), None
    with suppress(DecodeError), _blame(_name(image)):  # `read_image` says later what is wrong with these bytes
        size = _open(BytesIO(data)).size
    return xxhash.xxh3_128_hexdigest(data), size


def read_image(image: Image) -> tuple[np.ndarray, str]:
    """Return the pixels, uint8 [H, W, 3] RGB, and the digest (xxh3-128) of the file's bytes.

    Raise DecodeError where the bytes are not an image, are cut short, or are of a kind that is refused. Raise OSError
    where the file cannot be read.
    """
    data = _bytes(image)
    if lfs.is_pointer(data):
        raise DecodeError(f"{_name(image)} is {lfs.REASON}")
    with _blame(_name(image)):
        pixels = to_pixels(_open(BytesIO(data)))
    return pixels, xxhash.xxh3_128_hexdigest(data)


def to_pixels(picture: Pillow.Image) -> np.ndarray:
    """Return the pixels of a Pillow image, uint8 [H, W, 3] RGB. Raise DecodeError for samples of 32 bits."""
    return np.array(_rgb(picture))


def read_boxes(path: str | Path) -> np.ndarray:
    """Read the boxes of a VCR metadata file, {"boxes": [[x1, y1, x2, y2, …], …], "width": W, "height": H, …}.

    Return float32 [R, 4] xyxy in pixels. Region 0 is the whole image [0, 0, W, H], and object i is region i + 1.
    Raise DecodeError where the file is missing or malformed, OSError where it cannot be read.
    """
    return _metadata(path)[1]


def read_objects(path: str | Path, classes: Sequence[str]) -> GivenObjects:
    """Read the boxes, classes and outlines of a VCR metadata file.

    Besides the keys that `read_boxes` reads, the file has "names": [class, …] and "segms": [[polygon, …], …], where a
    polygon is [[x, y], …]. A label is the index of the object's name in `classes`. The whole image has label 0.

    Raise DecodeError where the file is missing or malformed, or has a name that is not in `classes`. Raise OSError
    where the file cannot be read.
    """
    record, boxes = _metadata(path)
    width, height = boxes[0, 2:].tolist()
    with _blame_metadata(path):
        names = [str(name) for name in record["names"]]
        outlines = [[np.array(polygon, np.float64) for polygon in outline] for outline in record["segms"]]
    file = Path(path).name
    if not len(names) == len(outlines) == len(boxes) - 1:
        found = f"{len(boxes) - 1} boxes, {len(names)} names and {len(outlines)} segms"
        raise DecodeError(f"{file} has {found}: each object needs one of each")
    if any(p.shape[1:] != (2,) or not np.isfinite(p).all() for outline in outlines for p in outline):
        raise DecodeError(f"{file} has segms that are not polygons of finite points")
    if unknown := sorted(set(names) - set(classes)):
        raise DecodeError(f"{file} names {unknown[0]!r}, which is not a class of the detector")
    labels = np.array([0, *map(list(classes).index, names)], np.int16)
    whole = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    return GivenObjects(boxes, labels, ((whole,), *map(tuple, outlines)))


def _metadata(path: str | Path) -> tuple[Any, np.ndarray]:
    """Return a metadata record and its boxes, float32 [R, 4] xyxy; row 0 is the whole image."""
    with _blame_metadata(path):
        with _opened(path, _LARGEST_METADATA) as file:
            data = file.read(_LARGEST_METADATA)
        if lfs.is_pointer(data):
            raise DecodeError(f"{Path(path).name} is {lfs.REASON}")
        record = json.loads(data)
        objects = [box[:4] for box in record["boxes"]]  # VCR writes the detector's score as a fifth number
        boxes = np.array([[0, 0, record["width"], record["height"]], *objects], np.float32)
    if boxes.shape[1:] != (4,) or not np.isfinite(boxes).all():
        raise DecodeError(f"{Path(path).name} has boxes that are not four finite numbers")
    return record, boxes


@contextmanager
def _blame_metadata(path: str | Path) -> Iterator[None]:
    """Turn an error about the content of a metadata file into DecodeError; let other OSErrors through."""
    try:
        yield
    except DecodeError:
        raise
    except FileNotFoundError as error:
        raise DecodeError(f"{Path(path).name} is missing: it must hold the boxes of its image") from error
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DecodeError(f"{Path(path).name} is not a VCR metadata file: {error!r}") from error
    except RecursionError:  # its text depends on the depth of the caller, so it is left out of the message
        raise DecodeError(f"{Path(path).name} is not a VCR metadata file: it is nested too deeply") from None


def _file(image: Image) -> IO[bytes]:
    """Open the bytes of an image; only the header of a whole file on a disk is read by a caller that needs no more."""
    on_disk = _is_unread_file(image) and not is_address(image.path)
    return _opened(image.path) if on_disk else BytesIO(_bytes(image))


def _bytes(image: Image) -> bytes:
    if image.trouble is not None:
        raise DecodeError(f"{_name(image)} {image.trouble}")
    if image.data is None and (image.row is not None or is_address(image.path)):
        return _bytes(*fetch([image]))
    data = _read(image) if image.data is None else image.data
    _check_size(len(data), _name(image))
    if not data:
        raise DecodeError(f"{_name(image)} is empty: it is not an image")
    return data


def _read(image: Image) -> bytes:
    whole = image.size is None
    with _opened(image.path, LARGEST_IMAGE if whole else None) as file:
        size = os.fstat(file.fileno()).st_size if image.size is None else image.size
        _check_size(size, _name(image))
        file.seek(image.start)
        return file.read(size)


def _check_size(size: int, where: str, limit: int = LARGEST_IMAGE) -> None:
    if size > limit:
        raise DecodeError(f"{where} has {size:,} bytes, more than the limit of {limit:,}")


def _opened(path: str | Path, limit: int | None = LARGEST_IMAGE) -> BinaryIO:
    """Open a file on a disk. Raise DecodeError where it has more than `limit` bytes or is not a regular file.

    A name that is not a regular file is never opened: a pipe would wait for its writer, and a device may never end.
    """
    path = Path(path)
    found = storage.kind(path)
    if found == storage.NOWHERE:  # the listing of the corpus finds links to nothing, so a new one means a lost disk
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    if found is not None:
        raise DecodeError(f"{path.name} is {found}, not a file")
    if limit is not None:
        _check_size(path.stat().st_size, path.name, limit)
    return storage.open_file(path)


def _open(file: IO[bytes]) -> Pillow.Image:
    """Open an image by its header. Raise DecodeError where it has more pixels than Pillow's limit."""
    picture = Pillow.open(file, formats=FORMATS)
    # Pillow raises an error at twice its limit only; below that it warns.
    if Pillow.MAX_IMAGE_PIXELS and picture.width * picture.height > Pillow.MAX_IMAGE_PIXELS:
        raise DecodeError(
            f"{picture.width} × {picture.height} pixels exceed Pillow's limit of {Pillow.MAX_IMAGE_PIXELS:,}"
        )
    return picture


def _rgb(picture: Pillow.Image) -> Pillow.Image:
    """Convert an image to 8-bit RGB. Raise DecodeError for samples of 32 bits."""
    # Some versions of Pillow open a PNG of 16 bits as mode I.
    deep = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG")
    if picture.mode in ("I", "F") and not deep:
        raise DecodeError(f"{picture.format} with 32-bit samples does not say what is white: save it with 8 bits")
    if deep:  # convert("RGB") would clip samples at 255; the upper 8 bits keep the picture
        picture = Pillow.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return picture.convert("RGB")


@contextmanager
def _blame(where: str) -> Iterator[None]:
    """Turn an error of a decoder into DecodeError; let errors of the operating system and of memory through."""
    try:
        yield
    except (DecodeError, MemoryError):
        raise
    except UnidentifiedImageError as error:  # its text holds a memory address, so it would differ between runs
        raise DecodeError(f"{where} is not an image in one of the formats {', '.join(FORMATS)}") from error
    except Exception as error:
        # Pillow raises OSError without an errno for broken data; one with an errno comes from the operating system.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DecodeError(f"{where}: {type(error).__name__}: {error}") from error
