"""Conventions of boxes: reads those that are declared, and tells when boxes look like another one than they are said
to be.

A box is four numbers in one of several orders (`xyxy`: left, top, right, bottom), in pixels of its image, in parts of
its sides ("normalised", 0 to 1) or in thousandths of them ("per-mille"). Nothing in a file says which. Read wrongly,
boxes give a wrong number and no error: IoUs of 0, geometry of nonsense. What gives a wrong reading away is that boxes
end before they begin, reach outside their image, or that all of them lie in the first pixel; another convention under
which none of that happens is the one that they look like.

Official files are not refused: a box may have no area, may exceed its image by `SLACK`, and may be all of its image.
Some cannot be told apart. Width and height of the images swapped look as y before x does, so both are named; the order
of x and y in scaled boxes shows nowhere, so x is taken to come first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

SLACK_PIXELS, SLACK = 2.0, 0.02
"""By what a box may exceed its image: pixels, or the part of the image's side where that is more. Rounding, counting
from 1, and detectors that do not clip do so."""

_ROUNDING = 1e-3  # pixels by which the far corner may lie before the near one
_FRAME = 0.1  # the part of its frame by which a scaled box may exceed it
_SMALL = 4  # pixels: in a smaller image, a box in the first pixel says nothing
_MANY = 20  # boxes from which on their extent can be judged
_FEW = 10  # bad boxes in most rows from which on another convention is looked for
_FEW_BAD = 0.1  # the share of bad boxes from which on another convention is looked for
_FEW_BAD_SCALED = 0.4  # the same for rows and scaled conventions, whose frame is so wide that good pixels fit, too
_FITS = 0.01  # the share of bad boxes that a convention which fits may have


def _xywh(b: np.ndarray) -> np.ndarray:
    return np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], axis=1)


def _cxcywh(b: np.ndarray) -> np.ndarray:
    return np.concatenate([b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2], axis=1)


_ORDERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "xyxy": lambda b: b,
    "xywh": _xywh,
    "yxyx": lambda b: b[:, [1, 0, 3, 2]],
    "cxcywh": _cxcywh,
    "yxhw": lambda b: _xywh(b[:, [1, 0, 3, 2]]),
    "xxyy": lambda b: b[:, [0, 2, 1, 3]],
    "reversed": lambda b: b[:, [2, 3, 0, 1]],
}
_ORDER_WORDS = {
    "xyxy": "left, top, right, bottom",
    "xywh": "x, y, width, height",
    "yxyx": "y, x, y, x, or width and height of the images swapped",
    "cxcywh": "x and y of the centre, width, height",
    "yxhw": "y, x, height, width",
    "xxyy": "x, x, y, y",
    "reversed": "right, bottom, left, top",
}
_SCALES = {"": 0.0, "normalised": 1.0, "per-mille": 1000.0}


def _split(name: str) -> tuple[str, str]:
    """(scale, order) of a convention's name."""
    for scale in ("normalised", "per-mille"):
        if name == scale or name.startswith(f"{scale}-"):
            return scale, name[len(scale) + 1 :] or "xyxy"
    return "", name


CONVENTIONS: tuple[str, ...] = tuple(
    order if not scale else scale if order == "xyxy" else f"{scale}-{order}" for scale in _SCALES for order in _ORDERS
)
"""Names for flags: `xyxy`, `xywh`, …, `normalised` (xyxy in parts of the sides), `normalised-xywh`, `per-mille`, …"""


@dataclass(frozen=True)
class Suspicion:
    """Boxes that are not what they were read as. As text, one line without a file's name."""

    trouble: str
    """What was seen, with counts: `2 of 6 boxes end before they begin`."""
    looks_like: str | None
    """The one of CONVENTIONS that they fit; None where they fit none."""

    def __str__(self) -> str:
        return self.trouble if self.looks_like is None else f"{self.trouble}: {words(self.looks_like)}?"


def words(convention: str) -> str:
    """A convention in plain words: `normalised` or `x, y, width, height`."""
    scale, order = _split(convention)
    return ", ".join(filter(None, (scale, _ORDER_WORDS[order] if order != "xyxy" or not scale else "")))


def to_xyxy(
    boxes: np.ndarray, convention: str, width: float | np.ndarray = np.inf, height: float | np.ndarray = np.inf
) -> np.ndarray:
    """Boxes [N, 4] of one of CONVENTIONS → float64 [N, 4] left, top, right, bottom in pixels.

    `width` and `height`, of the image or of each box's image [N], are used by normalised and per-mille ones only.
    """
    scale, order = _split(convention)
    boxes = _ORDERS[order](np.asarray(boxes, np.float64).reshape(-1, 4))
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
    """What is wrong with a whole source of boxes [N, 4], read as `declared`; None where nothing is.

    `width` and `height` are the image's, or those of each box's image [N]; infinity where they are not known. `rows`
    [N] numbers the row of the source that each box stands in (default: each in one of its own). A suspicion is raised
    where most rows have a bad box, or where some have and another convention explains all boxes, the good ones, too;
    a few bad rows among good ones raise none: `flaw` tells which they are. Boxes with NaN or infinity are left out.
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
    names = [name for name in CONVENTIONS if share > _FEW_BAD_SCALED or not _split(name)[0]]
    few = 1 < number >= _FEW_BAD * count
    enough = few or 2 * number > count or (share > 0.5 and number > _FEW)  # to name a convention by
    fitting = seen.fitting(names, declared) if enough else None
    return Suspicion(seen.trouble(declared), fitting) if share > 0.5 or fitting else None


def flaw(boxes: np.ndarray, width: float = np.inf, height: float = np.inf, declared: str = "xyxy") -> Suspicion | None:
    """What is wrong with the boxes of one image, read as `declared`; None where every box can be one."""
    return suspect(boxes, width, height, np.zeros(len(boxes), np.int64), declared)


@dataclass(frozen=True)
class _Seen:
    """Finite boxes [N, 4] of a source, N >= 1, with what is known of each: its image's sides [N], its row [N]."""

    boxes: np.ndarray
    width: np.ndarray
    height: np.ndarray
    rows: np.ndarray

    def bad(self, convention: str) -> np.ndarray:
        """Which boxes cannot be of this convention: bool [N]."""
        inverted, outside = self._faults(convention)
        return np.asarray(inverted | outside | (self._in_first_pixel() & (_split(convention)[0] != "normalised")))

    def trouble(self, convention: str) -> str:
        """What is wrong with most of the bad boxes."""
        of = f" of {len(self.boxes)} {'box' if len(self.boxes) == 1 else 'boxes'}"
        read = "" if convention == "xyxy" else f", read as {convention},"
        inverted, outside = (int(fault.sum()) for fault in self._faults(convention))
        in_first = self._in_first_pixel() & (_split(convention)[0] != "normalised")
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
        """The convention with the fewest bad boxes, the first of several; None where the fewest are too many."""
        counts = {name: int(self.bad(name).sum()) for name in names if name != declared and self._spans(name)}
        best = min(counts, key=counts.__getitem__)
        return best if counts[best] <= _FITS * len(self.boxes) else None

    def small(self, declared: str) -> Suspicion | None:
        """Boxes of which each could be good, but together they end at 1000 where the images do not, or far before."""
        if len(self.boxes) >= _MANY and not self._spans(declared):
            return Suspicion("no box comes near 1000", self.fitting([n for n in CONVENTIONS if n in _ORDERS], declared))
        sides = np.minimum(self.width, self.height)
        large = len(self.boxes) >= _MANY and len(np.unique(self.rows)) >= 5 and sides.min() > 1200
        if _split(declared)[0] or not large or not np.isfinite(sides).all() or not self._spans("per-mille"):
            return None
        if self.boxes.max() > 1000:
            return None
        return Suspicion("no coordinate exceeds 1000, and every image is larger", "per-mille")

    def _faults(self, convention: str) -> tuple[np.ndarray, np.ndarray]:
        """Which boxes end before they begin, and which reach outside their image or frame: bool [N] each."""
        scale, order = _split(convention)
        b = _ORDERS[order](self.boxes)
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
        """Which boxes stand in a row whose boxes all lie in [-1, 1], up to rounding, and do not all vanish."""
        inside = (np.abs(self.boxes) <= 1 + _FRAME).all(axis=1)
        inside &= np.minimum(self.width, self.height) > _SMALL
        _, row = np.unique(self.rows, return_inverse=True)
        number = np.bincount(row)
        extent = np.bincount(row, self.boxes.any(axis=1))
        all_inside = np.bincount(row, inside) == number
        return np.asarray((all_inside & (extent > 0))[row])

    def _spans(self, convention: str) -> bool:
        """Whether boxes make use of the frame: in thousandths some pass 500, and of many some come close to 1000 in x
        and in y."""
        scale, order = _split(convention)
        if scale != "per-mille":
            return True
        far = _ORDERS[order](self.boxes)[:, 2:].max(axis=0)
        return bool((far >= 900).all() if len(self.boxes) >= _MANY else far.max() >= 500)
