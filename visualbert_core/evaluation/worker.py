"""Owns the evaluation's worker: it holds a model and a reader, and turns a shard of examples into a part."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from visualbert_core.config import AnsweringConfig
from visualbert_core.engine.shards import Marker, Part, ShardFolder
from visualbert_core.engine.worker_process import halving_on_memory_error
from visualbert_core.errors import CheckpointError
from visualbert_core.evaluation.batches import ExampleShard
from visualbert_core.evaluation.inputs import Joined, Reader
from visualbert_core.evaluation.predictions import encode
from visualbert_core.features.store import encode_failures
from visualbert_core.io.locations import Location
from visualbert_core.models import NOT_FINITE, Model, load_model
from visualbert_core.schema import Example, Failure, Grounding, MultipleChoice, Prediction, Statement

LoadModel = Callable[[Path, type[Example], str | None, str, AnsweringConfig], Model[Any]]
"""A function of (folder, form of the examples, device, precision, answering) that returns a model."""


class EvaluationWorker:
    """Predicts shards of examples with one model and commits the parts. Each worker process has one worker."""

    def __init__(
        self,
        model: Path,
        form: type[Example],
        reader: Callable[[], Reader],
        out: Location,
        batch_size: int,
        precision: str,
        answering: AnsweringConfig,
        load: LoadModel = load_model,
    ) -> None:
        self.model = load(model, form, None, precision, answering)
        self.reader = reader()
        self.folder = ShardFolder(out)
        self.batch_size = batch_size

    def run(self, shard: ExampleShard) -> Marker:
        """Predict the examples of one shard, commit the part, and return its marker."""
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
        """Return what is kept of a batch: a prediction or a failure for each example.

        Raise CheckpointError where a model from outside this package does not keep the contract.
        """
        found = list(self.model.predict(batch))
        asked = {example.example_id: example for example, _ in batch}
        for each in found:
            name = each.item_id if isinstance(each, Failure) else each.example_id
            if name not in asked:
                raise CheckpointError(f"{_called(self.model)} answered {name!r}, which is not an example of its batch")
            if isinstance(each, Prediction) and len(each.scores) not in (0, confidences(asked[name])):
                raise CheckpointError(
                    f"{_called(self.model)} gave {len(each.scores)} scores for {name!r}; "
                    f"a {type(asked[name]).__name__} has {confidences(asked[name])}"
                )
        return found


def _called(model: Model[Any]) -> str:
    return f"the model {type(model).__name__}"


def confidences(example: Example) -> int:
    """Return how many `scores` a prediction for this example has, if it has any; see `schema.Prediction`."""
    if isinstance(example, MultipleChoice):
        return len(example.choices)
    if isinstance(example, Grounding):
        return len(example.phrases)
    return 2 if isinstance(example, Statement) else 1


def _checked(found: Prediction | Failure) -> Prediction | Failure:
    """Return what the model gave, or a failure where a score is not finite.

    A model from outside this package may give such scores. Its answer then is a failure, not a wrong answer.
    """
    if isinstance(found, Failure) or all(map(math.isfinite, found.scores)):
        return found
    return Failure(found.example_id, "predict", "NotFinite", NOT_FINITE)
