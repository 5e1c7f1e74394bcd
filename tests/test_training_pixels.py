"""Trainings of models that read pixels, ViLT and captioners: losses, resuming, checkpoints, refusals."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from captioner_folders import write_decoder, write_encoder
from conftest import SmallNight
from PIL import Image as Pillow
from vilt_folders import write_vilt

from visualbert_core import make_captioner
from visualbert_core.config import EvaluateConfig, PoolConfig, SyntheticConfig
from visualbert_core.engine.pool import Pool
from visualbert_core.errors import CheckpointError, ConfigError, CoverageError, InputError, UnfinishedError
from visualbert_core.evaluation.run import evaluate
from visualbert_core.models import load_trainable
from visualbert_core.models.trainable import Start, Trainable
from visualbert_core.provenance import digest_file
from visualbert_core.schema import Captioning, Pixels, Question, Statement
from visualbert_core.synthetic import WEIGHTS
from visualbert_core.synthetic.files import make_synthetic
from visualbert_core.synthetic.questions import ANSWERS
from visualbert_core.tasks import open_task
from visualbert_core.training import TrainConfig, batches, train, visuals
from visualbert_core.training.step import Stepper

TASKS = {
    "vqa": ("val", "vqa", "vqa/val2014", "vilt-vqa"),
    "nlvr2": ("dev", "nlvr2", "nlvr2/images/dev", "vilt-nlvr2"),
    "captions": ("val", "flickr30k", "flickr30k/images", "captioner"),
}
"""Task → (split, annotations, images, checkpoint)."""
CLASSES = {
    "vqa": transformers.ViltForQuestionAnswering,
    "nlvr2": transformers.ViltForImagesAndTextClassification,
    "captions": transformers.VisionEncoderDecoderModel,
}
FORMS: dict[str, Any] = {"vqa": Question, "nlvr2": Statement, "captions": Captioning}
TIMES = {"seconds", "waiting"}

Recipe = Callable[..., TrainConfig]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a few synthetic scenes and tiny checkpoints."""
    folder = tmp_path_factory.mktemp("pixels")
    counts = {"vqa_images": 6, "vcr_images": 1, "nlvr2_sets": 1, "flickr_images": 5}
    make_synthetic(folder / "world", SyntheticConfig(**counts))
    labels = {"id2label": dict(enumerate(ANSWERS)), "label2id": {name: at for at, name in enumerate(ANSWERS)}}
    write_vilt(folder / "vilt-vqa", **labels)
    write_vilt(folder / "vilt-nlvr2", "ViltForImagesAndTextClassification")
    encoder, decoder = write_encoder(folder / "vit", "vit"), write_decoder(folder / "bert", "bert")
    make_captioner(encoder, decoder, folder / "captioner")
    make_captioner(write_encoder(folder / "swin", "swin"), write_decoder(folder / "gpt2", "gpt2"), folder / "swin-gpt2")
    return folder


@pytest.fixture
def recipe(world: Path, tmp_path: Path) -> Recipe:
    def make(task: str = "vqa", out: str = "out", **changes: Any) -> TrainConfig:
        """Return a short recipe with dropout."""
        split, annotations, images, model = TASKS[task]
        values: dict[str, Any] = {
            "task": task,
            "split": split,
            "annotations": world / "world" / annotations,
            "images": world / "world" / images,
            "model": world / model,
            "out": tmp_path / out,
            "steps": 4,
            "save_every": 3,
            "batch_size": 4,
            "dropout": 0.1,
            "learning_rate": 1e-3,
        }
        return TrainConfig(**values | changes)

    return make


def steps(out: Path) -> list[dict[str, Any]]:
    """Return the lines of steps.jsonl without their times."""
    lines = [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def example(form: Any, number: int) -> Any:
    """Return an example whose text and whose images have other lengths and sizes than those of its neighbours."""
    text = " ".join(["what is the red cat ?"] * (1 + number % 2))
    if form is Captioning:
        return Captioning(str(number), ("a",))
    return form(str(number), ("a", "b")[: 2 if form is Statement else 1], text)


def noise(number: int) -> Pixels:
    height, width = ((40, 70), (64, 48))[number % 2]
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Pixels(str(number), pixels, "")


TARGETS: dict[Any, Callable[[int], Any]] = {
    Question: lambda number: [{"yes": 1.0, "red": 0.3}, {"nobody": 1.0}, {"2": 0.9}][number % 3],
    Statement: lambda number: number % 2,
    Captioning: lambda number: ["a red circle", "a dog is left of the green square ."][number % 2],
}


@pytest.mark.parametrize(
    ("form", "folder"),
    [(Question, "vilt-vqa"), (Statement, "vilt-nlvr2"), (Captioning, "captioner"), (Captioning, "swin-gpt2")],
)
def test_losses_and_gradients_are_those_of_transformers(world: Path, form: Any, folder: str) -> None:
    """The sums over two passes, divided by the counts, have the loss and the gradient that transformers' own network
    computes from the padded tensors: texts of two lengths, images of two sizes, answers that are not in the list."""
    model: Trainable[Any] = load_trainable(world / folder, form, Start(dropout=0.0))
    items = []
    for number in range(5):
        shown = example(form, number)
        images = tuple(noise(number + place) for place in range(len(shown.image_ids)))
        items.append(model.encode(shown, images, TARGETS[form](number), random.Random(0)))
    count = sum(item.counts[0] for item in items)
    sums = [model.losses(model.prepare(part)) for part in (items[:3], items[3:])]
    loss = torch.cat(sums).sum() / count
    loss.backward()
    found = {name: each.grad.clone() for name, each in model.network.named_parameters() if each.grad is not None}
    model.network.zero_grad()
    theirs = model.network(**model.padded(items)).loss
    theirs.backward()
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    expected = {name: each.grad for name, each in model.network.named_parameters() if each.grad is not None}
    assert found.keys() == expected.keys()
    # The gradient of a key's bias is 0 but for rounding, so a tensor is compared with the largest one too.
    largest = max(each.norm().item() for each in expected.values())
    for name, gradient in expected.items():
        difference = (found[name] - gradient).norm().item()
        assert difference <= 1e-5 * max(gradient.norm().item(), largest / 100), name


@pytest.mark.parametrize("task", TASKS)
def test_a_stopped_training_ends_like_an_uninterrupted_one(recipe: Recipe, task: str) -> None:
    """SIGTERM ends the training after its step; resumed, every loss and the weights are those of the uninterrupted
    one, bit for bit, with dropout and with passes. Plain transformers opens the checkpoint, and evaluates it here."""
    whole = train(recipe(task, "whole", tokens_per_pass=120))
    left, real = [2], Stepper.__call__

    def call(self: Stepper, batch: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGTERM)
        return real(self, batch)

    stopped = recipe(task, "stopped", tokens_per_pass=120)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "__call__", call)
        with pytest.raises(UnfinishedError, match="after 2 of 4 steps"):
            train(stopped)
    done = train(stopped)
    assert steps(done.folder) == steps(whole.folder)
    assert digest_file(done.last / "model.safetensors") == digest_file(whole.last / "model.safetensors")
    _, found = CLASSES[task].from_pretrained(whole.last, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    config = EvaluateConfig(
        task=task,
        split=stopped.split,
        annotations=stopped.annotations,
        images=stopped.images,
        model=whole.last,
        out=stopped.out / "runs",
    )
    with Pool(PoolConfig(inline=True)) as pool:
        assert evaluate(config, pool).scores is not None


@pytest.mark.parametrize("task", ["nlvr2", "captions"])
def test_the_settings_of_the_loop_reach_the_network(world: Path, task: str) -> None:
    """Layers that are computed again change no loss and no gradient, and label smoothing is that of torch: the loss of
    a label mixed with the mean loss of all labels."""
    found = []
    for settings in ({}, {"gradient_checkpointing": True}, {"label_smoothing": 0.1}, {"label_smoothing": 1.0}):
        model = load_trainable(world / TASKS[task][3], FORMS[task], Start(dropout=0.0, **settings))
        shown = example(FORMS[task], 1)
        images = tuple(noise(place) for place in range(len(shown.image_ids)))
        item = model.encode(shown, images, TARGETS[FORMS[task]](1), random.Random(0))
        loss = model.losses(model.prepare([item])).sum()
        loss.backward()
        gradients = [each.grad for each in model.network.parameters() if each.grad is not None]
        found.append((loss.item(), torch.cat([each.flatten() for each in gradients])))
    plain, again, some, all_alike = found
    assert again[0] == pytest.approx(plain[0], rel=1e-6)
    torch.testing.assert_close(again[1], plain[1])
    assert some[0] == pytest.approx(0.9 * plain[0] + 0.1 * all_alike[0], rel=1e-5)
    with pytest.raises(ConfigError, match=r"label_smoothing 0\.1: the targets of questions are weights already"):
        load_trainable(world / "vilt-vqa", Question, Start(label_smoothing=0.1))


def test_a_vilt_learns_and_is_validated(recipe: Recipe) -> None:
    """The loss falls, and the dev split is evaluated from its images with the wrong ones beside it."""
    done = train(recipe(steps=6, dropout=0.0, batch_size=24, warmup=0.0, validate_split="val", save_every=6))
    losses = [line["loss"] for line in steps(done.folder)]
    assert losses[-1] < 0.8 * losses[0]
    assert done.best == done.last
    (line,) = (done.folder / "validations.jsonl").read_text().splitlines()
    assert json.loads(line)["wrong_image"].keys() == json.loads(line)["scores"].keys()


def test_every_caption_is_an_example(world: Path, recipe: Recipe) -> None:
    """An epoch of captions shows each caption once, beside its image. One without a word is counted, and adds no
    token."""
    task = open_task("captions", world / "world" / "flickr30k", "val")
    assert len(list(task.lessons())) == sum(len(task.references(name)) for name in task.expected())
    annotations = recipe("captions").out.parent / "annotations"
    shutil.copytree(world / "world" / "flickr30k", annotations, ignore=shutil.ignore_patterns("images"))
    first = annotations / "Sentences" / "1000.txt"
    first.write_text("\n".join([" ", *first.read_text().splitlines()[1:]]) + "\n")
    config = recipe("captions", annotations=annotations, epochs=1, steps=None, batch_size=25)
    done = train(config)
    assert done.record["examples"]["without_target"] == 1
    (line,) = steps(done.folder)
    (batch,) = batches(config)
    assert len(set(batch.example_ids)) == line["examples"] == 25
    assert line["counts"] == [int((batch.tensors["labels"] != -100).sum())]


def test_a_new_head_keeps_the_trunk(world: Path, recipe: Recipe) -> None:
    """A ViLT for questions gets another list of answers, or becomes one for statements, whose second image starts with
    the type of the first. A list that is only named, and weights that are not there, are refused in a line."""
    answers = recipe().out.parent / "answers.txt"
    answers.write_text("<unk>\nno\nyes\nblue\n")
    new = {"weights": "new-head", "dropout": 0.0}
    config = recipe(answers=answers, **new)
    model = load_trainable(config.model, Question, Start(weights="new-head", answers=answers))
    assert model.network.config.id2label == {0: "no", 1: "yes", 2: "blue"}
    held = transformers.ViltForQuestionAnswering.from_pretrained(config.model).vilt.state_dict()
    assert all(torch.equal(each, held[name]) for name, each in model.network.vilt.state_dict().items())
    pair = load_trainable(config.model, Statement, Start(weights="new-head"))
    types = pair.network.vilt.embeddings.token_type_embeddings.weight
    assert torch.equal(types[2], types[1])
    with pytest.raises(ConfigError, match="another list needs a new head"):
        train(recipe(answers=answers))
    done = train(recipe("nlvr2", model=config.model, steps=1, **new))
    assert transformers.ViltForImagesAndTextClassification.from_pretrained(done.last).config.num_images == 2
    for folder, form in ((world / "vilt-vqa", Captioning), (world / "captioner", Question)):
        with pytest.raises(CheckpointError, match=f"learns .* and not {form.__name__}"):
            load_trainable(folder, form, Start())
    for key, start in (
        ("objective", Start(objective="masked-words")),
        ("answers", Start(answers=answers)),
        ("weights", Start(weights="new-head")),
    ):
        with pytest.raises(ConfigError, match=f"captioner: {key}"):
            load_trainable(world / "captioner", Captioning, start)


@pytest.mark.parametrize("task", TASKS)
def test_random_weights_need_none(world: Path, recipe: Recipe, task: str) -> None:
    """A folder without weights is enough to begin with random ones, which the seed alone decides."""
    bare = recipe(task).out.parent / "bare"
    shutil.copytree(world / TASKS[task][3], bare, ignore=shutil.ignore_patterns("*.safetensors"))
    first, again, other = (
        load_trainable(bare, FORMS[task], Start(weights="random", seed=seed)).network.state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(each, again[name]) for name, each in first.items())
    assert not all(torch.equal(each, other[name]) for name, each in first.items())
    with pytest.raises(CheckpointError):
        load_trainable(bare, FORMS[task], Start())


def test_a_recipe_names_what_the_model_reads(recipe: Recipe, small_night: SmallNight) -> None:
    """A model of pixels needs images, a model of regions needs features, and neither takes both: one line each."""
    (store,) = (small_night.out / "features" / "vqa-val2014").iterdir()
    for changes, message in (
        ({"images": None, "features": store}, "reads pixels, but .* is a feature store: name the corpus"),
        ({"model": WEIGHTS / "visualbert-vqa"}, "reads region features, but .*val2014 is a corpus of images: name a"),
        ({"features": store}, "reads pixels only: leave out features"),
        ({"features": store, "model": WEIGHTS / "visualbert-vqa"}, "reads region features only: leave out images"),
    ):
        with pytest.raises(CheckpointError, match=message):
            train(recipe(**changes))
    with pytest.raises(ConfigError, match=r"give either features .* or images"):
        train(recipe(images=None))


def test_images_that_cannot_be_read_are_named(recipe: Recipe, tmp_path: Path) -> None:
    """An image that lacks or has no header is an error before the first step, or is left out and counted. One whose
    pixels do not decode, and one that changed, end the training in a line that names it."""
    folder = tmp_path / "images"
    shutil.copytree(str(recipe().images), folder)
    first, second, third = sorted(folder.iterdir())[:3]
    first.unlink()
    second.write_bytes(b"no image")
    with pytest.raises(CoverageError, match=r"2 images of vqa val cannot be read in .*: 8 of 24 examples; add them"):
        train(recipe(images=folder))
    done = train(recipe(images=folder, allow_missing=True, steps=1))
    assert done.record["examples"] == {"examples": 16, "without_features": 8, "without_target": 0}
    third.write_bytes(third.read_bytes()[:-2000])
    with pytest.raises(InputError, match=f"image '{third.stem}': .*leave out its examples"):
        train(recipe(out="cut", images=folder, allow_missing=True, batch_size=16))
    _recoloured(third)
    with pytest.raises(InputError, match=r"another recipe|other data"):
        train(recipe(images=folder, allow_missing=True, steps=1))


def test_one_image_is_decoded_at_a_time(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images of a batch are decoded when they are asked for, so a batch of large photographs fits into memory."""
    config = recipe()
    assert config.images is not None
    examples = list(open_task("vqa", config.annotations, "val").examples())[:12]
    source = visuals.TrainingImages(config.images, examples)
    decoded, real = [], visuals.read_image
    monkeypatch.setattr(visuals, "read_image", lambda image: decoded.append(image.image_id) or real(image))
    pixels = source.pixels(examples)
    next(pixels)
    assert len(decoded) == 1
    assert len(list(pixels)) == 11


def _recoloured(path: Path) -> None:
    Pillow.new("RGB", (224, 224), "red").save(path)
