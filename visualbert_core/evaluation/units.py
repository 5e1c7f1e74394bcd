"""Owns units.parquet, the file in a run folder that holds the score of every unit.

    units.parquet    unit_id, metric, value in [0, 1], cluster (image), groups (JSON: kind → groups). Where a unit
                     judges a single answer, also example_id, part, answer (JSON) and confidence of that answer.

With this file, two run folders can be compared on any machine, without the annotations.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from visualbert_core.errors import InputError
from visualbert_core.schema import SCHEMA_VERSION, JudgedAnswer, Score

UNITS_FILE = "units.parquet"

_SCHEMA = pa.schema(
    [
        pa.field("unit_id", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("cluster", pa.string(), nullable=False),
        pa.field("groups", pa.string(), nullable=False),
        pa.field("example_id", pa.string()),  # Where a unit judges several answers, this and the next three are null.
        pa.field("part", pa.int32()),  # the index of the phrase in a grounding; null for other forms
        pa.field("answer", pa.string()),
        pa.field("confidence", pa.float32()),  # null where the prediction has none
    ],
    metadata={"schema_version": str(SCHEMA_VERSION)},
)

Groups = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class UnitScores:
    """Holds the n units of one metric in the order of the task. `values` is float64 [n]; every list has n elements."""

    unit_ids: list[str]
    values: np.ndarray
    clusters: list[str]
    groups: list[Groups]
    judged: list[JudgedAnswer | None]


def by_metric(scores: Iterable[Score]) -> dict[str, UnitScores]:
    """Return metric → its units, in the order in which the task yields them."""
    rows: dict[str, list[Score]] = {}
    for score in scores:
        rows.setdefault(score.metric, []).append(score)
    return {
        metric: UnitScores(
            [score.unit_id for score in found],
            np.array([score.value for score in found]),
            [score.cluster for score in found],
            [score.groups for score in found],
            [score.judged for score in found],
        )
        for metric, found in rows.items()
    }


def encode_units(metrics: Mapping[str, UnitScores]) -> bytes:
    """Return the bytes of units.parquet. Equal units give equal bytes."""
    tables = [
        pa.table(
            {
                "unit_id": units.unit_ids,
                "metric": [metric] * len(units.unit_ids),
                "value": units.values,
                "cluster": units.clusters,
                "groups": [json.dumps({kind: list(names) for kind, names in each.items()}) for each in units.groups],
                "example_id": [judged and judged.example_id for judged in units.judged],
                "part": [judged and judged.part for judged in units.judged],
                "answer": [judged and json.dumps(judged.answer) for judged in units.judged],
                "confidence": [judged and judged.confidence for judged in units.judged],
            },
            _SCHEMA,
        )
        for metric, units in metrics.items()
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables(tables), sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue())


def read_units(folder: Path) -> dict[str, UnitScores]:
    """Return metric → the units of a finished run folder. Raises InputError where the file is missing or damaged."""
    try:
        table = pq.read_table(folder / UNITS_FILE, page_checksum_verification=True)
    except FileNotFoundError:
        raise InputError(
            f"{folder} has no {UNITS_FILE}: it is not a finished run of a labelled split; run the same line again"
        ) from None
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{folder / UNITS_FILE} is damaged ({error}): run the same line again") from None
    if not table.schema.equals(_SCHEMA):
        raise InputError(f"{folder / UNITS_FILE} is of another version of this library: run the same line again")
    columns = table.to_pydict()
    rows: dict[str, list[int]] = {}
    for row, metric in enumerate(columns["metric"]):
        rows.setdefault(metric, []).append(row)
    return {
        metric: UnitScores(
            [columns["unit_id"][row] for row in found],
            np.array([columns["value"][row] for row in found]),
            [columns["cluster"][row] for row in found],
            [_groups(columns["groups"][row]) for row in found],
            [_judged(*(columns[name][row] for name in _JUDGED)) for row in found],
        )
        for metric, found in rows.items()
    }


_JUDGED = ("example_id", "answer", "confidence", "part")


def _judged(example_id: str | None, answer: str, confidence: float | None, part: int | None) -> JudgedAnswer | None:
    return None if example_id is None else JudgedAnswer(example_id, json.loads(answer), confidence, part)


@lru_cache(maxsize=1 << 16)
def _groups(text: str) -> Groups:
    """Parse a value of the column groups.

    Hundreds of thousands of units share a few thousand values, so the cache saves time and memory.
    """
    return {kind: tuple(names) for kind, names in json.loads(text).items()}
