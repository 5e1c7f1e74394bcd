"""Check imported features: a sample of the source before anything is written, and then every record.

Owns the signs of a wrong declaration. A file says neither the type of its bytes, nor the meaning of its boxes, nor its
feature space. Features and boxes that are read wrongly are still numbers, so these checks look at the source as a
whole: at its boxes (`metrics/boxes.py`), at the feature sizes of known spaces, and at the spread of the features'
magnitudes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from visualbert_core.errors import InputError
from visualbert_core.features.importers.sources import MalformedError, Place, Source
from visualbert_core.features.parts import to_half
from visualbert_core.metrics import boxes as conventions
from visualbert_core.schema import Regions

SPACES = {"pythia_fpn": 2048, "detectron_fpn": 1024, "r2c_resnet50": 512, "vg_c4": 2048}
"""The feature sizes of the spaces of published checkpoints (docs/features.md)."""

SAMPLE = 300  # records

_NEAR = 0.85  # part of an image's side; the boxes of a full-size source reach further
_LARGEST, _LEAST = 65504.0, 2.0**-24  # the largest and the smallest positive number of float16
_BEYOND = 0.02  # the share of numbers above _LARGEST that good features may have


@dataclass(frozen=True)
class Expected:
    """What every record of a source must satisfy."""

    feature_size: int
    boxes: str
    """The convention of the boxes, one of `metrics.boxes.CONVENTIONS`."""
    sizes_known: bool
    """Whether widths and heights are the images' true sizes."""


def checked(row: Regions, expected: Expected) -> Regions:
    """Return the row with boxes as xyxy pixels, float32, and features as float16. The other arrays keep their types.

    Raise MalformedError where a shape, a number, a label or a box is wrong.
    """
    count = len(row.boxes)
    shapes = {"boxes": (count, 4), "labels": (count,), "scores": (count,), "features": (count, expected.feature_size)}
    if row.attributes is not None:
        shapes |= {"attributes": (count,), "attribute_scores": (count,)}
    for name, shape in shapes.items():
        if (found := getattr(row, name).shape) != shape:
            raise MalformedError(f"{name} have shape {found}, not {shape}")
    if not (np.isfinite(row.boxes).all() and np.isfinite(row.features).all()):
        raise MalformedError("boxes or features hold NaN or infinity")
    if count > np.iinfo(np.int16).max or row.width < 1 or row.height < 1:
        raise MalformedError(f"{count} regions in an image of {row.width} × {row.height}")
    for kind, values in (("label", row.labels), ("attribute", row.attributes)):
        if count and values is not None and not -1 <= values.min() <= values.max() <= np.iinfo(np.int16).max:
            raise MalformedError(f"{kind} {values.max()} is out of range")
    width, height = _sides(row, expected.sizes_known)
    if wrong := conventions.flaw(row.boxes, width, height, expected.boxes):
        raise MalformedError(str(wrong))
    boxes = conventions.to_xyxy(row.boxes, expected.boxes, row.width, row.height).astype(np.float32)
    return replace(row, boxes=boxes, features=to_half(row.features))


def _sides(row: Regions, known: bool) -> tuple[float, float]:
    """Return (width, height) of the image, or infinity where they are unknown, so that no box lies outside."""
    return (row.width, row.height) if known else (np.inf, np.inf)


def look(
    reader: Source, places: Mapping[str, tuple[Place, ...]], name: str, space: str, boxes: str
) -> tuple[Expected, tuple[str, ...]]:
    """Look at a random sample of a source. Return what its records have in common, and remarks for the user.

    Raise InputError where no record can be read, most boxes contradict the convention `boxes`, or the features have
    another type or size than the features of `space`. The message names the source as `name`.
    """
    rows, reason = _sample(reader, places)
    if not rows:
        raise InputError(f"{name}: {reason}")
    if like := _misread(rows):
        raise InputError(f"{name}: {like}")
    if wrong := _suspicion(rows, boxes, reader.sizes_known):
        raise InputError(f"{name}: {wrong}{_advice(wrong)}")
    ((size, _),) = Counter(row.features.shape[1] for row in rows).most_common(1)
    if space in SPACES and size != SPACES[space]:
        raise InputError(f"{name}: {_another_size(space, size)}")
    return Expected(size, boxes, reader.sizes_known), _remarks(rows, boxes, reader.sizes_known)


def _sample(reader: Source, places: Mapping[str, tuple[Place, ...]]) -> tuple[list[Regions], str]:
    """Read the records of up to `SAMPLE` random ids, the same ids in every run.

    Return those with features and boxes of two dimensions, and the reason why a record could not be read.
    """
    ids = sorted(places)
    if len(ids) > SAMPLE:
        drawn = np.random.default_rng(0).choice(len(ids), SAMPLE, replace=False)
        ids = [ids[number] for number in sorted(drawn.tolist())]
    rows, reason = [], "it holds no record"
    for image_id in ids:
        for place in places[image_id]:
            try:
                rows.append(reader.read(image_id, place))
            except MalformedError as error:
                reason = f"no record can be read, {image_id!r}: {error}"
    return [row for row in rows if row.features.ndim == 2 and row.boxes.ndim == 2], reason


def _suspicion(rows: Sequence[Regions], declared: str, sizes_known: bool) -> conventions.Suspicion | None:
    """Return what most boxes of the sample look like, where that contradicts the declared convention."""
    rows = [row for row in rows if row.boxes.shape[1:] == (4,) and len(row.boxes)]
    if not rows:
        return None
    counts = [len(row.boxes) for row in rows]
    width, height = np.array([_sides(row, sizes_known) for row in rows], float).repeat(counts, axis=0).T
    number = np.arange(len(rows)).repeat(counts)
    return conventions.suspect(np.concatenate([row.boxes for row in rows]), width, height, number, declared)


def _remarks(rows: Sequence[Regions], declared: str, sizes_known: bool) -> tuple[str, ...]:
    """Return a remark where all boxes of several images end far from the images' right and lower edges.

    A detector finds something near an edge of at least one image. Boxes that never come near an edge were probably
    found in smaller copies of the images.
    """
    rows = [row for row in rows if row.boxes.shape[1:] == (4,) and len(row.boxes) and min(row.width, row.height) > 0]
    count = sum(len(row.boxes) for row in rows)
    if not sizes_known or len(rows) < 5 or count < 100:
        return ()
    far = np.zeros(2)
    for row in rows:
        boxes = conventions.to_xyxy(row.boxes, declared, row.width, row.height)
        far = np.fmax(far, boxes[:, 2:].max(axis=0) / (row.width, row.height))
    if far.max() >= _NEAR:
        return ()
    return (
        f"none of {count:,} boxes reaches beyond {100 * far[0]:.0f} % of its image's width and {100 * far[1]:.0f} % of "
        "its height: were the images resized, so that the boxes and the sizes have different scales?",
    )


def _advice(wrong: conventions.Suspicion) -> str:
    """Return the end of the message: which --boxes would read the source, or what else to do."""
    if wrong.looks_like is None:
        return "; declare their convention with --boxes, or mend the sizes of the images"
    if wrong.looks_like == "yxyx":
        return " (for the first, declare --boxes yxyx; for the second, mend the sizes)"
    return f" (if so, declare --boxes {wrong.looks_like})"


def _another_size(space: str, size: int) -> str:
    """Return a message for features of another size than their space has, with a guess at the cause."""
    known = SPACES[space]
    like = {known // 2: ["float16"], known * 2: ["float64"]}.get(size, [])
    like += [f"features of {other}" for other, length in SPACES.items() if length == size]
    text = f"{size:,} values per box, but {space} has {known:,}"
    return f"{text}: {' or '.join(like)}?" if like else f"{text}: name the space of these features (--space)"


def _misread(rows: Sequence[Regions]) -> str | None:
    """Return what is wrong with the features of most records, in words, or None where they look right."""
    votes = Counter(filter(None, (_flaw(row.features) for row in rows)))
    for what, number in votes.most_common(1):
        if 2 * number > len(rows):
            size = rows[0].features.shape[1]
            return f"the features of {number:,} of {len(rows):,} records {what} ({size:,} values per box were read)"
    return None


def _flaw(features: np.ndarray) -> str | None:
    """Return what is wrong with the features of an image as a whole, or None where a network can have made them."""
    if name := _type(features):
        return f"make sense as {name} and not as float32: write them as float32"
    magnitudes = np.abs(features[features != 0])
    if features.size and not magnitudes.size:
        return "are all 0: extract them again"
    magnitudes = magnitudes[np.isfinite(magnitudes)]
    if magnitudes.size and (magnitudes.max() < _LEAST or np.mean(magnitudes > _LARGEST) > _BEYOND):
        return "are not what a network gives: bytes of another type? write them as little-endian float32"
    return None


def _type(features: np.ndarray) -> str | None:
    """Return the true type of bytes that were read as float32, or None where float32 fits.

    Bytes of another type put digits in the place of float32's exponent, which spreads the magnitudes. float16 read as
    float32 spreads them over eight times as many octaves, float64 or the other byte order over a hundred times as many.
    Good float32 features have a small spread as float32, and no other type gives a much smaller one.
    """
    data = np.ascontiguousarray(features, "<f4")
    raw = data.reshape(-1)
    halves = raw.view("<u2").reshape(-1, 2)
    words = raw.view("<u4")
    if raw.size % 2 == 0 and words[1::2].any() and not words[::2].any():
        return "float64"  # round numbers: the low half of each has only zero bits
    spread = _octaves(raw[np.isfinite(raw)])
    if spread <= 4:
        return None
    candidates = {"float16": raw.view("<f2"), "big-endian float32": raw.view(">f4")}
    if raw.size % 2 == 0:
        candidates["float64"] = raw.view("<f8")
    # float32 rounded to bfloat16 has low halves of zero, and reads as float16 with half the octaves: it is not float16.
    if np.count_nonzero(halves[:, 0]) < np.count_nonzero(halves[:, 1]) / 2:
        del candidates["float16"]
    with np.errstate(invalid="ignore"):
        found = {
            name: _octaves(values)
            for name, values in candidates.items()
            if np.isfinite(values).all() and np.abs(values).max(initial=0) >= _LEAST
        }
    found = {name: octaves for name, octaves in found.items() if octaves < 6 and octaves < spread / 4}
    return min(found, key=found.__getitem__) if found else None


def _octaves(values: np.ndarray) -> float:
    """Return the spread of the magnitudes: the standard deviation of their binary logarithms, without zeros."""
    magnitudes = np.abs(values[values != 0].astype(np.float64))
    return float(np.log2(magnitudes).std()) if len(magnitudes) else 0.0
