"""May this model be asked this benchmark over these images? Told before anything is computed.

Owns the refusals and the warnings about forms of example, sizes and spaces of features.
"""

from __future__ import annotations

from typing import Any

from visualbert_core.config import EvaluateConfig
from visualbert_core.errors import CheckpointError
from visualbert_core.evaluation.inputs import RegionSource, Source
from visualbert_core.models import METADATA_FILE, Model, ReadsRegions
from visualbert_core.schema import Example


def check_form(model: Model[Any], form: type[Example], config: EvaluateConfig) -> None:
    """Raise CheckpointError where the model does not answer this form of example."""
    if form not in model.forms:
        answered = ", ".join(sorted(each.__name__ for each in model.forms))
        raise CheckpointError(f"{config.model} answers {answered}; {config.task} asks a {form.__name__}")


def check_fit(model: Model[Any], source: Source, config: EvaluateConfig) -> list[str]:
    """Return what must be said with every score.

    Raises CheckpointError for features that the model cannot use, or must not.
    """
    if not isinstance(model.reads, ReadsRegions) or not isinstance(source, RegionSource):
        return []
    store, reads = source.store, model.reads
    if reads.size != store.feature_size:
        raise CheckpointError(
            f"{config.model} needs {reads.size}-d region features, {config.features} holds "
            f"{store.feature_size}-d ones: extract them with the detector that the checkpoint was trained on"
        )
    space = _space(reads, config)
    if space is None:
        return [_unnamed(reads, store.space)]
    if space == store.space:
        return []
    if not config.allow_feature_space_mismatch:
        raise CheckpointError(
            f"{config.model} was trained on features of {space!r}, {config.features} holds "
            f"{store.space!r}: equal sizes do not make them comparable, extract the right ones (or force it with "
            "allow_feature_space_mismatch)"
        )
    return [f"features of another space: the checkpoint was trained on {space!r}, these are {store.space!r}"]


def _space(reads: ReadsRegions, config: EvaluateConfig) -> str | None:
    """Return the space that the checkpoint or else the caller names. Raises CheckpointError where they contradict."""
    if None not in (reads.space, config.feature_space) and reads.space != config.feature_space:
        raise CheckpointError(
            f"{config.model / METADATA_FILE} says that the checkpoint was trained on features of "
            f"{reads.space!r}, feature_space says {config.feature_space!r}: correct one of them"
        )
    return reads.space or config.feature_space


def _unnamed(reads: ReadsRegions, found: str) -> str:
    """Two spaces of one size differ in everything else: a checkpoint over features of another space loses a third of
    its accuracy and looks well."""
    likely = reads.likely_space
    if likely is None:
        which = ""
    elif likely == found:
        which = f", as the published checkpoint that it looks like wants them; feature_space {likely} says so"
    else:
        which = f", and the published checkpoint that it looks like wants {likely!r}: then these scores are wrong"
    return (
        f"unnamed feature space: the checkpoint does not say which features it was trained on; these are "
        f"{found!r}{which} (--feature-space NAME, or {METADATA_FILE} beside its weights, names it)"
    )
