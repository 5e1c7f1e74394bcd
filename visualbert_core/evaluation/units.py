"""Owns units.parquet, the file in a run folder that holds the score of every unit.

    units.parquet    unit_id, metric, value in [0, 1], cluster (image), groups (JSON: kind → groups). Where a unit
                     judges a single answer, also example_id, part, answer (JSON) and confidence of that answer.
                     Only where a metric is a function of sums, also function and counts of the unit (schema.Counts).

With this file, two run folders can be compared on any machine, without the annotations.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from visualbert_core.errors import InputError
from visualbert_core.metrics.sums import value_of_sums
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

_COUNTS = (
    pa.field("function", pa.string()),
    pa.field("counts", pa.list_(pa.field("item", pa.float64(), nullable=False))),
)
_SCHEMA_WITH_COUNTS = pa.schema([*_SCHEMA, *_COUNTS], metadata=_SCHEMA.metadata)

Groups = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Values:
    """Holds what units are worth: float64 [n]. For a function of sums, also the counts of the units: float64 [n, k]."""

    values: np.ndarray
    function: str | None = None
    counts: np.ndarray | None = None

    @property
    def value(self) -> float:
        """Return the metric over these units, in [0, 1]."""
        if self.function is None or self.counts is None:
            return float(np.mean(self.values))
        return value_of_sums(self.function, self.counts)

    def take(self, rows: Sequence[int]) -> Values:
        """Return some of the units."""
        chosen = list(rows)
        return Values(self.values[chosen], self.function, None if self.counts is None else self.counts[chosen])


@dataclass(frozen=True)
class UnitScores:
    """Holds the n units of one metric in the order of the task. `values` is float64 [n]; every list has n elements.

    Where the metric is a function of sums, `function` names it and `counts` is float64 [n, k].
    """

    unit_ids: list[str]
    values: np.ndarray
    clusters: list[str]
    groups: list[Groups]
    judged: list[JudgedAnswer | None]
    function: str | None = None
    counts: np.ndarray | None = None

    @property
    def worth(self) -> Values:
        """Return what the units are worth."""
        return Values(self.values, self.function, self.counts)

    def take(self, rows: Sequence[int]) -> UnitScores:
        """Return some of the units, in the order of `rows`."""
        chosen = self.worth.take(rows)
        return UnitScores(
            [self.unit_ids[row] for row in rows],
            chosen.values,
            [self.clusters[row] for row in rows],
            [self.groups[row] for row in rows],
            [self.judged[row] for row in rows],
            chosen.function,
            chosen.counts,
        )


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
            *_counts(
                [score.counts.function if score.counts else None for score in found],
                [score.counts.values if score.counts else None for score in found],
            ),
        )
        for metric, found in rows.items()
    }


def encode_units(metrics: Mapping[str, UnitScores]) -> bytes:
    """Return the bytes of units.parquet. Equal units give equal bytes."""
    schema = _SCHEMA if all(units.counts is None for units in metrics.values()) else _SCHEMA_WITH_COUNTS
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
                **({} if schema is _SCHEMA else _count_columns(units)),
            },
            schema,
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
    if not (table.schema.equals(_SCHEMA) or table.schema.equals(_SCHEMA_WITH_COUNTS)):
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
            *_counts(
                *([columns[name][row] for row in found] if name in columns else [] for name in ("function", "counts"))
            ),
        )
        for metric, found in rows.items()
    }


def _counts(
    functions: Sequence[str | None], counts: Sequence[Sequence[float] | None]
) -> tuple[str | None, np.ndarray | None]:
    """Return the function of a metric and the counts of its units, or None for both where it is a mean."""
    if not functions or functions[0] is None:
        return None, None
    return functions[0], np.array(counts)


def _count_columns(units: UnitScores) -> dict[str, list[Any]]:
    counts = [None] * len(units.unit_ids) if units.counts is None else units.counts.tolist()
    return {"function": [units.function] * len(counts), "counts": counts}


_JUDGED = ("example_id", "answer", "confidence", "part")


def _judged(example_id: str | None, answer: str, confidence: float | None, part: int | None) -> JudgedAnswer | None:
    return None if example_id is None else JudgedAnswer(example_id, json.loads(answer), confidence, part)


@lru_cache(maxsize=1 << 16)
def _groups(text: str) -> Groups:
    """Parse a value of the column groups.

    Hundreds of thousands of units share a few thousand values, so the cache saves time and memory.
    """
    return {kind: tuple(names) for kind, names in json.loads(text).items()}
