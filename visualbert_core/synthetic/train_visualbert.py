"""Trains the VisualBERT of the demo from random weights: one trunk with four heads.

Questions are generated during training. The encoder and the layouts are those of evaluation. Three choices mattered, by
single runs and not by ablations:

    embedding tables   start with standard deviation 0.1; with BERT's 0.02, words and alignment are too weak beside the
                       region features
    box geometry       is stretched to ±4; with ±1 the size of a thing was still at chance after 2,000 steps
    region features    are multiplied by 0.25, also to give the words more weight

The scaling exists only in training. It is folded into the visual projection when a checkpoint is written, so evaluation
passes plain features and plain geometry.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from torchvision.ops import box_iou

from visualbert_core.detector import Detection
from visualbert_core.detector.torchvision_rcnn import TorchvisionRCNN
from visualbert_core.models.visualbert import (
    VisualBertConfig,
    VisualBertForMultipleChoice,
    VisualBertForQuestionAnswering,
    VisualBertForRegionToPhraseAlignment,
    VisualBertForVisualReasoning,
    VisualBertModel,
)
from visualbert_core.models.visualbert.inputs import GEOMETRY_SIZE, Encoded, InputEncoder
from visualbert_core.models.visualbert.packing import collate
from visualbert_core.schema import Grounding, MultipleChoice, Phrase, Question, Regions, Statement
from visualbert_core.synthetic import questions as ask
from visualbert_core.synthetic import references as refer
from visualbert_core.synthetic.scenes import SIZE, Scene, Things
from visualbert_core.synthetic.train_detector import Report

POSITIONS = 64  # of text
FEATURE_SCALE, GEOMETRY_SCALE = 0.25, 8.0
TABLE_STD = 0.1
LEARNING_RATE, WEIGHT_DECAY, WARMUP, CLIP = 1.3e-3, 0.01, 200, 1.0
MIXTURE = {"vqa": (0.31, 112), "nlvr2": (0.27, 112), "flickr30k_entities": (0.20, 80), "vcr": (0.22, 32)}
"""Task → (probability that a batch is of this task, examples in the batch)."""
VCR_MIN_THINGS = 4
"""Most VCR families offer four objects as choices."""

Batch = tuple[str, dict[str, Tensor]]


@dataclass(frozen=True)
class RegionSamples:
    """Training scenes and their regions.

    `detected` holds the regions that the detector finds. `given` holds the regions at the true boxes, as VCR needs
    them, for scenes with at least VCR_MIN_THINGS things.
    """

    things: tuple[Things, ...]
    detected: tuple[Regions, ...]
    given: dict[int, Regions]


def config(vocab_size: int, feature_size: int) -> VisualBertConfig:
    """Return the sizes of the network: 4 layers of width 96, about 0.35 million parameters."""
    return VisualBertConfig(
        vocab_size=vocab_size,
        hidden_size=96,
        visual_embedding_dim=feature_size + GEOMETRY_SIZE,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=192,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=POSITIONS,
        special_visual_initialize=False,
        pad_token_id=0,
    )


def extract_samples(detector: TorchvisionRCNN, scenes: Sequence[Scene], report: Report) -> RegionSamples:
    """Return the regions of every scene, as a feature store would give them."""
    detected: list[Regions] = []
    given: dict[int, Regions] = {}
    for start in range(0, len(scenes), 32):
        chunk = scenes[start : start + 32]
        pixels = [scene.pixels for scene in chunk]
        boxes = [np.array([(0, 0, SIZE, SIZE), *(t.box for t in s.things)], np.float32) for s in chunk]
        for index, found in enumerate(detector.detect(pixels)):
            row = Regions(str(start + index), SIZE, SIZE, found.boxes, found.labels, found.scores, _half(found), "")
            detected.append(row)
        wanted = [i for i, s in enumerate(chunk) if len(s.things) >= VCR_MIN_THINGS]
        if wanted:
            for index, found in zip(
                wanted, detector.detect([pixels[i] for i in wanted], [boxes[i] for i in wanted]), strict=True
            ):
                row = replace(detected[start + index], boxes=found.boxes, features=_half(found))
                given[start + index] = row
        report(min(start + 32, len(scenes)), len(scenes), "scenes extracted")
    return RegionSamples(tuple(s.things for s in scenes), tuple(detected), given)


def train_visualbert(pool: RegionSamples, vocab: Path, seed: int, steps: int, report: Report) -> dict[str, nn.Module]:
    """Train the shared trunk with its four heads. Return task → model, with the scaling not yet folded in."""
    torch.manual_seed(seed)
    encoder = InputEncoder(vocab, num_positions=POSITIONS, box_geometry=True)
    feature_size = pool.detected[0].features.shape[1]
    base = config(encoder.vocab_size, feature_size)
    models = heads(base)
    parameters = {id(p): p for model in models.values() for p in model.parameters()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step, steps))
    scale, shift = _scaling(feature_size)
    recent: dict[str, float] = {}
    batches = DataLoader(_Batches(pool, encoder, seed, steps), batch_size=None, num_workers=1, prefetch_factor=8)
    for step, (task, tensors) in enumerate(batches):
        tensors["visual_embeds"] = tensors["visual_embeds"] * scale + shift
        loss = models[task](**tensors).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), CLIP)
        optimizer.step()
        schedule.step()
        recent[task] = 0.95 * recent.get(task, loss.item()) + 0.05 * loss.item()
        report(step + 1, steps, "loss " + " ".join(f"{name} {value:.3f}" for name, value in sorted(recent.items())))
    return dict(models)


def heads(base: VisualBertConfig) -> dict[str, nn.Module]:
    """Return the models of the four tasks. They share one trunk."""
    grounding = VisualBertForRegionToPhraseAlignment(base)
    models: dict[str, nn.Module] = {
        "flickr30k_entities": grounding,
        "vqa": VisualBertForQuestionAnswering(replace(base, num_labels=len(ask.ANSWERS))),
        "vcr": VisualBertForMultipleChoice(base),
        "nlvr2": VisualBertForVisualReasoning(replace(base, num_labels=2)),
    }
    for table in (m for m in grounding.visual_bert.modules() if isinstance(m, nn.Embedding)):
        nn.init.normal_(table.weight, std=TABLE_STD)
    for model in models.values():
        model.visual_bert = grounding.visual_bert
    return models


@torch.no_grad()
def fold_scaling(trunk: VisualBertModel) -> None:
    """Change the visual projection, in place, so that it takes plain features and plain geometry."""
    projection = trunk.embeddings.visual_projection
    scale, shift = _scaling(projection.in_features - GEOMETRY_SIZE)
    projection.bias.add_(projection.weight @ shift)
    projection.weight.mul_(scale)


def _scaling(feature_size: int) -> tuple[Tensor, Tensor]:
    scale = torch.tensor([FEATURE_SCALE] * feature_size + [GEOMETRY_SCALE] * GEOMETRY_SIZE)
    return scale, torch.tensor([0.0] * feature_size + [-GEOMETRY_SCALE / 2] * GEOMETRY_SIZE)


def _cosine(step: int, steps: int) -> float:
    """Return the factor of the learning rate: linear warm-up, then a cosine down to 2 %."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(steps - WARMUP, 1)))


def _half(found: Detection) -> np.ndarray:
    """Round features to float16, as the feature store does."""
    return found.features.astype(np.float16)


class _Batches(IterableDataset[Batch]):
    """Yields `steps` batches of tensors with labels, each of a task drawn at random.

    The same seed gives the same batches. So there is only one worker: each further one would make the same batches
    again.
    """

    def __init__(self, pool: RegionSamples, encoder: InputEncoder, seed: int, steps: int) -> None:
        self.pool, self.encoder, self.seed, self.steps = pool, encoder, seed, steps
        self.for_vcr = np.array(sorted(pool.given))

    def __iter__(self) -> Iterator[Batch]:
        rng = np.random.default_rng([self.seed, 7])
        names = list(MIXTURE)
        weights = [weight for weight, _ in MIXTURE.values()]
        make = {"vqa": self._vqa, "nlvr2": self._nlvr2, "flickr30k_entities": self._grounding, "vcr": self._vcr}
        for _ in range(self.steps):
            task = names[rng.choice(len(names), p=weights)]
            yield task, make[task](rng, MIXTURE[task][1])

    def _vqa(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        encoded, labels = [], torch.zeros(size, len(ask.ANSWERS))
        for row in range(size):
            index = int(rng.integers(len(self.pool.things)))
            item = ask.vqa_item(rng, self.pool.things[index])
            question = Question("", ("",), item.question)
            encoded.append(self.encoder.question(question, [self.pool.detected[index]]))
            labels[row, ask.ANSWERS.index(item.answer)] = 1
        return collate(encoded) | {"labels": labels}

    def _nlvr2(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        encoded: list[Encoded | tuple[Encoded, ...]] = []
        labels: list[int] = []
        while len(encoded) < size:
            indices = rng.integers(len(self.pool.things), size=(ask.PAIRS, 2))
            item = ask.nlvr2_item(rng, [(self.pool.things[a], self.pool.things[b]) for a, b in indices])
            if item is None:
                continue
            for (a, b), label in zip(indices, item.labels, strict=True):
                statement = Statement("", ("", ""), item.sentence)
                encoded.append(self.encoder.statement(statement, [self.pool.detected[a], self.pool.detected[b]]))
                labels.append(int(label))
        return collate(encoded) | {"labels": torch.tensor(labels)}

    def _vcr(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        encoded, labels = [], []
        for index in rng.choice(self.for_vcr, size=size):
            things = self.pool.things[index]
            item = refer.vcr_item(rng, things)
            answering = bool(rng.random() < 0.4)
            example = vcr_example(item, things, answering)
            encoded.append(self.encoder.multiple_choice(example, [self.pool.given[int(index)]]))
            labels.append(item.answer_label if answering else item.rationale_label)
        return collate(encoded) | {"labels": torch.tensor(labels)}

    def _grounding(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        encoded: list[Encoded | tuple[Encoded, ...]] = []
        golds: list[list[Tensor]] = []
        for _ in range(size):
            index = int(rng.integers(len(self.pool.things)))
            things, regions = self.pool.things[index], self.pool.detected[index]
            example, named = grounding_example(refer.caption(rng, things))
            encoded.append(self.encoder.grounding(example, [regions]))
            overlap = box_iou(torch.tensor([t.box for t in things]), torch.from_numpy(regions.boxes)) >= 0.5
            golds.append([overlap[list(members)].any(0).float() for members in named])
        tensors = collate(encoded)
        labels = torch.zeros(*tensors["region_to_phrase_position"].shape, tensors["visual_embeds"].shape[1])
        for row, phrases in enumerate(golds):
            for k, matches in enumerate(phrases):
                labels[row, k, : len(matches)] = matches / matches.sum().clamp(min=1)
        return tensors | {"labels": labels}


def vcr_example(item: refer.VcrItem, things: Things, answering: bool) -> MultipleChoice:
    """Return the question with its answers, or the question and its right answer with the rationales."""
    texts = (item.question, *item.answers, *item.rationales)
    mentioned = sorted({i for text in texts for token in text if isinstance(token, tuple) for i in token})
    context = item.question if answering else item.question + item.answers[item.answer_label]
    choices = item.answers if answering else item.rationales
    return MultipleChoice("", ("",), tuple(t.shape for t in things), context, choices, tuple(mentioned))


def grounding_example(made: refer.Caption) -> tuple[Grounding, list[tuple[int, ...]]]:
    """Return the caption as an example, and the things that each of its phrases means."""
    words: list[str] = []
    phrases: list[Phrase] = []
    for part in made:
        text = part if isinstance(part, str) else part.words
        start = len(words)
        words += text.split()
        if not isinstance(part, str):
            phrases.append(Phrase(start, len(words), text))
    return Grounding("", ("",), tuple(words), tuple(phrases)), [p.things for p in made if not isinstance(p, str)]
