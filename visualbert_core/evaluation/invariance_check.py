"""Checks that answers do not depend on the batch or on the number of workers; otherwise scores are not comparable.

A sample is predicted twice: one example at a time on one worker, and in batches on all workers, as an evaluation does.
The logits differ in their last digits, because the two ways add numbers in different orders. That changes an answer
only where two logits are nearly equal. So the gap between the two logits tells a rounding difference (a gap of 1e-6)
from a fault (a gap of 1). For a model without logits, the answers and the confidences are compared.
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
from visualbert_core.evaluation.checks import check_sizes, open_checked
from visualbert_core.evaluation.inputs import sample
from visualbert_core.evaluation.run_folder import run_folder
from visualbert_core.evaluation.worker import EvaluationWorker, Joined, LoadModel, plan_examples, read_predictions
from visualbert_core.models import GivesLogits, load_model
from visualbert_core.schema import Example, Failure, Grounding, Prediction
from visualbert_core.tasks import open_task

EXAMPLES = 64
REGRESSION = 4  # exit code where an answer changed


@dataclass(frozen=True)
class ChangedAnswer:
    """Holds the two answers to an example: predicted `alone`, and in a batch (`together`).

    `gap` is the logit of the first answer minus that of the second, predicted alone; None for a model without logits.
    """

    example_id: str
    alone: Any
    together: Any
    gap: float | None


@dataclass(frozen=True)
class InvarianceCheck:
    """Holds the result for a sample.

    `largest_difference` is between the two values of one logit; of one confidence, for a model without logits.
    `compared` is "logits" or "confidences".
    """

    examples: int
    batch_size: int
    compared: str
    largest_difference: float
    changed: tuple[ChangedAnswer, ...]


def check_invariance(
    config: EvaluateConfig, pool: PoolConfig, examples: int = EXAMPLES, load: LoadModel = load_model
) -> InvarianceCheck:
    """Predict a sample both ways, in a folder beside the run folder. The folder is removed afterwards.

    Raises InputError for inputs that do not fit together, CoverageError where an example has no prediction.
    """
    task = open_task(config.task, config.annotations, config.split)
    model, source, _ = open_checked(config, task, load)
    asked = sample(task.examples(), source, examples)
    source.identify(asked)
    check_sizes(task, source)
    folder = run_folder(config).with_name(f"{run_folder(config).name}__invariance-check")
    shutil.rmtree(folder, ignore_errors=True)  # A check that was killed leaves its folder.

    def predicted(out: Path, config: EvaluateConfig, pool: PoolConfig, images: int) -> Mapping[str, Prediction]:
        shards = plan_examples(asked, None, source.files, "invariance check", images)
        make_worker = partial(_LogitsWorker, config, task.form, source.reader(config.visual), out, load)
        with Pool(pool) as workers:
            workers.run(make_worker, shards, f"invariance check, batches of {config.batch_size}")
        ShardFolder(out).finish(shards, {"task": config.task})
        found, failures = read_predictions(out)
        if failures:
            raise CoverageError(f"invariance check: {failures[0].item_id}: {failures[0].message}")
        return {prediction.example_id: prediction for prediction in found}

    try:
        single, one_worker = dataclasses.replace(config, batch_size=1), dataclasses.replace(pool, workers=1)
        alone = predicted(folder / "alone", single, one_worker, 64)
        together = predicted(folder / "together", config, pool, 4)  # Small shards give every worker some.
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _compared(asked, alone, together, config, isinstance(model, GivesLogits))


def describe(check: InvarianceCheck) -> Iterator[str]:
    """Yield the result of a check as lines of text."""
    how = f"{check.examples} examples, alone and in batches of {check.batch_size}"
    yield f"{how}: {len(check.changed)} answers changed"
    yield f"largest difference of {check.compared}: {check.largest_difference:.1e}"
    for changed in check.changed:
        gap = "" if changed.gap is None else f", logit gap {changed.gap:.1e}"
        yield f"{changed.example_id}: {changed.alone} → {changed.together}{gap}"


class _LogitsWorker(EvaluationWorker):
    """Keeps logits in place of confidences."""

    def predict(self, batch: Sequence[Joined]) -> list[Prediction | Failure]:
        """Return predictions whose `scores` are the logits, row by row, where the model gives logits.

        The lowest finite number replaces -inf, by which a model rules out an answer: it would count as a failure.
        """
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
        if values.shape == others.shape:  # Two generated answers may differ in their number of scores.
            largest = max(largest, float(np.abs(values - others).max(initial=0.0)))
        if one.answer != other.answer:
            rows = len(example.phrases) if isinstance(example, Grounding) else 1
            gap = _gap(values.reshape(rows, -1), others.reshape(rows, -1)) if of_logits else None
            changed.append(ChangedAnswer(example.example_id, one.answer, other.answer, gap))
    compared = "logits" if of_logits else "confidences"
    return InvarianceCheck(len(asked), config.batch_size, compared, largest, tuple(changed))


def _gap(logits: np.ndarray, others: np.ndarray) -> float:
    """Return the largest gap over the rows; `logits` and `others` are [rows, choices].

    In each row, the gap is between the choices at the first rank where the two rankings differ.
    """
    gaps = [0.0]
    for row, other in zip(logits, others, strict=True):
        order, its = np.argsort(-row, kind="stable"), np.argsort(-other, kind="stable")
        if len(differing := np.flatnonzero(order != its)):
            first = differing[0]
            gaps.append(float(row[order[first]] - row[its[first]]))
    return max(gaps)
