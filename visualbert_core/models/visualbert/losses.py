"""The losses of VisualBERT's five heads over packed sequences, as sums.

Divided by its counts, each sum is the loss of the head in `heads`, and so that of transformers and of the authors'
code (github.com/uclanlp/visualbert at 2a9e8bd58a20). Golden values compare value and gradient.

    question answering   KL divergence from the soft answers, per question; a sum of weights is not normalised
    choices, statements  cross-entropy, per example
    phrases              KL divergence from the shares of the regions, per caption and not per phrase
    pre-training         cross-entropy per masked word, and per pair of captions; the two means are added

Label smoothing changes the cross-entropies alone, as torch.nn.functional.cross_entropy defines it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from visualbert_core.models.visualbert.checkpoint.pretrained import Pretrained
from visualbert_core.models.visualbert.heads import (
    VisualBertForMultipleChoice,
    VisualBertForPreTraining,
    VisualBertForQuestionAnswering,
    VisualBertForRegionToPhraseAlignment,
    VisualBertForVisualReasoning,
)
from visualbert_core.models.visualbert.packing import Packed

INGREDIENT = "training"


@dataclass(frozen=True, eq=False)
class Labels:
    """The targets of the sequences of a pack, in the order of the pack. Each head reads the fields that it needs."""

    soft: Tensor | None = None  # float32 [B, answers], for questions
    classes: Tensor | None = None  # long [B]: of statements; or of examples with `choices`, in the order of examples
    choices: tuple[tuple[int, ...], ...] = ()  # for each example, the places of its choices in the pack
    shares: tuple[Tensor, ...] = ()  # for each caption, float32 [K, V]
    words: Tensor | None = None  # long [M], the masked words
    word_rows: Tensor | None = None  # long [M], the rows of the masked words among the read states
    cls_rows: Tensor | None = None  # long [B], the rows of [CLS] among the read states
    own: Tensor | None = None  # long [P], the labels of the pairs
    own_rows: Tensor | None = None  # long [P], the sequences that are pairs
    smoothing: float = 0.0  # the share of each class target that all classes get alike

    def to(self, device: torch.device) -> Labels:
        """Copy the tensors to `device`."""
        moved: dict[str, Any] = {n: each.to(device) for n, each in vars(self).items() if isinstance(each, Tensor)}
        return replace(self, **moved, shares=tuple(each.to(device) for each in self.shares))


def divergence(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of the KL divergences of all rows. A row of zeros adds nothing; a row may add less than 0."""
    # float32 even under autocast: on the CPU, autocast would round the log-probabilities to bfloat16.
    return functional.kl_div(logits.float().log_softmax(-1), targets, reduction="sum")


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the sum of the cross-entropies of all rows, 0 where there is no row."""
    return functional.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=smoothing)


def _questions(network: Pretrained, states: Tensor, packed: Packed, labels: Labels) -> list[Tensor]:
    assert isinstance(network, VisualBertForQuestionAnswering)
    assert labels.soft is not None
    return [divergence(network.cls(network.dropout(states)), labels.soft)]


def _statements(network: Pretrained, states: Tensor, packed: Packed, labels: Labels) -> list[Tensor]:
    assert isinstance(network, VisualBertForVisualReasoning)
    assert labels.classes is not None
    return [cross_entropy(_pooled(network, network.cls, states), labels.classes, labels.smoothing)]


def _choices(network: Pretrained, states: Tensor, packed: Packed, labels: Labels) -> list[Tensor]:
    assert isinstance(network, VisualBertForMultipleChoice)
    assert labels.classes is not None
    scores = _pooled(network, network.cls, states).float().squeeze(1)
    rows = [scores[list(places)] for places in labels.choices]
    if labels.smoothing:  # a choice that is not there must get no share, so every example is a call
        pairs = zip(rows, labels.classes.unsqueeze(1).unbind(), strict=True)
        return [torch.stack([cross_entropy(row[None], right, labels.smoothing) for row, right in pairs]).sum()]
    # Examples may differ in their number of choices. A choice that is not there gets no probability.
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=float("-inf"))
    return [cross_entropy(padded, labels.classes)]


def _pooled(
    network: VisualBertForVisualReasoning | VisualBertForMultipleChoice, cls: nn.Module, states: Tensor
) -> Tensor:
    dense = network.visual_bert.pooler.dense
    return cls(network.dropout(torch.tanh(dense(states))))  # type: ignore[no-any-return]


def _phrases(network: Pretrained, states: Tensor, packed: Packed, labels: Labels) -> list[Tensor]:
    """The read states of a sequence are those of its K phrases, then those of its V regions."""
    assert isinstance(network, VisualBertForRegionToPhraseAlignment)
    queries = network.attention.query(states).float().split(packed.read_lengths)
    keys = network.attention.key(states).float().split(packed.read_lengths)
    losses = [states.new_zeros((), dtype=torch.float32)]
    for query, key, shares in zip(queries, keys, labels.shares, strict=True):
        phrases = len(shares)
        logits = query[:phrases] @ key[phrases:].T / query.shape[-1] ** 0.5
        losses.append(divergence(logits, shares))
    return [torch.stack(losses).sum()]


def _pre_training(network: Pretrained, states: Tensor, packed: Packed, labels: Labels) -> list[Tensor]:
    """Score the vocabulary only at masked words, which is most of the work of a padded network."""
    assert isinstance(network, VisualBertForPreTraining)
    assert labels.words is not None
    assert labels.word_rows is not None
    predicted = network.cls.predictions(states.index_select(0, labels.word_rows))
    words = cross_entropy(predicted, labels.words, labels.smoothing)
    if labels.own is None or labels.cls_rows is None or labels.own_rows is None:
        return [words]
    read = states.index_select(0, labels.cls_rows.index_select(0, labels.own_rows))
    pooled = torch.tanh(network.visual_bert.pooler.dense(read))
    return [words, cross_entropy(network.cls.seq_relationship(pooled), labels.own, labels.smoothing)]


LOSSES: dict[type[Pretrained], Callable[[Pretrained, Tensor, Packed, Labels], Sequence[Tensor]]] = {
    VisualBertForQuestionAnswering: _questions,
    VisualBertForVisualReasoning: _statements,
    VisualBertForMultipleChoice: _choices,
    VisualBertForRegionToPhraseAlignment: _phrases,
    VisualBertForPreTraining: _pre_training,
}
"""Network → the function of (network, read states [R, H], pack, labels) that returns the sum of each term."""
