"""Trainings on the small synthetic data: passes, checkpoints, precision, what is counted, the guard, the command."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from conftest import ROOT, SmallNight
from own_tasks import open_questions

from visualbert_core.cli import main
from visualbert_core.config_mapping import from_mapping
from visualbert_core.errors import ConfigError, CoverageError, InputError, TrainingError
from visualbert_core.models.visualbert import VisualBertForQuestionAnswering
from visualbert_core.models.visualbert.trainable import VisualBertTrainable
from visualbert_core.provenance import digest_file
from visualbert_core.synthetic import WEIGHTS
from visualbert_core.training import TrainConfig, batches, train
from visualbert_core.training.data import ahead
from visualbert_core.training.order import Order
from visualbert_core.training.state import Checkpoints
from visualbert_core.training.step import Stepper

TASKS = {
    "vqa": ("val", "vqa", "vqa-val2014", "visualbert-vqa"),
    "vcr": ("val", "vcr", "vcr-val", "visualbert-vcr"),
    "nlvr2": ("dev", "nlvr2", "nlvr2-dev", "visualbert-nlvr2"),
    "flickr30k_entities": ("val", "flickr30k", "flickr30k-val", "visualbert-flickr30k"),
}
"""Task → (split, annotations, corpus, weights) of the small night."""
PRE_TRAINING = {"caption-pairs": ("val2014", *TASKS["flickr30k_entities"][1:])}
TIMES = {"seconds", "waiting"}


@pytest.fixture
def recipe(small_night: SmallNight, tmp_path: Path) -> Callable[..., TrainConfig]:
    def make(task: str = "vqa", out: str = "out", **changes: Any) -> TrainConfig:
        """Return a short recipe over a corpus of the small night, with dropout."""
        split, annotations, corpus, weights = (TASKS | PRE_TRAINING)[task]
        (store,) = (small_night.out / "features" / corpus).iterdir()
        values: dict[str, Any] = {
            "task": task,
            "split": split,
            "annotations": small_night.out / "synthetic" / annotations,
            "features": store,
            "model": WEIGHTS / weights,
            "out": tmp_path / out,
            "steps": 8,
            "save_every": 3,
            "batch_size": 6,
            "dropout": 0.1,
            "learning_rate": 1e-3,
        }
        values |= {"task": changes.pop("task_name", task)}
        return TrainConfig(**values | changes)

    return make


def steps(out: Path) -> list[dict[str, Any]]:
    """Return the lines of steps.jsonl without their times."""
    lines = [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def weights(out: Path) -> str:
    """Return the digest of the weights of the last checkpoint."""
    return digest_file(out / "checkpoints" / json.loads((out / "run.json").read_text())["last"] / "model.safetensors")


Recipe = Callable[..., TrainConfig]


def stop_after(patch: pytest.MonkeyPatch, count: int, do: Callable[[], None]) -> None:
    """Call `do` before the step number `count`, counted from now."""
    left, real = [count], Stepper.__call__

    def call(self: Stepper, batch: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            do()
        return real(self, batch)

    patch.setattr(Stepper, "__call__", call)


def test_a_task_of_your_own_is_learnt(
    recipe: Recipe, small_night: SmallNight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A benchmark outside the package needs nothing more than its right answers to be learnt and validated."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    folder = open_questions(small_night.out / "synthetic" / "vqa", tmp_path / "questions")
    done = train(recipe(task_name="own_task:OpenQuestions", annotations=folder, validate_split="val"))
    assert done.record["validation"]["headline"] == "exact match"
    assert done.record["validation"]["scores"]["exact match"] > 50


def test_features_that_do_not_fit_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    """A checkpoint of another size or space of features is refused before the first step, as in an evaluation."""
    for name, key, value, message in (
        ("config.json", "visual_embedding_dim", 99, "93-d region features"),
        ("visualbert_core.json", "feature_space", "elsewhere", "which differ although their size is equal"),
    ):
        folder = tmp_path / key
        shutil.copytree(WEIGHTS / "visualbert-vqa", folder)
        held = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(held | {key: value}))
        with pytest.raises(InputError, match=message):
            train(recipe(model=folder, weights="random"))


def test_a_head_that_does_not_fit_is_told_with_its_remedy(recipe: Recipe) -> None:
    """A checkpoint of another benchmark has a head of another shape, which a new head replaces."""
    with pytest.raises(InputError, match=r"cls.bias \[28\] instead of \[2\].*weights: new-head"):
        train(recipe("nlvr2", model=WEIGHTS / "visualbert-vqa"))


def test_weights_that_run_away_are_not_saved(recipe: Recipe) -> None:
    """A rate of 1e30 is told at the checkpoint, before a loss shows it, and no useless checkpoint is written."""
    config = recipe(learning_rate=1e30, warmup=0.0, save_every=1)
    with pytest.raises(TrainingError, match=r"step 1: the weights have grown .* lower the learning rate"):
        train(config)
    assert Checkpoints(config.folder).steps() == []


def test_the_recipes_of_the_page_are_recipes() -> None:
    """Each whole YAML in docs/how-to/train.md has keys and values of a recipe; the first has those of the authors."""
    texts = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "how-to" / "train.md").read_text(), re.DOTALL)
    recipes = [text for text in texts if "task:" in text]  # the others show single keys
    config, *_ = (from_mapping(TrainConfig, yaml.safe_load(text) | {"out": "out"}, "train.md") for text in recipes)
    assert (config.optimizer, config.learning_rate, config.clip, config.frozen) == (
        "bertadam",
        2e-5,
        "each",
        ("pooler",),
    )


@pytest.mark.parametrize("task", [*TASKS, "masked"])
def test_passes_change_nothing(recipe: Recipe, task: str) -> None:
    """A batch in one pass and in at least four passes of different sizes gives the same losses over 50 steps."""
    named, objective = ("flickr30k_entities", "masked-words") if task == "masked" else (task, "task")
    every: dict[str, Any] = {"objective": objective, "weights": "random", "dropout": 0.0, "steps": 50}
    every |= {"learning_rate": 1e-4, "batch_size": 8, "save_every": 50}
    cut = {"vqa": 40, "vcr": 160, "nlvr2": 45, "flickr30k_entities": 40, "masked": 40}[task]
    one, many = recipe(named, "one", **every), recipe(named, "many", tokens_per_pass=cut, **every)
    train(one)
    with pytest.MonkeyPatch.context() as patch:
        sizes: list[int] = []
        real = Stepper.__call__
        patch.setattr(Stepper, "__call__", lambda self, batch: (sizes.append(len(batch.passes)), real(self, batch))[1])
        train(many)
    assert max(sizes) >= 4
    for a, b in zip(steps(one.out), steps(many.out), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5), a["step"]
        assert (a["counts"], a["tokens"]) == (b["counts"], b["tokens"])


def test_a_checkpoint_says_what_it_was_trained_on(recipe: Recipe) -> None:
    """Plain transformers opens it, and training.json names recipe, data, parent and code."""
    config = recipe("nlvr2")
    done = train(config)
    theirs = transformers.VisualBertForVisualReasoning.from_pretrained(done.last)
    assert theirs.config.num_labels == 2
    record = json.loads((done.last / "training.json").read_text())
    made_of = record["provenance"]
    assert record["step"] == 8
    assert made_of["recipe"]["learning_rate"] == 1e-3
    assert made_of["data"]["features"]["detector"]["space"]
    assert made_of["parent"]["weights"] == digest_file(WEIGHTS / "visualbert-nlvr2" / "model.safetensors")
    assert {"training", "predictions"} <= set(made_of["code"])
    assert not any(str(config.out) in json.dumps(each) for each in (made_of["recipe"], made_of["data"]))


def poison(patch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Make the loss NaN at these steps, counted from 1."""
    seen, real = [0], VisualBertTrainable.losses

    def losses(self: VisualBertTrainable, prepared: Any) -> Any:
        seen[0] += 1
        return real(self, prepared) * (float("nan") if seen[0] in numbers else 1.0)

    patch.setattr(VisualBertTrainable, "losses", losses)


def test_a_loss_that_is_not_finite_stops_the_run(recipe: Recipe) -> None:
    """The error names step and examples, the last checkpoint stays, and the recipe may leave such batches out."""
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, 5)
        with pytest.raises(TrainingError, match=r"step 5: the loss is nan .* 6 examples \(\d+, ") as stopped:
            train(recipe())
    assert stopped.value.exit_code == 1
    assert Checkpoints(recipe().out).steps() == [3]
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, 2)  # the second step after the checkpoint
        done = train(recipe(skip_bad_batches=1))
    assert done.record["skipped"] == 1
    assert [line["step"] for line in steps(recipe().out) if line["loss"] is None] == [5]


def test_bfloat16_learns_like_float32(recipe: Recipe) -> None:
    """Under autocast the losses stay near those in float32, and the weights stay float32."""
    one, half = recipe(out="one", dropout=0.0), recipe(out="half", dropout=0.0, precision="bfloat16")
    train(one)
    last = train(half).last
    for a, b in zip(steps(one.out), steps(half.out), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=0.1, abs=0.05)
    held = VisualBertForQuestionAnswering.from_pretrained(last).state_dict()
    assert {value.dtype for value in held.values()} == {torch.float32}
    assert steps(one.out) != steps(half.out)


def test_dropout_draws_anew_at_every_step_from_the_seed_alone(recipe: Recipe) -> None:
    """At a rate of 0 the loss over all examples changes with dropout only. The caller's generator has no part in it."""
    every: dict[str, Any] = {"learning_rate": 0.0, "batch_size": 48, "steps": 3}
    torch.manual_seed(1)
    train(recipe(out="one", **every))
    torch.manual_seed(2)
    train(recipe(out="two", **every))
    train(recipe(out="other", seed=1, **every))
    train(recipe(out="none", **every | {"dropout": 0.0}))
    one, two, other, none = (
        [line["loss"] for line in steps(recipe(out=n).out)] for n in ("one", "two", "other", "none")
    )
    assert one == two
    assert none == pytest.approx([none[0]] * 3, rel=1e-5)
    assert len({round(loss, 4) for loss in (*one, *other)}) == 6


def test_frozen_tensors_stay(recipe: Recipe) -> None:
    """Tensors of a frozen name keep their values, and a name that fits none is refused."""
    before = VisualBertForQuestionAnswering.from_pretrained(WEIGHTS / "visualbert-vqa").state_dict()
    last = train(recipe(frozen=("embeddings",), optimizer="bertadam", clip="each")).last
    after = VisualBertForQuestionAnswering.from_pretrained(last).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not [name for name in changed if "embeddings" in name]
    assert not [name for name in changed if "pooler" in name]  # question answering does not use it
    with pytest.raises(ConfigError, match="contains 'poolers'"):
        train(recipe(out="other", frozen=("poolers",)))


def test_examples_without_target_are_counted(recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Answers outside the list make examples without a target: kept as the authors keep them, or left out by name."""
    answers = tmp_path / "answers.txt"
    answers.write_text("<unk>\nyes\nno\n")
    with caplog.at_level("INFO", "visualbert_core"):
        kept = train(recipe(weights="new-head", answers=answers, steps=1))
    without = kept.record["examples"]["without_target"]
    assert 0 < without < kept.record["examples"]["examples"] == 48
    assert "have no target and add no loss but count in the mean" in caplog.text
    dropped = train(recipe(out="dropped", weights="new-head", answers=answers, steps=1, without_target="drop"))
    assert dropped.record["examples"]["examples"] == 48 - without
    config = recipe(out="other", answers=answers)
    with pytest.raises(ConfigError, match="new-head"):
        train(config)


def test_images_without_features_are_named(recipe: Recipe, tmp_path: Path) -> None:
    """A missing image is an error that names it, or is counted where the recipe allows it."""
    folder = tmp_path / "annotations"
    shutil.copytree(recipe().annotations, folder)
    for name in ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace('"image_id": 3,', '"image_id": 999,'))
    with pytest.raises(CoverageError, match=r"COCO_val2014_000000000999.*4 of 48 examples.*--allow-missing"):
        train(recipe(annotations=folder))
    done = train(recipe(annotations=folder, allow_missing=True, steps=1))
    assert done.record["examples"] == {"examples": 44, "without_features": 4, "without_target": 0}


def test_batches_for_a_loop_of_your_own(recipe: Recipe) -> None:
    """The iterator gives the training's own batches, padded, as the head takes them, from any step on."""
    config = recipe(dropout=0.0)
    train(config)
    network = VisualBertForQuestionAnswering.from_pretrained(config.model)
    found = list(batches(config))
    assert [batch.step for batch in found] == list(range(8))
    loss = network(**found[0].tensors).loss
    assert loss is not None
    assert loss.item() == pytest.approx(steps(config.out)[0]["loss"], rel=1e-5)
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
    assert norm.item() == pytest.approx(steps(config.out)[0]["norm"], rel=1e-5)
    again = next(iter(batches(config, first_step=6)))
    assert again.example_ids == found[6].example_ids
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in found[6].tensors.items())


def test_the_order_is_a_permutation_that_never_changes() -> None:
    """Every epoch holds each example once, in an order of its own, and these numbers stay for ever."""
    order = Order(10, 4, 7)
    epochs = [[order.batch(step) for step in range(start, start + 3)] for start in (0, 3)]
    assert [[epoch for epoch, _ in each] for each in epochs] == [[0] * 3, [1] * 3]
    flat = [[index for _, indices in each for index in indices] for each in epochs]
    assert all(sorted(each) == list(range(10)) for each in flat)
    assert flat[0] == [8, 4, 3, 6, 2, 1, 0, 5, 9, 7]
    assert flat[0] != flat[1]


def test_errors_of_readers_reach_the_loop() -> None:
    """An error in a thread that reads ahead is raised at its step, not before and not never."""

    def make(step: int) -> int:
        if step == 3:
            raise ValueError("damaged")
        return step

    coming = ahead(make, range(9), threads=2, depth=4)
    assert [next(coming) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="damaged"):
        next(coming)


def test_the_command_reads_a_recipe_and_flags(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """YAML keys and flags are one declaration: a flag replaces a key, and each mistake is one line."""
    config = recipe()
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"task: vqa\nsplit: val\nannotations: {config.annotations}\nfeatures: {config.features}\n"
        f"model: {config.model}\nlearning_rate: 2e-5\nsteps: 4\nbatch_size: 6\n"
    )
    out = tmp_path / "by-command"
    assert main(["train", str(path), "--out", str(out), "--steps", "2", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["steps"], record["provenance"]["recipe"]["learning_rate"]) == (2, 2e-5)
    assert main(["train", str(path), f"--out={out}", "--steps=2"]) == 0
    assert f"last: {out}/checkpoints/step-00000002" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--out is missing"):
        main(["train", str(path)])
    with pytest.raises(ConfigError, match="did you mean --learning-rate"):
        main(["train", str(path), "--out", str(out), "--learning-rat", "1"])
    path.write_text(path.read_text() + "warm_up: 0.1\n")
    with pytest.raises(ConfigError, match="'warm_up'; did you mean 'warmup'"):
        main(["train", str(path), "--out", str(out)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 1}, "epochs and steps exclude each other"),
        ({"patience": 1}, "patience needs a validation"),
        ({"warmup": 1.0}, "warmup is 1 of the steps"),
        ({"schedule": "cosin"}, "schedule: 'cosin' is not one of linear, cosine, "),
        ({"precision": "bf16"}, "precision: 'bf16' is not one of float32, bfloat16"),
        ({"device": "cudda"}, "device: 'cudda' cannot be used here"),
        ({"split": "test"}, "test2015_questions.json: not found"),
        ({"split": "dev"}, "unknown VQA split 'dev'"),
        (
            {"steps": None, "epochs": 1, "batch_size": 64, "planned_steps": "authors"},
            "examples than one batch of 64",
        ),
    ],
)
def test_wrong_recipes_are_refused(recipe: Recipe, changes: dict[str, Any], message: str) -> None:
    """Each mistake is an input error of one line, before the first step."""
    with pytest.raises(InputError, match=message):
        train(recipe(**changes))
