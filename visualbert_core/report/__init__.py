"""Turn run folders into what users read: an HTML page (`html`), the same table in the terminal (`terminal`), files for
continuous integration (`ci`), and records in experiment trackers (`trackers`).

This file has the input of a report: a cell for each evaluation of the matrix, and what is written above the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from visualbert_core.comparison.history import Timing
from visualbert_core.evaluation.run_folder import Run
from visualbert_core.features.store import FeatureStore
from visualbert_core.report.places import Places
from visualbert_core.schema import Image
from visualbert_core.tasks import Task

INGREDIENT = None


@dataclass(frozen=True)
class ReportCell:
    """One row of the matrix: an evaluation, with what its examples need to be shown.

    `store` is None for a model that reads pixels alone. Its examples have no region boxes, and the sizes of images come
    from the files. Without a complete run, `run` is None and `error` is the reason in one line. `baseline` is the same
    evaluation with `--visual wrong-image`, and `no_image` with `--visual none`.
    """

    title: str
    task: Task | None
    store: FeatureStore | None
    images: Mapping[str, Image]
    run: Run | None
    baseline: Run | None = None
    error: str | None = None
    places: Places = field(default_factory=Places)
    """What the page writes in place of the folders of this machine."""
    no_image: Run | None = None
    timing: Timing | None = None
    """The time of the evaluation on this night."""


@dataclass(frozen=True)
class ReportInfo:
    """What the report says above the numbers."""

    title: str
    synthetic: bool
    """Whether the data are synthetic. The report then says what the scores mean, and prints no numbers of papers."""
    examples: int
    """Examples that the gallery of a cell shows."""
    gpu_hour: float | None = None
    """Price of one GPU-hour, in any currency; None for no price."""
