"""Fine-tunes ViLT on questions whose answers have weights, as Hugging Face's guide to visual question answering does.

The guide (huggingface.co/docs/transformers/tasks/visual_question_answering) trains with transformers' Trainer. This
file takes the same steps: AdamW, a learning rate that falls linearly, gradients clipped to a norm of 1. One point is
different. The guide takes the order of the answers from a set, and that order changes with every process. Here it is
the order of the file, so the same line trains the same weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visualbert_core.config import check_range, check_values
from visualbert_core.corpus.images import read_image
from visualbert_core.errors import InputError
from visualbert_core.printable import logger
from visualbert_core.schema import Image

INGREDIENT = None

_LOG = logger(__name__)
LARGEST_NORM = 1.0  # of the gradients, as in transformers' TrainingArguments
_LOGGED = 50  # steps between two lines of the log, as in the guide


@dataclass(frozen=True)
class LabelledQuestion:
    """A question about one image, with the weight of each answer: 1 for a sure answer, less for a rare one."""

    text: str
    image: Image
    weights: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """The settings of a training. The defaults are those of the guide."""

    steps: int
    batch_size: int = 4
    learning_rate: float = 5e-5
    warmup: int = 0
    """Steps in which the learning rate rises from 0."""
    seed: int = 42

    def __post_init__(self) -> None:
        check_values(self)
        check_range(self, 1, None, "steps", "batch_size")
        check_range(self, 0, None, "learning_rate", "warmup", "seed")


def answer_weights(answers: Iterable[str]) -> dict[str, float]:
    """Return answer → weight for the answers of a question's annotators: 0.3 for each annotator, at most 1.

    The data set of the guide, Graphcore/vqa, has these weights. The first answer in the file comes first.
    """
    return {answer: min(1.0, 0.3 * count) for answer, count in Counter(answers).items()}


def answer_list(questions: Iterable[LabelledQuestion]) -> tuple[str, ...]:
    """Return every answer once, in the order of its first appearance."""
    return tuple(dict.fromkeys(answer for question in questions for answer in question.weights))


def answer_labels(answers: Sequence[str]) -> dict[str, Any]:
    """Return the arguments by which transformers gives a network these answers, for `from_pretrained` or a config."""
    ids = {answer: number for number, answer in enumerate(answers)}
    return {"num_labels": len(answers), "id2label": dict(enumerate(answers)), "label2id": ids}


def fine_tune(model: Any, processor: Any, questions: Sequence[LabelledQuestion], settings: FineTuning) -> list[float]:
    """Train a `ViltForQuestionAnswering` in place on the device where it is, and return the loss of every step.

    The targets follow the model's `label2id`. The loss is transformers' own: binary cross-entropy, summed over the
    answers and averaged over the questions. The seed decides the batches, the dropout and ViLT's order of patches.
    Raise InputError where there is no question, or an answer that the model does not have.
    """
    _check(model, questions)
    torch.manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings))
    model.train()
    losses = []
    for step, numbers in enumerate(_batches(len(questions), settings), 1):
        batch = encode(model, processor, [questions[number] for number in numbers])
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_NORM)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % _LOGGED == 0:
            _LOG.info("step %d of %d: loss %.4f", step, settings.steps, sum(losses[-_LOGGED:]) / _LOGGED)
    model.eval()
    return losses


def encode(model: Any, processor: Any, questions: Sequence[LabelledQuestion]) -> dict[str, Tensor]:
    """Return the tensors of a batch, with `labels` float32 [B, answers]."""
    pixels = [read_image(question.image)[0] for question in questions]
    text = {"padding": True, "truncation": True, "max_length": model.config.max_position_embeddings}
    # Without the format, an image of three rows would be taken for one with its colours in front.
    form = {"input_data_format": "channels_last", "return_tensors": "pt"}
    tensors = processor(pixels, [question.text for question in questions], **form, **text)
    labels = torch.zeros(len(questions), model.config.num_labels)
    for row, question in zip(labels, questions, strict=True):
        for answer, weight in question.weights.items():
            row[model.config.label2id[answer]] = weight
    return {name: tensor.to(model.device) for name, tensor in {**tensors, "labels": labels}.items()}


def save(model: Any, processor: Any, folder: Path) -> Path:
    """Write a checkpoint folder that transformers and `load_model` open. Its `id2label` has the answers in order."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _check(model: Any, questions: Sequence[LabelledQuestion]) -> None:
    if not questions:
        raise InputError("there is no question to train on")
    for question in questions:
        for answer in question.weights:
            if answer not in model.config.label2id:
                raise InputError(f"{question.text!r}: the model has no answer {answer!r}: name it in its id2label")


def _batches(count: int, settings: FineTuning) -> Iterator[list[int]]:
    """Yield the numbers of each step's questions: all in a random order, then all in another."""
    order: list[int] = []
    generator = torch.Generator().manual_seed(settings.seed)
    for _ in range(settings.steps):
        if not order:
            order = torch.randperm(count, generator=generator).tolist()
        yield order[: settings.batch_size]
        order = order[settings.batch_size :]


def _rate(step: int, settings: FineTuning) -> float:
    """Return the share of the learning rate at a step: up to 1 in the warm-up, then down to 0."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    return max(0.0, (settings.steps - step) / max(1, settings.steps - settings.warmup))
