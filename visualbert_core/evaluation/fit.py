"""Checks, before anything is computed, that a model fits the benchmark and the features.

This file owns the errors and the warnings about the form of the examples, the size of the features and their space.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from visualbert_core.config import EvaluateConfig
from visualbert_core.errors import CheckpointError
from visualbert_core.evaluation.inputs import RegionSource, Source
from visualbert_core.io.locations import place_names
from visualbert_core.models import METADATA_FILE, Model, ReadsPixels, ReadsRegions
from visualbert_core.schema import Example


def check_contract(model: Model[Any], config: EvaluateConfig) -> None:
    """Raise CheckpointError where a model from outside this package does not say its name or its protocol."""
    for member in ("name", "protocol"):
        if not isinstance(getattr(model, member, None), str):
            raise CheckpointError(
                f"{config.model}: {type(model).__name__}.{member} must be a string; see models/base.py"
            )


def check_form(model: Model[Any], form: type[Example], config: EvaluateConfig) -> None:
    """Raise CheckpointError where the model does not answer this form of example."""
    if form not in model.forms:
        answered = ", ".join(sorted(each.__name__ for each in model.forms))
        raise CheckpointError(
            f"{config.model} answers {answered}, but the examples of {config.task} are of the form {form.__name__}: "
            "name a model for this benchmark"
        )


def check_visual(model: Model[Any], config: EvaluateConfig) -> None:
    """Raise CheckpointError where the configuration does not name exactly what the model reads: a store, a corpus of
    images, or both; and where the model does not say what it reads."""
    if not isinstance(model.reads, ReadsRegions | ReadsPixels):
        raise CheckpointError(
            f"{config.model}: its `reads` must be a ReadsRegions(…) or a ReadsPixels(), got {model.reads!r}"
        )
    if isinstance(model.reads, ReadsPixels) and config.images is None:
        raise CheckpointError(
            f"{config.model} reads pixels, but {place_names(config.features)} is a feature store: name the corpus of "
            "images instead (--images; in a matrix, a corpus without a detector)"
        )
    if isinstance(model.reads, ReadsRegions) and config.visual == "none":
        raise CheckpointError(
            f"{config.model} reads region features, and there are none of a grey image: visual none is for models that "
            "read pixels; use wrong-image"
        )
    if isinstance(model.reads, ReadsRegions) and config.features is None:
        raise CheckpointError(
            f"{config.model} reads region features, but {config.images} is a corpus of images: name a feature store "
            "instead (--features; in a matrix, a corpus with a detector)"
        )
    chooses = isinstance(model.reads, ReadsPixels) and model.reads.boxes == "store"
    if chooses and config.features is None:
        raise CheckpointError(
            f"{config.model} chooses among the regions of a feature store: name the store beside the images "
            "(--features)"
        )
    if not chooses and config.features is not None and config.images is not None:
        read, other = ("pixels", "features") if isinstance(model.reads, ReadsPixels) else ("region features", "images")
        raise CheckpointError(f"{config.model} reads {read} only: leave out {other}")


def check_fit(model: Model[Any], source: Source, config: EvaluateConfig) -> list[str]:
    """Return the warnings that stand with every score.

    Raises CheckpointError for features of another size than the model needs, and for features of another space unless
    the configuration allows them.
    """
    if not isinstance(model.reads, ReadsRegions) or not isinstance(source, RegionSource):
        return []
    named, allowed = config.feature_space, config.allow_feature_space_mismatch
    return check_regions(model.reads, config.model, source.store, source.address, named, allowed)


class InSpace(Protocol):
    """A feature store or a detector."""

    feature_size: int

    @property
    def space(self) -> str:
        """Return the name of the feature space."""


def check_regions(
    reads: ReadsRegions, model: Path, features: InSpace, where: str, named: str | None = None, allowed: bool = False
) -> list[str]:
    """Return the warnings about the features that a store or a detector gives to a model. `where` names them.

    `named` is the space that the caller says the model needs. Raises CheckpointError for features of another size, and
    for features of another space unless that is `allowed`.
    """
    if reads.size != features.feature_size:
        raise CheckpointError(
            f"{model} needs {reads.size}-d region features, but {where} has {features.feature_size}-d features: "
            "extract them with the detector that the checkpoint was trained on"
        )
    space = _space(reads, model, named)
    if space is None:
        return [_unnamed(reads, features.space)]
    if space == features.space:
        return []
    if not allowed:
        raise CheckpointError(
            f"{model} was trained on features of {space!r}, but {where} has features of {features.space!r}, which "
            f"differ although their size is equal: extract features of {space!r} (or force it with "
            "allow_feature_space_mismatch)"
        )
    return [f"features of another space: the checkpoint was trained on {space!r}, but these are {features.space!r}"]


def _space(reads: ReadsRegions, model: Path, named: str | None) -> str | None:
    """Return the space that the checkpoint or else the caller names. Raises CheckpointError where they disagree."""
    if None not in (reads.space, named) and reads.space != named:
        raise CheckpointError(
            f"{model / METADATA_FILE} says that the checkpoint was trained on features of {reads.space!r}, but "
            f"feature_space says {named!r}: correct one of them"
        )
    return reads.space or named


def _unnamed(reads: ReadsRegions, found: str) -> str:
    """Return the warning about a checkpoint that does not name its feature space.

    Features of two spaces may have equal sizes. A checkpoint over features of the wrong space then runs without an
    error, but loses a third of its accuracy. So the case needs a warning.
    """
    likely = reads.likely_space
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
