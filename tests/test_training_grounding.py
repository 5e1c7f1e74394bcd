"""The term `grounding` of a training: which regions the words of a question or a statement name."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from visualbert_core.models.trainable import Start
from visualbert_core.models.visualbert.trainable import VisualBertTrainable
from visualbert_core.schema import NamedRegions, Phrase, Question, Regions, Statement
from visualbert_core.synthetic.language import Description, descriptions
from visualbert_core.synthetic.training_files import write_start


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    write_start(folder, seed=7)
    return folder


def regions(count: int, seed: int) -> Regions:
    draw = np.random.default_rng(seed)
    boxes = np.array([[at, at, at + 20, at + 20] for at in range(count)], np.float32)
    features = draw.normal(size=(count, 256)).astype(np.float16)
    return Regions(
        f"image {seed}", 224, 224, boxes, np.zeros(count, np.int64), np.ones(count, np.float32), features, ""
    )


def test_grounding_is_the_divergence_of_phrases_and_regions(start: Path) -> None:
    """The term is the KL divergence from the shares to the softmax of query and key, read at the last word piece of
    each phrase in a padded network; times its weight; and a statement without phrases counts nothing."""
    model = VisualBertTrainable(start, Statement, Start(weights="new-head", grounding=0.25))
    assert model.terms == ("statements", "grounding")
    visual = (regions(2, 1), regions(3, 2))
    texts = ("Both images contain a red ball.", "There are more boxes in the left image than in the right image.")
    named = NamedRegions((Phrase(4, 6, "red ball."),), np.array([[0, 0.5, 0, 0.5, 0]], np.float32))
    items = []
    for text, about in zip(texts, (named, NamedRegions((), np.zeros((0, 5), np.float32))), strict=True):
        example = Statement(text, ("a", "b"), text)
        items.append(model.ground(model.encode(example, visual, 1, random.Random(0)), example, about))
    assert [item.counts for item in items] == [(1, 1), (1, 0)]
    network: Any = model.network.eval()
    answer, term = model.losses(model.prepare(items)).tolist()

    padded = model.padded(items)
    labels = padded.pop("labels")
    ids = padded["input_ids"][0].tolist()
    pieces = (start / "vocab.txt").read_text().split("\n")
    place = ids.index(pieces.index("ball"))
    states = network.visual_bert(**padded).last_hidden_state
    logits = network.cls(network.visual_bert.pooler(states))
    assert answer == pytest.approx(functional.cross_entropy(logits, labels, reduction="sum").item(), rel=1e-4)
    query = network.grounding.query(states[0, place])
    scores = network.grounding.key(states[0, padded["input_ids"].shape[1] :]) @ query / query.shape[-1] ** 0.5
    chosen = torch.from_numpy(named.shares[0])
    wanted = functional.kl_div(scores.log_softmax(-1), chosen, reduction="sum")
    assert term == pytest.approx(0.25 * wanted.item(), rel=1e-4)


def test_a_phrase_of_a_question_is_read_without_its_marks(start: Path) -> None:
    """The authors' questions lose commas and marks, so the place of a phrase is counted over the words that stay."""
    about = Start(weights="new-head", grounding=1.0, answers=start / "answers.txt")
    model = VisualBertTrainable(start, Question, about)
    example = Question("q", ("a",), "Look, what color is the large ball?")
    item = model.encode(example, (regions(2, 3),), {"red": 1.0}, random.Random(0))
    named = NamedRegions((Phrase(5, 7, "large ball?"),), np.array([[0, 1]], np.float32))
    content = model.ground(item, example, named).content
    pieces = (start / "vocab.txt").read_text().split("\n")
    assert pieces[content.sequences[0].input_ids[content.named.positions[0]]] == "ball"


def test_descriptions_are_found_in_every_sentence() -> None:
    """Adjectives before a noun belong to its description, singular or plural, with or without a mark behind it."""
    text = "Are the small red boxes and the thing the same, or is one blue ring?"
    assert list(descriptions(text.split(" "))) == [
        (2, 5, Description(size="small", color="red", shape="box")),
        (7, 8, Description()),
        (13, 15, Description(color="blue", shape="ring")),
    ]
