"""One picture of the page: a small JPEG inside the document, and boxes drawn over it.

Boxes are drawn by the browser in pixels of the original image, so they stay sharp and are never part of the JPEG.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from PIL import Image as Pillow

from visualbert_core.images import DecodeError, read_image
from visualbert_core.report.markup import Html, tag
from visualbert_core.schema import Image, Regions

LONGEST_SIDE = 256  # pixels
COLOURS = 6  # .c0 … .c5 of style.py
_QUALITY = 80
_MANY = 16  # boxes; from here on they are drawn fainter, or nothing would be left to see


@dataclass(frozen=True)
class Box:
    """A box to draw. `kind` is region, object, answer or gold; `colour` is counted round."""

    corners: Sequence[float]  # xyxy, original pixels
    kind: str
    colour: int | None = None
    label: str = ""
    depth: int = 0
    """How many boxes in the same place are drawn before this one: it is drawn so much smaller, to be seen as well."""


def picture(image: Image | None, regions: Regions, boxes: Sequence[Box], alt: str) -> Html:
    """The image of `regions` with `boxes` over it; an empty frame that says why where it cannot be shown."""
    try:
        if image is None:
            raise FileNotFoundError("its file is not known here")
        source = _thumbnail(image)
    except (DecodeError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        content = tag("span", f"{regions.image_id} cannot be shown: {why}", class_="missing")
    else:
        content = tag("img", src=source, alt=alt, width=regions.width, height=regions.height)
    overlay = tag(
        "svg",
        # Numbers last, on top of every box.
        *(_outline(box, regions) for box in boxes),
        *(_label(box, regions) for box in boxes if box.label),
        viewBox=f"0 0 {regions.width} {regions.height}",
        preserveAspectRatio="none",
        aria_hidden="true",
        class_="many" if len(boxes) > _MANY else None,
    )
    return tag("div", content, overlay, class_="picture", style=f"aspect-ratio:{regions.width}/{regions.height}")


def colour_class(colour: int) -> str:
    """The class that paints text and boxes of one colour."""
    return f"c{colour % COLOURS}"


def _thumbnail(image: Image) -> str:
    pixels, _ = read_image(image)
    small = Pillow.fromarray(pixels)
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Pillow.Resampling.LANCZOS)
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _outline(box: Box, regions: Regions) -> Html:
    inset = box.depth * _text_size(regions) / 4
    x1, y1, x2, y2 = (float(corner) + sign * inset for corner, sign in zip(box.corners, (1, 1, -1, -1), strict=True))
    place = {"x": f"{x1:.1f}", "y": f"{y1:.1f}", "width": f"{max(x2 - x1, 0):.1f}", "height": f"{max(y2 - y1, 0):.1f}"}
    # A wider white line underneath keeps the box visible on any picture.
    return tag("g", tag("rect", **place, class_="casing"), tag("rect", **place), class_=_classes(box))


def _label(box: Box, regions: Regions) -> Html:
    """Above the box, so as not to hide what is in it; inside where the picture ends."""
    size = _text_size(regions)
    x, y = max(float(box.corners[0]), 2) + box.depth * size, float(box.corners[1])
    y += -0.3 * size if y > size else size
    return tag("text", box.label, x=f"{x:.1f}", y=f"{y:.1f}", font_size=f"{size:.1f}", class_=_classes(box))


def _text_size(regions: Regions) -> float:
    return max(regions.width, regions.height) / 18


def _classes(box: Box) -> str:
    return box.kind if box.colour is None else f"{box.kind} {colour_class(box.colour)}"
