"""A shard of examples → a part of predictions. Every worker process holds a model and a reader of what it reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from visualbert_core.engine.shards import Marker, Part, ShardFolder
from visualbert_core.engine.worker_process import halving_on_memory_error
from visualbert_core.evaluation.batches import ExampleShard
from visualbert_core.evaluation.inputs import Joined, Reader
from visualbert_core.evaluation.predictions import encode
from visualbert_core.features.store import encode_failures
from visualbert_core.io.locations import Location
from visualbert_core.models import NOT_FINITE, Model, load_model
from visualbert_core.schema import Example, Failure, Prediction

LoadModel = Callable[[Path, type[Example], str | None, str], Model[Any]]
"""folder, form of the examples, device, precision → model"""


class EvaluationWorker:
    """Holds a model and turns shards of examples into committed parts."""

    def __init__(
        self,
        model: Path,
        form: type[Example],
        reader: Callable[[], Reader],
        out: Location,
        batch_size: int,
        precision: str,
        load: LoadModel = load_model,
    ) -> None:
        self.model = load(model, form, None, precision)
        self.reader = reader()
        self.folder = ShardFolder(out)
        self.batch_size = batch_size

    def run(self, shard: ExampleShard) -> Marker:
        """Predict and commit one shard."""
        failures = list(shard.lost().values())
        answered: dict[str, Prediction] = {}
        for batch, lacking in self.reader.read(shard, self.batch_size):
            failures += lacking
            for found in halving_on_memory_error(self.predict, batch) if batch else ():
                kept = _checked(found)
                if isinstance(kept, Failure):
                    failures.append(kept)
                else:
                    answered[kept.example_id] = kept
        rows = [answered[item] for item in shard.items if item in answered]
        return self.folder.commit(shard, Part(encode(rows), len(rows), encode_failures(failures), len(failures)))

    def predict(self, batch: Sequence[Joined]) -> list[Prediction | Failure]:
        """What is kept of a batch."""
        return list(self.model.predict(batch))


def _checked(found: Prediction | Failure) -> Prediction | Failure:
    """What a model gave, or a failure for an answer without a number behind it: a model of somebody else's may give
    those, and they are no wrong answers."""
    if isinstance(found, Failure) or all(map(math.isfinite, found.scores)):
        return found
    return Failure(found.example_id, "predict", "NotFinite", NOT_FINITE)
