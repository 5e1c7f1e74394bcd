"""The evaluation of the checkpoints of a training: the same code and the same official metric as `visualbert evaluate`.

Its run folders lie in OUT/validation/STEP/, and the scores are read from there. So a validation that was interrupted
goes on like every evaluation, and nothing about it is part of the training state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visualbert_core.config import EvaluateConfig, PoolConfig
from visualbert_core.engine.pool import Pool
from visualbert_core.errors import ConfigError, CoverageError
from visualbert_core.evaluation.checks import on_training_split
from visualbert_core.evaluation.inputs import ImageSource, RegionSource
from visualbert_core.evaluation.run import Share, evaluate
from visualbert_core.evaluation.run_folder import Run, read_run, run_folder
from visualbert_core.io.locations import Location, Locations, place_names
from visualbert_core.printable import logger
from visualbert_core.provenance import digest_files
from visualbert_core.tasks import find_task, open_task
from visualbert_core.training.recipe import TrainConfig
from visualbert_core.training.sources import check_part, metadata_task
from visualbert_core.training.step import ALONE, Group

_LOG = logger(__name__)


@dataclass(frozen=True)
class Validation:
    """The scores of one checkpoint."""

    step: int
    headline: str
    scores: Mapping[str, float]
    """Metric → percent."""
    wrong_image: Mapping[str, float] | None
    """The same metrics, where every example is asked about other images."""

    @property
    def score(self) -> float:
        return self.scores[self.headline]


def check_validation(config: TrainConfig) -> None:
    """Raise InputError or CoverageError, before the first step, where the validation could not be scored."""
    if config.validate_split is None:
        return
    if metadata_task(config) is None:
        raise ConfigError("validate_split: pre-training answers no benchmark, so there is nothing to evaluate")
    name = config.validate_task or config.task
    task = open_task(name, config.validate_annotations or config.annotations, config.validate_split)
    if not task.labelled:
        raise ConfigError(f"validate_split: {name} {config.validate_split} has no public labels")
    if config.part is not None:
        check_part(type(task), config.part)
    features, images = _visuals(config)
    if features is not None:
        source: RegionSource | ImageSource = RegionSource(features)
    elif images is not None:
        source = ImageSource(images)
    else:
        return  # `open_recipe` says what is lacking
    for example in task.examples():
        for image_id in example.image_ids:
            if image_id not in source:
                lacks, named = ("has no features", "store with --validate-features")
                if features is None:
                    lacks, named = ("is not", "corpus with --validate-images")
                raise CoverageError(
                    f"validate_split: image {image_id!r} of {name} {config.validate_split} {lacks} in "
                    f"{place_names(features or images)}, so there would be no score: add it, or name the {named}"
                )


def validate_parent(config: TrainConfig, group: Group = ALONE) -> Validation | None:
    """Evaluate the checkpoint that the training starts from, as step 0. A finished evaluation is only read.

    Return None where nothing is validated, and where the training does not take the head of that checkpoint.
    """
    if config.validate_split is None or config.weights != "checkpoint":
        return None
    return validate(config, config.model, 0, group)


def validation_run(config: TrainConfig, checkpoint: Path, step: int, visual: Any = "own") -> Run:
    return read_run(run_folder(_evaluation(config, checkpoint, step, visual)))


def on_training_annotations(config: TrainConfig, provenance: Mapping[str, Any]) -> list[str]:
    """Return a warning where the validation has the annotations that are learnt; else nothing."""
    if config.validate_split is None:
        return []
    task = open_task(config.task, config.validate_annotations or config.annotations, config.validate_split)
    if digest_files(task.annotation_files()) != provenance["data"]["annotations"]:
        return []
    return [on_training_split(f"{config.task} {config.validate_split} is what is learnt")]


def validate(config: TrainConfig, checkpoint: Path, step: int, group: Group = ALONE) -> Validation | None:
    """Evaluate a checkpoint on the validation split. A finished evaluation is only read.

    Each worker predicts a share of the examples. Return None in all workers but the first.
    Raise what `evaluate` raises: CoverageError where examples are left without a prediction, UnfinishedError after a
    signal.
    """
    share = Share(group.rank, group.size, group.wait) if group.size > 1 else None
    found = {}
    with Pool(PoolConfig(inline=True, threads_per_worker=config.threads)) as pool:
        for visual in ("own",) if config.own_image_only else ("own", "wrong-image"):
            asked = _evaluation(config, checkpoint, step, visual)
            # The training has warned of what concerns all its checkpoints.
            found[visual] = evaluate(asked, pool, share=share, warn=step == 0 and visual == "own").scores
    if not group.first:
        return None
    own, wrong = found["own"], found.get("wrong-image")
    assert own is not None  # `check_validation` refuses a split without public labels
    headline = own["headline"]
    if config.part is not None:
        headline = find_task(config.validate_task or config.task).parts[config.part]
    validation = Validation(step, headline, own["scores"], None if wrong is None else wrong["scores"])
    beside = "" if wrong is None else f" (wrong image {wrong['scores'][headline]:.2f})"
    _LOG.info("step %s: %s %.2f%s on %s", f"{step:,}", headline, validation.score, beside, config.validate_split)
    return validation


def _evaluation(config: TrainConfig, checkpoint: Path, step: int, visual: Any) -> EvaluateConfig:
    assert config.validate_split is not None
    features, images = _visuals(config)
    return EvaluateConfig(
        task=config.validate_task or config.task,
        split=config.validate_split,
        annotations=config.validate_annotations or config.annotations,
        features=features,
        images=images,
        model=checkpoint,
        out=config.folder / "validation" / f"step-{step:08d}",
        visual=visual,
        precision=config.precision,
        feature_space=None if step else config.feature_space,  # a checkpoint of a training names its space
        batch_size=config.validate_batch_size,
        allow_feature_space_mismatch=config.allow_feature_space_mismatch,
    )


def _visuals(config: TrainConfig) -> tuple[Locations | None, Location | None]:
    """Return the feature stores or the corpus of images of the validation; one of them is None."""
    if (features := config.validate_features or config.features) is not None:
        return features, None
    return None, config.validate_images or config.images


def best(history: Sequence[Validation], count: int = 1) -> list[Validation]:
    """Return the `count` best validations, the best first. Where scores are equal, the earlier is better."""
    return sorted(history, key=lambda each: (-each.score, each.step))[:count]


def is_over(history: Sequence[Validation], patience: int | None) -> bool:
    """Return whether the last `patience` validations brought no better score."""
    return patience is not None and len(history) > 0 and len(history) - 1 - history.index(best(history)[0]) >= patience
