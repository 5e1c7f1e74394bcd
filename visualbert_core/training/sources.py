"""What a recipe trains on: model, examples with their targets, and regions, all checked before the first step.

Tasks and models meet here. An example without a target, and an image without features, are counted and named.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from visualbert_core.errors import CoverageError, InputError
from visualbert_core.evaluation.fit import check_fit
from visualbert_core.evaluation.inputs import RegionSource
from visualbert_core.features.store import FeatureStore
from visualbert_core.models import load_trainable
from visualbert_core.models.trainable import Start, Trainable
from visualbert_core.printable import logger
from visualbert_core.provenance import code_digests, digest_files, outside_code, versions
from visualbert_core.schema import CaptionPair, Example, Grounding, Pixels, Regions, Target
from visualbert_core.tasks import CaptionPairs, Task, open_lessons
from visualbert_core.training.images import TrainingImages, check_reads
from visualbert_core.training.recipe import TrainConfig

_LOG = logger(__name__)
_NAMED = 3  # ids in a message


@dataclass(frozen=True)
class Lessons:
    """An open recipe: what is learnt, from which regions or images, by which model."""

    task: Task | CaptionPairs
    store: FeatureStore | TrainingImages
    model: Trainable[Any]
    examples: list[Example | CaptionPair]
    masked: bool
    """Whether words are masked, so that examples tell something instead of asking it."""
    remarks: dict[str, Any]
    """What was counted: examples, those without a target, phrases without a region, images without features."""

    def visuals(self, examples: Sequence[Example | CaptionPair]) -> Iterator[tuple[Regions | Pixels, ...]]:
        """Yield the regions or the pixels of the images of each example. The regions of an image are read once."""
        if isinstance(self.store, TrainingImages):
            yield from self.store.pixels(examples)
            return
        image_ids = list(dict.fromkeys(image_id for example in examples for image_id in example.image_ids))
        regions = dict(zip(image_ids, self.store.fetch_many(image_ids), strict=True))
        yield from (tuple(regions[image_id] for image_id in example.image_ids) for example in examples)

    def boxes(self, example: Example | CaptionPair) -> list[np.ndarray]:
        """Return the boxes of the regions of each image of an example, float32 [R, 4]."""
        return [self.store.boxes(image_id) for image_id in example.image_ids]

    def target(self, example: Any, boxes: list[np.ndarray], draws: random.Random) -> Target:
        """Return what is to be learnt from an example on one visit."""
        return self.task.told(example, draws) if self.masked else self.task.target(example, boxes)

    def provenance(self, config: TrainConfig) -> dict[str, Any]:
        """Return what the training is made of, without paths."""
        return {
            "recipe": config.ingredients(),
            "data": {
                "annotations": digest_files(self.task.annotation_files()),
                **self._identity(),
            },
            "parent": self.model.fingerprint(),
            "code": code_digests(("training", "predictions")) | outside_code("task", type(self.task)),
            "versions": versions(),
        }

    def _identity(self) -> dict[str, Any]:
        """Return the part of the provenance that identifies the regions or images."""
        if isinstance(self.store, TrainingImages):
            return self.store.identity()
        return {"features": {"detector": self.store.fingerprint, "manifest": self.store.manifest_digest()}}


def open_recipe(config: TrainConfig) -> Lessons:
    """Open task, store and model of a recipe. Log what is counted.

    Raise InputError where they do not fit together. Raise CoverageError where an image has no features, unless the
    recipe allows it, and where no example is left.
    """
    task = open_lessons(config.task, config.annotations, config.split)
    start = Start(
        weights=config.weights,
        seed=config.seed,
        dropout=config.dropout,
        answers=config.answers,
        objective=config.objective,
        own_caption_label=config.own_caption_label,
        answer_letters=config.answer_letters,
        pair_cut=config.pair_cut,
    )
    model = load_trainable(config.model, task.form, start)
    check_reads(config, model.reads)
    every: list[Example | CaptionPair] = list(task.lessons())
    store = _store(config, model, every)
    examples, lacking = _with_features(every, store, config)
    masked = task.form is CaptionPair or config.objective == "masked-words"
    lessons = Lessons(task, store, model, examples, masked, {})
    kept, without, phrases = _with_target(lessons, config)
    if not kept:
        raise CoverageError(f"{config.task} {config.split}: none of {len(every):,} examples can be learnt from")
    remarks = {"examples": len(kept), "without_features": lacking, "without_target": without} | phrases
    return replace(lessons, examples=kept, remarks=remarks)


def _store(
    config: TrainConfig, model: Trainable[Any], examples: list[Example | CaptionPair]
) -> FeatureStore | TrainingImages:
    """Return what the model reads of the images. Log where the features are of another space than the checkpoint."""
    if config.images is not None:
        return TrainingImages(config.images, cast(list[Example], examples))
    assert config.features is not None  # the configuration names one of them
    source = RegionSource(config.features)
    # The check reads four fields, which both kinds of configuration have.
    for warning in check_fit(cast(Any, model), source, cast(Any, config)):
        if config.weights != "random":
            _LOG.warning("%s: %s", config.model.name, warning)
    return source.store


def _with_features(
    every: list[Example | CaptionPair], store: FeatureStore | TrainingImages, config: TrainConfig
) -> tuple[list[Example | CaptionPair], int]:
    """Return the examples whose images have features, or are there, and the number of the others."""
    missing = {i: None for example in every for i in example.image_ids if i not in store}
    if not missing:
        return every, 0
    kept = [example for example in every if not missing.keys() & set(example.image_ids)]
    lack, get = ("have no features in", "extract") if config.images is None else ("cannot be read in", "add")
    said = (
        f"{len(missing):,} images of {config.task} {config.split} {lack} {config.features or config.images} "
        f"({_named(list(missing))}): {len(every) - len(kept):,} of {len(every):,} examples"
    )
    if not config.allow_missing:
        raise CoverageError(f"{said}; {get} them, or leave these examples out with --allow-missing")
    _LOG.warning("%s are left out", said)
    return kept, len(every) - len(kept)


def _with_target(lessons: Lessons, config: TrainConfig) -> tuple[list[Example | CaptionPair], int, dict[str, int]]:
    """Return the examples that the recipe keeps, the number without a target, and the counts of phrases."""
    if lessons.masked:
        return lessons.examples, 0, {}
    kept, without = [], []
    phrases = unmatched = 0
    for example in lessons.examples:
        boxes = lessons.boxes(example) if isinstance(example, Grounding) else []
        target = lessons.task.target(example, boxes)  # type: ignore[arg-type]
        if isinstance(target, np.ndarray):
            phrases += len(target)
            unmatched += int((~target.any(axis=1)).sum())
        if lessons.model.has_target(target):
            kept.append(example)
        else:
            without.append(example.example_id)
            if config.without_target == "keep":
                kept.append(example)
    what = f"{config.task} {config.split}"
    _LOG.info("%s: %s examples", what, f"{len(kept):,}")
    if without:
        share = f"{100 * len(without) / len(lessons.examples):.1f} %"
        does = "add no loss but count in the mean" if config.without_target == "keep" else "are left out"
        _LOG.warning(
            "%s: %s examples (%s) have no target and %s: %s", what, f"{len(without):,}", share, does, _named(without)
        )
    if unmatched:
        _LOG.warning("%s: no region shows %s of %s phrases", what, f"{unmatched:,}", f"{phrases:,}")
    return kept, len(without), {"phrases": phrases, "phrases_without_region": unmatched} if phrases else {}


def _named(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def metadata_task(config: TrainConfig) -> str | None:
    """Return the task that a checkpoint of this training answers. Pre-training answers none."""
    return None if config.task == CaptionPairs.name or config.objective == "masked-words" else config.task


def out_of_place(config: TrainConfig) -> None:
    """Raise InputError where the output folder is the folder of the checkpoint that the training starts from."""
    if Path(config.out).absolute() == Path(config.model).absolute():
        raise InputError(f"out: {config.out} is the checkpoint to start from: name another folder")
