"""Pictures of the page: small JPEGs inside the document, and the places of the boxes over them.

The browser draws the boxes in pixels of the original image. They stay sharp, and are never part of the JPEG. A `Sheet`
holds the pictures that many figures show: each is in the document once, and all share a limit of bytes.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any, Self

from PIL import Image as Pillow

from visualbert_core.corpus.images import DecodeError, read_image
from visualbert_core.schema import Image, Regions

COLOURS = 6  # .c0 … .c5 of static/page.css
_LADDER = ((256, 80), (256, 65), (224, 60), (192, 55), (160, 50), (128, 45), (96, 35), (64, 30))
"""(longest side, JPEG quality), tried in turn until a picture fits its share of the bytes."""
_MANY = 16  # boxes; more of them are drawn fainter, because they would hide the picture
_FRAME = (4, 3)  # width and height of a picture whose size is not known


@dataclass(frozen=True)
class Box:
    """A box to draw. `kind` is region, object, answer or gold. `colour` is any number; colours repeat."""

    corners: Sequence[float]  # x1, y1, x2, y2 in pixels of the original image
    kind: str
    colour: int | None = None
    label: str = ""
    depth: int = 0
    """How many boxes in the same place are drawn before this one. It is drawn smaller, so that all can be seen."""
    below: bool = False
    """Write the label under the box: two boxes with the same corner then both show their labels."""


@dataclass(frozen=True)
class Thumbnail:
    """A JPEG as a data: address with the (width, height) of its original image; or why there is none."""

    source: str = ""
    size: tuple[int, int] | None = None
    why: str = ""

    @classmethod
    def of(cls, image: Image | None, limit: float = float("inf")) -> Self:
        """Make the best JPEG of at most `limit` bytes; if none fits, the smallest."""
        if image is None:
            return cls(why="its file is not known here")
        try:
            pixels, _ = read_image(image)
        except (DecodeError, OSError) as error:
            return cls(why=error.strerror if isinstance(error, OSError) and error.strerror else str(error))
        encoded = base64.b64encode(_jpeg(Pillow.fromarray(pixels), limit)).decode()
        return cls(f"data:image/jpeg;base64,{encoded}", (pixels.shape[1], pixels.shape[0]))


@dataclass(frozen=True)
class Sheet:
    """Pictures and their regions. Each is in the page once, and figures refer to it by its id."""

    thumbnails: dict[Image | None, tuple[str, Thumbnail]]
    """Image → id of its element, and the thumbnail. A tar or a table holds many images under one path."""
    outlines: dict[str, str]
    """The regions of a picture as one SVG path → id of its element."""

    @classmethod
    def of(cls, shown: Sequence[tuple[Image | None, Regions | None]], byte_limit: int) -> Self:
        """Make a sheet of all these pictures. Each gets an equal share of `byte_limit`."""
        images: dict[Image, Regions | None] = {}
        for image, regions in shown:
            if image is not None:
                images.setdefault(image, regions)
        share = byte_limit // max(1, len(images))
        thumbnails: dict[Image | None, tuple[str, Thumbnail]] = {None: ("", Thumbnail.of(None))}
        for number, (image, regions) in enumerate(images.items()):
            thumbnail = Thumbnail.of(image, share)
            if regions is not None:  # boxes are in pixels of the file that the detector read; its size may have changed
                thumbnail = replace(thumbnail, size=(regions.width, regions.height))
            thumbnails[image] = f"picture-{number}", thumbnail
        paths = dict.fromkeys(_path(regions) for _, regions in shown if regions is not None)
        return cls(thumbnails, {path: f"regions-{number}" for number, path in enumerate(paths)})


def colour_class(colour: int) -> str:
    """Return the CSS class that paints text and boxes in one colour."""
    return f"c{colour % COLOURS}"


def picture(
    name: str,
    image_id: str,
    image: Image | None,
    regions: Regions | None,
    boxes: Sequence[Box],
    sheet: Sheet | None = None,
    outlined: bool = False,
) -> dict[str, Any]:
    """Return an image with `boxes` over it. `name` is for readers who do not see it, such as "left picture".

    With a `sheet`, `source` is the id of the picture there. Its regions are drawn too if `outlined`.
    """
    element, thumbnail = sheet.thumbnails[image] if sheet else ("", Thumbnail.of(image))
    outlines = sheet.outlines[_path(regions)] if sheet and regions and outlined else ""
    size = (regions.width, regions.height) if regions else thumbnail.size
    width, height = size or _FRAME
    placed = [_placed(box, width, height) for box in boxes] if size else []
    drawn = regions.num_regions if regions and outlines else 0
    return {
        "name": name,
        "image_id": image_id,
        "width": width,
        "height": height,
        "source": element if sheet and thumbnail.source else thumbnail.source,
        "why": thumbnail.why,
        "boxes": placed,
        "outlines": outlines,
        "regions": drawn,
        "many": max(len(placed), drawn) > _MANY,
    }


def _jpeg(pixels: Pillow.Image, limit: float) -> bytes:
    for side, quality in _LADDER:
        pixels.thumbnail((side, side), Pillow.Resampling.LANCZOS)
        buffer = BytesIO()
        pixels.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= limit:
            break
    return buffer.getvalue()


def _path(regions: Regions) -> str:
    """Return the boxes as one SVG path, in whole pixels."""
    return "".join(
        f"M{x1:.0f} {y1:.0f}H{x2:.0f}V{y2:.0f}H{x1:.0f}z" for x1, y1, x2, y2 in regions.boxes.astype(float).tolist()
    )


def _placed(box: Box, width: int, height: int) -> dict[str, Any]:
    """Return a box and its label as they are drawn, in pixels of the original image. `kind` holds CSS classes."""
    size = max(width, height) / 18
    inset = box.depth * size / 4
    x1, y1, x2, y2 = (float(corner) + sign * inset for corner, sign in zip(box.corners, (1, 1, -1, -1), strict=True))
    label_x, label_y = _label_place(box, size, width, height)
    return {
        "kind": box.kind if box.colour is None else f"{box.kind} {colour_class(box.colour)}",
        "x": x1,
        "y": y1,
        "width": max(x2 - x1, 0),
        "height": max(y2 - y1, 0),
        "label": box.label,
        "label_x": label_x,
        "label_y": label_y,
        "label_size": size,
    }


def _label_place(box: Box, size: float, width: int, height: int) -> tuple[float, float]:
    """Return where a label starts: over its box, or under it."""
    x1, y1, x2, y2 = map(float, box.corners)
    if not box.below:  # at the top of the picture it starts inside the box
        return max(x1, 2) + box.depth * size, y1 + (-0.3 * size if y1 > size else size)
    if y2 + 1.2 * size < height:
        return x1, y2 + size
    wide = 0.7 * size * len(box.label)  # at the bottom of the picture it starts beside the box
    return (x2 + 0.3 * size if x2 + wide < width else max(x1 - wide, 0)), y2
