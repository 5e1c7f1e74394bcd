"""Runs a matrix: corpora, and models × tasks × splits over them.

Owns the order of a night: extract missing features → evaluate → gate → report → exit code. If one corpus or cell fails,
the others still run. The report names the failure, and the exit code is not 0. All files are written under `out` of the
configuration: features/, runs/, report.html, history/ if there is a gate (see `gating`), and synthetic/ for the demo. A
smoke night writes under OUT/smoke, so that its results cannot be mistaken for those of a full night.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from visualbert_core.comparison.history import Timing
from visualbert_core.config import (
    CellConfig,
    CorpusConfig,
    EvaluateConfig,
    NightlyConfig,
    nearest,
    run_name,
)
from visualbert_core.config_mapping import from_mapping
from visualbert_core.corpus.listing import Corpus, list_images
from visualbert_core.engine.pool import Pool
from visualbert_core.engine.shards import ShardFolder
from visualbert_core.errors import (
    CheckpointError,
    ClusterError,
    ConfigError,
    CoverageError,
    TrackerError,
    UnfinishedError,
    VisualBertCoreError,
)
from visualbert_core.evaluation.inputs import ImageSource
from visualbert_core.evaluation.run import evaluate
from visualbert_core.evaluation.run_folder import Run, read_run, run_folder
from visualbert_core.features.extract import extract
from visualbert_core.features.store import FeatureStore
from visualbert_core.io.documents import read_yaml
from visualbert_core.io.locations import Location
from visualbert_core.metrics.statistics import PERCENT
from visualbert_core.models import ReadsPixels, reads_without_weights, visual_source
from visualbert_core.nightly.gating import CellResult, GateResult, for_page, judge_cells
from visualbert_core.nightly.stages import evaluate_config, extract_config, is_gated, runs_folder
from visualbert_core.printable import logger
from visualbert_core.report import ReportCell, ReportInfo
from visualbert_core.report.html import write_report
from visualbert_core.report.places import ELSEWHERE, Places
from visualbert_core.report.trackers import TrackedNight, check_trackers, track
from visualbert_core.tasks import Task, find_task, open_task, title_of

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
    judged: GateResult | None = None
    """The verdict. None if the matrix has no gate."""


def load_matrix(path: Path, overrides: dict[str, Any]) -> NightlyConfig:
    """Read the configuration of a YAML file. `overrides` replaces top-level keys.

    Paths become absolute, because workers on other nodes have other working folders. Models and detectors are relative
    to the folder of the file; `out` and `data` are relative to the working folder. Raise ConfigError for an unknown
    key, task, metric or corpus, for a name that cannot name a folder, and for two cells with the same run folder. All
    this is checked before anything is computed.
    """
    values = read_yaml(path)
    config = from_mapping(NightlyConfig, values | overrides if isinstance(values, dict) else values, str(path))
    if not config.cells:
        raise ConfigError(f"{path}: cells: the matrix is empty: add a cell")
    config = dataclasses.replace(config, night=_night(path, config))
    check_trackers(config.trackers, str(path))
    config = _absolute_weights(config, path.absolute().parent)
    out = config.out.absolute()
    data = (out / "synthetic" if config.synthetic else config.data).absolute()
    if config.limit is not None:
        out /= "smoke"
    folders: dict[str, int] = {}
    for number, cell in enumerate(config.cells):
        _check_cell(f"{path}: cells[{number}]", cell, config.corpora)
        _check_source(f"{path}: cells[{number}]", cell, config.corpora)
        name = run_name(cell.model, cell.task, cell.split)
        if (first := folders.setdefault(name, number)) != number:
            raise ConfigError(
                f"{path}: cells[{first}] and cells[{number}] would share the run folder {name}: rename one of the two "
                "checkpoint folders, or move one cell to a matrix with another `name`"
            )
    return dataclasses.replace(
        config,
        out=out,
        data=data,
        corpora={name: _absolute_corpus(corpus, data) for name, corpus in config.corpora.items()},
        cells=tuple(dataclasses.replace(c, annotations=data / c.annotations) for c in config.cells),
    )


def _check_cell(where: str, cell: CellConfig, corpora: Collection[str]) -> None:
    """Raise ConfigError if the task, a metric or the corpus of a cell is unknown, or a bound is above its metric."""
    try:
        task = find_task(cell.task)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    for name in ("floors", "wrong_image", "no_image", "drops"):
        for metric, found in getattr(cell, name).items():
            if metric not in task.metrics:
                raise ConfigError(f"{where}: {cell.task} has no metric {metric!r}{nearest(metric, task.metrics)}")
            values, most = found if isinstance(found, tuple) else (found,), task.scales.get(metric, PERCENT)
            if max(values) > most:
                raise ConfigError(f"{where}: {name}.{metric} is {max(values)}: it must be at most {most:g}")
    if cell.corpus not in corpora:
        raise ConfigError(f"{where}: unknown corpus {cell.corpus!r}{nearest(cell.corpus, corpora)}")


def _check_source(where: str, cell: CellConfig, corpora: Mapping[str, CorpusConfig]) -> None:
    """Raise ConfigError if the model of a cell cannot read its corpus, or knows no such settings.

    A model that cannot be found ends its own cell, not the night.
    """
    name, has = cell.model.name, "pixels" if corpora[cell.corpus].detector is None else "regions"
    try:
        source = visual_source(cell.model)
        reads = reads_without_weights(cell.model, find_task(cell.task).form, cell.precision, cell.answering)
    except CheckpointError:
        source = reads = None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if source == "regions" != has:
        raise ConfigError(
            f"{where}: {name} reads regions, but the corpus {cell.corpus!r} has no detector to find them: "
            "add a detector to it, or name another corpus"
        )
    if source == "pixels" != has:
        raise ConfigError(
            f"{where}: {name} reads pixels, but the corpus {cell.corpus!r} has a detector: name a corpus "
            "of the same images without a detector"
        )
    if has == "regions" and cell.no_image:
        raise ConfigError(f"{where}: no_image: there are no regions of a grey image; leave it out of this cell")
    _check_features(where, cell, corpora, reads)


def _check_features(
    where: str, cell: CellConfig, corpora: Mapping[str, CorpusConfig], reads: ReadsPixels | None
) -> None:
    """Raise ConfigError if a cell lacks the features that its model chooses among, or names features without use."""
    chooses = reads is not None and reads.boxes == "store"
    if cell.features is None:
        if chooses:
            raise ConfigError(
                f"{where}: {cell.model.name} chooses among the regions of a feature store: name a corpus of the same "
                "images with a detector as features"
            )
        return
    if cell.features not in corpora:
        raise ConfigError(f"{where}: features: unknown corpus {cell.features!r}{nearest(cell.features, corpora)}")
    if corpora[cell.features].detector is None:
        raise ConfigError(f"{where}: features: the corpus {cell.features!r} has no detector, so it has no features")
    if corpora[cell.corpus].detector is not None or (reads is not None and not chooses):
        raise ConfigError(
            f"{where}: features: {cell.model.name} does not choose among regions of a second corpus; leave it out"
        )


def _night(path: Path, config: NightlyConfig) -> str:
    """Return the name of the night: the configured one, or today's date in UTC."""
    night = config.night or datetime.now(UTC).date().isoformat()
    named = {"night": night, "gate.baseline": config.gate.baseline if config.gate else None}
    for key, name in named.items():
        if name is not None and not re.fullmatch(r"\w[\w.-]*", name):
            raise ConfigError(f"{path}: {key}: {name!r} cannot name a folder: use letters, digits, dots and dashes")
    return night


def run_matrix(config: NightlyConfig) -> Night:
    """Run the whole matrix. The report is written even if corpora or cells failed."""
    codes: list[int] = []
    with Pool(config.pool) as pool:
        opened = {name: _open(config, name, pool, codes) for name in config.corpora}
        results = [_run_cell(config, cell, _of_cell(cell, opened), pool, codes) for cell in config.cells]
    cells = tuple(cell.shown for cell in results)
    complaints = {} if config.limit is not None else {cell.name: list(missed(cell)) for cell in results}
    for line in (line for lines in complaints.values() for line in lines):
        _LOG.error(line)
        codes.append(REGRESSION)
    judged = _judge(config, results, complaints, codes) if is_gated(config) else None
    report = config.out / "report.html"
    smoke = "" if config.limit is None else f" (smoke night: {config.limit} images and examples)"
    info = ReportInfo(
        title=config.name + smoke,
        synthetic=config.synthetic is not None,
        examples=config.examples,
        gpu_hour=config.gpu_hour,
    )
    write_report(report, info, cells, for_page(config, results, judged) if judged else None)
    if config.limit is None:
        _track(config, results, judged, report, codes)
    # Exit codes rise from the worst failure (1 crash) to the mildest (5 cannot tell), so the lowest one counts.
    return Night(info, cells, report, runs_folder(config), min(codes, default=0), judged)


def _judge(
    config: NightlyConfig, cells: Sequence[CellResult], missed: Mapping[str, Sequence[str]], codes: list[int]
) -> GateResult | None:
    """Judge the night, log every verdict that is not `pass`, and add the exit code of the gate to `codes`."""
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
    config: NightlyConfig, cells: Sequence[CellResult], judged: GateResult | None, report: Path, codes: list[int]
) -> None:
    runs = {cell.name: cell.run for cell in cells if cell.run is not None}
    verdict = judged.gate.verdict if judged else None
    night = TrackedNight(config.name, str(config.night), runs, verdict, report, config.out)
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


@dataclass
class _OpenCorpus:
    """A corpus of the matrix as its cells read it: one of `store`, `source` and `error` is set.

    A model that chooses among regions of the images that it reads has both `store` and `source`.
    """

    store: FeatureStore | None = None
    source: ImageSource | None = None
    error: str | None = None
    extraction: Timing | None = None
    listed: Corpus | None = None
    """The images of the corpus, for the pictures of the page. The first cell that needs them lists them."""


def _open(config: NightlyConfig, name: str, pool: Pool, codes: list[int]) -> _OpenCorpus:
    """Open a corpus: extract its features if it has a detector, otherwise list its images."""
    corpus, since, start = config.corpora[name], time.time(), time.monotonic()
    try:
        if corpus.detector is None:
            source = ImageSource(corpus.images)
            return _OpenCorpus(source=source, listed=source.images)
        store = extract(extract_config(config, name, corpus.detector), pool)
    except FAILURES as error:
        return _OpenCorpus(error=f"corpus {name}: {_note(f'corpus {name}', error, codes)}")
    return _OpenCorpus(store=store, extraction=_timing(store.folder, since, start, pool))


def _of_cell(cell: CellConfig, opened: Mapping[str, _OpenCorpus]) -> _OpenCorpus:
    """Return the corpus of a cell, with the features that the cell names beside it."""
    corpus = opened[cell.corpus]
    if cell.features is None:
        return corpus
    beside = opened[cell.features]
    error = corpus.error or beside.error
    return dataclasses.replace(corpus, store=beside.store, extraction=beside.extraction, error=error)


def _timing(folder: Location, since: float, start: float, pool: Pool) -> Timing:
    """Return the seconds since `start`, and the number of items in the shards that were written since `since`.

    A resumed night finds shards of an earlier run in the folder. Only the age of a marker tells them apart.
    """
    shards = ShardFolder(folder)
    fresh = [m for m in shards.read_manifest().shards if shards.marker_path(m.shard_id).stat().st_mtime >= since]
    items = sum(marker.rows + marker.failed for marker in fresh)
    return Timing(items=items, seconds=round(time.monotonic() - start, 3), gpus=pool.gpus)


def _run_cell(config: NightlyConfig, cell: CellConfig, corpus: _OpenCorpus, pool: Pool, codes: list[int]) -> CellResult:
    """Evaluate a cell, and the baselines that the matrix has. A failure becomes part of the result."""
    title, places = f"{cell.model.name} on {title_of(cell.task)} {cell.split}", _places(config)
    if corpus.error is not None:
        shown = ReportCell(title, None, None, {}, None, error=corpus.error, places=places)
        return CellResult(cell, shown, None, None)
    asks: list[Literal["own", "wrong-image", "none"]] = ["own", "wrong-image", "none"]
    own, wrong, none = (evaluate_config(config, cell, corpus.store, visual) for visual in asks)
    try:
        corpus.listed = images = corpus.listed or list_images(config.corpora[cell.corpus].images)
        task = open_task(cell.task, cell.annotations, cell.split)
        if not task.labelled:
            raise ConfigError(
                f"{cell.split} has no public labels: `visualbert evaluate` makes its {task.submission_name}"
            )
    except FAILURES as error:
        shown = ReportCell(title, None, corpus.store, {}, None, error=_note(title, error, codes), places=places)
        return CellResult(cell, shown, corpus.extraction, None)
    since, start = time.time(), time.monotonic()
    run, reason = _evaluate(title, own, task, corpus.source, pool, codes)
    evaluation = _timing(run.folder / "predictions", since, start, pool) if run else None
    baseline = no_image = None
    if config.no_image_baseline and corpus.source is not None:
        no_image, _ = _evaluate(f"{title} (no image)", none, task, corpus.source, pool, codes)
    elif config.no_image_baseline:
        _LOG.info("%s: not asked without an image, because there are no regions of a grey one", title)
    if config.wrong_image_baseline:
        baseline, _ = _evaluate(f"{title} (wrong image)", wrong, task, corpus.source, pool, codes)
    if run is not None and config.limit is not None and reason is None:
        reason = f"a smoke night: {run.record['coverage']['predicted']} examples predicted, no score over a sample"
    shown = ReportCell(title, task, corpus.store, images, run, baseline, reason, places, no_image, evaluation)
    return CellResult(cell, shown, corpus.extraction, evaluation)


def _places(config: NightlyConfig) -> Places:
    """Return the words that replace folder names of this machine, so a report is the same on every machine."""
    models = [("MODELS", cell.model.parent) for cell in config.cells]
    detectors = [("DETECTORS", corpus.detector.parent) for corpus in config.corpora.values() if corpus.detector]
    elsewhere = [cell.annotations for cell in config.cells]
    elsewhere += [corpus.images for corpus in config.corpora.values() if isinstance(corpus.images, Path)]
    others = [(ELSEWHERE, path.parent) for path in elsewhere]
    return Places.of([("OUT", config.out), ("DATA", config.data), *models, *detectors, *others])


def _evaluate(
    title: str, config: EvaluateConfig, task: Task, source: ImageSource | None, pool: Pool, codes: list[int]
) -> tuple[Run | None, str | None]:
    """Evaluate a cell. Return the run, or None if there is none, and the reason if it has no score.

    An incomplete run is returned too, so that the page shows how far it came.
    """
    try:
        return evaluate(config, pool, task=task, source=source), None
    except CoverageError as error:
        return read_run(run_folder(config)), _note(title, error, codes)
    except FAILURES as error:
        return None, _note(title, error, codes)


def _note(title: str, error: Exception, codes: list[int]) -> str:
    """Log a failure and add its exit code to `codes`. Return its message. Raise errors that end the whole night."""
    # The job was told to stop, or the cluster is gone. No other cell can run, and a verdict over missing cells would
    # be wrong.
    if isinstance(error, (UnfinishedError, ClusterError)):
        raise error
    codes.append(error.exit_code if isinstance(error, VisualBertCoreError) else 1)
    _LOG.error("%s: %s", title, error)
    return str(error)


def _absolute_corpus(corpus: CorpusConfig, data: Path) -> CorpusConfig:
    images = corpus.images if corpus.images.is_absolute() else data / corpus.images
    return dataclasses.replace(corpus, images=images)


def _absolute_weights(config: NightlyConfig, folder: Path) -> NightlyConfig:
    def absolute(path: Path) -> Path:
        return Path(os.path.normpath(folder / path))  # without "..", which the page would show

    corpora = {
        name: dataclasses.replace(corpus, detector=absolute(corpus.detector)) if corpus.detector else corpus
        for name, corpus in config.corpora.items()
    }
    cells = tuple(dataclasses.replace(c, model=absolute(c.model)) for c in config.cells)
    return dataclasses.replace(config, corpora=corpora, cells=cells)
