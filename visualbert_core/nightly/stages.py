"""The configuration of each stage of a night: what a corpus and a cell of a matrix ask of extraction and evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from visualbert_core.config import CellConfig, EvaluateConfig, ExtractConfig, NightlyConfig
from visualbert_core.features.store import FeatureStore

INGREDIENT = None


def runs_folder(config: NightlyConfig) -> Path:
    """Return the folder that holds the run folders of this night. With a gate, every night has a folder of its own."""
    runs = config.out / "runs" / config.name
    return runs / str(config.night) if is_gated(config) else runs


def is_gated(config: NightlyConfig) -> bool:
    """Return whether a night of this matrix is compared with an earlier one."""
    return config.gate is not None and config.limit is None


def extract_config(config: NightlyConfig, name: str, detector: Path) -> ExtractConfig:
    """Return what a corpus with a detector asks of the extraction."""
    corpus = config.corpora[name]
    return ExtractConfig(
        images=corpus.images,
        detector=detector,
        out=config.out / "features",
        corpus=name,
        boxes=corpus.boxes,
        precision=corpus.precision,
        batch_size=corpus.batch_size,
        shard_size=corpus.shard_size,
        limit=config.limit,
    )


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
