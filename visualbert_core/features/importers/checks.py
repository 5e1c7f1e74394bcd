"""What is checked of imported features: each record by itself, and a sample of the source before anything is written.

A file does not say of what type its bytes are, what its boxes mean, or which space it is of. Read wrongly, features
and boxes are numbers as well, so what a whole source looks like is looked at: `metrics/boxes.py` for the boxes, the
sizes of known spaces, and how far apart the magnitudes of the features lie.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from visualbert_core.errors import InputError
from visualbert_core.features.importers.sources import MalformedError, Place, Source
from visualbert_core.features.store import to_half
from visualbert_core.metrics import boxes as conventions
from visualbert_core.schema import Regions

SPACES = {"pythia_fpn": 2048, "detectron_fpn": 1024, "r2c_resnet50": 512, "vg_c4": 2048}
"""Feature size of the spaces of published checkpoints (docs/features.md)."""

SAMPLE = 300  # records

_NEAR = 0.85  # of an image's side
_LARGEST, _LEAST = 65504.0, 2.0**-24  # what float16 holds
_BEYOND = 0.02  # the share of numbers beyond it that good features may have


@dataclass(frozen=True)
class Expected:
    """What every record of a source must be."""

    feature_size: int
    boxes: str
    """One of `metrics.boxes.CONVENTIONS`."""
    sizes_known: bool


def checked(row: Regions, expected: Expected) -> Regions:
    """The row with boxes as xyxy pixels and features as float16; the store has its own types for the rest.

    Raises MalformedError.
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
    return (row.width, row.height) if known else (np.inf, np.inf)


# ---------------------------------------------------------------------------------------------------------------------
# the source


def look(
    reader: Source, places: Mapping[str, tuple[Place, ...]], name: str, space: str, boxes: str
) -> tuple[Expected, tuple[str, ...]]:
    """What the records of a source have in common, from a sample spread over it; and lines that must be said.

    Raises InputError, naming the source `name`, where no record can be read, most boxes are of another convention than
    `boxes`, or the features are of another type or size than those of `space`.
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
    """The records of up to `SAMPLE` ids, drawn at random but always the same, and why one could not be read."""
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
    rows = [row for row in rows if row.boxes.shape[1:] == (4,) and len(row.boxes)]
    if not rows:
        return None
    counts = [len(row.boxes) for row in rows]
    width, height = np.array([_sides(row, sizes_known) for row in rows], float).repeat(counts, axis=0).T
    number = np.arange(len(rows)).repeat(counts)
    return conventions.suspect(np.concatenate([row.boxes for row in rows]), width, height, number, declared)


def _remarks(rows: Sequence[Regions], declared: str, sizes_known: bool) -> tuple[str, ...]:
    """A line where many boxes of several images all end far before their images do, as those of smaller copies do.
    Detectors find something near an edge of at least one image."""
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
        f"none of {count:,} boxes goes beyond {100 * far[0]:.0f} % of its image's width and {100 * far[1]:.0f} % of "
        "its height: were the images resized, so that boxes and sizes are of two scales?",
    )


def _advice(wrong: conventions.Suspicion) -> str:
    if wrong.looks_like is None:
        return "; declare their convention with --boxes, or mend the sizes of the images"
    if wrong.looks_like == "yxyx":
        return " (--boxes yxyx reads the first; mend the sizes if it is the second)"
    return f" (--boxes {wrong.looks_like} reads them so)"


# ---------------------------------------------------------------------------------------------------------------------
# the features


def _another_size(space: str, size: int) -> str:
    known = SPACES[space]
    like = {known // 2: ["float16"], known * 2: ["float64"]}.get(size, [])
    like += [f"features of {other}" for other, length in SPACES.items() if length == size]
    text = f"{size:,} values a box where {space} has {known:,}"
    return f"{text}: {' or '.join(like)}?" if like else f"{text}: name the space that they are of (--space)"


def _misread(rows: Sequence[Regions]) -> str | None:
    """What the features of most records are that cannot be a network's, in words."""
    votes = Counter(filter(None, (_flaw(row.features) for row in rows)))
    for what, number in votes.most_common(1):
        if 2 * number > len(rows):
            size = rows[0].features.shape[1]
            return f"the features of {number:,} of {len(rows):,} records {what} ({size:,} values a box were read)"
    return None


def _flaw(features: np.ndarray) -> str | None:
    """What is wrong with the features of an image as a whole; None where they can be a network's."""
    if name := _type(features):
        return f"make no sense as float32 and do as {name}: write them as float32"
    magnitudes = np.abs(features[features != 0])
    if features.size and not magnitudes.size:
        return "are all 0: extract them again"
    magnitudes = magnitudes[np.isfinite(magnitudes)]
    if magnitudes.size and (magnitudes.max() < _LEAST or np.mean(magnitudes > _LARGEST) > _BEYOND):
        return "are no numbers that a network gives: bytes of another type? write them as little-endian float32"
    return None


def _type(features: np.ndarray) -> str | None:
    """The type of the bytes that were read as float32, where float32 spreads the magnitudes over many more octaves.

    Bytes of another type put digits where the exponent is. Features of float16 seem to lie eight times as many octaves
    apart as they do, those of float64 or of the other byte order a hundred; good ones are read as what they are by no
    other type.
    """
    data = np.ascontiguousarray(features, "<f4")
    raw = data.reshape(-1)
    halves = raw.view("<u2").reshape(-1, 2)
    words = raw.view("<u4")
    if raw.size % 2 == 0 and words[1::2].any() and not words[::2].any():
        return "float64"  # of round numbers
    spread = _octaves(raw[np.isfinite(raw)])
    if spread <= 4:
        return None
    candidates = {"float16": raw.view("<f2"), "big-endian float32": raw.view(">f4")}
    if raw.size % 2 == 0:
        candidates["float64"] = raw.view("<f8")
    # What was cut to bfloat16 has no low halves, and half its octaves in the upper ones.
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
    """How far apart magnitudes lie: the standard deviation of their binary logarithms, zeros left out."""
    magnitudes = np.abs(values[values != 0].astype(np.float64))
    return float(np.log2(magnitudes).std()) if len(magnitudes) else 0.0
