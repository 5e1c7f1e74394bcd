"""What a recipe trains on: model, examples with their targets, and regions, all checked before the first step.

Tasks and models meet here. An example without a target, and an image without features, are counted and named. Each of
several tasks is opened as a recipe of its own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from visualbert_core.config import EvaluateConfig
from visualbert_core.errors import CheckpointError, ConfigError, CoverageError
from visualbert_core.evaluation.checks import check_fit, check_visual
from visualbert_core.evaluation.inputs import RegionSource
from visualbert_core.features.stores import AnyStore, identity
from visualbert_core.io.hub import checkpoint_name, hub_origin
from visualbert_core.io.locations import place_names
from visualbert_core.models import load_trainable
from visualbert_core.models.together import Member, Together
from visualbert_core.models.trainable import Item, Start, Trainable
from visualbert_core.printable import logger
from visualbert_core.provenance import code_digests, digest_files, outside_code, versions
from visualbert_core.schema import CaptionPair, Example, Grounding, Pixels, Regions, Target
from visualbert_core.tasks import CaptionPairs, JoinedSplits, Task, open_lessons
from visualbert_core.tasks.example_source import ExampleSource
from visualbert_core.tasks.reading import choose
from visualbert_core.training.order import Mixture, Order, draws
from visualbert_core.training.recipe import AlsoTask, TrainConfig, first_name
from visualbert_core.training.visuals import GroupReader, TrainingImages

_LOG = logger(__name__)
_NAMED = 3  # ids in a message


@dataclass(frozen=True)
class Lessons:
    """An open recipe: what is learnt, from which regions or images, by which model."""

    task: Task | ExampleSource | JoinedSplits
    store: AnyStore | TrainingImages
    model: Trainable[Any]
    examples: list[Example | CaptionPair]
    masked: bool
    """Whether words are masked, so that examples tell something instead of asking it."""
    remarks: dict[str, Any]
    """What was counted: examples, those without a target, phrases without a region, images without features."""
    grounding: bool = False
    """Whether the model also learns which regions the words of an example name."""

    groups: GroupReader | None = None
    """Reads whole row groups, where the recipe shuffles them."""

    def of(self, indices: Sequence[int]) -> Lessons:
        """Return the lessons of the examples of a batch, which are all of one task."""
        return self

    def order(self, config: TrainConfig) -> Order:
        groups = None if self.groups is None else self.groups.groups
        return Order(len(self.examples), config.batch_size, config.seed, groups)

    def visuals(self, examples: Sequence[Example | CaptionPair]) -> Iterator[tuple[Regions | Pixels, ...]]:
        """Yield the regions or the pixels of the images of each example. The regions of an image are read once."""
        if isinstance(self.store, TrainingImages):
            yield from self.store.pixels(examples)
            return
        if self.groups is not None:
            regions = self.groups.regions(examples)
        else:
            image_ids = list(dict.fromkeys(image_id for example in examples for image_id in example.image_ids))
            regions = dict(zip(image_ids, self.store.fetch_many(image_ids), strict=True))
        yield from (tuple(regions[image_id] for image_id in example.image_ids) for example in examples)

    def boxes(self, example: Example | CaptionPair) -> list[np.ndarray]:
        """Return the boxes of the regions of each image of an example, float32 [R, 4]."""
        return [self.store.boxes(image_id) for image_id in example.image_ids]

    def target(self, example: Any, boxes: list[np.ndarray], draws: random.Random) -> Target:
        """Return what is to be learnt from an example on one visit."""
        return self.task.told(example, draws) if self.masked else self.task.target(example, boxes)

    def item(self, example: Any, visual: tuple[Regions | Pixels, ...], draws: random.Random) -> Item:
        """Return an example as the model takes it, with its target on one visit."""
        boxes = [image.boxes for image in visual if image.boxes is not None]
        item = self.model.encode(example, visual, self.target(example, boxes, draws), draws)
        if self.grounding:
            item = cast(Any, self.model).ground(item, example, self.task.named_regions(example, boxes))
        return item

    def provenance(self, config: TrainConfig) -> dict[str, Any]:
        """Return what the training is made of, without paths."""
        return {
            "recipe": config.ingredients(),
            "data": self.data(),
            "parent": self.model.fingerprint(),
            **({} if (origin := hub_origin(config.model)) is None else {"start": origin}),
            "code": code_digests(("training", "predictions")) | outside_code("task", benchmark_of(self.task)),
            "versions": versions(),
        }

    def data(self) -> dict[str, Any]:
        """Return the digests of annotations, and of features or images."""
        seen = self.store.identity() if isinstance(self.store, TrainingImages) else {"features": identity(self.store)}
        return {"annotations": digest_files(self.task.annotation_files()), **seen}


def benchmark_of(task: Task | ExampleSource | JoinedSplits) -> Any:
    """Return the class of a task, also where several splits are learnt."""
    return task.benchmark if isinstance(task, JoinedSplits) else type(task)


def check_part(benchmark: Any, part: str) -> None:
    """Raise ConfigError where a benchmark has no such part."""
    parts = getattr(benchmark, "parts", {})
    if not parts:
        raise ConfigError(f"part: {benchmark.name} has no parts: leave part out")
    choose(f"part of {benchmark.name}", part, parts)


def open_recipe(config: TrainConfig) -> Lessons:
    """Open task, store and model of a recipe. Log what is counted.

    Raise InputError where they do not fit together. Raise CoverageError where an image has no features, unless the
    recipe allows it, and where no example is left.
    """
    task = open_lessons(config.task, config.annotations, config.split)
    source = None if config.features is None else RegionSource(config.features)
    names = {each.name for each in fields(Start)} - {"features"}
    features = None if source is None else (source.store.feature_size, source.store.space)
    start = Start(features=features, **{name: getattr(config, name) for name in names})
    model = load_trainable(config.model, task.form, start)
    asked = _evaluation(config)
    check_visual(cast(Any, model), asked)
    every = _of_part(task, config.part)
    store = _store(config, source, model, every, asked)
    examples, lacking = _with_features(every, store, config)
    masked = task.form is CaptionPair or config.objective == "masked-words"
    grounding = config.grounding > 0
    if grounding and not hasattr(model, "ground"):
        raise CheckpointError(f"{config.model}: a {type(model).__name__} has no term grounding")
    lessons = Lessons(task, store, model, examples, masked, {}, grounding)
    kept, without, phrases = _with_target(lessons, config)
    if not kept:
        raise CoverageError(f"{config.task} {config.split}: none of {len(every):,} examples can be learnt from")
    if grounding:  # raises at once where the task does not say it
        first: Any = task.drawn(cast(Any, kept[0]), draws(config.seed, 0, kept[0].example_id))
        task.named_regions(first, lessons.boxes(first))
    remarks = {"examples": len(kept), "without_features": lacking, "without_target": without} | phrases
    groups = None
    if config.shuffle == "row-groups":
        if isinstance(store, TrainingImages):
            raise ConfigError("shuffle row-groups reads a feature store, and this model reads images: leave it out")
        groups = GroupReader(store, kept, config.shuffle_buffer)
    return replace(lessons, examples=kept, remarks=remarks, groups=groups)


def _evaluation(config: TrainConfig) -> EvaluateConfig:
    """Return an evaluation over what is learnt: its checks are those of a training."""
    same = ("task", "split", "annotations", "features", "images", "model", "feature_space")
    values = {name: getattr(config, name) for name in (*same, "allow_feature_space_mismatch")}
    return EvaluateConfig(out=Path(), **values)


def _of_part(task: Task | ExampleSource | JoinedSplits, part: str | None) -> list[Example | CaptionPair]:
    """Return the examples of an epoch. Raise ConfigError where the benchmark has no such part."""
    every: list[Example | CaptionPair] = list(task.lessons())
    if part is None:
        return every
    check_part(benchmark_of(task), part)
    return [example for example in every if example.example_id.endswith(f"/{part}")]


def _store(
    config: TrainConfig,
    source: RegionSource | None,
    model: Trainable[Any],
    examples: list[Example | CaptionPair],
    asked: EvaluateConfig,
) -> AnyStore | TrainingImages:
    """Return what the model reads of the images. Log where the features are of another space than the checkpoint."""
    if source is None:
        assert config.images is not None  # `asked` has one of both
        return TrainingImages(config.images, cast(list[Example], examples))
    for warning in check_fit(cast(Any, model), source, asked):
        if config.weights != "random":
            _LOG.warning("%s: %s", checkpoint_name(config.model), warning)
    return source.store


def _with_features(
    every: list[Example | CaptionPair], store: AnyStore | TrainingImages, config: TrainConfig
) -> tuple[list[Example | CaptionPair], int]:
    """Return the examples whose images have features, or are there, and the number of the others."""
    missing = {i: None for example in every for i in example.image_ids if i not in store}
    if not missing:
        return every, 0
    kept = [example for example in every if not missing.keys() & set(example.image_ids)]
    one = len(missing) == 1
    has, images = ("has", "1 image") if one else ("have", f"{len(missing):,} images")
    lack, get = (f"{has} no features", "extract") if config.images is None else ("cannot be read", "add")
    said = (
        f"{images} of {config.task} {config.split} {lack} in "
        f"{place_names(config.features or config.images)} "
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
    for listed in lessons.examples:
        # Examples that are made anew at each visit are counted as the first visit sees them.
        example = lessons.task.drawn(cast(Any, listed), draws(config.seed, 0, listed.example_id))
        boxes = lessons.boxes(example) if isinstance(example, Grounding) else []
        target = lessons.task.target(example, boxes)
        if isinstance(target, np.ndarray):
            phrases += len(target)
            unmatched += int((~target.any(axis=1)).sum())
        if lessons.model.has_target(target):
            kept.append(listed)
        else:
            without.append(listed.example_id)
            if config.without_target == "keep":
                kept.append(listed)
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
    if config.task == CaptionPairs.name or config.objective == "masked-words":
        return None
    return config.validate_task or config.task


@dataclass(frozen=True)
class SeveralLessons(Lessons):
    """The lessons of the first task, with those of all tasks. `examples` holds the examples of all."""

    parts: tuple[Lessons, ...] = ()
    entries: tuple[AlsoTask, ...] = ()

    def order(self, config: TrainConfig) -> Mixture:  # type: ignore[override]
        sizes = (config.batch_size, *(entry.batch_size or config.batch_size for entry in self.entries))
        orders = (part.order(replace(config, batch_size=size)) for part, size in zip(self.parts, sizes, strict=True))
        return Mixture(tuple(orders), (1.0, *(entry.weight for entry in self.entries)))

    def of(self, indices: Sequence[int]) -> Lessons:
        """Return the lessons of the task whose examples have these numbers."""
        place = indices[0]
        for part in self.parts:
            if place < len(part.examples):
                return part
            place -= len(part.examples)
        raise IndexError(indices[0])

    def provenance(self, config: TrainConfig) -> dict[str, Any]:
        """Return what the training is made of, without paths. The data of further tasks are under `also`."""
        about = super().provenance(config)
        rest = dict(zip(config.also, self.parts[1:], strict=True))
        about["data"]["also"] = {name: part.data() for name, part in rest.items()}
        for part in rest.values():
            about["code"] |= outside_code("task", benchmark_of(part.task))
        return about


def open_tasks(config: TrainConfig) -> Lessons:
    """Open a recipe with all of its tasks. Raise what `open_recipe` raises, and ConfigError where the networks of two
    tasks cannot share a trunk."""
    first = open_recipe(config)
    if not config.also:
        return first
    configs = [config, *(as_recipe(config, name) for name in config.also)]
    parts = [first, *map(open_recipe, configs[1:])]
    names = [first_name(config.validate_task or config.task), *config.also]
    tasks = map(metadata_task, configs)
    together = Together(
        [Member(n, part.model, task, part.store.space) for n, part, task in zip(names, parts, tasks, strict=True)]
    )
    parts = [replace(part, model=cast(Any, model)) for part, model in zip(parts, together.parts, strict=True)]
    remarks = first.remarks | {"also": {name: part.remarks for name, part in zip(names[1:], parts[1:], strict=True)}}
    return SeveralLessons(
        first.task,
        first.store,
        cast(Any, together),  # its parts make the items
        [example for part in parts for example in part.examples],
        first.masked,
        remarks,
        first.grounding,
        parts=tuple(parts),
        entries=tuple(config.also.values()),
    )


def as_recipe(config: TrainConfig, name: str) -> TrainConfig:
    """Return a further task of a recipe as a recipe of its own."""
    entry = config.also[name]
    weights = config.weights
    if weights != "random":
        weights = "new-head" if entry.model is None else "checkpoint"
    return replace(
        config,
        task=entry.task or name,
        split=entry.split,
        part=entry.part,
        annotations=entry.annotations,
        features=entry.features,
        model=entry.model or config.model,
        weights=weights,
        answers=entry.answers,
        grounding=entry.grounding,
        validate_task=entry.checkpoint_task,
        also={},
        epochs=None,
    )
