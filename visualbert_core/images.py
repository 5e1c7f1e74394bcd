"""How an image of a corpus becomes pixels, and the boxes that come with it.

Owns the one decode function of the library. A bad file is that image's failure (`DecodeError`), which the caller turns
into a row; a file that cannot be reached is not (`OSError` goes through as it is): a broken mount must never look like
a million bad images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
import xxhash
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from visualbert_core.schema import Image


class DecodeError(ValueError):
    """The bytes of this image, or of the boxes that come with it, cannot be used; the message is deterministic."""


def image_shape(image: Image) -> tuple[int, int]:
    """(H, W) in pixels from the file's header, without decoding it. Raises DecodeError, OSError."""
    with Path(image.path).open("rb") as file, _blame(image.path):
        width, height = _open(file if image.size is None else BytesIO(_bytes(image))).size
    return height, width


def read_image(image: Image) -> tuple[np.ndarray, str]:
    """The pixels, uint8 [H, W, 3] RGB, and the digest (xxh3-128) of the file's bytes.

    The stored grid is what boxes refer to, so EXIF orientation is ignored, as in the detectors' own scripts (but for
    TIFF, which Pillow turns itself). Grey, palette and CMYK images become RGB, 16 bits their upper 8, alpha is
    dropped, of an animation the first frame counts.

    Raises DecodeError for bytes that are no image, cut short, or larger than Pillow's decompression-bomb limit, and
    OSError where the file cannot be read.
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
    try:
        record = json.loads(Path(path).read_bytes())
        objects = [box[:4] for box in record["boxes"]]
        boxes = np.array([[0, 0, record["width"], record["height"]], *objects], np.float32)
    except FileNotFoundError as error:
        raise DecodeError(f"{Path(path).name} with its boxes is missing") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DecodeError(f"{Path(path).name} is not a VCR metadata file: {error!r}") from error
    if boxes.shape[1:] != (4,) or not np.isfinite(boxes).all():
        raise DecodeError(f"{Path(path).name} has boxes that are not four finite numbers")
    return boxes


def _bytes(image: Image) -> bytes:
    with Path(image.path).open("rb") as file:
        file.seek(image.start)
        return file.read(-1 if image.size is None else image.size)


def _open(file: IO[bytes]) -> Pillow.Image:
    picture = Pillow.open(file)
    # Pillow itself only warns up to twice its limit.
    if Pillow.MAX_IMAGE_PIXELS and picture.width * picture.height > Pillow.MAX_IMAGE_PIXELS:
        raise DecodeError(f"{picture.width} × {picture.height} pixels are more than Pillow's limit")
    return picture


def _rgb(picture: Pillow.Image) -> Pillow.Image:
    if picture.mode.startswith("I"):  # 16 bits; convert("RGB") would clip them at 255
        upper = np.asarray(picture).clip(0, 65535) >> 8
        picture = Pillow.fromarray(upper.astype(np.uint8))
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
