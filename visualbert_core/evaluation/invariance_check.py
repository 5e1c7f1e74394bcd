"""Do answers depend on the batch or on the number of workers? They must not, or no score can be compared with another.

A sample is predicted one example at a time on one worker, and again as the evaluation would: in batches, on all
workers. Logits differ in their last digits, as sums are added in another order; an answer changes only where two logits
are closer than that, and so tells a rounding (a gap of 1e-6) from a fault (a gap of 1). Models that give no logits are
compared by their answers and confidences.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from visualbert_core.config import EvaluateConfig, PoolConfig
from visualbert_core.engine.pool import Pool
from visualbert_core.engine.shards import ShardFolder
from visualbert_core.errors import CoverageError
from visualbert_core.evaluation.batches import plan_examples, sample
from visualbert_core.evaluation.fit import check_fit, check_form
from visualbert_core.evaluation.inputs import Joined, Source, open_source
from visualbert_core.evaluation.predictions import read_predictions
from visualbert_core.evaluation.run_folder import run_folder
from visualbert_core.evaluation.sizes import check_sizes
from visualbert_core.evaluation.worker import EvaluationWorker, LoadModel
from visualbert_core.models import GivesLogits, load_model
from visualbert_core.schema import Example, Failure, Grounding, Prediction
from visualbert_core.tasks import open_task

EXAMPLES = 64
REGRESSION = 4  # exit code where an answer changed


@dataclass(frozen=True)
class ChangedAnswer:
    """`gap`: by how much, alone, the logit of its answer there exceeds that of the answer it gets in a batch; None for
    a model that gives no logits."""

    example_id: str
    alone: Any
    together: Any
    gap: float | None


@dataclass(frozen=True)
class InvarianceCheck:
    """What a sample came to. `largest_difference` is that of any two logits of one example, or of any two confidences
    where the model gives no logits; `compared` says which."""

    examples: int
    batch_size: int
    compared: str
    largest_difference: float
    changed: tuple[ChangedAnswer, ...]


def check_invariance(
    config: EvaluateConfig, pool: PoolConfig, examples: int = EXAMPLES, load: LoadModel = load_model
) -> InvarianceCheck:
    """Predict a sample both ways, in a folder beside the run's that is removed afterwards.

    Raises InputError for inputs that do not fit together, CoverageError where an example has no prediction.
    """
    task = open_task(config.task, config.annotations, config.split)
    model = load(config.model, task.form, "cpu", config.precision)
    check_form(model, task.form, config)
    source = open_source(config, model)
    check_fit(model, source, config)
    asked = sample(task.examples(), source, examples)
    source.identify(asked)
    check_sizes(task, source)
    folder = run_folder(config).with_name(f"{run_folder(config).name}__invariance-check")
    alone, together = folder / "alone", folder / "together"
    shutil.rmtree(folder, ignore_errors=True)  # what a killed check left
    try:
        single, one_worker = dataclasses.replace(config, batch_size=1), dataclasses.replace(pool, workers=1)
        one = _logits(single, alone, asked, source, one_worker, 64, load)
        all_ = _logits(config, together, asked, source, pool, 4, load)  # small shards, so that every worker has some
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _compared(asked, one, all_, config, isinstance(model, GivesLogits))


def describe(check: InvarianceCheck) -> Iterator[str]:
    """The lines of a check."""
    how = f"{check.examples} examples, alone and in batches of {check.batch_size}"
    yield f"{how}: {len(check.changed)} answers changed"
    yield f"largest difference of {check.compared}: {check.largest_difference:.1e}"
    for changed in check.changed:
        gap = "" if changed.gap is None else f", logit gap {changed.gap:.1e}"
        yield f"{changed.example_id}: {changed.alone} → {changed.together}{gap}"


def _logits(
    config: EvaluateConfig,
    folder: Path,
    asked: Sequence[Example],
    source: Source,
    pool: PoolConfig,
    images: int,
    load: LoadModel,
) -> Mapping[str, Prediction]:
    """Predict the sample, in shards of so many images. The `scores` are the logits, row by row, where there are any."""
    shards, parts = plan_examples(asked, None, source.files, "invariance check", images), ShardFolder(folder)
    inputs = (config.model, type(asked[0]), source.reader)
    make_worker = partial(_LogitsWorker, *inputs, folder, config.batch_size, config.precision, load)
    with Pool(pool) as workers:
        workers.run(make_worker, shards, f"invariance check, batches of {config.batch_size}")
    parts.finish(shards, {"task": config.task})
    found, failures = read_predictions(folder)
    if failures:
        raise CoverageError(f"invariance check: {failures[0].item_id}: {failures[0].message}")
    return {prediction.example_id: prediction for prediction in found}


class _LogitsWorker(EvaluationWorker):
    """Keeps the logits where the evaluation keeps confidences."""

    def predict(self, batch: Sequence[Joined]) -> list[Prediction | Failure]:
        """An answer that is ruled out has the logit -inf, which is not a fault: it stands as the lowest number."""
        if not isinstance(self.model, GivesLogits):
            return super().predict(batch)
        lowest = float(np.finfo(np.float32).min)
        return [
            each
            if isinstance(each, Failure)
            else dataclasses.replace(each[0], scores=tuple(np.nan_to_num(each[1], neginf=lowest, nan=np.nan).ravel()))
            for each in self.model.examine(batch)
        ]


def _compared(
    asked: Sequence[Example],
    alone: Mapping[str, Prediction],
    together: Mapping[str, Prediction],
    config: EvaluateConfig,
    of_logits: bool,
) -> InvarianceCheck:
    changed, largest = [], 0.0
    for example in asked:
        one, other = alone[example.example_id], together[example.example_id]
        values, others = (np.array(p.scores, np.float64) for p in (one, other))
        if values.shape == others.shape:  # generated answers need not have as many
            largest = max(largest, float(np.abs(values - others).max(initial=0.0)))
        if one.answer != other.answer:
            rows = len(example.phrases) if isinstance(example, Grounding) else 1
            gap = _gap(values.reshape(rows, -1), others.reshape(rows, -1)) if of_logits else None
            changed.append(ChangedAnswer(example.example_id, one.answer, other.answer, gap))
    compared = "logits" if of_logits else "confidences"
    return InvarianceCheck(len(asked), config.batch_size, compared, largest, tuple(changed))


def _gap(logits: np.ndarray, others: np.ndarray) -> float:
    """The largest, over the rows [rows, choices], of what separates the first choices that are ranked otherwise."""
    gaps = [0.0]
    for row, other in zip(logits, others, strict=True):
        order, its = np.argsort(-row, kind="stable"), np.argsort(-other, kind="stable")
        if len(differing := np.flatnonzero(order != its)):
            first = differing[0]
            gaps.append(float(row[order[first]] - row[its[first]]))
    return max(gaps)
