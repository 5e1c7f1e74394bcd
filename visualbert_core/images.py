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

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from visualbert_core import storage
from visualbert_core.schema import GivenObjects, Image
from visualbert_core.tables import read_rows

INGREDIENT = "features"

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")


class DecodeError(ValueError):
    """The bytes of this image, or of the boxes that come with it, cannot be used; the message is deterministic."""


def image_shape(image: Image) -> tuple[int, int]:
    """(H, W) in pixels from the file's header, without decoding it. Raises DecodeError, OSError."""
    with _file(image) as file, _blame(image.path):
        width, height = _open(file).size
    return height, width


def fetch(images: Sequence[Image]) -> list[Image]:
    """The same images, those in tables and object stores with their `data`: a table's in one pass, objects at once.

    Raises OSError where they cannot be read."""
    rows: dict[str, set[int]] = {}
    for image in images:
        if image.row is not None:
            rows.setdefault(image.path, set()).add(image.row)
    found: dict[tuple[str, int | None], bytes] = {}
    for path, numbers in rows.items():
        found |= {(path, row): data for row, data in read_rows(path, numbers).items()}
    objects = [image.path for image in images if image.row is None and storage.url(image.path)]
    answers = storage.gather(storage.read, map(Path, objects)) if objects else []
    found |= {(path, None): data for path, data in zip(objects, answers, strict=True)}
    return [replace(image, data=found.get((image.path, image.row))) for image in images]


def image_digest(image: Image) -> str:
    """The digest (xxh3-128) of the file's bytes. Raises OSError where it cannot be read."""
    return xxhash.xxh3_128_hexdigest(_bytes(image))


def read_image(image: Image) -> tuple[np.ndarray, str]:
    """The pixels, uint8 [H, W, 3] RGB, and the digest (xxh3-128) of the file's bytes.

    Raises DecodeError for bytes that are no image, cut short, or of a kind that is refused, and OSError where the file
    cannot be read.
    """
    data = _bytes(image)
    with _blame(image.path):
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
        return json.loads(Path(path).read_bytes())


@contextmanager
def _blame_metadata(path: str | Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DecodeError(f"{Path(path).name} with its boxes is missing") from error
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DecodeError(f"{Path(path).name} is not a VCR metadata file: {error!r}") from error
    except RecursionError:  # whose text depends on where it struck
        raise DecodeError(f"{Path(path).name} is not a VCR metadata file: it is nested too deeply") from None


def _file(image: Image) -> IO[bytes]:
    """A whole file on a disk is not read for its header alone."""
    whole = image.size is None and image.row is None and image.data is None and not storage.url(image.path)
    return Path(image.path).open("rb") if whole else BytesIO(_bytes(image))


def _bytes(image: Image) -> bytes:
    if image.data is not None:
        return image.data
    if image.row is not None:
        return read_rows(image.path, [image.row])[image.row]
    if storage.url(image.path):
        return storage.read(Path(image.path))
    with Path(image.path).open("rb") as file:
        file.seek(image.start)
        return file.read(-1 if image.size is None else image.size)


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
def _blame(path: str) -> Iterator[None]:
    """Turn whatever a decoder raises into DecodeError, and let the machine's own troubles through."""
    try:
        yield
    except (DecodeError, MemoryError):
        raise
    except UnidentifiedImageError as error:  # its own text holds a memory address
        raise DecodeError(f"{Path(path).name} is no image that Pillow knows") from error
    except Exception as error:
        # Pillow raises bare OSErrors for broken data; one with an errno comes from the operating system.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DecodeError(f"{Path(path).name}: {type(error).__name__}: {error}") from error
