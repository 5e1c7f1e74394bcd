"""Trains a ViLT on the VQA questions and the NLVR2 sentences about the synthetic scenes: one trunk with two heads.

Only the head of VQA is written. After these steps the head of NLVR2 scores 56.6, and 50.6 with wrong images.

The trunk begins with the image layers of `train_image_side`, whose dense labels stay as an auxiliary loss. A trunk that
learns from questions alone stays near 55 % and never learns shapes. Then come two stages:

packed   All questions about an image are in one sequence with it. A question sees itself and the image, and the image
         sees no text. So the image is computed once for all its questions, and a step teaches three times as many.
plain    One question and one image a sequence, and every token sees every other, as in ViLT.

Only the second stage is what evaluation computes. It is short, because little changes for the questions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    BertTokenizer,
    ViltForImagesAndTextClassification,
    ViltForQuestionAnswering,
    ViltImageProcessor,
    ViltModel,
    ViltProcessor,
)

from visualbert_core.synthetic import questions as ask
from visualbert_core.synthetic import train_image_side as side
from visualbert_core.synthetic.language import Description, vocabulary
from visualbert_core.synthetic.scenes import Things

LAYERS = 7
PACKED_IMAGES, QUESTIONS, SENTENCES, PACKED_RATE = 24, 6, 2, 1e-3
PLAIN_IMAGES, PLAIN_RATE = 48, 3e-4
SET = 2 * ask.PAIRS
"""The number of images that share a sentence: it is true for half of their pairs."""
LABEL_WEIGHT = 0.3
"""The weight of the dense labels beside the questions."""
_INDEX = {word: index for index, word in enumerate(vocabulary())}


@dataclass(frozen=True)
class Asked:
    """What is asked about the images of a batch: first VQA questions, then NLVR2 sentences.

    A sentence is about neighbouring images 2 i and 2 i + 1, and stands with both.
    """

    texts: side.PackedTexts
    answers: Tensor
    """int [B, questions]"""
    truths: Tensor
    """int [B / 2, sentences]"""


def encode(text: str) -> list[int]:
    """Return the ids that BertTokenizer gives: [CLS], the words or the letters of an unknown word, [SEP]."""
    pieces = ["[CLS]"]
    for word in side.split(text):
        pieces += [word] if word in _INDEX else [word[0], *(f"##{letter}" for letter in word[1:])]
    return [_INDEX[piece] for piece in (*pieces, "[SEP]")]


def draw(rng: np.random.Generator, things: Sequence[Things], questions: int, sentences: int) -> Asked:
    """Draw questions about each image, and sentences about each set of images. The images come in whole sets."""
    items = [[ask.vqa_item(rng, scene) for _ in range(questions)] for scene in things]
    rows = [[encode(item.question) for item in row] for row in items]
    truths: list[list[bool]] = [[] for _ in range(len(things) // 2)]
    for start in range(0, len(things), SET):
        pairs = [(things[i], things[i + 1]) for i in range(start, start + SET, 2)]
        for item in ask.nlvr2_items(rng, pairs, sentences):
            for image in range(start, start + SET):
                rows[image].append(encode(item.sentence))
            for pair, label in enumerate(item.labels, start // 2):
                truths[pair].append(label)
    answers = [[ask.ANSWERS.index(item.answer) for item in row] for row in items]
    return Asked(side.pack(rows), torch.tensor(answers), torch.tensor(truths).long())


class ViltHeads(nn.Module):
    """A trunk with the heads of VQA and NLVR2, and the head of the dense labels."""

    def __init__(self, trunk: ViltModel, labels: side.PatchLabels) -> None:
        super().__init__()
        size, answers = len(_INDEX), {answer: index for index, answer in enumerate(ask.ANSWERS)}
        named = {"id2label": dict(enumerate(answers)), "label2id": answers}
        self.vqa = ViltForQuestionAnswering(side.config(size, LAYERS, **named))
        pairs = side.config(size, LAYERS, num_images=2, modality_type_vocab_size=3)
        self.nlvr2 = ViltForImagesAndTextClassification(pairs)
        self.labels = labels
        self.vqa.vilt = self.nlvr2.vilt = trunk
        _begin(trunk, labels)

    def loss(self, images: Tensor, things: Sequence[Things], moves: np.ndarray, asked: Asked, packed: bool) -> Tensor:
        """Return the loss of a batch: both heads and the dense labels."""
        pooled, hidden = run(self.vqa.vilt, images, asked.texts, packed)
        questions = asked.answers.shape[1]
        loss = LABEL_WEIGHT * self.labels.loss(hidden, things, moves)
        if questions:
            logits = self.vqa.classifier(pooled[:, :questions]).float().flatten(0, 1)
            wanted = nn.functional.one_hot(asked.answers.flatten(), len(ask.ANSWERS)).float()
            loss = loss + nn.functional.binary_cross_entropy_with_logits(logits, wanted) * len(ask.ANSWERS)
        if asked.truths.numel():
            left, right = pooled[0::2, questions:], pooled[1::2, questions:]
            logits = self.nlvr2.classifier(torch.cat([left, right], -1)).float().flatten(0, 1)
            loss = loss + 2 * nn.functional.cross_entropy(logits, asked.truths.flatten())
        return loss


@torch.no_grad()
def _begin(trunk: Any, labels: side.PatchLabels) -> None:
    """Start the words and the joining layers so that a word finds the patches that show what it names.

    From random tables and layers this takes most of the training. The words of colours, shapes and sizes start as the
    directions in which the image side tells them, and keys start as queries, so that what is alike attends to itself.
    """
    table = trunk.embeddings.text_embeddings.word_embeddings.weight
    nn.init.normal_(table, std=side.TABLE_STD)
    for word, direction in labels.directions().items():
        for form in (word, Description(shape=word).words(plural=True)):
            if form in _INDEX:
                table[_INDEX[form]] = side.TABLE_STD * math.sqrt(side.WIDTH) * direction
    for layer in trunk.encoder.layer[side.IMAGE_LAYERS :]:
        attention = layer.attention.attention
        nn.init.normal_(attention.query.weight, std=side.QUERY_STD)
        attention.key.weight.copy_(attention.query.weight)


def run(vilt: Any, images: Tensor, texts: side.PackedTexts, packed: bool) -> tuple[Tensor, Tensor]:
    """Return the pooled vector of each text, [B, K, WIDTH], and the patches behind the image layers."""
    embeddings = vilt.embeddings
    types = embeddings.token_type_embeddings.weight
    words = embeddings.text_embeddings(texts.ids, torch.zeros_like(texts.ids), texts.place) + types[0]
    own = embeddings.cls_token + embeddings.position_embeddings[:, :1] + types[1]
    image = torch.cat([own.expand(len(images), -1, -1), side.patches(vilt, images)], 1)
    hidden = torch.cat([words, image], 1)
    mask = _mask(texts, image.shape[1], packed)
    for number, layer in enumerate(vilt.encoder.layer, 1):
        hidden = layer(hidden, mask)[0]
        if number == side.IMAGE_LAYERS:
            middle = hidden[:, words.shape[1] + 1 :]
    first = hidden.gather(1, texts.first[:, :, None].expand(-1, -1, side.WIDTH))
    return torch.tanh(vilt.pooler.dense(vilt.layernorm(first))), middle


def _mask(texts: side.PackedTexts, image_tokens: int, packed: bool) -> Tensor:
    """Return what is added to the attention scores, [B, 1, L, L]."""
    count, words = texts.ids.shape
    sees = torch.ones(count, words + image_tokens, words + image_tokens, dtype=torch.bool)
    sees[:, :words, :words] = texts.sees()
    sees[:, words:, :words] = False if packed else (texts.text >= 0)[:, None, :]
    return torch.zeros(sees.shape).masked_fill(~sees, side.HIDDEN)[:, None]


def train_packed(train: side.Pictures, trunk: ViltModel, labels: side.PatchLabels, seed: int, steps: int) -> ViltHeads:
    """Train on sequences of an image and all its questions. Return the trunk of `train_image_side` with its heads."""
    torch.manual_seed(seed)
    model = ViltHeads(copy.deepcopy(trunk), copy.deepcopy(labels))
    _train(train, model, np.random.default_rng([seed, 11]), steps, packed=True)
    return model


def train_plain(train: side.Pictures, packed: ViltHeads, seed: int, steps: int) -> ViltHeads:
    """Train on sequences of an image and one question, as evaluation computes them. Return a trained copy."""
    model = copy.deepcopy(packed)
    _train(train, model, np.random.default_rng([seed, 12]), steps, packed=False)
    return model


def _train(train: side.Pictures, model: ViltHeads, rng: np.random.Generator, steps: int, packed: bool) -> None:
    def loss(step: int, chosen: np.ndarray) -> Tensor:
        images, moves = side.shifted(rng, train.pixels[chosen])
        things = [train.things[i] for i in chosen]
        # A plain batch asks questions in two of three steps, for sequences of one text teach one head at a time.
        amounts = (QUESTIONS, SENTENCES) if packed else (1, 0) if step % 3 else (0, 1)
        return model.loss(images, things, moves, draw(rng, things, *amounts), packed)

    size, rate = (PACKED_IMAGES, PACKED_RATE) if packed else (PLAIN_IMAGES, PLAIN_RATE)
    side.learn("ViLT, packed" if packed else "ViLT", steps, loss, list(model.parameters()), rate, rng, train, size)


def save(model: ViltHeads, folder: Path) -> None:
    """Write the checkpoint folder of the head of VQA in float16, with the processor."""
    tokenizer = BertTokenizer(dict(_INDEX), model_max_length=model.vqa.config.max_position_embeddings)
    images: Any = ViltImageProcessor
    both: Any = ViltProcessor
    network: Any = copy.deepcopy(model.vqa)
    network.half().save_pretrained(folder)
    both(images(size={"shortest_edge": side.SIDE}, size_divisor=side.PATCH), tokenizer).save_pretrained(folder)
