"""Real networks on one worker and on four, with threads of their own, give the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT, SmallNight

from visualbert_core.config import EvaluateConfig, ExtractConfig, PoolConfig
from visualbert_core.engine.pool import Pool
from visualbert_core.evaluation.run import evaluate
from visualbert_core.features.extract import extract

WEIGHTS = ROOT / "visualbert_core" / "synthetic" / "weights"


def run(night: SmallNight, out: Path, pool: PoolConfig) -> dict[str, bytes]:
    """Extract the features of VQA's synthetic images, answer its questions, and return every file by its name."""
    world = night.out / "synthetic" / "vqa"
    with Pool(pool) as workers:
        pictures = ExtractConfig(
            images=world / "val2014", detector=WEIGHTS / "detector", out=out, batch_size=2, shard_size=2
        )
        store = extract(pictures, workers)
        questions = EvaluateConfig(
            task="vqa",
            split="val",
            annotations=world,
            features=store.folder,
            model=WEIGHTS / "visualbert-vqa",
            out=out,
            batch_size=4,
            shard_size=2,
        )
        evaluate(questions, workers)
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.mark.usefixtures("ray_session")
def test_real_networks_do_not_see_how_many_workers_there_are(small_night: SmallNight, tmp_path: Path) -> None:
    """Features, predictions and scores are the same files for one worker, four workers and inline, on any CPU. One
    worker must not use the threads that absent workers leave free, because another number of threads adds in another
    order."""
    one = run(small_night, tmp_path / "one", PoolConfig(workers=1))
    assert len([name for name in one if name.endswith(".parquet")]) > 10
    assert run(small_night, tmp_path / "four", PoolConfig(workers=4)) == one
    assert run(small_night, tmp_path / "inline", PoolConfig(inline=True)) == one
