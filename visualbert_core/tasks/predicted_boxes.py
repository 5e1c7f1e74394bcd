"""Checks predicted boxes: it refuses boxes that look like another convention than the declared one.

The check looks for two signs. The first sign is the geometry (`metrics.boxes`): boxes end before they begin, or lie
outside their image. The second sign is the gold boxes. Where another reading of the boxes finds many more phrases, the
boxes were written for that reading. A correct file never shows this sign, however bad its model is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visualbert_core.errors import InputError
from visualbert_core.metrics.boxes import CONVENTIONS, SLACK, SLACK_PIXELS, is_scaled, suspect, to_xyxy, words
from visualbert_core.metrics.recall import IOU_THRESHOLD

# Another reading is believed only if it passes all three limits.
_MORE = 3  # It finds at least this many phrases with different gold boxes that the declared reading misses.
_SHARE = 0.2  # The phrases that it finds in addition are at least this share of all phrases.
_TIMES = 1.25  # It finds at least this many times the phrases of the declared reading.

_ROUNDING = 0.1  # pixels by which a box may leave the first pixel and still count as inside it
_SMALL = 4  # pixels: in an image with a side of at most this, a box in the first pixel can be right
_UNSCALED = 0.1  # A fitted scale that differs from 1 by less than this means that the images were not resized.


@dataclass(frozen=True)
class Asked:
    """Holds a phrase's ranked boxes [N, 4] as they were written, and its gold boxes [M, 4], M >= 1.

    `size` is the image's (width, height) in pixels; both are infinite where the size is not known.
    """

    ranked: np.ndarray
    gold: np.ndarray
    size: tuple[float, float]
    image_id: str


def ranked_boxes(answer: Any, phrases: int, where: str) -> list[np.ndarray]:
    """Return each phrase's candidates, float64 [N, 4], N >= 0.

    Raises InputError where `answer` does not hold one list of finite boxes for each phrase.
    """
    if not isinstance(answer, (list, tuple)) or len(answer) != phrases:
        got = len(answer) if isinstance(answer, (list, tuple)) else type(answer).__name__
        raise InputError(f"{where}: {got} ranked lists for {phrases} phrases; write one list of boxes per phrase")
    ranked = []
    for index, boxes in enumerate(answer):
        try:
            array = np.asarray(boxes)
        except ValueError:  # NumPy refuses rows of unequal length.
            array = np.empty(0, object)
        empty = isinstance(boxes, (list, tuple)) and not boxes
        if not empty and (array.dtype.kind not in "iuf" or array.ndim != 2 or array.shape[1] != 4):
            raise InputError(f"{where} phrase {index}: not a list of [x1, y1, x2, y2]; correct the record")
        if not np.isfinite(array).all():
            raise InputError(f"{where} phrase {index}: a coordinate is not finite; correct the record")
        ranked.append(array.astype(np.float64).reshape(-1, 4))
    return ranked


def check(asked: Sequence[Asked], convention: str | None) -> list[str]:
    """Return one warning for each kind of box that can only miss, with the number of such boxes.

    `convention` is the declared one; None means pixels. Raises InputError where the boxes look like another convention,
    or where the convention needs the size of an image that is not known.
    """
    boxes = np.concatenate([np.empty((0, 4)), *(each.ranked for each in asked)])  # [N, 4]
    if not len(boxes):
        return []
    rows = np.arange(len(asked)).repeat([len(each.ranked) for each in asked])  # [N]: the phrase of each box
    sides = np.array([each.size for each in asked], np.float64)[rows]  # [N, 2]: the sides of its image
    declared = convention or "xyxy"
    unknown = next((each.image_id for each in asked if not np.isfinite(each.size).all()), None)
    if unknown is not None and is_scaled(declared):
        raise InputError(
            f"{declared} boxes need the size of every image, but the annotations of {unknown} have no <size>; "
            "write the boxes in pixels"
        )
    found = suspect(boxes, sides[:, 0], sides[:, 1], rows, declared)
    read = to_xyxy(boxes, declared, sides[:, 0], sides[:, 1])
    firsts = np.flatnonzero(np.diff(rows, prepend=-1))
    other = _other_reading(boxes[firsts], read[firsts], [asked[row] for row in rows[firsts]])
    if other and not (found and found.looks_like == other[1] is not None):
        line, looks_like = other
        raise InputError(f"{found.trouble + '; ' if found else ''}{line}{_remedy(looks_like)}")
    if found:
        raise InputError(f"{found}{_remedy(found.looks_like)}")
    return _flaws(read, sides)


def _remedy(looks_like: str | None) -> str:
    declare = f"declare it with --boxes {looks_like}, or " if looks_like else ""
    return f"; {declare}write the file with left, top, right, bottom in pixels of the images that were annotated"


def _flaws(boxes: np.ndarray, sides: np.ndarray) -> list[str]:
    """Return one line for each kind of faulty box, with its number.

    A few faulty boxes are ordinary misses. Many of them raise an error before this is called.
    """
    slack = np.maximum(SLACK_PIXELS, np.where(np.isfinite(sides), sides, 0.0) * SLACK)
    faults = {
        "end before they begin: misses": (boxes[:, 2:] < boxes[:, :2]).any(axis=1),
        "lie in the first pixel of their image: normalised?": (
            boxes.any(axis=1) & (np.abs(boxes) <= 1 + _ROUNDING).all(axis=1) & (sides.min(axis=1) > _SMALL)
        ),
        "reach outside their image": ((boxes[:, :2] < -slack) | (boxes[:, 2:] > sides + slack)).any(axis=1),
    }
    return [f"{int(bad.sum()):,} of {len(boxes):,} boxes {what}" for what, bad in faults.items() if bad.any()]


# ---------------------------------------------------------------------------------------------------------------------
# other readings of the boxes


def _other_reading(written: np.ndarray, read: np.ndarray, asked: Sequence[Asked]) -> tuple[str, str | None] | None:
    """Return a line about the reading that finds most phrases, and its convention if it is one.

    Return None unless it finds far more than the declared reading.

    Only the first-ranked box of each of the P phrases counts. `written` [P, 4] holds these boxes as they were written,
    and `read` [P, 4] holds them in pixels by the declared convention.
    """
    owner = np.arange(len(asked)).repeat([len(each.gold) for each in asked])
    gold = np.concatenate([each.gold for each in asked])
    sizes = np.array([each.size for each in asked], np.float64)
    now = _found(read, gold, owner)
    readings = {name: _found(boxes, gold, owner) for name, boxes in _readings(written, read, gold, owner, sizes)}
    name = max(readings, key=lambda name: int(readings[name].sum()))
    then = readings[name]
    gained = then & ~now
    different = len({tuple(each.gold[0]) for each, is_gained in zip(asked, gained, strict=True) if is_gained})
    if different < _MORE or gained.sum() < _SHARE * len(asked) or then.sum() < _TIMES * now.sum():
        return None
    convention = name if name in CONVENTIONS else None
    what = f"look like {words(name)}" if convention else name
    return (
        f"the boxes {what}: {int(now.sum()):,} of {len(asked):,} phrases are found as declared, {int(then.sum()):,} "
        "with that reading"
    ), convention


def _readings(
    written: np.ndarray, read: np.ndarray, gold: np.ndarray, owner: np.ndarray, sizes: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, boxes [P, 4]) of each possible reading: first every convention, then every way to resize images.

    The scale of a resize is not known. It is fitted: it is the median ratio of a predicted to a gold corner.
    """
    known = bool(np.isfinite(sizes).all())
    for name in CONVENTIONS:
        if known or not is_scaled(name):
            yield name, to_xyxy(written, name, sizes[:, 0], sizes[:, 1])
    units: dict[str, Callable[[], np.ndarray]] = {"to one part of their size": lambda: np.ones_like(sizes)}
    if known:
        units["to squares"] = lambda: 1 / sizes
        units["to one short side"] = lambda: (1 / sizes.min(axis=1))[:, None] * np.ones(2)
        units["to one long side"] = lambda: (1 / sizes.max(axis=1))[:, None] * np.ones(2)
    for name, unit in units.items():
        pixel = np.tile(unit(), 2)  # [P, 4]: the size of a pixel after the resize, up to a common factor
        with np.errstate(all="ignore"):
            ratios = read[owner, 2:] / (gold * pixel[owner])[:, 2:]
        factor = float(np.median(ratios[np.isfinite(ratios)])) if np.isfinite(ratios).any() else 1.0
        if factor > 0 and not (name.endswith("their size") and abs(factor - 1) < _UNSCALED):
            size = f"({100 * factor:.0f} %)" if name.endswith("their size") else f"({factor:.0f} pixels)"
            yield f"are those of images resized {name} {size}", read / (pixel * factor)


def _found(boxes: np.ndarray, gold: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Return bool [P]: whether each of the boxes [P, 4] matches a gold box [G, 4] of its phrase.

    `owner` [G] holds the index of each gold box's phrase, in ascending order.
    """
    mine = boxes[owner]
    with np.errstate(all="ignore"):
        sides = np.minimum(mine[:, 2:], gold[:, 2:]) - np.maximum(mine[:, :2], gold[:, :2])
        shared = sides.clip(min=0).prod(axis=1)
        areas = [(each[:, 2:] - each[:, :2]).clip(min=0).prod(axis=1) for each in (mine, gold)]
        hit = shared / (areas[0] + areas[1] - shared) >= IOU_THRESHOLD
    found = np.zeros(len(boxes), bool)
    np.logical_or.at(found, owner, hit)
    return found
