"""Conventions of boxes: it converts boxes of a declared convention, and finds boxes that do not fit their convention.

A box is four numbers in one of several orders (`xyxy`: left, top, right, bottom). They are pixels of the image, parts
of its sides ("normalised", 0 to 1), or thousandths of its sides ("per-mille"). A file does not say which. Boxes that
are read in the wrong convention give a wrong score without an error: every IoU is 0, or the geometry makes no sense.

Three signs show a wrong convention: boxes end before they begin, boxes reach outside their image, or all boxes lie in
the first pixel. Where boxes show none of these signs in a different convention, a suspicion names that convention.

Boxes of official files are not refused: a box may have no area, may exceed its image by `SLACK`, and may cover the
whole image. Some conventions look the same. Swapped width and height of the images look like y before x, so the
suspicion names both. In normalised and per-mille boxes the order of x and y leaves no sign, so x is assumed to come
first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

SLACK_PIXELS, SLACK = 2.0, 0.02
"""How far a box may exceed its image: this many pixels, or this part of the image's side, whichever is more. Boxes
exceed their image where coordinates are rounded or count from 1, and where a detector does not clip."""

_ROUNDING = 1e-3  # pixels by which the far corner may lie before the near corner
_FRAME = 0.1  # the part of its frame by which a normalised or per-mille box may exceed the frame
_SMALL = 4  # pixels; in an image this small, a box in the first pixel is no sign
_MANY = 20  # with this many boxes, their common extent is a sign
_FEW = 10  # with more bad boxes than this, in most rows, other conventions are tried
_FEW_BAD = 0.1  # with this share of bad boxes, other conventions are tried
# For normalised and per-mille conventions it is a share of rows, and higher: their frames are wide, and many boxes in
# pixels fit into them.
_FEW_BAD_SCALED = 0.4
_FITS = 0.01  # the share of bad boxes up to which a convention fits


def _xywh(b: np.ndarray) -> np.ndarray:
    return np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], axis=1)


def _cxcywh(b: np.ndarray) -> np.ndarray:
    return np.concatenate([b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2], axis=1)


_ORDERS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "xyxy": ("left, top, right, bottom", lambda b: b),
    "xywh": ("x, y, width, height", _xywh),
    "yxyx": ("y, x, y, x, or width and height of the images swapped", lambda b: b[:, [1, 0, 3, 2]]),
    "cxcywh": ("x and y of the centre, width, height", _cxcywh),
    "yxhw": ("y, x, height, width", lambda b: _xywh(b[:, [1, 0, 3, 2]])),
    "xxyy": ("x, x, y, y", lambda b: b[:, [0, 2, 1, 3]]),
    "reversed": ("right, bottom, left, top", lambda b: b[:, [2, 3, 0, 1]]),
}
"""Order → its words, and the function that turns boxes [N, 4] into left, top, right, bottom."""
_SCALES = {"": 0.0, "normalised": 1.0, "per-mille": 1000.0}
_PARTS = {
    order if not scale else scale if order == "xyxy" else f"{scale}-{order}": (scale, order)
    for scale in _SCALES
    for order in _ORDERS
}
CONVENTIONS = tuple(_PARTS)
"""Names of conventions, as flags take them: `xyxy`, `xywh`, …, `normalised` (xyxy in parts of the sides),
`normalised-xywh`, …, `per-mille`, …"""


@dataclass(frozen=True)
class Suspicion:
    """The finding that boxes do not fit the convention in which they were read. `str` gives one line of text."""

    trouble: str
    """What was found, with counts: `2 of 6 boxes end before they begin`."""
    looks_like: str | None
    """The one of CONVENTIONS that they fit; None where they fit none."""

    def __str__(self) -> str:
        return self.trouble if self.looks_like is None else f"{self.trouble}: {words(self.looks_like)}?"


def is_scaled(convention: str) -> bool:
    """Return whether boxes of a convention are parts of the sides of their image, so that they need its size."""
    return bool(_PARTS[convention][0])


def words(convention: str) -> str:
    """Return a convention in plain words: `normalised` or `x, y, width, height`."""
    scale, order = _PARTS[convention]
    if not scale or order == "xyxy":
        return scale or _ORDERS[order][0]
    return f"{scale}, {_ORDERS[order][0]}"


def to_xyxy(
    boxes: np.ndarray, convention: str, width: float | np.ndarray = np.inf, height: float | np.ndarray = np.inf
) -> np.ndarray:
    """Convert boxes [N, 4] of one of CONVENTIONS to left, top, right, bottom in pixels: float64 [N, 4].

    `width` and `height` belong to the one image of all boxes, or to the image of each box [N]. Only normalised and
    per-mille conventions need them.
    """
    scale, order = _PARTS[convention]
    boxes = _ORDERS[order][1](np.asarray(boxes, np.float64).reshape(-1, 4))
    if not scale:
        return boxes
    ones = np.ones(len(boxes))
    return np.asarray(boxes * np.stack([ones * width, ones * height] * 2, axis=1) / _SCALES[scale])


def suspect(
    boxes: np.ndarray,
    width: float | np.ndarray = np.inf,
    height: float | np.ndarray = np.inf,
    rows: np.ndarray | None = None,
    declared: str = "xyxy",
) -> Suspicion | None:
    """Return what is wrong with a whole source of boxes [N, 4], read as `declared`; None where nothing is wrong.

    `width` and `height` belong to the one image of all boxes, or to the image of each box [N]. They are infinite where
    they are unknown.
    `rows` [N] is the number of the row of the source to which each box belongs (default: one row for each box).

    A bad box is one that cannot be of the convention. There is a suspicion where most rows have a bad box. There is
    also one where some rows have, and a different convention fits all boxes, the good ones included. A few bad rows
    among good ones are no suspicion of the source: `flaw` finds them. Boxes with NaN or infinity are left out.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    ones = np.ones(len(boxes))
    kept = np.isfinite(boxes).all(axis=1)
    rows = np.arange(len(boxes)) if rows is None else np.asarray(rows)
    seen = _Seen(boxes[kept], (ones * width)[kept], (ones * height)[kept], rows[kept])
    if not len(seen.boxes):
        return None
    bad = seen.bad(declared)
    number, count = int(bad.sum()), len(bad)
    if not number:
        return seen.small(declared)
    share = len(np.unique(seen.rows[bad])) / len(np.unique(seen.rows))
    names = [name for name in CONVENTIONS if share > _FEW_BAD_SCALED or not is_scaled(name)]
    # A single bad box may be a slip in the file, and names no convention unless it is most of the boxes.
    few = 1 < number >= _FEW_BAD * count
    enough = few or 2 * number > count or (share > 0.5 and number > _FEW)  # enough bad boxes to name a convention
    fitting = seen.fitting(names, declared) if enough else None
    return Suspicion(seen.trouble(declared), fitting) if share > 0.5 or fitting else None


def flaw(boxes: np.ndarray, width: float = np.inf, height: float = np.inf, declared: str = "xyxy") -> Suspicion | None:
    """Return what is wrong with the boxes of one image, read as `declared`; None where nothing is wrong."""
    return suspect(boxes, width, height, np.zeros(len(boxes), np.int64), declared)


@dataclass(frozen=True)
class _Seen:
    """Finite boxes [N, 4] of a source, N >= 1. For each box: the sides of its image [N], and its row [N]."""

    boxes: np.ndarray
    width: np.ndarray
    height: np.ndarray
    rows: np.ndarray

    def bad(self, convention: str) -> np.ndarray:
        """Return which boxes cannot be of this convention: bool [N]."""
        inverted, outside = self._faults(convention)
        return np.asarray(inverted | outside | (self._in_first_pixel() & (_PARTS[convention][0] != "normalised")))

    def trouble(self, convention: str) -> str:
        """Return, in words, what is wrong with most of the bad boxes."""
        of = f" of {len(self.boxes)} {'box' if len(self.boxes) == 1 else 'boxes'}"
        read = "" if convention == "xyxy" else f", read as {convention},"
        inverted, outside = (int(fault.sum()) for fault in self._faults(convention))
        in_first = self._in_first_pixel() & (_PARTS[convention][0] != "normalised")
        first = int(in_first.sum())
        frame = "[0, 1]" if (self.boxes[in_first] >= -_FRAME).all() else "[-1, 1]"
        if first == len(self.boxes):
            return f"all coordinates lie in {frame}"
        if first > max(inverted, outside):
            return f"the coordinates of {first}{of} lie in {frame}"
        if inverted >= outside:
            return f"{inverted}{of}{read} {'ends before it begins' if inverted == 1 else 'end before they begin'}"
        return f"{outside}{of}{read} {'reaches outside its image' if outside == 1 else 'reach outside their image'}"

    def fitting(self, names: Sequence[str], declared: str) -> str | None:
        """Return the convention with the fewest bad boxes, or the first of several; None where no convention fits."""
        counts = {name: int(self.bad(name).sum()) for name in names if name != declared and self._spans(name)}
        best = min(counts, key=counts.__getitem__)
        return best if counts[best] <= _FITS * len(self.boxes) else None

    def small(self, declared: str) -> Suspicion | None:
        """Return a suspicion about boxes that are each good, but whose common extent does not fit the convention.

        Declared per-mille boxes should come near 1000. Boxes in pixels of larger images should exceed 1000.
        """
        if len(self.boxes) >= _MANY and not self._spans(declared):
            return Suspicion("no box comes near 1000", self.fitting([n for n in CONVENTIONS if n in _ORDERS], declared))
        sides = np.minimum(self.width, self.height)
        large = len(self.boxes) >= _MANY and len(np.unique(self.rows)) >= 5 and sides.min() > 1200
        if _PARTS[declared][0] or not large or not np.isfinite(sides).all() or not self._spans("per-mille"):
            return None
        if self.boxes.max() > 1000:
            return None
        return Suspicion("no coordinate exceeds 1000, and every image is larger", "per-mille")

    def _faults(self, convention: str) -> tuple[np.ndarray, np.ndarray]:
        """Return which boxes end before they begin, and which reach outside their image or frame: bool [N] each."""
        scale, order = _PARTS[convention]
        b = _ORDERS[order][1](self.boxes)
        if frame := _SCALES[scale]:
            sides = np.full((len(b), 2), frame)
            slack = sides * _FRAME
            rounding = frame * 1e-6
        else:
            sides = np.stack([self.width, self.height], axis=1)
            slack = np.maximum(SLACK_PIXELS, np.where(np.isfinite(sides), sides, 0.0) * SLACK)
            rounding = _ROUNDING
        inverted = (b[:, 2:] < b[:, :2] - rounding).any(axis=1)
        outside = ((b < -np.tile(slack, 2)) | (b > np.tile(sides + slack, 2))).any(axis=1)
        return np.asarray(inverted), np.asarray(outside)

    def _in_first_pixel(self) -> np.ndarray:
        """Return which boxes belong to a row whose boxes all lie in [-1, 1]: bool [N].

        Rows whose boxes are all zero do not count.
        """
        # No convention here reads boxes scaled to [-1, 1]. They are counted, so that they are not taken for pixels.
        inside = (np.abs(self.boxes) <= 1 + _FRAME).all(axis=1)
        inside &= np.minimum(self.width, self.height) > _SMALL
        _, row = np.unique(self.rows, return_inverse=True)
        number = np.bincount(row)
        extent = np.bincount(row, self.boxes.any(axis=1))
        all_inside = np.bincount(row, inside) == number
        return np.asarray((all_inside & (extent > 0))[row])

    def _spans(self, convention: str) -> bool:
        """Return whether the boxes use the frame of the convention. Only per-mille boxes can fail.

        Some must reach 500. Where there are many boxes, some must reach 900 in x and in y.
        """
        scale, order = _PARTS[convention]
        if scale != "per-mille":
            return True
        far = _ORDERS[order][1](self.boxes)[:, 2:].max(axis=0)
        return bool((far >= 900).all() if len(self.boxes) >= _MANY else far.max() >= 500)
