"""The fast network for answers: packed sequences in, logits out.

Owns everything that inference does differently from `heads`. The answers stay the same; float32 logits differ by about
1e-6. The differences are:

    packed tokens            sequences lie end to end, so nothing is computed for padding
    last layer               computed only for the tokens that the head reads: one token of a question, not all fifty
    one projection           the regions of an image are projected once for all its questions and choices
    one product for q, k, v  and attention in groups of sequences of equal length, without a mask
    prepared weights         in oneDNN's layout, with GELU inside the product, on CPUs where this is faster
    bfloat16                 on request, for products and attention; residuals, norms and heads stay float32
    CUDA                     bfloat16 uses attention of variable length and replays CUDA graphs (see `cuda`)

Shapes: B sequences, N tokens, R read tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from visualbert_core.float32 import whole_float32
from visualbert_core.models.visualbert.cuda import Attend, GraphedEncoder, Recorder, has_variable_length
from visualbert_core.models.visualbert.heads import (
    Classifier,
    HeadNetwork,
    VisualBertForMultipleChoice,
    VisualBertForQuestionAnswering,
    VisualBertForRegionToPhraseAlignment,
    VisualBertForVisualReasoning,
)
from visualbert_core.models.visualbert.inputs import Encoded
from visualbert_core.models.visualbert.modeling import ACTIVATION, Embeddings, Layer, VisualBertModel
from visualbert_core.models.visualbert.packing import Packed, pack

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Dense = Callable[[Tensor], Tensor]


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
        self._project = _dense(trunk.embeddings.visual_projection, dtype=dtype)
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
    project = _dense(attention.query, attention.key, attention.value, dtype=dtype)
    feed_forward = _feed_forward(layer, act, dtype)

    def compute(hidden: Tensor, attend: Attend) -> Tensor:
        query, key, value = project(hidden.to(dtype)).view(len(hidden), 3, heads, -1).unbind(1)
        return feed_forward(attend(query, key, value), hidden)

    return compute


def _last_layer(layer: Layer, act: str, dtype: torch.dtype) -> Callable[[Tensor, Tensor, Attend], Tensor]:
    """Return the last layer, for the read tokens only. They attend to all tokens: float32 [N, H] → [R, H]."""
    attention, heads = layer.attention.self, layer.attention.self.num_heads
    ask, know = _dense(attention.query, dtype=dtype), _dense(attention.key, attention.value, dtype=dtype)
    feed_forward = _feed_forward(layer, act, dtype)

    def compute(hidden: Tensor, reads: Tensor, attend: Attend) -> Tensor:
        read = hidden[reads]
        query = ask(read.to(dtype)).view(len(read), heads, -1)
        key, value = know(hidden.to(dtype)).view(len(hidden), 2, heads, -1).unbind(1)
        return feed_forward(attend(query, key, value), read)

    return compute


def _feed_forward(layer: Layer, act: str, dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the part of a layer that follows attention."""
    mix, mix_norm = _dense(layer.attention.output.dense, dtype=dtype), layer.attention.output.LayerNorm
    widen = _dense(layer.intermediate.dense, dtype=dtype, act=act)
    narrow, narrow_norm = _dense(layer.output.dense, dtype=dtype), layer.output.LayerNorm

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


# ---------------------------------------------------------------------------------------------------------------------
# products


def _dense(*layers: nn.Linear, dtype: torch.dtype, act: str | None = None) -> Dense:
    """Join `layers`, which take the same input, into one product, followed by an activation."""
    weight = torch.cat([layer.weight.detach() for layer in layers]).to(dtype)
    bias = torch.cat([layer.bias.detach() for layer in layers]).to(dtype)
    packed = weight.device.type == "cpu" and _onednn_pays(dtype)
    return (_onednn_dense if packed else _plain_dense)(weight, bias, act)


def _plain_dense(weight: Tensor, bias: Tensor, act: str | None) -> Dense:
    if act is None:
        return lambda inputs: functional.linear(inputs, weight, bias)
    activate = ACTIVATION[act]
    return lambda inputs: activate(functional.linear(inputs, weight, bias))


def _onednn_dense(weight: Tensor, bias: Tensor, act: str | None) -> Dense:
    """Reorder the weights once into oneDNN's layout, whose product computes the activation inside."""
    # oneDNN chooses the layout for 1,024 rows, about twenty questions. Any number gives right results.
    packed, (name, algorithm) = torch.ops.mkldnn._reorder_linear_weight(weight, 1024), _ONEDNN_ACTIVATION[act]
    return lambda inputs: torch.ops.mkldnn._linear_pointwise(inputs, packed, bias, name, [], algorithm)


_ONEDNN_ACTIVATION = {
    None: ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "relu": ("relu", ""),
}


def _onednn_pays(dtype: torch.dtype) -> bool:
    """Return whether packed weights are faster here than torch's default, and torch has the operators for them.

    The operators are private to torch and may disappear. On AMD CPUs torch uses MKL, which keeps to narrower vector
    code there. With AVX-512 a prototype with oneDNN was twice as fast. With AVX2 alone both libraries are equally fast,
    and oneDNN's GELU is slower.
    """
    operators = hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    fast = operators and "AVX512" in torch.backends.cpu.get_cpu_capability()
    return fast and (dtype != torch.bfloat16 or _onednn_has_bfloat16())


def _onednn_has_bfloat16() -> bool:
    """Return whether oneDNN computes bfloat16 here.

    oneDNN asks the CPU on its own and may see less than torch: if `ONEDNN_MAX_CPU_ISA` limits it, or if the CPU has
    only a part of AVX-512.
    """
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
