"""Pictures of the page: small JPEGs inside the document, and boxes drawn over them.

Boxes are drawn by the browser in pixels of the original image, so they stay sharp and are never part of the JPEG.
A `Sheet` holds pictures that many figures show: each is in the document once, and all of them in so many bytes.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from io import BytesIO

from PIL import Image as Pillow

from visualbert_core.images import DecodeError, read_image
from visualbert_core.report.markup import Html, tag
from visualbert_core.schema import Image, Regions

LONGEST_SIDE = 256  # pixels
COLOURS = 6  # .c0 … .c5 of style.py
_QUALITY = 80
_LADDER = ((256, 80), (256, 65), (224, 60), (192, 55), (160, 50), (128, 45), (96, 35), (64, 30))
"""(longest side, JPEG quality), tried in turn until a picture of a sheet has its share of the bytes."""
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
    below: bool = False
    """Write the label under the box, so that two boxes with one corner both have theirs."""


def picture(image: Image | None, regions: Regions, boxes: Sequence[Box], alt: str) -> Html:
    """The image of `regions` with `boxes` over it; an empty frame that says why where it cannot be shown."""
    source, why = _source(image, _jpeg)
    if source:
        content = tag("img", src=_data(source), alt=alt, width=regions.width, height=regions.height)
    else:
        content = _missing(regions, why)
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


class Sheet:
    """Pictures with their regions, once each in the page; figures refer to them. Add all before the first is shown."""

    def __init__(self, byte_limit: int) -> None:
        self._byte_limit = byte_limit
        self._images: dict[Image, Regions] = {}  # a path would not do: a tar or a table holds many
        self._outlines: dict[str, str] = {}
        self._why: dict[Image, str] = {}

    def add(self, image: Image | None, regions: Regions) -> None:
        """Twice the same does nothing."""
        if image is not None:
            self._images.setdefault(image, regions)
        self._outlines.setdefault(_outline_key(regions), f"regions-{len(self._outlines)}")

    @cached_property
    def _names(self) -> dict[Image, tuple[str, str]]:
        """image → (id, data) of the pictures that can be shown; of the others `_why` is filled."""
        share = self._byte_limit // max(1, len(self._images))
        found = {}
        for number, image in enumerate(self._images):
            source, why = _source(image, partial(_within, limit=share))
            if source:
                found[image] = f"picture-{number}", _data(source)
            else:
                self._why[image] = why
        return found

    def html(self) -> Html:
        """What the figures refer to: takes no room by itself."""
        images = [
            tag("image", id=name, href=data, width=r.width, height=r.height, preserveAspectRatio="none")
            for image, (name, data) in self._names.items()
            for r in [self._images[image]]
        ]
        outlines = [
            tag("path", id=name, d=path, vector_effect="non-scaling-stroke") for path, name in self._outlines.items()
        ]
        return tag("svg", tag("defs", *images, *outlines), class_="sheet", width="0", height="0", aria_hidden="true")

    def picture(self, image: Image | None, regions: Regions, boxes: Sequence[Box], outlined: bool, alt: str) -> Html:
        """A picture with its regions, if `outlined`, and boxes; a frame that says why where it cannot be shown."""
        known = self._names.get(image) if image else None
        shapes = [tag("use", href=f"#{known[0]}")] if known else []
        if outlined:
            name = f"#{self._outlines[_outline_key(regions)]}"
            kind = "regions many" if regions.num_regions > _MANY else "regions"
            shapes.append(tag("g", tag("use", href=name, class_="casing"), tag("use", href=name), class_=kind))
            alt += f" with {regions.num_regions} regions drawn over it"
        shapes += [_outline(box, regions) for box in boxes]
        shapes += [_label(box, regions) for box in boxes if box.label]
        view = f"0 0 {regions.width} {regions.height}"
        svg = tag("svg", *shapes, viewBox=view, preserveAspectRatio="none", role="img", aria_label=alt)
        why = "" if known else _missing(regions, self._why.get(image, "") if image else _UNKNOWN)
        return tag("div", why, svg, class_="picture", style=f"aspect-ratio:{regions.width}/{regions.height}")


_UNKNOWN = "its file is not known here"


def _outline_key(regions: Regions) -> str:
    """The boxes as one path, in whole pixels."""
    return "".join(
        f"M{x1:.0f} {y1:.0f}H{x2:.0f}V{y2:.0f}H{x1:.0f}z" for x1, y1, x2, y2 in regions.boxes.astype(float).tolist()
    )


def colour_class(colour: int) -> str:
    """The class that paints text and boxes of one colour."""
    return f"c{colour % COLOURS}"


def _source(image: Image | None, encode: Callable[[Image], bytes]) -> tuple[bytes, str]:
    """The JPEG, or nothing and why."""
    if image is None:
        return b"", _UNKNOWN
    try:
        return encode(image), ""
    except (DecodeError, OSError) as error:
        return b"", error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _missing(regions: Regions, why: str) -> Html:
    return tag("span", f"{regions.image_id} cannot be shown: {why}", class_="missing")


def _within(image: Image, limit: int) -> bytes:
    """The best JPEG of the ladder of at most `limit` bytes, or its last."""
    pixels = _small(image)
    for side, quality in _LADDER:
        pixels.thumbnail((side, side), Pillow.Resampling.LANCZOS)
        data = _encoded(pixels, quality)
        if len(data) <= limit:
            break
    return data


def _jpeg(image: Image) -> bytes:
    return _encoded(_small(image), _QUALITY)


def _small(image: Image) -> Pillow.Image:
    pixels, _ = read_image(image)
    small = Pillow.fromarray(pixels)
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Pillow.Resampling.LANCZOS)
    return small


def _encoded(pixels: Pillow.Image, quality: int) -> bytes:
    buffer = BytesIO()
    pixels.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def _data(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


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
    if box.below:
        x, y = _under(box, size, regions)
    return tag("text", box.label, x=f"{x:.1f}", y=f"{y:.1f}", font_size=f"{size:.1f}", class_=_classes(box))


def _under(box: Box, size: float, regions: Regions) -> tuple[float, float]:
    """Where a label starts that is not to stand above its box: beside it where the picture ends."""
    x1, _, x2, y2 = map(float, box.corners)
    if y2 + 1.2 * size < regions.height:
        return x1, y2 + size
    wide = 0.7 * size * len(box.label)
    return (x2 + 0.3 * size if x2 + wide < regions.width else max(x1 - wide, 0)), y2


def _text_size(regions: Regions) -> float:
    return max(regions.width, regions.height) / 18


def _classes(box: Box) -> str:
    return box.kind if box.colour is None else f"{box.kind} {colour_class(box.colour)}"
