"""Pre-training: masked words of every task, pairs of captions, and how both are drawn."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import signal
from pathlib import Path

import pytest
import torch
import transformers
from conftest import SmallNight
from test_training import TASKS, Recipe, recipe, steps, stop_after, weights  # noqa: F401  (recipe is a fixture)

from visualbert_core.errors import ConfigError, UnfinishedError
from visualbert_core.training import batches, train
from visualbert_core.training.order import Order


@pytest.fixture
def captions(small_night: SmallNight, tmp_path: Path) -> Path:
    """Return a folder with COCO's file of captions, about the images of Flickr30K."""
    flickr, listed = small_night.out / "synthetic" / "flickr30k", []
    names = (flickr / "val.txt").read_text().split()
    for number, name in enumerate(names):
        for line in (flickr / "Sentences" / f"{name}.txt").read_text().splitlines():
            text = re.sub(r"\[/EN\S+ |\]", "", line)
            listed.append({"id": len(listed), "image_id": number, "caption": text})
    images = [{"id": number, "file_name": f"{name}.jpg"} for number, name in enumerate(names)]
    (tmp_path / "captions_val2014.json").write_text(json.dumps({"images": images, "annotations": listed}))
    return tmp_path


def test_pre_training_on_pairs_of_captions(recipe: Recipe, captions: Path) -> None:  # noqa: F811
    """Masked words and pairs are learnt together, and transformers opens the result."""
    config = recipe("caption-pairs", annotations=captions, weights="random")
    done = train(config)
    first, *_ = lines = steps(config.out)
    vocabulary = len((config.model / "vocab.txt").read_text().split())
    assert first["terms"]["words"] == pytest.approx(math.log(vocabulary), rel=0.1)
    assert first["terms"]["pairs"] == pytest.approx(math.log(2), rel=0.1)
    assert first["loss"] == pytest.approx(sum(first["terms"].values()))
    assert all(line["counts"][1] == line["examples"] for line in lines)
    _, said = transformers.VisualBertForPreTraining.from_pretrained(done.last, output_loading_info=True)
    assert not said["missing_keys"]
    with pytest.raises(ConfigError, match="pre-training answers no benchmark"):
        train(recipe("caption-pairs", annotations=captions, validate_split="val"))


@pytest.mark.parametrize("task", TASKS)
def test_masked_words_of_every_task(recipe: Recipe, task: str) -> None:  # noqa: F811
    """Task pre-training hides words of question and answer, sentence, choice or caption, and asks whether they are true
    where the task says so."""
    config = recipe(task, objective="masked-words", weights="random", dropout=0.0)
    train(config)
    pairs = task in ("vcr", "nlvr2")
    for line in steps(config.out):
        assert list(line["terms"]) == (["words", "pairs"] if pairs else ["words"])
    made = next(iter(batches(config)))
    ids, labels = made.tensors["input_ids"], made.tensors["labels"][:, : made.tensors["input_ids"].shape[1]]
    hidden = labels != -100
    assert 0 < int(hidden.sum()) == steps(config.out)[0]["counts"][0]
    pieces = (config.model / "vocab.txt").read_text().split()
    special = torch.tensor([pieces.index("[CLS]"), pieces.index("[SEP]")])
    assert not torch.isin(labels[hidden], special).any()
    assert (ids[hidden] == pieces.index("[MASK]")).any()
    assert ("sentence_image_labels" in made.tensors) == pairs


def test_masks_and_pairs_are_drawn_anew_at_each_visit(recipe: Recipe, captions: Path) -> None:  # noqa: F811
    """A visit is the same whenever it is read; the next visit of a caption has other masks. A label may be turned."""
    config = recipe("caption-pairs", annotations=captions, weights="random", steps=14)
    order = Order(40, 6, config.seed)
    index = order.batch(0)[1][0]
    visits = [step for step in range(14) if index in order.batch(step)[1]]
    assert len(visits) == 2
    made = [next(iter(batches(config, step))) for step in visits]
    places = [order.batch(step)[1].index(index) for step in visits]
    first, second = (
        (batch.example_ids[at], batch.tensors["input_ids"][at]) for batch, at in zip(made, places, strict=True)
    )
    assert first[0] == second[0]
    assert first[1].tolist() != second[1].tolist()
    again = next(iter(batches(config)))
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in made[0].tensors.items())
    turned = next(iter(batches(dataclasses.replace(config, own_caption_label=0))))
    assert torch.equal(turned.tensors["sentence_image_labels"], 1 - again.tensors["sentence_image_labels"])


@pytest.mark.parametrize("number", [2, 5, 8])
def test_a_stopped_pre_training_ends_like_an_uninterrupted_one(recipe: Recipe, captions: Path, number: int) -> None:  # noqa: F811
    """Stopped before a checkpoint, between two and in the last step, weights and losses are those without a stop."""
    options = {"annotations": captions, "weights": "random", "tokens_per_pass": 120}
    train(recipe("caption-pairs", "whole", **options))
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, number, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(UnfinishedError):
            train(recipe("caption-pairs", **options))
    train(recipe("caption-pairs", **options))
    assert steps(recipe().out) == steps(recipe(out="whole").out)
    assert weights(recipe().out) == weights(recipe(out="whole").out)
