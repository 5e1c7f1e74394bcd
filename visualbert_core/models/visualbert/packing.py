"""Encoded sequences → the tensors of a batch: padded for the networks of `heads`, or packed for `inference`.

Owns both layouts of a batch. In a padded batch every sequence is as long as the longest, and masks say which positions
are real. transformers and training take this layout. In a packed batch the sequences lie end to end, so nothing is
computed for padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from visualbert_core.models.visualbert.inputs import Encoded


def collate(batch: Sequence[Encoded | tuple[Encoded, ...]]) -> dict[str, Tensor]:
    """Pad the sequences of one task. Return the keyword tensors for the forward of its head, on the CPU.

        input_ids, attention_mask, token_type_ids      long [B, T]
        visual_embeds                                  float32 [B, V, D]
        visual_attention_mask, visual_token_type_ids   long [B, V]
        image_text_alignment                           long [B, V, A], padded with -1, for VCR
        region_to_phrase_position                      long [B, K], padded with -1, for Flickr30K Entities

    Multiple choice has a choice axis in second place in each tensor. Raise ValueError if the examples differ in number
    of choices or in feature size.
    """
    items = [item if isinstance(item, tuple) else (item,) for item in batch]
    choices = {len(item) for item in items}
    if len(choices) > 1:
        raise ValueError(f"a batch needs one number of choices, got {sorted(choices)}")
    sequences = [sequence for item in items for sequence in item]
    texts, regions = [len(s.input_ids) for s in sequences], [len(s.rows) for s in sequences]
    features = [s.features for s in sequences]
    _check_sizes(features)
    found = {
        "input_ids": _rows(s.input_ids for s in sequences),
        "attention_mask": _rows([1] * text for text in texts),
        "token_type_ids": _rows(s.token_type_ids for s in sequences),
        "visual_embeds": pad_sequence([torch.from_numpy(each).float() for each in features], batch_first=True),
        "visual_attention_mask": _rows([1] * region for region in regions),
        "visual_token_type_ids": _rows(s.visual_types for s in sequences),
    }
    if sequences[0].mentions is not None:
        found["image_text_alignment"] = pad_sequence([*_alignment(sequences).split_with_sizes(regions)], True, -1)
    if sequences[0].phrases is not None:
        found["region_to_phrase_position"] = _rows((s.phrases or () for s in sequences), fill=-1)
    if isinstance(batch[0], Encoded):
        return found
    return {name: tensor.view(len(batch), *choices, *tensor.shape[1:]) for name, tensor in found.items()}


@dataclass(frozen=True, eq=False)
class Packed:
    """B sequences end to end, sorted so that sequences of equal shape are neighbours.

    They have N tokens: T of text and V regions. The images have U feature rows, each image once. The head reads the
    last state of R tokens.
    """

    order: tuple[int, ...]  # [B] sequence b of the pack is sequence order[b] of the batch
    lengths: tuple[int, ...]  # [B] tokens of each sequence, ascending; the sum is N
    text_lengths: tuple[int, ...]  # [B] text tokens of each sequence; the sum is T
    read_lengths: tuple[int, ...]  # [B] tokens of each sequence that the head reads; the sum is R
    input_ids: Tensor  # long [T]
    token_type_ids: Tensor  # long [T]
    position_ids: Tensor  # long [T]
    features: Tensor  # float16 or float32 [U, D]
    feature_rows: Tensor  # long [V], into `features`
    visual_types: Tensor  # long [V]
    mentions: Tensor | None  # long [V, A], the text positions that name each region, padded with -1
    source: Tensor  # long [N], the row of each token among all texts [T] followed by all regions [V]
    reads: Tensor  # long [R], into the tokens [N]

    @property
    def read_starts(self) -> np.ndarray:
        """Return the row of the first read token of each sequence among the R read tokens: long [B]."""
        return _starts(self.read_lengths)

    def to(self, device: torch.device) -> Packed:
        """Copy the tensors to `device`. A copy to a GPU uses pinned memory and does not wait."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        if device.type == "cuda":
            tensors = {name: value.pin_memory() for name, value in tensors.items()}
        moved: dict[str, Any] = {name: value.to(device, non_blocking=True) for name, value in tensors.items()}
        return replace(self, **moved)


def pack(sequences: Sequence[Encoded], reads: Sequence[Sequence[int]]) -> Packed:
    """Lay the sequences of one task end to end, on the CPU. `reads` are the positions that the head reads of each.

    Raise ValueError if the features differ in size.
    """
    shape = [(len(s.input_ids) + len(s.rows), len(r)) for s, r in zip(sequences, reads, strict=True)]
    order = sorted(range(len(sequences)), key=shape.__getitem__)
    sequences, reads = [sequences[i] for i in order], [reads[i] for i in order]
    texts, regions = [len(s.input_ids) for s in sequences], [len(s.rows) for s in sequences]
    lengths = [text + region for text, region in zip(texts, regions, strict=True)]
    starts = _starts(lengths)
    features, rows = _shared(sequences)
    return Packed(
        order=tuple(order),
        lengths=tuple(lengths),
        text_lengths=tuple(texts),
        read_lengths=tuple(map(len, reads)),
        input_ids=_flat([s.input_ids for s in sequences]),
        token_type_ids=_flat([s.token_type_ids for s in sequences]),
        position_ids=_flat([range(text) for text in texts]),
        features=torch.from_numpy(features),
        feature_rows=torch.from_numpy(rows),
        visual_types=torch.from_numpy(np.concatenate([s.visual_types for s in sequences])),
        mentions=None if sequences[0].mentions is None else _alignment(sequences),
        source=torch.from_numpy(_source(texts, regions)),
        reads=_flat([[start + position for position in r] for start, r in zip(starts, reads, strict=True)]),
    )


def _shared(sequences: Sequence[Encoded]) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of every image once, float [U, D], and the row of each region in them, long [V]."""
    # By identity: sequences about one image share the array object (see `Encoded`), and comparing arrays is slow.
    images = {id(image): image for sequence in sequences for image in sequence.images}
    _check_sizes(images.values())
    first = dict(zip(images, _starts([len(image) for image in images.values()]), strict=True))
    rows = []
    for sequence in sequences:
        starts = _starts([len(image) for image in sequence.images])
        shift = np.array([first[id(image)] for image in sequence.images]) - starts
        rows.append(sequence.rows + shift[np.searchsorted(starts, sequence.rows, side="right") - 1])
    return np.concatenate(list(images.values())), np.concatenate(rows)


def _source(texts: Sequence[int], regions: Sequence[int]) -> np.ndarray:
    """Return the row of each token of the pack in the order of all texts, then all regions: long [N]."""
    sequence_of_row = np.repeat([*range(len(texts))] * 2, [*texts, *regions])
    return np.argsort(sequence_of_row, kind="stable")


def _starts(lengths: Sequence[int]) -> np.ndarray:
    return np.cumsum([0, *lengths[:-1]])


def _flat(values: Iterable[Iterable[int]]) -> Tensor:
    return torch.tensor(list(chain.from_iterable(values)), dtype=torch.long)


def _rows(values: Iterable[Sequence[int] | np.ndarray], fill: int = 0) -> Tensor:
    """Return the rows padded to the length of the longest: long [B, longest]."""
    return pad_sequence([torch.as_tensor(row, dtype=torch.long) for row in values], True, fill)


def _check_sizes(features: Iterable[np.ndarray]) -> None:
    sizes = {each.shape[1] for each in features}
    if len(sizes) > 1:
        raise ValueError(f"a batch needs one feature size, got {sorted(sizes)}")


def _alignment(sequences: Sequence[Encoded]) -> Tensor:
    """Return for each region of a batch the text positions that name it, padded with -1: long [V, A], A at least 1."""
    mentions = [positions for sequence in sequences for positions in sequence.mentions or ()]
    longest = max([1, *map(len, mentions)])
    rows = [[*positions, *[-1] * (longest - len(positions))] for positions in mentions]
    return torch.tensor(rows, dtype=torch.long).view(len(rows), longest)
