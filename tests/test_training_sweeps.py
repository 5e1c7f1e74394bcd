"""Sweeps: the grid of a recipe with lists, its trainings and its table. test_training_workers.py has those on Ray."""

from __future__ import annotations

import json
import math
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SmallNight

from visualbert_core.cli import main
from visualbert_core.commands import train as command
from visualbert_core.errors import ConfigError, InputError
from visualbert_core.io.locations import absolute_paths
from visualbert_core.provenance import digest_file
from visualbert_core.synthetic import WEIGHTS
from visualbert_core.tasks import CaptionPairs, open_lessons
from visualbert_core.training import TrainConfig, train
from visualbert_core.training.grid import Row, Sweep, describe, points, split_lists
from visualbert_core.training.recipe import AlsoTask
from visualbert_core.training.step import Stepper

GRID = {"learning_rate": [1e-3, 1e-4], "seed": [0, 1]}


@pytest.fixture(scope="session")
def keys(small_night: SmallNight) -> dict[str, Any]:
    """Return the keys of a recipe of two steps over the small night, as YAML has them, without `out`."""
    (store,) = (small_night.out / "features" / "vqa-val2014").iterdir()
    places = {
        "annotations": small_night.out / "synthetic" / "vqa",
        "features": store,
        "model": WEIGHTS / "visualbert-vqa",
    }
    return {
        "task": "vqa",
        "split": "val",
        "weights": "new-head",  # the shipped head answers everything
        "steps": 2,
        "batch_size": 6,
        "dropout": 0.1,
        "validate_split": "val",
        "own_image_only": True,
        **{name: str(place) for name, place in places.items()},
    }


Write = Callable[..., Path]


@pytest.fixture
def write(keys: dict[str, Any], tmp_path: Path) -> Write:
    def make(**changes: Any) -> Path:
        """Write a recipe."""
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(keys | changes))
        return path

    return make


def record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "sweep.json").read_text())
    return found


def times(out: Path) -> dict[str, int]:
    """Return when each file of weights below a folder was written, in nanoseconds."""
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}


def run(*words: object) -> int:
    """Run `visualbert train`."""
    return main(["train", *map(str, words)])


def test_lists_are_a_grid_of_trainings_in_folders_of_their_values(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each combination is a training; the table has mean and sample deviation over seeds; the folders of two settings
    are compared over seeds; with one more seed, only that seed is trained."""
    out = tmp_path / "out"
    assert run(write(**GRID), "--out", out) == 0
    said = capsys.readouterr().out
    found = record(out)
    assert [each["name"] for each in found["trainings"]] == [
        f"learning_rate={rate}/seed={seed}" for rate in ("0.001", "0.0001") for seed in (0, 1)
    ]
    for each in found["trainings"]:
        held = json.loads((out / each["name"] / "run.json").read_text())
        assert held["provenance"]["recipe"].items() >= each["values"].items()
        assert each["validation"] == held["validation"]
        assert each["checkpoint"] == held["best"]
    for setting, runs in zip(found["settings"], (found["trainings"][:2], found["trainings"][2:]), strict=True):
        one, other = (each["validation"]["scores"]["accuracy"] for each in runs)
        assert math.isclose(setting["mean"], (one + other) / 2)
        assert math.isclose(setting["deviation"], abs(one - other) / math.sqrt(2))
        assert (setting["seeds"], setting["trainings"]) == (2, 2)
        assert f"{setting['mean']:.2f}" in said
    assert max(setting["deviation"] for setting in found["settings"]) > 0
    settings = found["settings"]
    assert main(["compare", *(str(out / each["name"]) for each in settings), "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert math.isclose(
        compared["metrics"]["accuracy"]["difference"], settings[1]["mean"] - settings[0]["mean"], abs_tol=1e-9
    )
    assert "recipe.learning_rate: 0.001 → 0.0001" in compared["differs"]
    before = times(out)
    assert run(write(**GRID | {"seed": [0, 1, 2]}), "--out", out) == 0
    after = times(out)
    assert {name: after[name] for name in before} == before
    assert {name.partition("/checkpoints")[0] for name in after.keys() - before.keys()} == {
        f"learning_rate={rate}/seed=2" for rate in ("0.001", "0.0001")
    }


def test_a_failing_training_is_a_row_and_the_others_go_on(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training that cannot start has its reason in the table, the next one is trained, and the exit code says so.

    `frozen` holds a list itself, so its list of lists is the grid.
    """
    out = tmp_path / "out"
    assert run(write(frozen=[["lstm"], ["pooler", "embeddings"]], validate_split=None), "--out", out) == 2
    failed, trained = record(out)["trainings"]
    assert (failed["name"], failed["status"]) == ("frozen=lstm", "failed")
    assert (trained["name"], trained["status"]) == ("frozen=pooler+embeddings", "finished")
    assert json.loads((out / trained["name"] / "run.json").read_text())["provenance"]["recipe"]["frozen"] == [
        "pooler",
        "embeddings",
    ]
    assert "frozen=lstm failed: frozen: the name of no tensor contains 'lstm'" in capsys.readouterr().out


def test_a_signal_saves_first_and_the_same_line_goes_on(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM in the first training ends the sweep with exit code 6 after a save; the same line finishes both."""
    words = (write(seed=[0, 1], steps=3, validate_split=None), "--out", tmp_path / "out")
    with monkeypatch.context() as patch:
        real = Stepper.__call__

        def stopping(self: Stepper, batch: Any) -> Any:
            signal.raise_signal(signal.SIGTERM)
            return real(self, batch)

        patch.setattr(Stepper, "__call__", stopping)
        assert run(*words) == 6
    rows = record(tmp_path / "out")["trainings"]
    assert [each["status"] for each in rows] == ["unfinished", "waiting"]
    assert "after 1 of 3 steps" in rows[0]["reason"]
    assert run(*words) == 0
    assert [each["steps"] for each in record(tmp_path / "out")["trainings"]] == [3, 3]
    log = (tmp_path / "out" / "seed=0" / "steps.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"log_seconds": [1, 2]}, "log_seconds: a list makes a sweep, and log_seconds does not decide results"),
        ({"threads": [1, 2]}, "threads: a list makes a sweep, and threads does not decide results"),
        ({"seed": [0, "one"]}, "seed: expected int, found 'one'"),
        ({"seed": [0, -1]}, "seed is -1"),
        ({"seed": []}, "seed is an empty list"),
        ({"seed": [1, 1]}, "seed: two values are called '1'"),
        ({"sede": [0, 1]}, "unknown key 'sede'; did you mean 'seed'"),
        ({"epochs": [1, 2]}, "epochs and steps exclude each other"),
    ],
)
def test_a_wrong_list_is_one_line_before_the_first_step(
    write: Write, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    """What cannot be swept, and each wrong value, is refused with the file and the key, and nothing is written."""
    with pytest.raises(ConfigError, match=f"recipe.yaml: .*{said}"):
        run(write(**changes), "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_sweep_does_not_go_into_the_folder_of_a_training(keys: dict[str, Any], write: Write, tmp_path: Path) -> None:
    """A folder with the run.json of one training is refused; so are --out with two values, --parallel alone, and
    --parallel with workers."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text("{}")
    with pytest.raises(InputError, match="holds one training, and a sweep needs a folder of its own"):
        run(write(seed=[0, 1]), "--out", tmp_path / "out")
    (tmp_path / "swept").mkdir()
    (tmp_path / "swept" / "sweep.json").write_text("{}")
    with pytest.raises(InputError, match="holds a sweep, and a training needs a folder of its own"):
        run(write(), "--out", tmp_path / "swept")
    with pytest.raises(ConfigError, match="out: a list makes a sweep"):
        run(write(out=["a", "b"]))
    with pytest.raises(ConfigError, match="each training has several workers already"):
        run(write(seed=[0, 1], workers=2), "--out", tmp_path / "elsewhere", "--parallel", "2")
    with pytest.raises(ConfigError, match="--parallel is for a sweep"):
        run(write(), "--out", tmp_path / "out", "--parallel", "2")


def test_a_flag_replaces_a_list(write: Write) -> None:
    """A flag leaves one value of a key that the recipe sweeps, however it is spelt; switches, too."""
    path = str(write(**GRID, answer_letters=[True, False]))
    for words, left in (
        ((), {"learning_rate": (1e-3, 1e-4), "seed": (0, 1), "answer_letters": (True, False)}),
        (("--learning-rate", "5e-5", "--no-answer-letters"), {"seed": (0, 1)}),
        (("--learning_rate=5e-5", "--seed", "0"), {"answer_letters": (True, False)}),
    ):
        assert command.defaults([path, *words]).grid == left


def test_a_key_that_holds_a_list_stays_one(tmp_path: Path) -> None:
    """`no_decay` with a list of texts is one value; with a list of lists it is swept."""
    assert split_lists({"no_decay": ["bias"]}, "here", absent=tmp_path) == ({"no_decay": ["bias"]}, {})
    first, grid = split_lists({"no_decay": [["bias"], []]}, "here", absent=tmp_path)
    assert (first, grid) == ({"no_decay": ["bias"]}, {"no_decay": (("bias",), ())})
    assert [point.name for point in points(grid)] == ["no_decay=bias", "no_decay=none"]


def test_a_mean_over_fewer_seeds_says_so() -> None:
    """The table says of how many seeds a mean is, one seed has no deviation, and a failed training shows as one."""
    scores = {"step": 1, "headline": "accuracy", "scores": {"accuracy": 50.0}, "wrong_image": {"accuracy": 40.0}}
    rows = (
        Row("seed=0", "", {"seed": 0}, "finished", steps=1, checkpoint="step-1", validation=scores),
        Row("seed=1", "", {"seed": 1}, "failed", reason="the loss is not finite", code=1),
    )
    found = Sweep(Path("out"), {"seed": (0, 1)}, "val", rows)
    lines = list(describe(found))
    assert lines[1].split() == ["mean", "deviation", "seeds", "wrong", "image", "seed", "0", "seed", "1"]
    assert lines[2].split() == ["50.00", "–", "1", "of", "2", "40.00", "50.00", "failed"]
    assert "seed=1 failed: the loss is not finite" in lines
    assert found.code == 1


@pytest.fixture(scope="module")
def halves(small_night: SmallNight, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the Flickr30K images of the small night as two splits: the first four as train, the rest as val."""
    folder = tmp_path_factory.mktemp("halves") / "flickr30k"
    shutil.copytree(small_night.out / "synthetic" / "flickr30k", folder)
    ids = (folder / "val.txt").read_text().split()
    (folder / "train.txt").write_text("\n".join(ids[:4]) + "\n")
    (folder / "val.txt").write_text("\n".join(ids[4:]) + "\n")
    return folder


def test_two_splits_are_learnt_as_one(small_night: SmallNight, halves: Path, tmp_path: Path) -> None:
    """`train+val` of two halves is, example by example and target by target, the whole; and it trains to the same
    weights."""
    task, source = "flickr30k_entities", small_night.out / "synthetic" / "flickr30k"
    whole, joined = open_lessons(task, source, "val"), open_lessons(task, halves, "train+val")
    examples = list(whole.examples())
    assert list(joined.lessons()) == examples
    (store,) = (small_night.out / "features" / "flickr30k-val").iterdir()
    common = {"task": task, "features": store, "model": WEIGHTS / "visualbert-flickr30k", "steps": 2, "batch_size": 6}
    found = []
    for folder, split in ((source, "val"), (halves, "train+val")):
        done = train(TrainConfig(split=split, annotations=folder, out=tmp_path / split, learning_rate=1e-3, **common))
        found.append(digest_file(done.last / "model.safetensors"))
    assert found[0] == found[1]


def test_pairs_of_captions_come_from_two_splits(small_night: SmallNight, halves: Path) -> None:
    """Caption pairs of two splits hold the captions of both, and a wrong caption may be of the other split."""
    joined = open_lessons("caption-pairs", halves, "train+val")
    whole = open_lessons("caption-pairs", small_night.out / "synthetic" / "flickr30k", "val")
    assert isinstance(joined, CaptionPairs)
    assert list(joined.examples()) == list(whole.examples())
    image_of = {each.first: each.image_ids[0] for each in joined.examples()}
    example, *_ = joined.examples()
    drawn = [joined.drawn(example, random.Random(seed)) for seed in range(100)]
    others = {image_of[each.second] for each in drawn if each.second is not None and not each.own}
    assert others & set((halves / "val.txt").read_text().split())


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("val+val", r"'val\+val' names a split twice"),
        ("train+vale", "'vale'"),
        ("train+test", "example .* is in train and in test: learn one of them"),
    ],
)
def test_splits_that_cannot_be_learnt_together_are_refused(split: str, said: str, halves: Path) -> None:
    """A split that is named twice, an unknown one, and splits that share examples are one line each."""
    shutil.copy(halves / "train.txt", halves / "test.txt")
    with pytest.raises(InputError, match=said):
        open_lessons("flickr30k_entities", halves, split)


def test_the_paths_of_further_tasks_become_absolute() -> None:
    """A Ray task has another working folder, so the relative paths inside `also` must not stay relative."""
    further = AlsoTask(split="val", annotations=Path("data"), features=(Path("one"), Path("two")))
    places: dict[str, Any] = {name: Path(name) for name in ("annotations", "features", "model", "out")}
    config = TrainConfig(task="vqa", split="val", learning_rate=1e-3, steps=2, also={"nlvr2": further}, **places)
    found = absolute_paths(config).also["nlvr2"]
    assert found.annotations == Path.cwd() / "data"
    assert found.features == (Path.cwd() / "one", Path.cwd() / "two")
