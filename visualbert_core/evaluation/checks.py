"""Checks, before anything is computed, that model, benchmark, features and images fit together.

This file owns the errors and the warnings about the form of the examples, the size of the features and their space, the
sizes of the images, and the examples that the checkpoint was trained on. A warning stands with every score.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from visualbert_core.config import EvaluateConfig
from visualbert_core.detector import Detector
from visualbert_core.errors import CheckpointError, InputError
from visualbert_core.evaluation.inputs import RegionSource, Source, open_source
from visualbert_core.evaluation.worker import LoadModel
from visualbert_core.features.stores import AnyStore
from visualbert_core.io.documents import read_json
from visualbert_core.io.locations import place_names
from visualbert_core.models import METADATA_FILE, Model, ReadsPixels, ReadsRegions
from visualbert_core.tasks import Task

TRAINED = "training.json"
"""The file of a checkpoint that says what its own training read (`training/state.py`)."""
_ROUNDING = 1.5  # pixels by which the side of a resized image may be off
_NEAR = 0.01  # a change by less than this part of a side is not an intended resize


def open_checked(
    config: EvaluateConfig, task: Task, load: LoadModel, opened: Source | None = None
) -> tuple[Model[Any], Source, list[str]]:
    """Open the model, and what it reads of the images where that is not `opened`. Return them with the warnings.

    Only the workers need a GPU: here the model only says what it reads and answers, and gives its fingerprint. Raises
    CheckpointError where the model does not keep its contract, or does not fit the task, the images or the features.
    """
    model = load(config.model, task.form, "cpu", config.precision, config.answering)
    for member in ("name", "protocol"):  # which a model from outside this package may lack
        if not isinstance(getattr(model, member, None), str):
            raise CheckpointError(
                f"{config.model}: {type(model).__name__}.{member} must be a string; see models/base.py"
            )
    if task.form not in model.forms:
        answered = ", ".join(sorted(each.__name__ for each in model.forms))
        raise CheckpointError(
            f"{config.model} answers {answered}, but the examples of {config.task} are of the form "
            f"{task.form.__name__}: name a model for this benchmark"
        )
    check_visual(model, config)
    source = open_source(config, model, opened)
    return model, source, check_fit(model, source, config)


def check_visual(model: Model[Any], config: EvaluateConfig) -> None:
    """Raise CheckpointError where the configuration does not name exactly what the model reads: a store, a corpus of
    images, or both; and where the model does not say what it reads."""
    if not isinstance(model.reads, ReadsRegions | ReadsPixels):
        raise CheckpointError(
            f"{config.model}: its `reads` must be a ReadsRegions(…) or a ReadsPixels(), got {model.reads!r}"
        )
    regions = isinstance(model.reads, ReadsRegions)
    chooses = isinstance(model.reads, ReadsPixels) and model.reads.boxes == "store"
    why = None
    if not regions and config.images is None:
        why = (
            f"reads pixels, but {place_names(config.features)} is a feature store: name the corpus of images instead "
            "(--images; in a matrix, a corpus without a detector)"
        )
    elif regions and config.visual == "none":
        why = (
            "reads region features, and there are none of a grey image: visual none is for models that read pixels; "
            "use wrong-image"
        )
    elif regions and config.features is None:
        why = (
            f"reads region features, but {config.images} is a corpus of images: name a feature store instead "
            "(--features; in a matrix, a corpus with a detector)"
        )
    elif chooses and config.features is None:
        why = "chooses among the regions of a feature store: name the store beside the images (--features)"
    elif not chooses and config.features is not None and config.images is not None:
        read, other = ("region features", "images") if regions else ("pixels", "features")
        why = f"reads {read} only: leave out {other}"
    if why is not None:
        raise CheckpointError(f"{config.model} {why}")


def check_fit(model: Model[Any], source: Source, config: EvaluateConfig) -> list[str]:
    """Return the warnings about the features.

    Raises CheckpointError for features of another size than the model needs, and for features of another space unless
    the configuration allows them.
    """
    if not isinstance(model.reads, ReadsRegions) or not isinstance(source, RegionSource):
        return []
    named, allowed = config.feature_space, config.allow_feature_space_mismatch
    return check_regions(model.reads, config.model, source.store, source.address, named, allowed)


def check_regions(
    reads: ReadsRegions,
    model: Path,
    features: AnyStore | Detector,
    where: str,
    named: str | None = None,
    allowed: bool = False,
) -> list[str]:
    """Return the warnings about the features that a store or a detector gives to a model. `where` names them.

    `named` is the space that the caller says the model needs. Raises CheckpointError where it contradicts the
    checkpoint, for features of another size, and for features of another space unless that is `allowed`.
    """
    if reads.size != features.feature_size:
        raise CheckpointError(
            f"{model} needs {reads.size}-d region features, but {where} has {features.feature_size}-d features: "
            "extract them with the detector that the checkpoint was trained on"
        )
    if None not in (reads.space, named) and reads.space != named:
        raise CheckpointError(
            f"{model / METADATA_FILE} says that the checkpoint was trained on features of {reads.space!r}, but "
            f"feature_space says {named!r}: correct one of them"
        )
    space = reads.space or named
    if space is None:
        return [_unnamed(reads.likely_space, features.space)]
    if space == features.space:
        return []
    if not allowed:
        raise CheckpointError(
            f"{model} was trained on features of {space!r}, but {where} has features of {features.space!r}, which "
            f"differ although their size is equal: extract features of {space!r} (or force it with "
            "allow_feature_space_mismatch)"
        )
    return [f"features of another space: the checkpoint was trained on {space!r}, but these are {features.space!r}"]


def _unnamed(likely: str | None, found: str) -> str:
    """Return the warning about a checkpoint that does not name its feature space.

    Features of two spaces may have equal sizes. A checkpoint over features of the wrong space then runs without an
    error, but loses a third of its accuracy. So the case needs a warning.
    """
    if likely is None:
        which = ""
    elif likely == found:
        which = f", and the published checkpoint that looks like this one needs them; feature_space {likely} says so"
    else:
        which = f", but the published checkpoint that looks like this one needs {likely!r}: if it is, scores are wrong"
    return (
        f"unnamed feature space: the checkpoint does not say which features it was trained on; these are "
        f"{found!r}{which} (name it with --feature-space NAME, or in {METADATA_FILE} beside the weights)"
    )


def check_sizes(task: Task, source: Source) -> list[str]:
    """Return the warnings about the sizes of the images, which the annotations of some benchmarks give.

    The boxes of annotations mean nothing on an image of another size. Over images at three quarters of their size, a
    model that finds everything scores 0. So another size raises InputError. Images that the source lacks, and images
    without a size in the annotations, are not checked.
    """
    told = task.image_sizes()
    if not told:
        return []
    seen = source.sizes(told)
    differing = [image_id for image_id, size in seen.items() if size != told[image_id]]
    if not differing:
        return list(source.notes)
    first = differing[0]
    files = task.annotation_files()
    # The message names the annotation file of the image. Flickr30K Entities has two, and the last holds the size.
    mine = next((path for path in reversed(files) if path.stem == first), files[0])
    here, there = ("{} × {}".format(*size) for size in (seen[first], told[first]))
    raise InputError(
        f"{len(differing):,} of {len(seen):,} images have another size than in their annotations: image {first} is "
        f"{here} in {source.address}, {there} in {mine}{_why(seen[first], told[first])}; use the annotated images or "
        "their features, or import these features with the sizes of the images"
    )


def _why(seen: tuple[int, int], told: tuple[int, int]) -> str:
    """Return a likely reason for the difference, in brackets; "" where none is likely."""
    if seen == told[::-1]:
        return " (width and height swapped: turned by its EXIF tag in one of them?)"
    across, down = (one / other for one, other in zip(seen, told, strict=True))
    if max(abs(across - 1), abs(down - 1)) < _NEAR:
        apart = max(abs(one - other) for one, other in zip(seen, told, strict=True))
        return f" ({apart} pixel{'s' if apart > 1 else ''} apart: rounded by a resize, or cropped?)"
    if abs(across - down) < _ROUNDING / min(told):
        return f" (resized to {100 * across:.0f} %?)"
    return ""


def trained_on(model: Path, annotations: str) -> list[str]:
    """Return a warning where the checkpoint was trained on the annotations with this digest; else nothing.

    Such a score says how well the checkpoint remembers, not how well it answers. The checkpoint does not know what the
    training before its own read.
    """
    if not (model / TRAINED).is_file():
        return []
    try:
        record = read_json(model / TRAINED, InputError)
    except InputError as error:
        return [f"it is not known whether this is the training split: {error}"]
    made_of = record.get("provenance") if isinstance(record, dict) else None
    # A training may have read several splits, so the digest may stand anywhere in its data.
    if not isinstance(made_of, dict) or f'"{annotations}"' not in json.dumps(made_of.get("data")):
        return []
    return [on_training_split(f"{model.name} was trained on these annotations")]


def on_training_split(why: str) -> str:
    """Return the warning that stands with a score on the training split."""
    return f"evaluated on the training split: {why}, so its score says little about other images"
