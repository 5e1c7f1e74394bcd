"""The matrix: corpora, then models × tasks × splits over them. Extract what is missing → evaluate → report → exit code.

One failing corpus or cell does not stop the others; it is named in the report and makes the exit code non-zero.
Everything lands under the configuration's `out`: features/, runs/, report.html and, for the demo, world/.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from visualbert_core.cluster import Pool
from visualbert_core.config import (
    CellConfig,
    CorpusConfig,
    EvaluateConfig,
    ExtractConfig,
    NightlyConfig,
    from_mapping,
    nearest,
    read_yaml,
)
from visualbert_core.corpus import list_images
from visualbert_core.errors import ConfigError, CoverageError, VisualBertCoreError
from visualbert_core.evaluation.run import Run, evaluate, read_run, run_folder
from visualbert_core.features.extract import extract
from visualbert_core.features.store import FeatureStore
from visualbert_core.report import ReportCell, ReportInfo
from visualbert_core.report.html import write_report
from visualbert_core.tasks import TASKS, open_task
from visualbert_core.world.files import make_world

REGRESSION = 4


@dataclass(frozen=True)
class Night:
    """What a matrix came to."""

    info: ReportInfo
    cells: tuple[ReportCell, ...]
    report: Path
    exit_code: int


def load_matrix(path: Path, overrides: dict[str, Any]) -> NightlyConfig:
    """The configuration of a YAML file with some top-level keys replaced; paths become absolute, for every node alike.

    Raises ConfigError for an unknown key, task or corpus before anything is computed.
    """
    values = read_yaml(path)
    config = from_mapping(NightlyConfig, values | overrides if isinstance(values, dict) else values, str(path))
    if not config.cells:
        raise ConfigError(f"{path}: cells: the matrix is empty")
    out = config.out.absolute()
    data = (out / "world" if config.world else config.data).absolute()
    for number, cell in enumerate(config.cells):
        where = f"{path}: cells[{number}]"
        if cell.task not in TASKS:
            raise ConfigError(f"{where}: unknown task {cell.task!r}{nearest(cell.task, TASKS)}")
        for metric, bounds in cell.wrong_image.items():
            if len(bounds) != 2:
                raise ConfigError(f"{where}: wrong_image.{metric}: expected [low, high], found {list(bounds)}")
        if cell.corpus not in config.corpora:
            raise ConfigError(f"{where}: unknown corpus {cell.corpus!r}{nearest(cell.corpus, config.corpora)}")
    return dataclasses.replace(
        config,
        out=out,
        data=data,
        corpora={name: _absolute_corpus(corpus, data) for name, corpus in config.corpora.items()},
        cells=tuple(
            dataclasses.replace(c, annotations=data / c.annotations, model=c.model.absolute()) for c in config.cells
        ),
    )


def run_matrix(config: NightlyConfig) -> Night:
    """Run the whole matrix; the report is written whatever failed."""
    if config.world:
        make_world(config.data, config.world)
    codes: list[int] = []
    with Pool(config.pool) as pool:
        stores = {name: _extract(config, name, pool, codes) for name in config.corpora}
        cells = tuple(_cell(config, cell, stores[cell.corpus], pool, codes) for cell in config.cells)
    codes += [REGRESSION for line in missed(config, cells) if _complain(line)]
    report = config.out / "report.html"
    info = ReportInfo(title=config.name, synthetic=config.world is not None, examples=config.examples)
    write_report(report, info, cells)
    # Codes rise from the most basic trouble (1 crash) to the least (4 under a floor): the lowest is the night's.
    return Night(info, cells, report, min(codes, default=0))


def missed(config: NightlyConfig, cells: tuple[ReportCell, ...]) -> Iterator[str]:
    """A line for every score under its floor and every wrong-image score out of its range."""
    for cell, shown in zip(config.cells, cells, strict=True):
        yield from _outside(shown.title, {metric: (floor, 100.0) for metric, floor in cell.floors.items()}, shown.run)
        yield from _outside(f"{shown.title} (wrong image)", cell.wrong_image, shown.baseline)


def _outside(title: str, bounds: Mapping[str, tuple[float, ...]], run: Run | None) -> Iterator[str]:
    scores = run.scores["scores"] if run is not None and run.scores is not None else {}
    for metric, (low, high) in bounds.items():
        if metric not in scores:
            yield f"{title}: no {metric} to hold against [{low}, {high}]"
        elif not low <= scores[metric] <= high:
            yield f"{title}: {metric} is {scores[metric]:.2f}, out of [{low}, {high}]"


def _extract(config: NightlyConfig, name: str, pool: Pool, codes: list[int]) -> FeatureStore | VisualBertCoreError:
    corpus = config.corpora[name]
    job = ExtractConfig(
        images=corpus.images,
        detector=corpus.detector,
        out=config.out / "features",
        corpus=name,
        boxes=corpus.boxes,
        batch_size=corpus.batch_size,
        shard_size=corpus.shard_size,
    )
    try:
        return extract(job, pool)
    except VisualBertCoreError as error:
        _note(f"corpus {name}", error, codes)
        return error


def _cell(
    config: NightlyConfig,
    cell: CellConfig,
    store: FeatureStore | VisualBertCoreError,
    pool: Pool,
    codes: list[int],
) -> ReportCell:
    title = f"{cell.model.name} on {cell.task} {cell.split}"
    if isinstance(store, VisualBertCoreError):
        return ReportCell(title, None, None, {}, None, error=f"corpus {cell.corpus}: {store}")
    corpus = config.corpora[cell.corpus]
    images = {image.image_id: image for image in list_images(corpus.images)}
    own, wrong = (_evaluate_config(config, cell, store, regions) for regions in ("own", "wrong-image"))
    try:
        task = open_task(cell.task, cell.annotations, cell.split)
        if not task.labelled:
            raise ConfigError(f"{cell.split} has no public labels: jobs/evaluate.py makes its {task.submission_name}")
    except VisualBertCoreError as error:
        return ReportCell(title, None, store, images, None, error=_note(title, error, codes))
    run, reason = _evaluate(title, own, pool, codes)
    baseline = None
    if config.wrong_image_baseline:
        baseline, _ = _evaluate(f"{title} (wrong image)", wrong, pool, codes)
    return ReportCell(title, task, store, images, run, baseline, reason)


def _evaluate(title: str, config: EvaluateConfig, pool: Pool, codes: list[int]) -> tuple[Run | None, str | None]:
    """The run, and why it has no score if it has none; an incomplete run is shown as far as it got."""
    try:
        return evaluate(config, pool), None
    except CoverageError as error:
        return read_run(run_folder(config)), _note(title, error, codes)
    except VisualBertCoreError as error:
        return None, _note(title, error, codes)


def _note(title: str, error: VisualBertCoreError, codes: list[int]) -> str:
    codes.append(error.exit_code)
    _complain(f"{title}: {error}")
    return str(error)


def _evaluate_config(
    config: NightlyConfig, cell: CellConfig, store: FeatureStore, regions: Literal["own", "wrong-image"]
) -> EvaluateConfig:
    return EvaluateConfig(
        task=cell.task,
        split=cell.split,
        annotations=cell.annotations,
        features=store.folder,
        model=cell.model,
        out=config.out / "runs" / config.name,
        regions=regions,
        foreign_features=cell.foreign_features,
        precision=cell.precision,
        batch_size=cell.batch_size,
        shard_size=cell.shard_size,
    )


def _absolute_corpus(corpus: CorpusConfig, data: Path) -> CorpusConfig:
    return dataclasses.replace(corpus, images=data / corpus.images, detector=corpus.detector.absolute())


def _complain(line: str) -> bool:
    sys.stderr.write(f"error: {line}\n")
    return True
