"""Says what a night would do: the images to extract, the examples to predict, and the approximate time.

Computes nothing. The time per item comes from the last night in the history that computed items of the same cell or
corpus. It holds only for the same machine and the same pool. It includes the start of the workers, so the estimate
after a small night is too long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from visualbert_core.comparison.history import Timing
from visualbert_core.config import CellConfig, NightlyConfig, run_name
from visualbert_core.corpus.listing import list_images
from visualbert_core.detector import load_detector
from visualbert_core.engine.shards import ShardFolder
from visualbert_core.errors import CheckpointError, StoreError, VisualBertCoreError
from visualbert_core.features.store import store_folder
from visualbert_core.features.worker import full_fingerprint
from visualbert_core.io.locations import Location
from visualbert_core.models import reads_without_weights
from visualbert_core.nightly.gating import history_of
from visualbert_core.tasks import find_task, open_task

Counts = tuple[int, int]
"""(items in all, items done)."""


@dataclass(frozen=True)
class Step:
    """What is to do for a corpus or a cell: the number of items in all, and of items still to do.

    Both are None if they cannot be known yet; `note` then says why. `seconds` is None if no earlier night timed it.
    """

    name: str
    unit: str
    total: int | None = None
    to_do: int | None = None
    seconds: float | None = None
    note: str = ""

    def __str__(self) -> str:
        if self.total is None or self.to_do is None:
            return f"{self.name}: {self.note}"
        known = "time unknown" if self.seconds is None else f"about {self.seconds:,.0f} s"
        return f"{self.name}: {self.to_do:,} of {self.total:,} {self.unit} to do" + (f", {known}" * (self.to_do > 0))


def plan_night(config: NightlyConfig, runs: Path) -> Iterator[Step]:
    """Yield the steps of a night in their order. `runs` is the folder that holds the run folders of this night."""
    for name, corpus in config.corpora.items():
        what = "features" if corpus.detector else "images"
        yield _step(f"{what} of {name}", "images", partial(_images, config, name), _extraction(config, name))
    for cell in config.cells:
        name = run_name(cell.model, cell.task, cell.split)
        try:
            reads_without_weights(cell.model, find_task(cell.task).form, cell.precision, cell.answering)
        except CheckpointError as error:
            yield Step(name, "examples", note=str(error))
            continue
        last = _last(row.evaluation for row in history_of(config).rows(name))
        yield _step(name, "examples", partial(_examples, config, cell, runs / name), last)
        if config.wrong_image_baseline:
            count = partial(_examples, config, cell, runs / f"{name}__wrong-image")
            yield _step(f"{name}, wrong image", "examples", count, last)
        if config.no_image_baseline and config.corpora[cell.corpus].detector:
            yield Step(f"{name}, no image", "examples", note="not asked, because there are no regions of a grey image")
        elif config.no_image_baseline:
            count = partial(_examples, config, cell, runs / f"{name}__none")
            yield _step(f"{name}, no image", "examples", count, last)


def _extraction(config: NightlyConfig, corpus: str) -> Timing | None:
    cells = [cell for cell in config.cells if corpus in (cell.corpus, cell.features)]
    names = (run_name(cell.model, cell.task, cell.split) for cell in cells)
    rows = [row for name in names for row in history_of(config).rows(name)]
    return _last(row.extraction for row in sorted(rows, key=lambda row: row.night))


def _last(timings: Iterator[Timing | None]) -> Timing | None:
    return next(iter([timing for timing in timings if timing and timing.items][::-1]), None)


def _step(name: str, unit: str, count: Callable[[], Counts | str], timing: Timing | None) -> Step:
    try:
        found = count()
    except VisualBertCoreError as error:
        found = str(error)
    if isinstance(found, str):
        return Step(name, unit, note=found)
    total, done = found
    to_do = max(0, total - done)
    return Step(name, unit, total, to_do, None if timing is None else to_do * timing.seconds / timing.items)


def _images(config: NightlyConfig, name: str) -> Counts | str:
    corpus = config.corpora[name]
    total = len(list_images(corpus.images, corpus.boxes).first(config.limit))
    if corpus.detector is None:
        return f"{total:,} images, whose pixels the models read"
    fingerprint = full_fingerprint(load_detector(corpus.detector, "cpu", corpus.precision), corpus.boxes)
    return total, _done(store_folder(config.out / "features", name, fingerprint))


def _examples(config: NightlyConfig, cell: CellConfig, run: Path) -> Counts:
    total = len(open_task(cell.task, cell.annotations, cell.split).expected())
    return total if config.limit is None else min(total, config.limit), _done(run / "predictions")


def _done(folder: Location) -> int:
    """Return the number of items of a finished folder; 0 for an unfinished one, whose manifest is not written yet."""
    try:
        manifest = ShardFolder(folder).read_manifest()
    except StoreError:
        return 0
    return manifest.rows + manifest.failed
