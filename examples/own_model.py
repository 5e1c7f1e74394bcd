"""Evaluate a model of your own. This one answers "yes" to every question.

python examples/own_model.py ANNOTATIONS STORE RUNS
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visualbert_core import EvaluateConfig, Pool, PoolConfig, evaluate
from visualbert_core.config import AnsweringConfig
from visualbert_core.models import ReadsRegions
from visualbert_core.schema import Example, Prediction, Question, Regions


class AlwaysYes:
    """A model without weights. Its contract is `visualbert_core.models.Model`."""

    reads = ReadsRegions(size=256, space="world-tiny-rcnn-fc7")  # or ReadsPixels(): then images=, not features=
    forms = frozenset({Question})
    name, protocol = "AlwaysYes", ""

    def fingerprint(self) -> dict[str, Any]:
        """Return what changes a prediction. It becomes part of the provenance of a run."""
        return {"class": "AlwaysYes", "version": 1}

    def predict(self, batch: Sequence[tuple[Example, tuple[Regions, ...]]]) -> list[Prediction]:
        return [Prediction(example.example_id, example.image_ids[0], "yes", (1.0,)) for example, _ in batch]


def load(folder: Path, form: type[Example], device: str | None, precision: str, answering: AnsweringConfig) -> Any:
    """Return the model. Every worker calls this once."""
    return AlwaysYes()


if __name__ == "__main__":
    annotations, features, out = map(Path, sys.argv[1:])
    config = EvaluateConfig(
        task="vqa", split="val", annotations=annotations, features=features, model=Path("always-yes"), out=out
    )
    with Pool(PoolConfig(inline=True)) as pool:
        run = evaluate(config, pool, load)
    print(run.scores and run.scores["scores"])
