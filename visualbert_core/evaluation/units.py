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

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from visualbert_core.errors import InputError
from visualbert_core.metrics.sums import value_of_sums
from visualbert_core.schema import SCHEMA_VERSION, Counts, JudgedAnswer, Score

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

Units = Mapping[str, Sequence[Score]]
"""Metric → its units, in the order of the task."""


@dataclass(frozen=True)
class Values:
    """Holds what units are worth: float64 [n]. For a function of sums, also the counts of the units: float64 [n, k]."""

    values: np.ndarray
    function: str | None = None
    counts: np.ndarray | None = None

    @classmethod
    def of(cls, units: Sequence[Score]) -> Values:
        """Return what the units of one metric are worth."""
        values = np.array([unit.value for unit in units])
        counts = [unit.counts for unit in units if unit.counts]
        return cls(values, counts[0].function, np.array([each.values for each in counts])) if counts else cls(values)

    @property
    def value(self) -> float:
        """Return the metric over these units, in [0, 1]."""
        if self.function is None or self.counts is None:
            return float(np.mean(self.values))
        return value_of_sums(self.function, self.counts)

    def take(self, rows: Sequence[int]) -> Values:
        """Return some of the units."""
        return Values(self.values[rows], self.function, None if self.counts is None else self.counts[rows])


def by_metric(scores: Iterable[Score]) -> dict[str, list[Score]]:
    """Return metric → its units, in the order in which the task yields them."""
    units: dict[str, list[Score]] = {}
    for score in scores:
        units.setdefault(score.metric, []).append(score)
    return units


def encode_units(metrics: Units) -> bytes:
    """Return the bytes of units.parquet. Equal units give equal bytes."""
    counted = any(unit.counts for units in metrics.values() for unit in units)
    sink = pa.BufferOutputStream()
    tables = [_table(units, _SCHEMA_WITH_COUNTS if counted else _SCHEMA) for units in metrics.values()]
    pq.write_table(pa.concat_tables(tables), sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue())


def _table(units: Sequence[Score], schema: pa.Schema) -> pa.Table:
    judged, counts = [unit.judged for unit in units], [unit.counts for unit in units]
    columns = {
        "unit_id": [unit.unit_id for unit in units],
        "metric": [unit.metric for unit in units],
        "value": [unit.value for unit in units],
        "cluster": [unit.cluster for unit in units],
        "groups": [json.dumps(dict(unit.groups)) for unit in units],
        "example_id": [each and each.example_id for each in judged],
        "part": [each and each.part for each in judged],
        "answer": [each and json.dumps(each.answer) for each in judged],
        "confidence": [each and each.confidence for each in judged],
        "function": [each and each.function for each in counts],
        "counts": [each and each.values for each in counts],
    }
    return pa.table(columns, schema)  # which takes the columns of the schema


def read_units(folder: Path) -> dict[str, list[Score]]:
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
    units = []
    for unit_id, metric, value, cluster, groups, example_id, part, answer, confidence, *counted in zip(
        *table.to_pydict().values(), strict=True
    ):
        judged = None if example_id is None else JudgedAnswer(example_id, _parsed(answer), confidence, part)
        counts = Counts(counted[0], tuple(counted[1])) if counted and counted[0] else None
        units.append(Score(unit_id, metric, value, cluster, _groups(groups), judged, counts))
    return by_metric(units)


# Hundreds of thousands of units share a few thousand answers and groups, so the caches save time and memory.
_parsed = lru_cache(maxsize=1 << 16)(json.loads)


@lru_cache(maxsize=1 << 16)
def _groups(text: str) -> Mapping[str, tuple[str, ...]]:
    return {kind: tuple(names) for kind, names in json.loads(text).items()}
