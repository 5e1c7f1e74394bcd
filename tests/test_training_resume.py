"""Trainings that are killed, stopped or run out of disk go on to the end of an uninterrupted one."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, small_files
from test_pre_training import captions  # noqa: F401  (a fixture)
from test_training import TASKS, Recipe, recipe, steps, stop_after, weights  # noqa: F401  (recipe is a fixture)

from visualbert_core.errors import InputError, UnfinishedError
from visualbert_core.training import train
from visualbert_core.training.state import Checkpoints


@pytest.mark.slow
def test_killed_trainings_end_like_uninterrupted_ones(
    recipe: Recipe,  # noqa: F811
    captions: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """After kills at random points, weights and every logged loss are those of the uninterrupted run, bit for bit: for
    four tasks and for both kinds of pre-training, with dropout, with and without passes."""
    jobs: list[dict[str, Any]] = []
    masked = {"task": "flickr30k_entities", "objective": "masked-words", "weights": "random"}
    pairs = {"task": "caption-pairs", "annotations": captions, "weights": "random"}
    trainings: dict[str, dict[str, Any]] = {task: {"task": task} for task in TASKS} | {"masked": masked, "pairs": pairs}
    for name, keys in trainings.items():
        for kind, seed in (("whole", None), ("killed", len(jobs))):
            config = recipe(out=f"{name}-{kind}", tokens_per_pass=150, **keys)
            values = {each.name: getattr(config, each.name) for each in dataclasses.fields(config)}
            held = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
            held = {name: list(value) if isinstance(value, tuple) else value for name, value in held.items()}
            jobs.append({"recipe": held, "seed": seed})
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).with_name("train_forks.py")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, script, tmp_path / "jobs.json"], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert sum(json.loads(done.stdout.splitlines()[-1])) >= 20
    for name in trainings:
        whole, killed = tmp_path / f"{name}-whole", tmp_path / f"{name}-killed"
        assert steps(killed) == steps(whole), name
        assert weights(killed) == weights(whole), name
        assert len(steps(whole)) == 8


def test_a_signal_saves_first_and_the_same_call_goes_on(recipe: Recipe) -> None:  # noqa: F811
    """SIGTERM ends the training after its step with exit code 6; resumed, it ends like the uninterrupted one."""
    train(recipe(out="whole"))
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 5, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(UnfinishedError, match="after 5 of 8 steps") as stopped:
            train(recipe(out="stopped"))
    assert stopped.value.exit_code == 6
    out = recipe(out="stopped").out
    assert Checkpoints(out).steps()[-1] == 5
    done = train(recipe(out="stopped", device="cpu", keep_last=5))
    assert done.record["status"] == "finished"
    assert steps(out) == steps(recipe(out="whole").out)
    assert weights(out) == weights(recipe(out="whole").out)


def test_a_finished_training_is_only_read(recipe: Recipe) -> None:  # noqa: F811
    """The same call again takes no step; another recipe over the same folder is refused by the name of its key."""
    first = train(recipe())
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1, lambda: pytest.fail("a step was taken"))
        assert train(recipe()) == first
        with pytest.raises(InputError, match=r"recipe\.learning_rate: 0\.001 → 0\.002"):
            train(recipe(learning_rate=2e-3))
        with pytest.raises(InputError, match=r"parent\.weights"):
            train(recipe(weights="random"))


def test_two_processes_do_not_train_in_one_folder(recipe: Recipe) -> None:  # noqa: F811
    """While a training runs, a second one over the same folder is refused."""
    code = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); "
        "print('held', flush=True); sys.stdin.read()"
    )
    recipe().out.mkdir()
    lock = [sys.executable, "-c", code, str(recipe().out / ".lock")]
    with subprocess.Popen(lock, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="another process trains here"):
            train(recipe())
        other.communicate()
    assert train(recipe(steps=1)).record["steps"] == 1


def test_a_damaged_checkpoint_is_not_resumed_from(recipe: Recipe) -> None:  # noqa: F811
    """A torn training state is never taken for one: the run goes on from the checkpoint before, to the same end."""
    train(recipe(out="whole", keep_last=9))
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 7, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(UnfinishedError):
            train(recipe(keep_last=9))
    checkpoints = Checkpoints(recipe().out)
    assert checkpoints.steps() == [3, 6, 7]
    state = checkpoints.folder(7) / "optimizer.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    (checkpoints.folder(6) / "training.json").write_text("{")
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.step == 3
    train(recipe(keep_last=9))
    assert steps(recipe().out) == steps(recipe(out="whole").out)
    assert weights(recipe().out) == weights(recipe(out="whole").out)


def test_a_full_disk_leaves_the_last_checkpoint(recipe: Recipe) -> None:  # noqa: F811
    """A checkpoint that does not fit is an error that names it, and the run goes on from the earlier one."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as full:
        stop_after(patch, 5, lambda: full.enter_context(small_files(200_000)))
        with pytest.raises(OSError, match="step-00000006"):
            train(recipe())
    assert Checkpoints(recipe().out).steps() == [3]
    assert train(recipe()).record["steps"] == 8
