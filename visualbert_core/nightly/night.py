"""Runs a matrix: corpora, and models × tasks × splits over them.

Owns the order of a night: extract missing features → evaluate → gate → report → exit code. If one corpus or cell fails,
the others still run. The report names the failure, and the exit code is not 0. All files are written under `out` of the
configuration: features/, runs/, report.html, history/ if there is a gate (see `gating`), and synthetic/ for the demo. A
smoke night writes under OUT/smoke, so that its results cannot be mistaken for those of a full night.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal

from visualbert_core.comparison.history import Timing
from visualbert_core.config import CellConfig, EvaluateConfig, ExtractConfig, NightlyConfig
from visualbert_core.corpus.listing import list_images
from visualbert_core.engine.pool import Pool
from visualbert_core.engine.shards import ShardFolder
from visualbert_core.errors import (
    ClusterError,
    ConfigError,
    CoverageError,
    TrackerError,
    UnfinishedError,
    VisualBertCoreError,
    described,
)
from visualbert_core.evaluation.inputs import ImageSource
from visualbert_core.evaluation.run import BASELINES, evaluate
from visualbert_core.evaluation.run_folder import Run, read_run, run_folder
from visualbert_core.features.extract import extract
from visualbert_core.features.store import FeatureStore
from visualbert_core.io.locations import Location
from visualbert_core.metrics.statistics import PERCENT
from visualbert_core.nightly.gating import CellResult, judge_cells
from visualbert_core.nightly.matrix import evaluate_config, is_gated, runs_folder
from visualbert_core.printable import logger
from visualbert_core.report import ReportCell, ReportInfo
from visualbert_core.report.gate_section import GatedNight
from visualbert_core.report.html import write_report
from visualbert_core.report.places import ELSEWHERE, Places
from visualbert_core.report.trackers import track, tracked_night
from visualbert_core.schema import Image
from visualbert_core.tasks import Task, open_task, title_of

INGREDIENT = None

_LOG = logger(__name__)
REGRESSION = 4
FAILURES = (VisualBertCoreError, OSError)  # they end a corpus or a cell, but not the night


@dataclass(frozen=True)
class Night:
    """The results of one run of a matrix."""

    info: ReportInfo
    cells: tuple[ReportCell, ...]
    report: Path
    runs: Path
    exit_code: int
    judged: GatedNight | None = None
    """The verdict. None if the matrix has no gate."""


def run_matrix(config: NightlyConfig) -> Night:
    """Run the whole matrix. The report is written even if corpora or cells failed."""
    codes: list[int] = []
    with Pool(config.pool) as pool:
        opened = {name: _open(config, name, pool, codes) for name in config.corpora}
        results = [_run_cell(config, cell, _of_cell(cell, opened), pool, codes) for cell in config.cells]
    cells = tuple(cell.shown for cell in results)
    complaints = {} if config.limit is not None else {cell.name: list(missed(cell)) for cell in results}
    for line in chain.from_iterable(complaints.values()):
        _LOG.error(line)
        codes.append(REGRESSION)
    judged = _judge(config, results, complaints, codes) if is_gated(config) else None
    report = config.out / "report.html"
    smoke = "" if config.limit is None else f" (smoke night: {config.limit} images and examples)"
    info = ReportInfo(config.name + smoke, config.synthetic is not None, config.examples, config.gpu_hour)
    write_report(report, info, cells, judged)
    if config.limit is None:
        _track(config, results, judged, report, codes)
    # Exit codes rise from the worst failure (1 crash) to the mildest (5 cannot tell), so the lowest one counts.
    return Night(info, cells, report, runs_folder(config), min(codes, default=0), judged)


def _judge(
    config: NightlyConfig, cells: Sequence[CellResult], missed: Mapping[str, Sequence[str]], codes: list[int]
) -> GatedNight | None:
    """Judge the night, log every verdict that is not `pass`, and add its exit code to `codes`."""
    try:
        judged = judge_cells(config, str(config.night), cells, missed)
    except FAILURES as error:
        _note("gate", error, codes)
        return None
    for check in judged.gate.checks:
        if check.verdict != "pass":
            _LOG.error("%s: %s %s: %s", check.verdict, check.watched.cell, check.watched.metric, check.reason)
    codes += [judged.gate.exit_code] if judged.gate.exit_code else []
    return judged


def _track(
    config: NightlyConfig, cells: Sequence[CellResult], judged: GatedNight | None, report: Path, codes: list[int]
) -> None:
    runs = {cell.name: cell.run for cell in cells if cell.run is not None}
    verdict = judged.gate.verdict if judged else None
    night = tracked_night(config.name, str(config.night), runs, verdict, report, config.out)
    for tracker in config.trackers:
        try:
            track(tracker, night)
        except TrackerError as error:
            _note("the night is complete, but a tracker did not accept it", error, codes)


def missed(cell: CellResult) -> Iterator[str]:
    """Yield a line for every score of a cell below its floor, and for every score of a baseline outside its range."""
    shown, scales = cell.shown, cell.shown.task.scales if cell.shown.task else {}
    floors = {metric: (floor, scales.get(metric, PERCENT)) for metric, floor in cell.config.floors.items()}
    yield from _outside(shown.title, floors, shown.run)
    yield from _outside(f"{shown.title} (wrong image)", cell.config.wrong_image, shown.baseline)
    yield from _outside(f"{shown.title} (no image)", cell.config.no_image, shown.no_image)


def _outside(title: str, bounds: Mapping[str, tuple[float, ...]], run: Run | None) -> Iterator[str]:
    scores = run.scores["scores"] if run is not None and run.scores is not None else {}
    for metric, (low, high) in bounds.items():
        if metric not in scores:
            yield f"{title}: {metric} has no score, so its bounds {low:g} and {high:g} cannot be checked"
        elif not low <= scores[metric] <= high:
            side = f"below {low:g}" if scores[metric] < low else f"above {high:g}"
            yield f"{title}: {metric} is {scores[metric]:.2f}, which is {side}"


@dataclass(frozen=True)
class _OpenCorpus:
    """A corpus of the matrix as its cells read it: one of `store`, `source` and `error` is set.

    A model that chooses among regions of the images that it reads has both `store` and `source`. `images` are for the
    pictures of the page.
    """

    store: FeatureStore | None = None
    source: ImageSource | None = None
    error: str | None = None
    extraction: Timing | None = None
    images: Mapping[str, Image] = field(default_factory=dict)


def _open(config: NightlyConfig, name: str, pool: Pool, codes: list[int]) -> _OpenCorpus:
    """Open a corpus: extract its features if it has a detector, otherwise list its images."""
    corpus, since, start = config.corpora[name], time.time(), time.monotonic()
    try:
        if corpus.detector is None:
            source = ImageSource(corpus.images)
            return _OpenCorpus(source=source, images=source.images)
        extraction = ExtractConfig(
            images=corpus.images,
            detector=corpus.detector,
            out=config.out / "features",
            corpus=name,
            boxes=corpus.boxes,
            precision=corpus.precision,
            batch_size=corpus.batch_size,
            shard_size=corpus.shard_size,
            limit=config.limit,
        )
        store = extract(extraction, pool)
        timing = _timing(store.folder, since, start, pool)
        return _OpenCorpus(store=store, extraction=timing, images=list_images(corpus.images))
    except FAILURES as error:
        return _OpenCorpus(error=f"corpus {name}: {_note(f'corpus {name}', error, codes)}")


def _of_cell(cell: CellConfig, opened: Mapping[str, _OpenCorpus]) -> _OpenCorpus:
    """Return the corpus of a cell, with the features that the cell names beside it."""
    corpus = opened[cell.corpus]
    if cell.features is None:
        return corpus
    beside = opened[cell.features]
    if error := corpus.error or beside.error:
        return _OpenCorpus(error=error)
    return dataclasses.replace(corpus, store=beside.store, extraction=beside.extraction)


def _timing(folder: Location, since: float, start: float, pool: Pool) -> Timing:
    """Return the seconds since `start`, and the number of items in the shards that were written since `since`: a folder
    of a resumed night holds older shards."""
    shards = ShardFolder(folder)
    fresh = [m for m in shards.read_manifest().shards if shards.marker_path(m.shard_id).stat().st_mtime >= since]
    items = sum(marker.rows + marker.failed for marker in fresh)
    return Timing(items=items, seconds=round(time.monotonic() - start, 3), gpus=pool.gpus)


def _run_cell(config: NightlyConfig, cell: CellConfig, corpus: _OpenCorpus, pool: Pool, codes: list[int]) -> CellResult:
    """Evaluate a cell, and the baselines that the matrix has. A failure becomes part of the result."""
    title, places = f"{cell.model.name} on {title_of(cell.task)} {cell.split}", _places(config)
    failed = partial(ReportCell, title, None, corpus.store, {}, None, places=places)
    if corpus.error is not None:
        return CellResult(cell, failed(error=corpus.error))
    try:
        task = open_task(cell.task, cell.annotations, cell.split)
        if not task.labelled:
            raise ConfigError(
                f"{cell.split} has no public labels: `visualbert evaluate` makes its {task.submission_name}"
            )
    except FAILURES as error:
        return CellResult(cell, failed(error=_note(title, error, codes)), corpus.extraction)

    def asked(visual: Literal["own", "wrong-image", "none"]) -> tuple[Run | None, str | None]:
        evaluation = evaluate_config(config, cell, corpus.store, visual)
        return _evaluate(title + BASELINES[visual], evaluation, task, corpus.source, pool, codes)

    since, start = time.time(), time.monotonic()
    run, reason = asked("own")
    timing = _timing(run.folder / "predictions", since, start, pool) if run else None
    baseline = no_image = None
    if config.no_image_baseline and corpus.source is not None:
        no_image, _ = asked("none")
    elif config.no_image_baseline:
        _LOG.info("%s: not asked without an image, because there are no regions of a grey one", title)
    if config.wrong_image_baseline:
        baseline, _ = asked("wrong-image")
    if run is not None and config.limit is not None and reason is None:
        reason = f"a smoke night: {run.record['coverage']['predicted']} examples predicted, no score over a sample"
    shown = ReportCell(title, task, corpus.store, corpus.images, run, baseline, reason, places, no_image, timing)
    return CellResult(cell, shown, corpus.extraction)


def _places(config: NightlyConfig) -> Places:
    """Return the words that replace folder names of this machine, so a report is the same on every machine."""
    words = [("OUT", config.out), ("DATA", config.data)]
    words += [("MODELS", cell.model.parent) for cell in config.cells]
    words += [("DETECTORS", corpus.detector.parent) for corpus in config.corpora.values() if corpus.detector]
    words += [(ELSEWHERE, cell.annotations.parent) for cell in config.cells]
    words += [(ELSEWHERE, each.images.parent) for each in config.corpora.values() if isinstance(each.images, Path)]
    return Places.of(words)


def _evaluate(
    title: str, config: EvaluateConfig, task: Task, source: ImageSource | None, pool: Pool, codes: list[int]
) -> tuple[Run | None, str | None]:
    """Evaluate a cell. Return the run, and the reason if it has no score. The page shows how far an incomplete run
    came."""
    try:
        return evaluate(config, pool, task=task, source=source), None
    except CoverageError as error:
        return read_run(run_folder(config)), _note(title, error, codes)
    except FAILURES as error:
        return None, _note(title, error, codes)


def _note(title: str, error: Exception, codes: list[int]) -> str:
    """Log a failure and add its exit code to `codes`. Return its message. Raise errors that end the whole night."""
    # After a signal, or without a cluster, no other cell can run, and a verdict over missing cells would be wrong.
    if isinstance(error, (UnfinishedError, ClusterError)):
        raise error
    codes.append(error.exit_code if isinstance(error, VisualBertCoreError) else 1)
    said = described(error)
    _LOG.error("%s: %s", title, said)
    return said
