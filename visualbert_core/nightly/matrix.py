"""Reads the YAML file of a matrix: corpora, and models × tasks × splits over them.

Owns what is checked before anything is computed, and what each corpus and each cell asks of extraction and evaluation.
`night.py` runs the matrix.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from visualbert_core.config import (
    CellConfig,
    CorpusConfig,
    EvaluateConfig,
    NightlyConfig,
    nearest,
    run_name,
)
from visualbert_core.config_mapping import from_mapping
from visualbert_core.errors import CheckpointError, ConfigError
from visualbert_core.features.store import FeatureStore
from visualbert_core.io.documents import read_yaml
from visualbert_core.metrics.statistics import PERCENT
from visualbert_core.models import reads_without_weights, visual_source
from visualbert_core.report.trackers import check_trackers
from visualbert_core.tasks import find_task

INGREDIENT = None


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
    check_trackers(config.trackers, str(path))
    out, weights = config.out.absolute(), path.absolute().parent
    data = out / "synthetic" if config.synthetic else config.data.absolute()
    config = dataclasses.replace(
        config,
        night=_night(path, config),
        out=out if config.limit is None else out / "smoke",
        data=data,
        corpora={name: _absolute_corpus(corpus, data, weights) for name, corpus in config.corpora.items()},
        cells=tuple(
            dataclasses.replace(cell, annotations=data / cell.annotations, model=_without_dots(weights / cell.model))
            for cell in config.cells
        ),
    )
    names = [run_name(cell.model, cell.task, cell.split) for cell in config.cells]
    for number, cell in enumerate(config.cells):
        try:
            _check_cell(cell, config.corpora)
        except ConfigError as error:
            raise ConfigError(f"{path}: cells[{number}]: {error}") from None
        if (first := names.index(names[number])) != number:
            raise ConfigError(
                f"{path}: cells[{first}] and cells[{number}] would share the run folder {names[number]}: rename one of "
                "the two checkpoint folders, or move one cell to a matrix with another `name`"
            )
    return config


def _check_cell(cell: CellConfig, corpora: Mapping[str, CorpusConfig]) -> None:
    """Raise ConfigError if a cell names something unknown, or has a bound above its metric."""
    task = find_task(cell.task)
    for name in ("floors", "wrong_image", "no_image", "drops"):
        for metric, found in getattr(cell, name).items():
            if metric not in task.metrics:
                raise ConfigError(f"{cell.task} has no metric {metric!r}{nearest(metric, task.metrics)}")
            values, most = found if isinstance(found, tuple) else (found,), task.scales.get(metric, PERCENT)
            if max(values) > most:
                raise ConfigError(f"{name}.{metric} is {max(values)}: it must be at most {most:g}")
    if cell.corpus not in corpora:
        raise ConfigError(f"unknown corpus {cell.corpus!r}{nearest(cell.corpus, corpora)}")
    _check_source(cell, corpora)


def _check_source(cell: CellConfig, corpora: Mapping[str, CorpusConfig]) -> None:
    """Raise ConfigError if the model of a cell cannot read its corpus, knows no such settings, lacks the features that
    it chooses among, or has features without use.

    A model that cannot be found ends its own cell, not the night.
    """
    name, has = cell.model.name, "pixels" if corpora[cell.corpus].detector is None else "regions"
    try:
        source = visual_source(cell.model)
        reads = reads_without_weights(cell.model, find_task(cell.task).form, cell.precision, cell.answering)
    except CheckpointError:
        source = reads = None
    if source is not None and source != has:
        why = {
            "regions": "has no detector to find them: add a detector to it, or name another corpus",
            "pixels": "has a detector: name a corpus of the same images without a detector",
        }
        raise ConfigError(f"{name} reads {source}, but the corpus {cell.corpus!r} {why[source]}")
    if has == "regions" and cell.no_image:
        raise ConfigError("no_image: there are no regions of a grey image; leave it out of this cell")
    chooses = reads is not None and reads.boxes == "store"
    if cell.features is None and chooses:
        raise ConfigError(
            f"{name} chooses among the regions of a feature store: name a corpus of the same images with a detector as "
            "features"
        )
    if cell.features is None:
        return
    if cell.features not in corpora:
        raise ConfigError(f"features: unknown corpus {cell.features!r}{nearest(cell.features, corpora)}")
    if corpora[cell.features].detector is None:
        raise ConfigError(f"features: the corpus {cell.features!r} has no detector, so it has no features")
    if has == "regions" or (reads is not None and not chooses):
        raise ConfigError(f"features: {name} does not choose among regions of a second corpus; leave it out")


def _night(path: Path, config: NightlyConfig) -> str:
    """Return the name of the night: the configured one, or today's date in UTC."""
    night = config.night or datetime.now(UTC).date().isoformat()
    named = {"night": night, "gate.baseline": config.gate.baseline if config.gate else None}
    for key, name in named.items():
        if name is not None and not re.fullmatch(r"\w[\w.-]*", name):
            raise ConfigError(f"{path}: {key}: {name!r} cannot name a folder: use letters, digits, dots and dashes")
    return night


def _absolute_corpus(corpus: CorpusConfig, data: Path, weights: Path) -> CorpusConfig:
    images = corpus.images if corpus.images.is_absolute() else data / corpus.images
    detector = _without_dots(weights / corpus.detector) if corpus.detector else None
    return dataclasses.replace(corpus, images=images, detector=detector)


def _without_dots(path: Path) -> Path:
    """Return a path without "..", which the page would show."""
    return Path(os.path.normpath(path))


def runs_folder(config: NightlyConfig) -> Path:
    """Return the folder that holds the run folders of this night. With a gate, every night has a folder of its own."""
    runs = config.out / "runs" / config.name
    return runs / str(config.night) if is_gated(config) else runs


def is_gated(config: NightlyConfig) -> bool:
    """Return whether a night of this matrix is compared with an earlier one."""
    return config.gate is not None and config.limit is None


def evaluate_config(
    config: NightlyConfig, cell: CellConfig, store: FeatureStore | None, visual: Literal["own", "wrong-image", "none"]
) -> EvaluateConfig:
    """Return what a cell asks of the evaluation. `store` is None for a cell without features."""
    corpus = config.corpora[cell.corpus]
    return EvaluateConfig(
        task=cell.task,
        split=cell.split,
        annotations=cell.annotations,
        features=store.folder if store else None,
        images=corpus.images if corpus.detector is None else None,
        model=cell.model,
        out=runs_folder(config),
        visual=visual,
        allow_feature_space_mismatch=cell.allow_feature_space_mismatch,
        feature_space=cell.feature_space,
        precision=cell.precision,
        answering=cell.answering,
        batch_size=cell.batch_size,
        shard_size=cell.shard_size,
        limit=config.limit,
    )
