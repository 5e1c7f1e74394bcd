"""The fast network for answers: packed sequences in, logits out.

Owns everything that inference does differently from `heads`. The answers stay the same; float32 logits differ by about
1e-6. The differences are:

    packed tokens            sequences lie end to end, so nothing is computed for padding
    last layer               computed only for the tokens that the head reads: one token of a question, not all fifty
    one projection           the regions of an image are projected once for all its questions and choices
    one product for q, k, v  and attention in groups of sequences of equal length, without a mask
    prepared weights         in oneDNN's layout, with GELU inside the product, on CPUs where this is faster
    bfloat16                 on request, for products and attention; residuals, norms and heads stay float32
    CUDA                     bfloat16 uses attention of variable length and replays CUDA graphs (see `kernels`)

Shapes: B sequences, N tokens, R read tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from visualbert_core.float32 import whole_float32
from visualbert_core.models.visualbert.heads import (
    Classifier,
    HeadNetwork,
    VisualBertForMultipleChoice,
    VisualBertForQuestionAnswering,
    VisualBertForRegionToPhraseAlignment,
    VisualBertForVisualReasoning,
)
from visualbert_core.models.visualbert.inputs import Encoded, alignment, check_sizes
from visualbert_core.models.visualbert.kernels import Attend, GraphedEncoder, Recorder, dense, has_variable_length
from visualbert_core.models.visualbert.modeling import Embeddings, Layer, VisualBertModel

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# ---------------------------------------------------------------------------------------------------------------------
# packing


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
        mentions=None if sequences[0].mentions is None else alignment(sequences),
        source=torch.from_numpy(_source(texts, regions)),
        reads=_flat([[start + position for position in r] for start, r in zip(starts, reads, strict=True)]),
    )


def _shared(sequences: Sequence[Encoded]) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of every image once, float [U, D], and the row of each region in them, long [V]."""
    # By identity: sequences about one image share the array object (see `Encoded`), and comparing arrays is slow.
    images = {id(image): image for sequence in sequences for image in sequence.images}
    check_sizes(images.values())
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


# ---------------------------------------------------------------------------------------------------------------------
# the network


class InferenceNetwork:
    """The network of one task, for inference. It keeps no autograd state. Only one thread may call it at a time."""

    def __init__(self, network: HeadNetwork, precision: str = "float32", device: torch.device | None = None) -> None:
        """Prepare the weights of `network`, a head of `heads`. Its encoder is not needed afterwards.

        `precision` is one of PRECISIONS (ValueError otherwise). bfloat16 is for GPUs and for CPUs with AVX512_BF16 or
        AMX. Other CPUs compute it more slowly than float32.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.device = device or torch.device("cpu")
        network = network.eval().to(self.device)
        self._read = READS[type(network)]
        self._head = _head(network)
        self._trunk = _Trunk(network.visual_bert, PRECISIONS[precision], self.device)

    def prepare(self, batch: Sequence[Encoded]) -> Packed:
        """Pack a batch on the CPU. This needs no GPU, so a caller can do it while the previous batch computes."""
        return pack(batch, [self._read(sequence) for sequence in batch])

    def __call__(self, packed: Packed) -> list[Tensor]:
        """Return the logits of each sequence, float32 on the CPU, in the order of the batch.

        Their shape is [num_labels] for question answering and visual reasoning, [1] for one choice, and [K, V] for
        phrases and regions.
        """
        with torch.inference_mode(), whole_float32():
            found = self._head(self._trunk(packed.to(self.device)), packed)
            # One copy from the GPU for the whole batch. A copy for each sequence would wait each time.
            flat = torch.cat([logits.flatten() for logits in found]).cpu()
        sizes = [logits.numel() for logits in found]
        parts = [part.view_as(f) for part, f in zip(flat.split_with_sizes(sizes), found, strict=True)]
        return [parts[place] for place in np.argsort(packed.order)]


# ---------------------------------------------------------------------------------------------------------------------
# heads: the positions that each head reads, and the logits from the states [R, H] at these positions

Read = Callable[[Encoded], Sequence[int]]
Head = Callable[[Tensor, Packed], list[Tensor]]


def _read_phrases_and_regions(sequence: Encoded) -> Sequence[int]:
    text = len(sequence.input_ids)
    return (*(sequence.phrases or ()), *range(text, text + len(sequence.rows)))


READS: dict[type[HeadNetwork], Read] = {
    VisualBertForQuestionAnswering: lambda sequence: (len(sequence.input_ids) - 2,),
    VisualBertForVisualReasoning: lambda sequence: (0,),
    VisualBertForMultipleChoice: lambda sequence: (0,),
    VisualBertForRegionToPhraseAlignment: _read_phrases_and_regions,
}


def _head(network: HeadNetwork) -> Head:
    if isinstance(network, VisualBertForRegionToPhraseAlignment):
        return _aligner(network)
    assert isinstance(network, Classifier)
    pool, classify = network.visual_bert.pooler.dense, network.cls
    if isinstance(network, VisualBertForQuestionAnswering):
        return lambda states, packed: list(classify(states).unbind())
    return lambda states, packed: list(classify(torch.tanh(pool(states))).unbind())


def _aligner(network: VisualBertForRegionToPhraseAlignment) -> Head:
    ask, answer = network.attention.query, network.attention.key

    def align(states: Tensor, packed: Packed) -> list[Tensor]:
        """Return [K, V] for each sequence. Its read states are those of K phrases, then those of V regions."""
        regions = [length - text for length, text in zip(packed.lengths, packed.text_lengths, strict=True)]
        queries, keys = (layer(states).split(packed.read_lengths) for layer in (ask, answer))
        return [
            query[: len(query) - count] @ key[len(key) - count :].T / query.shape[-1] ** 0.5
            for query, key, count in zip(queries, keys, regions, strict=True)
        ]

    return align


# ---------------------------------------------------------------------------------------------------------------------
# the trunk


class _Trunk:
    """Computes the last states that the head reads, float32 [R, H], from packed sequences."""

    def __init__(self, trunk: VisualBertModel, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._embeddings = trunk.embeddings
        self._project = dense(trunk.embeddings.visual_projection, dtype=dtype)
        *layers, last = trunk.layers()
        self._late_fusion, act = trunk.config.bypass_transformer, trunk.config.hidden_act
        self._layers = [_layer(layer, act, dtype) for layer in layers]
        self._last = _last_layer(last, act, dtype)
        head_size = trunk.config.hidden_size // trunk.config.num_attention_heads
        # With late fusion only the last layer sees the regions. `_encode`, which a graph records, does not apply.
        graphed = has_variable_length(device, dtype, head_size) and not self._late_fusion
        self._graphed = GraphedEncoder(self._encode, Recorder(device)) if graphed else None

    def __call__(self, packed: Packed) -> Tensor:
        rows = embedded(self._embeddings, self._project(packed.features.to(self._dtype)).float(), packed)
        read = Groups.of(packed.read_lengths, packed.lengths)
        if self._late_fusion:
            text = len(packed.input_ids)
            alone = self._through(rows[:text], Groups.of(packed.text_lengths, packed.text_lengths))
            return self._last(torch.cat((alone, rows[text:]))[packed.source], packed.reads, read)
        hidden = rows[packed.source]
        if self._graphed is not None:
            return self._graphed(hidden, packed)
        return self._encode(hidden, Groups.of(packed.lengths, packed.lengths), packed.reads, read)

    def _encode(self, hidden: Tensor, attend: Attend, reads: Tensor, attend_reads: Attend) -> Tensor:
        return self._last(self._through(hidden, attend), reads, attend_reads)

    def _through(self, hidden: Tensor, attend: Attend) -> Tensor:
        for layer in self._layers:
            hidden = layer(hidden, attend)
        return hidden


def embedded(tables: Embeddings, projected: Tensor, packed: Packed) -> Tensor:
    """Return the embeddings of all texts, then of all regions, [T + V, H], from the projected features [U, H]."""
    text = tables.text(tables.word_embeddings(packed.input_ids), packed.token_type_ids, packed.position_ids)
    regions = tables.regions(projected.index_select(0, packed.feature_rows), packed.visual_types, packed.mentions)
    return tables.normalised(torch.cat((text, regions)))


def _layer(layer: Layer, act: str, dtype: torch.dtype) -> Callable[[Tensor, Attend], Tensor]:
    """Return an encoder layer over packed tokens: float32 [N, H] → [N, H]."""
    attention, heads = layer.attention.self, layer.attention.self.num_heads
    project = dense(attention.query, attention.key, attention.value, dtype=dtype)
    feed_forward = _feed_forward(layer, act, dtype)

    def compute(hidden: Tensor, attend: Attend) -> Tensor:
        query, key, value = project(hidden.to(dtype)).view(len(hidden), 3, heads, -1).unbind(1)
        return feed_forward(attend(query, key, value), hidden)

    return compute


def _last_layer(layer: Layer, act: str, dtype: torch.dtype) -> Callable[[Tensor, Tensor, Attend], Tensor]:
    """Return the last layer, for the read tokens only. They attend to all tokens: float32 [N, H] → [R, H]."""
    attention, heads = layer.attention.self, layer.attention.self.num_heads
    ask, know = dense(attention.query, dtype=dtype), dense(attention.key, attention.value, dtype=dtype)
    feed_forward = _feed_forward(layer, act, dtype)

    def compute(hidden: Tensor, reads: Tensor, attend: Attend) -> Tensor:
        read = hidden[reads]
        query = ask(read.to(dtype)).view(len(read), heads, -1)
        key, value = know(hidden.to(dtype)).view(len(hidden), 2, heads, -1).unbind(1)
        return feed_forward(attend(query, key, value), read)

    return compute


def _feed_forward(layer: Layer, act: str, dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the part of a layer that follows attention."""
    mix, mix_norm = dense(layer.attention.output.dense, dtype=dtype), layer.attention.output.LayerNorm
    widen = dense(layer.intermediate.dense, dtype=dtype, act=act)
    narrow, narrow_norm = dense(layer.output.dense, dtype=dtype), layer.output.LayerNorm

    def compute(mixed: Tensor, residual: Tensor) -> Tensor:
        # float32 + bfloat16 gives float32, so the residual is never rounded. A bfloat16 residual gave three times the
        # error in the logits when it was measured.
        hidden = mix_norm(residual + mix(mixed))
        return narrow_norm(hidden + narrow(widen(hidden.to(dtype))))  # type: ignore[no-any-return]

    return compute


# ---------------------------------------------------------------------------------------------------------------------
# attention


@dataclass(frozen=True)
class Groups:
    """Attention within each of the sequences that lie end to end, without padding or mask.

    Neighbours of equal shape form a group, which takes one call. A group is (number of sequences, queries per sequence,
    keys per sequence).
    """

    groups: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, queries: Sequence[int], keys: Sequence[int]) -> Groups:
        """Group the sequences that have these numbers of queries and keys."""
        runs = groupby(zip(queries, keys, strict=True))
        return cls(tuple((sum(1 for _ in run), *shape) for shape, run in runs))

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0) -> Tensor:
        """Attend: queries [Q, heads, W], keys and values [N, heads, W] → [Q, heads * W]."""
        asked = [count * queries for count, queries, _ in self.groups]
        known = [count * keys for count, _, keys in self.groups]
        mixed = []
        each = (states.split_with_sizes(sizes) for states, sizes in ((query, asked), (key, known), (value, known)))
        for (count, queries, keys), *parts in zip(self.groups, *each, strict=True):
            # The sizes are explicit, because a caption without a masked word has no query.
            q, k, v = (
                part.unflatten(0, (count, size)).transpose(1, 2)
                for part, size in zip(parts, (queries, keys, keys), strict=True)
            )
            found = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
            mixed.append(found.transpose(1, 2).flatten(2).flatten(0, 1))
        return torch.cat(mixed)
