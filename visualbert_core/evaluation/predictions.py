"""Writes predictions as Parquet parts and reads them back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from visualbert_core.engine.shards import ShardFolder
from visualbert_core.schema import PREDICTION_SCHEMA, PREDICTION_VERSION, Failure, Generated, Prediction


def encode(predictions: Sequence[Prediction]) -> bytes:
    """Return the bytes of a part with one row per prediction. Equal predictions give equal bytes."""
    columns = {
        "example_id": [p.example_id for p in predictions],
        "image_id": [p.image_id for p in predictions],
        "answer": [json.dumps(p.answer, separators=(",", ":")) for p in predictions],
        "scores": [list(p.scores) for p in predictions],
        "generated": [[asdict(text) for text in p.generated] for p in predictions],
        "input_cut": [p.input_cut for p in predictions],
    }
    schema = PREDICTION_SCHEMA.with_metadata({"schema_version": str(PREDICTION_VERSION)})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema), sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue())


def read_predictions(folder: str | Path) -> tuple[list[Prediction], list[Failure]]:
    """Return the predictions and the failures of a finished `predictions/` folder, both sorted by example id.

    Raises StoreError where the folder is unfinished or damaged.
    """
    shards = ShardFolder(folder)
    predictions: list[Prediction] = []
    failures: list[Failure] = []
    for marker in shards.read_manifest(verify=True).shards:
        for row in pq.read_table(shards.part_path(marker.shard_id)).to_pylist():
            answer, scores = json.loads(row["answer"]), tuple(row["scores"])
            # Version 2 of the rows had no texts. A night after an upgrade is compared with rows of that version.
            generated = tuple(Generated(**text) for text in row.get("generated", ()))
            example_id, image_id, cut = row["example_id"], row["image_id"], row.get("input_cut", False)
            predictions.append(Prediction(example_id, image_id, answer, scores, generated, cut))
        if marker.failures is not None:
            rows = pq.read_table(shards.failures_path(marker.shard_id)).to_pylist()
            failures += [Failure(**row) for row in rows]
    return sorted(predictions, key=lambda p: p.example_id), sorted(failures, key=lambda f: f.item_id)
