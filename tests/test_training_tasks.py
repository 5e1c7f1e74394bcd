"""Trainings on several tasks over one trunk, and on examples that are made anew at each visit."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from visualbert_core.cli import main
from visualbert_core.config import EvaluateConfig, ExtractConfig, PoolConfig, SyntheticConfig
from visualbert_core.engine.pool import Pool
from visualbert_core.errors import ConfigError, InputError
from visualbert_core.evaluation.run import evaluate
from visualbert_core.features.extract import extract
from visualbert_core.provenance import digest_file
from visualbert_core.schema import Question, Statement
from visualbert_core.synthetic import WEIGHTS
from visualbert_core.synthetic.files import make_synthetic
from visualbert_core.synthetic.lessons import Captions, Choices, Questions, Statements
from visualbert_core.synthetic.scenes import Thing
from visualbert_core.synthetic.training_files import recipe as shipped_recipe
from visualbert_core.synthetic.training_files import write_lessons
from visualbert_core.tasks.example_source import ExampleSource
from visualbert_core.training import TrainConfig, batches, train
from visualbert_core.training.order import Mixture, Order
from visualbert_core.training.recipe import AlsoTask
from visualbert_core.training.step import Stepper

LESSONS = "visualbert_core.synthetic.lessons"
TIMES = {"seconds", "waiting"}
TERMS = ["nlvr2 statements", "nlvr2 grounding", "flickr phrases", "vqa answers", "vqa grounding", "vcr choices"]


@dataclass(frozen=True)
class World:
    """A few scenes to learn from and to be asked about, with their stores."""

    root: Path
    detected: Path
    given: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    write_lessons(root, seed=7, count=16)
    return World(root, root / "detected", root / "given")


Recipe = Callable[..., TrainConfig]


@pytest.fixture
def recipe(world: World, tmp_path: Path) -> Recipe:
    def entry(name: str, **values: Any) -> AlsoTask:
        features = values.pop("features", world.detected)
        return AlsoTask(task=f"{LESSONS}:{name}", split="train", annotations=world.root, features=features, **values)

    def make(out: str = "out", names: tuple[str, ...] = ("flickr", "vqa", "vcr"), **changes: Any) -> TrainConfig:
        """Return a short recipe over the scenes, with dropout."""
        also = {
            "flickr": entry("Captions", checkpoint_task="flickr30k_entities", weight=0.5),
            "vqa": entry("Questions", checkpoint_task="vqa", answers=world.root / "start/answers.txt", grounding=0.5),
            "vcr": entry("Choices", checkpoint_task="vcr", features=world.given, weight=0.5, batch_size=2),
        }
        values: dict[str, Any] = {
            "task": f"{LESSONS}:Statements",
            "validate_task": "nlvr2",
            "split": "train",
            "annotations": world.root,
            "features": world.detected,
            "model": world.root / "start",
            "weights": "new-head",
            "out": tmp_path / out,
            "steps": 6,
            "save_every": 3,
            "batch_size": 5,
            "dropout": 0.1,
            "learning_rate": 1e-3,
            "grounding": 0.5,
            "also": {name: also[name] for name in names},
        }
        return TrainConfig(**values | changes)

    return make


def steps(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def weights(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): digest_file(path) for path in sorted(folder.rglob("*.safetensors"))}


def test_a_stopped_training_on_four_tasks_ends_like_an_uninterrupted_one(
    recipe: Recipe, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Resumed after step 3, four tasks with dropout and grounding give every loss, weight and moment bit for bit. Each
    folder of the checkpoint holds the same trunk, and is evaluated like every checkpoint."""
    whole = train(recipe("whole"))
    with monkeypatch.context() as patch:
        real, left = Stepper.__call__, [4]

        def call(self: Stepper, batch: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return real(self, batch)

        patch.setattr(Stepper, "__call__", call)
        with pytest.raises(KeyboardInterrupt):
            train(recipe("stopped"))
    stopped = train(recipe("stopped"))
    assert steps(stopped.folder) == steps(whole.folder)
    assert weights(stopped.last) == weights(whole.last)
    assert len(weights(whole.last)) == 7  # four networks, two heads for grounding, the moments

    trunks = [load_file(path) for path in sorted(whole.last.rglob("model.safetensors"))]
    for key, value in trunks[0].items():
        if key.startswith("visual_bert."):
            assert all(torch.equal(value, other[key]) for other in trunks[1:]), key

    data = make_synthetic(
        tmp_path / "asked", SyntheticConfig(vqa_images=2, vcr_images=2, nlvr2_sets=1, flickr_images=2)
    )
    asked = {
        "": ("nlvr2", "dev", "nlvr2", "nlvr2/images/dev", "none"),
        "flickr": ("flickr30k_entities", "val", "flickr30k", "flickr30k/images", "none"),
        "vqa": ("vqa", "val", "vqa", "vqa/val2014", "none"),
        "vcr": ("vcr", "val", "vcr", "vcr/vcr1images", "beside"),
    }
    with Pool(PoolConfig(inline=True)) as pool:
        for name, (task, split, annotations, images, boxes) in asked.items():
            corpus = ExtractConfig(
                images=data / images,
                detector=WEIGHTS / "detector",
                out=tmp_path / "features",
                corpus=task,
                boxes=boxes,  # type: ignore[arg-type]
            )
            config = EvaluateConfig(
                task=task,
                split=split,
                annotations=data / annotations,
                features=extract(corpus, pool).folder,
                model=whole.last / name,
                out=tmp_path / "runs",
            )
            assert evaluate(config, pool).scores is not None
            assert json.loads((whole.last / name / "visualbert_core.json").read_text())["task"] == task


def test_a_damaged_folder_of_a_further_task_is_not_resumed_from(recipe: Recipe) -> None:
    """The weights of every task are checked before a run goes on: a damaged one means the checkpoint before it."""
    done = train(recipe(names=("vqa",), steps=4, save_every=2))
    record = json.loads((done.folder / "run.json").read_text())
    (done.folder / "run.json").write_text(json.dumps(record | {"status": "running"}))
    before, digests = steps(done.folder), weights(done.last)
    with (done.last / "vqa" / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"wrng")
    again = train(recipe(names=("vqa",), steps=4, save_every=2))
    assert steps(again.folder) == before
    assert weights(again.last) == digests


def test_the_first_task_sees_the_batches_that_it_has_alone(recipe: Recipe) -> None:
    """A further task takes turns, but changes neither the examples of the first task nor what is drawn for them."""
    alone = list(batches(recipe(also={}, steps=4)))
    first = [batch for batch in batches(recipe(names=("vqa",), steps=8)) if batch.tensors["labels"].dim() == 1]
    assert [b.example_ids for b in first] == [b.example_ids for b in alone]
    for one, other in zip(first, alone, strict=True):
        assert all(torch.equal(value, other.tensors[name]) for name, value in one.tensors.items())


def test_weights_share_the_steps_evenly() -> None:
    """A task with the weight w gets w steps for each step of the first task, in every part of a run; the turns do not
    depend on how many steps are asked for, and an epoch is one of the first task."""
    orders = (Order(10, 5, 0), Order(6, 2, 0), Order(30, 3, 0))
    mixture = Mixture(orders, (1.0, 0.5, 2.5))
    turns = [0 if i[0] < 10 else 1 if i[0] < 16 else 2 for _, i in map(mixture.batch, range(2000))]
    for end in (8, 40, 200, 2000):
        assert [turns[:end].count(task) for task in range(3)] == [end // 4, end // 8, end * 5 // 8]
    assert mixture.steps_per_epoch == 8
    seen = [i for _, i in map(mixture.batch, range(8)) if i[0] < 10]
    assert sorted(place for batch in seen for place in batch) == list(range(10))
    assert [mixture.batch(step)[1][0] for step in (5, 1500, 5)] == [mixture.batch(step)[1][0] for step in (5, 1500, 5)]
    third = [i for _, i in map(mixture.batch, range(16)) if i[0] >= 16]
    assert sorted(place - 16 for batch in third for place in batch) == list(range(30))  # ten of its steps: an epoch


def test_each_term_has_its_own_mean(recipe: Recipe) -> None:
    """A line of the log holds the terms of its task alone, and their sum is the loss."""
    done = train(recipe())
    lines = steps(done.folder)
    assert json.loads((done.folder / "run.json").read_text())["examples"]["also"].keys() == {"flickr", "vqa", "vcr"}
    assert {term for line in lines for term in line["terms"]} == set(TERMS)
    for line in lines:
        assert len({term.split()[0] for term in line["terms"]}) == 1
        assert line["loss"] == pytest.approx(math.fsum(line["terms"].values()))
        assert sum(count > 0 for count in line["counts"]) == len(line["terms"])


def test_further_tasks_are_ingredients(recipe: Recipe, world: World) -> None:
    """A run goes on only with the same further tasks: another weight is refused by name, another place is not."""
    config = recipe(names=("vqa",), steps=2)
    train(config)
    vqa = config.also["vqa"]
    with pytest.raises(InputError, match=r"recipe\.also\.vqa\.weight"):
        train(replace(config, also={"vqa": replace(vqa, weight=2.0)}))
    moved = world.root.parent / "moved"
    moved.symlink_to(world.root)
    assert train(replace(config, also={"vqa": replace(vqa, annotations=moved)})).record["status"] == "finished"


def test_a_recipe_file_names_what_is_wrong(tmp_path: Path) -> None:
    """Unknown keys, missing keys and names that cannot be a folder are one line each, with the place in the file."""
    path = tmp_path / "recipe.yaml"
    start = "task: nlvr2\nsplit: train\nannotations: a\nfeatures: b\nmodel: c\nout: d\nalso:\n"
    for entry, said in (
        ("  vqa: {split: train, annotations: a, features: b, wieght: 2}", "also.vqa: unknown key 'wieght'; did you"),
        ("  vqa: {split: train, annotations: a}", "also.vqa: missing key 'features'"),
        ("  vqa: {split: train, annotations: a, features: b, weight: 0}", "also.vqa: weight is 0: it must be above 0"),
        ("  ../vqa: {split: train, annotations: a, features: b}", "also: '../vqa' becomes a folder"),
        ("  nlvr2: {split: val, annotations: a, features: b}", "also: 'nlvr2' is the first task"),
    ):
        path.write_text(f"{start}{entry}\n")
        with pytest.raises(ConfigError, match=re.escape(said)):
            main(["train", str(path)])


def test_the_shipped_recipe_begins(world: World, tmp_path: Path) -> None:
    """The recipe of the synthetic scenes takes its first steps, and its checkpoints have the four tasks."""
    done = train(shipped_recipe(world.root, out=str(tmp_path / "out"), steps=1, batch_size=4))
    assert {path.name for path in done.last.iterdir() if path.is_dir()} == {"flickr30k_entities", "vqa", "vcr"}


def test_networks_of_two_sizes_share_no_trunk(recipe: Recipe, world: World, tmp_path: Path) -> None:
    """A further task whose checkpoint is of another size is refused before the first step."""
    config = recipe(names=("vqa",))
    other = tmp_path / "other"
    other.mkdir()
    for path in (world.root / "start").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    about = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(about | {"layer_norm_eps": 1e-6}))
    vqa = replace(config.also["vqa"], model=other, answers=None, task=f"{LESSONS}:Statements")
    with pytest.raises(ConfigError, match="cannot share a trunk"):
        train(replace(config, also={"more": vqa}))


# ---------------------------------------------------------------------------------------------------------------------
# Examples that are made anew at each visit


class Colours(ExampleSource):
    """Asks for the colour of a scene's first thing or of its last one."""

    form = Question

    def __init__(self, annotations: Path, split: str) -> None:
        self._path = annotations / f"{split}.jsonl"
        self._scenes = [json.loads(line) for line in self._path.read_text().splitlines()]

    def annotation_files(self) -> tuple[Path, ...]:
        return (self._path,)

    def examples(self) -> Any:
        yield from (Question(scene["image_id"], (scene["image_id"],), "") for scene in self._scenes)

    def drawn(self, example: Any, draws: random.Random) -> Any:
        return replace(example, text=f"What color is the {draws.choice(('leftmost', 'rightmost'))} thing?")

    def target(self, example: Any, boxes: Any) -> Any:
        return {"red": 1.0}


class Unfinished(Colours):
    """Lacks nothing that Python checks, but has the name of another class."""

    name = "colours"


def test_a_source_of_your_own_is_an_endless_stream(recipe: Recipe, world: World, tmp_path: Path) -> None:
    """A class outside the package is named module:Class. Its visits differ from epoch to epoch, are the same in each
    run, and go on at any step; the checkpoint says which benchmark it answers."""
    name = f"{Colours.__module__}:{Colours.__qualname__}"
    values: dict[str, Any] = {"task": name, "validate_task": "vqa", "also": {}, "grounding": 0.0, "batch_size": 16}
    config = recipe(answers=world.root / "start/answers.txt", **values, steps=3)
    texts, again = ([batch.tensors["input_ids"] for batch in batches(config)] for _ in range(2))
    assert not torch.equal(texts[0].sort(0).values, texts[1].sort(0).values)
    assert all(map(torch.equal, texts, again))
    assert torch.equal(next(batches(config, first_step=2)).tensors["input_ids"], texts[2])
    done = train(replace(config, out=tmp_path / "own"))
    assert json.loads((done.last / "visualbert_core.json").read_text())["task"] == "vqa"
    with pytest.raises(ConfigError, match="the name of this class is colours; use that name"):
        train(replace(config, task=f"{Unfinished.__module__}:Unfinished"))
    with pytest.raises(ConfigError, match="does not say which regions the words name; leave grounding out"):
        train(replace(config, grounding=1.0, out=tmp_path / "grounded"))
    with pytest.raises(ConfigError, match="masked words are not taught here"):
        next(batches(replace(config, objective="masked-words")))


def test_the_questions_of_the_scenes_come_from_the_draws_alone(world: World) -> None:
    """Two visits with equal draws ask the same with the same target, other draws ask something else; the right answers
    of statements and choices are balanced."""
    boxes = [np.array([[0, 0, 224, 224]], np.float32)] * 2
    for kind in (Questions, Statements, Choices, Captions):
        source = kind(world.root, "train")
        listed = list(source.examples())
        first, again, other = (
            [source.drawn(example, random.Random(f"{seed} {example.example_id}")) for example in listed]
            for seed in (1, 1, 2)
        )
        assert first == again
        assert first != other
        assert all(one.example_id == each.example_id for one, each in zip(first, listed, strict=True))
        targets = [source.target(example, boxes) for example in first]
        assert len(targets) == len(listed)
    statements = Statements(world.root, "train")
    example = next(iter(statements.examples()))
    held = [statements.drawn(example, random.Random(seed)).right for seed in range(200)]
    assert 70 < sum(held) < 130


# ---------------------------------------------------------------------------------------------------------------------
# The term grounding


def test_grounding_is_for_questions_and_statements(recipe: Recipe) -> None:
    """Captions have this loss already, choices name regions by alignment, and masked words have other terms."""
    config = recipe(names=("flickr",))
    with pytest.raises(ConfigError, match="only questions and statements have this term"):
        train(replace(config, also={"flickr": replace(config.also["flickr"], grounding=1.0)}))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("The left image contains a red ball.", {"left image": [1, 1, 0, 0], "red ball.": [1, 0, 0, 0]}),
        ("There is exactly one red ball in the right image.", {"right image.": [0, 0, 1, 1], "red ball": [0, 0, 0, 1]}),
        ("Both images contain a red ball.", {"red ball.": [1, 0, 0, 1]}),
        (
            "There are more red things in the left image than in the right image.",
            {"left image": [1, 1, 0, 0], "right image.": [0, 0, 1, 1], "red things": [1, 0, 1, 1]},
        ),
    ],
)
def test_a_statement_names_regions_of_the_image_that_it_is_about(
    tmp_path: Path, text: str, named: dict[str, list[int]]
) -> None:
    """A side names all regions of its image. A description names what fits there, or in both images where the sentence
    is about both. Each phrase shares 1 among its regions."""
    scenes = {"a": ("red ball", "blue box"), "b": ("red star", "red ball")}
    here, there = (10.0, 10.0, 50.0, 50.0), (100.0, 100.0, 140.0, 140.0)
    lines = []
    for image_id, words in scenes.items():
        looks = [each.split() for each in words]
        things = [Thing(shape, color, "small", box) for (color, shape), box in zip(looks, (here, there), strict=True)]
        lines.append(json.dumps({"image_id": image_id, "things": [asdict(thing) for thing in things]}))
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    boxes = [np.array([here, there], np.float32)] * 2
    found = Statements(tmp_path, "train").named_regions(Statement("s", ("a", "b"), text), boxes)
    assert {each.text for each in found.phrases} == named.keys()
    for phrase, shares in zip(found.phrases, found.shares, strict=True):
        hits = np.array(named[phrase.text])
        assert shares.tolist() == pytest.approx((hits / hits.sum()).tolist())


def test_tasks_share_the_head_for_phrases(recipe: Recipe) -> None:
    """The term of a statement trains the head with which captions are answered, and no file of a checkpoint that
    transformers reads holds a head that only the training needs."""
    done = train(recipe(names=("flickr",), steps=2))
    head = load_file(done.last / "grounding.safetensors")
    answering = load_file(done.last / "flickr" / "model.safetensors")
    for name, value in head.items():
        assert torch.equal(answering[f"attention.{name}"], value)
    assert not any("grounding" in name for name in load_file(done.last / "model.safetensors"))
