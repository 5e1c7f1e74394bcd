"""A training whose OUT is in a bucket, over a real S3 protocol: it ends like one on a disk, also on another machine."""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import SmallNight
from test_storage import BUCKET, bucket, names
from test_training import stop_after
from upath import UPath

from visualbert_core.cli import main
from visualbert_core.errors import ConfigError, InputError, UnfinishedError
from visualbert_core.io import locations
from visualbert_core.io.locations import Location
from visualbert_core.synthetic import WEIGHTS
from visualbert_core.training import TrainConfig, train
from visualbert_core.training.folder import OWNER
from visualbert_core.training.step import Stepper

__all__ = ["bucket"]

Recipe = Callable[..., TrainConfig]


@pytest.fixture
def recipe(small_night: SmallNight, bucket: Location) -> Recipe:
    (store,) = (small_night.out / "features" / "vqa-val2014").iterdir()

    def make(out: Location, **changes: Any) -> TrainConfig:
        """Return a short recipe with four checkpoints, of which three are kept."""
        values: dict[str, Any] = {
            "task": "vqa",
            "split": "val",
            "annotations": small_night.out / "synthetic" / "vqa",
            "features": store,
            "model": WEIGHTS / "visualbert-vqa",
            "out": out,
            "steps": 8,
            "save_every": 2,
            "batch_size": 6,
        }
        return TrainConfig(**values | changes)

    return make


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the test a folder for temporary files. Every test leaves it empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.iterdir())


def losses(out: Location) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "steps.jsonl").read_bytes().splitlines()]


def test_a_training_in_a_bucket_ends_like_one_on_a_disk(recipe: Recipe, bucket: Location, tmp_path: Path) -> None:
    """Stopped, and gone on with from the bucket alone, it has the files, losses and weights of a training on a disk."""
    local, out = train(recipe(tmp_path / "local", validate_split="val", own_image_only=True)), bucket / "training"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 6, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(UnfinishedError):
            train(recipe(out, validate_split="val", own_image_only=True))
    assert names(out) >= {"checkpoints/step-00000006/training.json", "steps.jsonl", OWNER}
    done = train(recipe(out, validate_split="val", own_image_only=True))
    assert losses(done.folder) == losses(local.folder)
    assert (done.last / "model.safetensors").read_bytes() == (local.last / "model.safetensors").read_bytes()
    assert str(done.last) == f"s3://{BUCKET}/training/checkpoints/step-00000008"
    assert local.best is not None
    assert str(done.best) == f"s3://{BUCKET}/training/checkpoints/{local.best.name}"
    assert isinstance(local.folder, Path)
    there = {path.relative_to(local.folder).as_posix() for path in local.folder.rglob("*") if path.is_file()}
    assert names(out) - {OWNER} == {name for name in there if not name.startswith(".")}
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1, lambda: pytest.fail("a step was taken"))
        assert train(recipe(out, validate_split="val", own_image_only=True)).record == done.record
        with pytest.raises(InputError, match=rf"^s3://{BUCKET}/training holds a training by another recipe"):
            train(recipe(out, seed=1))


def test_a_torn_checkpoint_in_a_bucket_is_not_taken(recipe: Recipe, bucket: Location, tmp_path: Path) -> None:
    """Without its last file a checkpoint is not fetched and goes at the next upload; a damaged one is passed over."""
    out = bucket / "torn"
    with pytest.MonkeyPatch.context() as patch:
        real, sent = locations._system("s3").put_file, []

        def put_file(local: str, key: str) -> None:
            if key.endswith("step-00000006/training.json"):
                raise OSError(f"s3://{key}: Connection reset")
            sent.append(key)
            real(local, key)

        patch.setattr(locations._system("s3"), "put_file", put_file, raising=False)
        with pytest.raises(OSError, match="Connection reset"):
            train(recipe(out, keep_last=9))
    assert sent.index(f"{BUCKET}/torn/checkpoints/step-00000004/training.json") > max(
        sent.index(f"{BUCKET}/torn/checkpoints/step-00000004/{name}") for name in ("model.safetensors", "vocab.txt")
    )
    assert "checkpoints/step-00000006/model.safetensors" in names(out)
    weights = out / "checkpoints" / "step-00000004" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    begun: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        real_step = Stepper.__call__
        patch.setattr(Stepper, "__call__", lambda self, batch: (begun.append(batch.step), real_step(self, batch))[1])
        done = train(recipe(out))
    assert begun[0] == 2
    assert losses(out) == losses(train(recipe(tmp_path / "local")).folder)
    assert {name.split("/")[1] for name in names(out) if name.startswith("checkpoints/")} == {
        "step-00000006",
        "step-00000008",
    }
    assert done.record["status"] == "finished"


def test_the_later_of_two_processes_goes_on(recipe: Recipe, bucket: Location) -> None:
    """A process that finds that another one has taken the bucket over stops at its checkpoint, and sends nothing."""
    out = bucket / "two"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 4, lambda: (out / OWNER).write_bytes(b"another"))
        with pytest.raises(InputError, match=rf"^s3://{BUCKET}/two: another process trains here since"):
            train(recipe(out))
    assert "checkpoints/step-00000002/training.json" in names(out)
    assert not [name for name in names(out) if "step-00000004" in name]


def test_the_command_takes_an_address(
    recipe: Recipe, bucket: Location, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """`--out s3://…` is a flag of the command, which prints the addresses of the checkpoints."""
    config = recipe(bucket / "flags")
    keys = {each: str(getattr(config, each)) for each in ("task", "split", "annotations", "features", "model", "out")}
    flags = [word for key, value in keys.items() for word in (f"--{key}", value)]
    assert main(["train", *flags, "--steps", "1", "--batch-size", "6"]) == 0
    assert f"last: s3://{BUCKET}/flags/checkpoints/step-00000001" in capsys.readouterr().out
    assert isinstance(config.out, UPath)
    with pytest.raises(ConfigError, match="several workers need a folder that all nodes share"):
        train(recipe(bucket / "flags", workers=2))
