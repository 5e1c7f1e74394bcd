"""What a page is made from: a cell for each evaluation of the matrix, and what stands above the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from visualbert_core.evaluation.run_folder import Run
from visualbert_core.features.store import FeatureStore
from visualbert_core.report.places import Places
from visualbert_core.schema import Image
from visualbert_core.tasks import Task


@dataclass(frozen=True)
class ReportCell:
    """One row of the matrix: an evaluation with what is needed to show its examples.

    `store` is None for a model that reads pixels: its examples have no region boxes, and the sizes of images come from
    the pictures. `run` is None, and `error` its one-line reason, where there is no complete run. `baseline` is the same
    evaluation over other images.
    """

    title: str
    task: Task | None
    store: FeatureStore | None
    images: Mapping[str, Image]
    run: Run | None
    baseline: Run | None = None
    error: str | None = None
    places: Places = field(default_factory=Places)
    """What the page says in place of this machine's folders."""


@dataclass(frozen=True)
class ReportInfo:
    """What the page says above the numbers."""

    title: str
    synthetic: bool
    """The embedded world: say what its scores mean and do not mean, and print no paper numbers beside them."""
    examples: int
    """Example pictures a cell."""
    gpu_hour: float | None = None
    """Price."""
