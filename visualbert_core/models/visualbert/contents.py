"""What an example holds for its loss, and its labels in the order of a pack or of a padded batch.

The form of the target says which labels a batch has, because all its examples are of one form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visualbert_core.models.visualbert.grounding import Named
from visualbert_core.models.visualbert.input_checks import IGNORED
from visualbert_core.models.visualbert.inputs import Encoded
from visualbert_core.models.visualbert.losses import Labels
from visualbert_core.models.visualbert.packing import Packed

INGREDIENT = "training"


@dataclass(frozen=True, eq=False)
class Content:
    """The sequences of an example and its target, as the head takes them."""

    sequences: tuple[Encoded, ...]
    soft: Mapping[int, float] | None = None  # a question: index of an answer → weight
    label: int | None = None  # a statement, a choice, a pair of captions
    shares: np.ndarray | None = None  # a grounding: float32 [K, V]
    hidden: Mapping[int, int] | None = None  # masked words: position in the text → piece
    named: Named | None = None  # a question or statement with the term grounding


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
