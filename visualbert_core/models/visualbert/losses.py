"""What an example holds for its loss, the trunk with gradients and dropout, and the losses of the five heads, as sums.

The trunk computes what `modeling` computes, from the same modules, and skips what no loss needs: nothing for padding,
and the last layer only for the tokens that the head reads. `inference.py` does the same for answers, from weights that
it prepares once. A training cannot prepare them, because they change at every step.

Divided by its counts, each sum is the loss of the head in `heads`, and so that of transformers and of the authors'
code (github.com/uclanlp/visualbert at 2a9e8bd58a20). Golden values compare value and gradient.

    question answering   KL divergence from the soft answers, per question; a sum of weights is not normalised
    choices, statements  cross-entropy, per example
    phrases              KL divergence from the shares of the regions, per caption and not per phrase
    pre-training         cross-entropy per masked word, and per pair of captions; the two means are added

Label smoothing changes the cross-entropies alone, as torch.nn.functional.cross_entropy defines it.

A question or a statement may have the further term `grounding`: attention from its phrases to the regions that they
name. The loss is that of phrases and regions in Flickr30K Entities, with the same head (Li et al. 2019,
arXiv:1908.03557), over the states of the same sequence. It is for training only: no answer needs the head. 12-in-1
(arXiv:1912.02315) supervises alignment beside answers for the same reason: a network that finds what a sentence is
about learns sooner whether it is true.

Shapes: T text tokens and V regions of all sequences, N = T + V, R read tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from visualbert_core.models.visualbert.config import VisualBertConfig
from visualbert_core.models.visualbert.heads import (
    Classifier,
    HeadNetwork,
    RegionToPhraseAttention,
    VisualBertForMultipleChoice,
    VisualBertForPreTraining,
    VisualBertForQuestionAnswering,
    VisualBertForRegionToPhraseAlignment,
    VisualBertForVisualReasoning,
)
from visualbert_core.models.visualbert.inference import Groups, Packed, embedded
from visualbert_core.models.visualbert.input_checks import IGNORED
from visualbert_core.models.visualbert.inputs import Encoded, InputEncoder, pythia_tokens
from visualbert_core.models.visualbert.modeling import Layer, VisualBertModel, initialize
from visualbert_core.schema import NamedRegions, Question, Statement

INGREDIENT = "training"

TERM = "grounding"
GROUNDING_FILE = "grounding.safetensors"


@dataclass(frozen=True, eq=False)
class Named:
    """The phrases of a sequence and their regions."""

    positions: tuple[int, ...]  # K, text positions
    shares: np.ndarray  # float32 [K, V], over the regions of the sequence


@dataclass(frozen=True, eq=False)
class Content:
    """The sequences of an example and its target, as the head takes them."""

    sequences: tuple[Encoded, ...]
    soft: Mapping[int, float] | None = None  # a question: index of an answer → weight
    label: int | None = None  # a statement, a choice, a pair of captions
    shares: np.ndarray | None = None  # a grounding: float32 [K, V]
    hidden: Mapping[int, int] | None = None  # masked words: position in the text → piece
    named: Named | None = None  # a question or statement with the term grounding


@dataclass(frozen=True, eq=False)
class Labels:
    """The targets of the sequences of a pack, in the order of the pack. Each head reads the fields that it needs."""

    soft: Tensor | None = None  # float32 [B, answers], for questions
    classes: Tensor | None = None  # long [B]: of statements; or of examples with `choices`, in the order of examples
    choices: tuple[tuple[int, ...], ...] = ()  # for each example, the places of its choices in the pack
    shares: tuple[Tensor, ...] = ()  # for each caption, float32 [K, V]
    words: Tensor | None = None  # long [M], the masked words
    word_rows: Tensor | None = None  # long [M], the rows of the masked words among the read states
    own: Tensor | None = None  # long [P], the labels of the pairs
    own_rows: Tensor | None = None  # long [P], the rows of [CLS] of the pairs among the read states
    named: tuple[Tensor, ...] = ()  # for each sequence with the term grounding, float32 [K, V]
    smoothing: float = 0.0  # the share of each class target that all classes get alike

    def to(self, device: torch.device) -> Labels:
        """Copy the tensors to `device`."""
        moved: dict[str, Any] = {n: each.to(device) for n, each in vars(self).items() if isinstance(each, Tensor)}
        shares, named = (tuple(each.to(device) for each in found) for found in (self.shares, self.named))
        return replace(self, **moved, shares=shares, named=named)


def packed_labels(contents: Sequence[Content], packed: Packed, answers: int, choices: bool) -> Labels:
    """Return the targets of a pack. `choices` says that an example has a sequence for each of its choices."""
    first = contents[0]
    if first.hidden is None and choices:
        places = iter(np.argsort(packed.order).tolist())  # of the sequences in the pack
        rows = tuple(tuple(next(places) for _ in content.sequences) for content in contents)
        return Labels(classes=torch.tensor([content.label for content in contents]), choices=rows)
    ordered = [contents[at] for at in packed.order]
    if first.hidden is not None:
        return _word_labels(ordered, packed)
    if first.soft is not None:
        return Labels(soft=_soft(ordered, answers))
    if first.shares is not None:
        return Labels(shares=tuple(torch.from_numpy(c.shares) for c in ordered if c.shares is not None))
    return Labels(classes=torch.tensor([content.label for content in ordered]))


def padded_labels(contents: Sequence[Content], tensors: Mapping[str, Tensor], answers: int) -> dict[str, Tensor]:
    """Return the labels of a padded batch, as the heads take them."""
    first, found = contents[0], {}
    if first.hidden is not None:
        length = tensors["input_ids"].shape[1] + tensors["visual_embeds"].shape[1]
        labels = torch.full((len(contents), length), IGNORED)
        for row, content in zip(labels, contents, strict=True):
            for place, piece in (content.hidden or {}).items():
                row[place] = piece
        if first.label is not None:
            found["sentence_image_labels"] = torch.tensor([content.label for content in contents])
    elif first.soft is not None:
        labels = _soft(contents, answers)
    elif first.shares is not None:
        phrases = tensors["region_to_phrase_position"].shape[1]
        labels = torch.zeros(len(contents), phrases, tensors["visual_embeds"].shape[1])
        for row, content in zip(labels, contents, strict=True):
            if (shares := content.shares) is not None:
                row[: shares.shape[0], : shares.shape[1]] = torch.from_numpy(shares)
    else:
        labels = torch.tensor([content.label for content in contents])
    return {"labels": labels} | found


def _soft(contents: Sequence[Content], answers: int) -> Tensor:
    """Return the weights of all answers: float32 [B, answers]."""
    soft = torch.zeros(len(contents), answers)
    for row, content in zip(soft, contents, strict=True):
        for at, weight in (content.soft or {}).items():
            row[at] = weight
    return soft


def _word_labels(ordered: Sequence[Content], packed: Packed) -> Labels:
    """Return the labels of masked words and of pairs. A pair reads [CLS] before its masked words."""
    words: list[int] = []
    word_rows: list[int] = []
    starts = packed.read_starts.tolist()
    pairs: list[tuple[int, int]] = []
    for start, content in zip(starts, ordered, strict=True):
        hidden = content.hidden or {}
        words += hidden.values()
        if content.label is not None:
            pairs.append((content.label, start))
        first = start + (content.label is not None)
        word_rows += range(first, first + len(hidden))
    own, own_rows = torch.tensor(pairs).unbind(1) if pairs else (None, None)
    return Labels(
        words=torch.tensor(words, dtype=torch.long),
        word_rows=torch.tensor(word_rows, dtype=torch.long),
        own=own,
        own_rows=own_rows,
    )


def read_states(trunk: VisualBertModel, packed: Packed, checkpointing: bool = False) -> Tensor:
    """Return the last states of the read tokens: [R, H], in the order of the pack.

    With `checkpointing` only the input of each layer is kept, and the backward pass computes the layer again (Chen et
    al. 2016, https://arxiv.org/abs/1604.06174). Values and gradients are the same, with the same draws of dropout.
    """
    compute = partial(checkpoint, _layer, use_reentrant=False) if checkpointing else _layer
    rows = embedded(trunk.embeddings, trunk.embeddings.visual_projection(packed.features.float()), packed)
    late, text = trunk.config.bypass_transformer, len(packed.input_ids)
    hidden = rows[:text] if late else rows.index_select(0, packed.source)
    lengths = packed.text_lengths if late else packed.lengths
    groups = Groups.of(lengths, lengths)
    *layers, last = trunk.layers()
    for layer in layers:
        hidden = compute(layer, hidden, hidden, groups)
    if late:
        hidden = torch.cat((hidden, rows[text:])).index_select(0, packed.source)
    read = Groups.of(packed.read_lengths, packed.lengths)
    return compute(last, hidden.index_select(0, packed.reads), hidden, read)


def _layer(layer: Layer, asking: Tensor, known: Tensor, groups: Groups) -> Tensor:
    """Return the states [Q, H] of the asking tokens after a layer, whose attention reads the known tokens [N, H]."""
    attention = layer.attention.self
    query, key, value = (
        project(states).unflatten(1, (attention.num_heads, -1))
        for project, states in ((attention.query, asking), (attention.key, known), (attention.value, known))
    )
    mixed = groups(query, key, value, attention.dropout if attention.training else 0.0)
    hidden = layer.attention.output(mixed, asking)
    return layer.output(layer.intermediate(hidden), hidden)  # type: ignore[no-any-return]


def divergence(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of the KL divergences of all rows. A row of zeros adds nothing; a row may add less than 0."""
    # float32 even under autocast: on the CPU, autocast would round the log-probabilities to bfloat16.
    return functional.kl_div(logits.float().log_softmax(-1), targets, reduction="sum")


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the sum of the cross-entropies of all rows, 0 where there is no row."""
    return functional.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=smoothing)


def losses(network: HeadNetwork, states: Tensor, packed: Packed, labels: Labels) -> list[Tensor]:
    """Return the sum of each term of the loss, from the read states [R, H]."""
    match network:
        case VisualBertForQuestionAnswering():
            assert labels.soft is not None
            return [divergence(network.cls(network.dropout(states)), labels.soft)]
        case VisualBertForVisualReasoning():
            assert labels.classes is not None
            return [cross_entropy(_pooled(network, states), labels.classes, labels.smoothing)]
        case VisualBertForMultipleChoice():
            return [_choices(_pooled(network, states).float().squeeze(1), labels)]
        case VisualBertForRegionToPhraseAlignment():
            return [_phrases(network, states, packed, labels)]
        case VisualBertForPreTraining():
            return _pre_training(network, states, labels)
    raise TypeError(f"{type(network).__name__} has no loss")


def _choices(scores: Tensor, labels: Labels) -> Tensor:
    assert labels.classes is not None
    rows = [scores[list(places)] for places in labels.choices]
    if labels.smoothing:  # a choice that is not there must get no share, so every example is a call
        pairs = zip(rows, labels.classes.unsqueeze(1).unbind(), strict=True)
        return torch.stack([cross_entropy(row[None], right, labels.smoothing) for row, right in pairs]).sum()
    # Examples may differ in their number of choices. A choice that is not there gets no probability.
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=float("-inf"))
    return cross_entropy(padded, labels.classes)


def _pooled(network: Classifier, states: Tensor) -> Tensor:
    pooled = torch.tanh(network.visual_bert.pooler.dense(states))
    return network.cls(network.dropout(pooled))  # type: ignore[no-any-return]


def _phrases(network: VisualBertForRegionToPhraseAlignment, states: Tensor, packed: Packed, labels: Labels) -> Tensor:
    """The read states of a sequence are those of its K phrases, then those of its V regions."""
    queries = network.attention.query(states).float().split(packed.read_lengths)
    keys = network.attention.key(states).float().split(packed.read_lengths)
    sums = [states.new_zeros((), dtype=torch.float32)]
    for query, key, shares in zip(queries, keys, labels.shares, strict=True):
        phrases = len(shares)
        logits = query[:phrases] @ key[phrases:].T / query.shape[-1] ** 0.5
        sums.append(divergence(logits, shares))
    return torch.stack(sums).sum()


def _pre_training(network: VisualBertForPreTraining, states: Tensor, labels: Labels) -> list[Tensor]:
    """Score the vocabulary only at masked words, which is most of the work of a padded network."""
    assert labels.words is not None
    assert labels.word_rows is not None
    predicted = network.cls.predictions(states.index_select(0, labels.word_rows))
    words = cross_entropy(predicted, labels.words, labels.smoothing)
    if labels.own is None or labels.own_rows is None:
        return [words]
    pooled = torch.tanh(network.visual_bert.pooler.dense(states.index_select(0, labels.own_rows)))
    return [words, cross_entropy(network.cls.seq_relationship(pooled), labels.own, labels.smoothing)]


# ---------------------------------------------------------------------------------------------------------------------
# the term grounding


def add_head(network: nn.Module, config: VisualBertConfig, seed: int) -> None:
    """Give a network the head of the term. Its weights are random at every start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = RegionToPhraseAttention(config)
        initialize(head, config)
    network.add_module(TERM, head)


def share_modules(network: HeadNetwork, other: HeadNetwork) -> None:
    """Give a network the trunk of `other`, and its head for phrases where both have one."""
    network.visual_bert = other.visual_bert
    network.tie_weights()  # the vocabulary head has the word embeddings of the trunk
    ours, theirs = _phrase_head(network), _phrase_head(other)
    if ours is not None and theirs is not None:
        network.add_module(ours, other.get_submodule(theirs))


def _phrase_head(network: nn.Module) -> str | None:
    """Return the name of the head that compares phrases with regions."""
    found = (name for name, module in network.named_children() if isinstance(module, RegionToPhraseAttention))
    return next(found, None)


def located(encoder: InputEncoder, example: Question | Statement, sequence: Encoded, named: NamedRegions) -> Named:
    """Return the last word piece of each phrase, with the regions of the sequence. Phrases behind the cut are lost.

    Text that ends with a phrase has as many pieces as the position of its last piece, because [CLS] has position 0.
    """
    words = example.text.split(" ")
    last = len(sequence.input_ids) - 2
    positions, kept = [], []
    for number, phrase in enumerate(named.phrases):
        text = " ".join(words[: phrase.stop]).rstrip(".,;:!?")
        if isinstance(example, Question):
            text = " ".join(pythia_tokens(text))
        position = len(encoder.words(text))
        if position <= last and named.shares[number].any():
            positions.append(position)
            kept.append(number)
    return Named(tuple(positions), named.shares[kept][:, sequence.rows])


def grounding_loss(network: nn.Module, states: Tensor, packed: Packed, shares: Sequence[Tensor]) -> Tensor:
    """Return the sum of the divergences of all phrases.

    A sequence reads the state of its head, then those of its K phrases and V regions. `shares` holds float32 [K, V] of
    each sequence of the pack, with K = 0 where it reads nothing more.
    """
    head = network.get_submodule(TERM)
    assert isinstance(head, RegionToPhraseAttention)
    sums = [states.new_zeros((), dtype=torch.float32)]
    for read, wanted in zip(states.split_with_sizes(packed.read_lengths), shares, strict=True):
        phrases = len(wanted)
        if phrases:
            query, key = head.query(read[1 : 1 + phrases]), head.key(read[1 + phrases :])
            sums.append(divergence(query @ key.T / query.shape[-1] ** 0.5, wanted))
    return torch.stack(sums).sum()


def save_head(network: nn.Module, folder: Path) -> None:
    """Write the head beside a checkpoint. Its file is read only to go on with a training."""
    state = network.get_submodule(TERM).state_dict()
    save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, folder / GROUNDING_FILE)


def saved_head(folder: Path) -> dict[str, Tensor]:
    """Return the weights of the head by their names in the network."""
    return {f"{TERM}.{name}": value for name, value in load_file(folder / GROUNDING_FILE).items()}
