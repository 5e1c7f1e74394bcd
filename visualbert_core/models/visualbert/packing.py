"""Encoded sequences → the tensors of a batch: padded for the networks of `heads`, or packed for `inference`.

Owns both layouts of a batch. In a padded batch every sequence is as long as the longest, and masks say which positions
are real. transformers and training take this layout. In a packed batch the sequences lie end to end, so nothing is
computed for padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
    choices = {len(item) for item in batch if isinstance(item, tuple)}
    if not choices:
        return _padded([item for item in batch if isinstance(item, Encoded)])
    if len(choices) > 1:
        raise ValueError(f"a batch needs one number of choices, got {sorted(choices)}")
    flat = _padded([sequence for item in batch if isinstance(item, tuple) for sequence in item])
    return {name: tensor.view(len(batch), *choices, *tensor.shape[1:]) for name, tensor in flat.items()}


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

    def to(self, device: torch.device) -> Packed:
        """Copy the tensors to `device`. A copy to a GPU uses pinned memory and does not wait."""
        moved: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                value = value.pin_memory() if device.type == "cuda" else value
                moved[f.name] = value.to(device, non_blocking=True)
        return replace(self, **moved)


def pack(sequences: Sequence[Encoded], read: Callable[[Encoded], Sequence[int]]) -> Packed:
    """Lay the sequences of one task end to end, on the CPU. `read` returns the positions that the head reads.

    Raise ValueError if the features differ in size.
    """
    reads = [tuple(read(sequence)) for sequence in sequences]
    shape = [(len(s.input_ids) + len(s.rows), len(r)) for s, r in zip(sequences, reads, strict=True)]
    order = sorted(range(len(sequences)), key=shape.__getitem__)
    sequences, reads = [sequences[i] for i in order], [reads[i] for i in order]
    texts, regions = [len(s.input_ids) for s in sequences], [len(s.rows) for s in sequences]
    lengths = [text + region for text, region in zip(texts, regions, strict=True)]
    starts = _starts(lengths)
    features, rows = _shared(sequences)
    mentions = None
    if sequences[0].mentions is not None:
        mentions = torch.from_numpy(_alignment([m for s in sequences for m in s.mentions or ()]))
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
        mentions=mentions,
        source=torch.from_numpy(_source(texts, regions)),
        reads=_flat([[start + position for position in r] for start, r in zip(starts, reads, strict=True)]),
    )


def _shared(sequences: Sequence[Encoded]) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of every image once, float [U, D], and the row of each region in them, long [V]."""
    # By identity: sequences about one image share the array object (see `Encoded`), and comparing arrays is slow.
    images = {id(image): image for sequence in sequences for image in sequence.images}
    sizes = {image.shape[1] for image in images.values()}
    if len(sizes) > 1:
        raise ValueError(f"a batch needs one feature size, got {sorted(sizes)}")
    first = dict(zip(images, _starts([len(image) for image in images.values()]), strict=True))
    rows = []
    for sequence in sequences:
        starts = _starts([len(image) for image in sequence.images])
        shift = np.array([first[id(image)] for image in sequence.images]) - starts
        rows.append(sequence.rows + shift[np.searchsorted(starts, sequence.rows, side="right") - 1])
    return np.concatenate(list(images.values())), np.concatenate(rows)


def _source(texts: Sequence[int], regions: Sequence[int]) -> np.ndarray:
    """Return the row of each token of the pack in the order of all texts, then all regions: long [N]."""
    first_region = sum(texts)
    parts = []
    for text_start, text, region_start, region in zip(_starts(texts), texts, _starts(regions), regions, strict=True):
        parts += [np.arange(text) + text_start, np.arange(region) + first_region + region_start]
    return np.concatenate(parts)


def _starts(lengths: Sequence[int]) -> np.ndarray:
    return np.cumsum([0, *lengths[:-1]])


def _flat(values: Iterable[Iterable[int]]) -> Tensor:
    return torch.tensor(list(chain.from_iterable(values)), dtype=torch.long)


def _padded(sequences: Sequence[Encoded]) -> dict[str, Tensor]:
    """Return the tensors of `collate` for sequences without a choice axis."""
    texts, images = [len(s.input_ids) for s in sequences], [len(s.rows) for s in sequences]
    arrays = {
        "input_ids": _rows([s.input_ids for s in sequences], texts),
        "attention_mask": _lengths(texts),
        "token_type_ids": _rows([s.token_type_ids for s in sequences], texts),
        "visual_embeds": _regions([s.features for s in sequences], images),
        "visual_attention_mask": _lengths(images),
        "visual_token_type_ids": _rows([s.visual_types for s in sequences], images),
    }
    if sequences[0].mentions is not None:
        aligned = _alignment([m for s in sequences for m in s.mentions or ()])
        padded = np.full((len(sequences), max(images), aligned.shape[1]), -1, dtype=np.int64)
        padded[_lengths(images).astype(bool)] = aligned
        arrays["image_text_alignment"] = padded
    if sequences[0].phrases is not None:
        phrases = [s.phrases or () for s in sequences]
        arrays["region_to_phrase_position"] = _rows(phrases, [len(p) for p in phrases], fill=-1)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _rows(values: Sequence[Iterable[int]], lengths: Sequence[int], fill: int = 0) -> np.ndarray:
    rows = np.full((len(lengths), max(lengths)), fill, dtype=np.int64)
    rows[_lengths(lengths).astype(bool)] = np.fromiter(chain.from_iterable(values), np.int64, sum(lengths))
    return rows


def _lengths(lengths: Sequence[int]) -> np.ndarray:
    """Return the mask [B, longest] of padded rows: 1 for a real position, 0 for padding."""
    return (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)


def _regions(features: Sequence[np.ndarray], lengths: Sequence[int]) -> np.ndarray:
    sizes = {part.shape[1] for part in features}
    if len(sizes) > 1:
        raise ValueError(f"a batch needs one feature size, got {sorted(sizes)}")
    padded = np.zeros((len(features), max(lengths), *sizes), dtype=np.float32)
    for row, part in zip(padded, features, strict=True):
        row[: len(part)] = part
    return padded


def _alignment(mentions: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Return for each region the text positions that name it, padded with -1: [V, A], with A at least 1."""
    lengths = [len(positions) for positions in mentions]
    padded = np.full((len(mentions), max([1, *lengths])), -1, dtype=np.int64)
    for row, positions in zip(padded, mentions, strict=True):
        row[: len(positions)] = positions
    return padded
