"""Real networks give the same bytes on one worker and on several, with threads of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT, SmallNight
from generative_folders import write_llava
from standins import load_killed_once
from vilt_folders import write_vilt

from visualbert_core.config import AnsweringConfig, EvaluateConfig, ExtractConfig, PoolConfig
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


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("family", ["vilt", "llava"])
def test_models_of_pixels_do_not_see_workers_come_and_go(small_night: SmallNight, tmp_path: Path, family: str) -> None:
    """Predictions of a classifier and of a model that writes are the same bytes inline, and on two workers of which one
    is killed by SIGKILL in the middle."""
    write = {"vilt": write_vilt, "llava": write_llava}[family]
    world = small_night.out / "synthetic" / "vqa"

    def parts(name: str, config: PoolConfig) -> dict[str, bytes]:
        asked = EvaluateConfig(
            task="vqa",
            split="val",
            annotations=world,
            images=world / "val2014",
            model=model,
            out=tmp_path / name,
            batch_size=4,
            shard_size=2,
            answering=AnsweringConfig() if family == "vilt" else AnsweringConfig(max_new_tokens=4),
        )
        with Pool(config) as pool:
            run = evaluate(asked, pool, load_killed_once)
        return {str(path.relative_to(run.folder)): path.read_bytes() for path in run.folder.rglob("*.parquet")}

    model = write(tmp_path / "models" / family)
    one = parts("one", PoolConfig(inline=True))
    (model.parent / "kill").touch()
    assert parts("two", PoolConfig(workers=2)) == one
    assert not (model.parent / "kill").exists()
    assert len(one) > 5
