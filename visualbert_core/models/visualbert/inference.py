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

import torch
from torch import Tensor, nn
from torch.nn import functional

from visualbert_core.float32 import whole_float32
from visualbert_core.models.visualbert.checkpoint.pretrained import Pretrained
from visualbert_core.models.visualbert.cuda import Attend, GraphedEncoder, Recorder, has_variable_length
from visualbert_core.models.visualbert.heads import (
    VisualBertForMultipleChoice,
    VisualBertForQuestionAnswering,
    VisualBertForRegionToPhraseAlignment,
    VisualBertForVisualReasoning,
)
from visualbert_core.models.visualbert.inputs import Encoded
from visualbert_core.models.visualbert.modeling import ACTIVATION, Layer, VisualBertModel
from visualbert_core.models.visualbert.packing import Packed, pack

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Dense = Callable[[Tensor], Tensor]


class InferenceNetwork:
    """The network of one task, for inference. It keeps no autograd state. Only one thread may call it at a time."""

    def __init__(self, network: Pretrained, precision: str = "float32", device: torch.device | None = None) -> None:
        """Prepare the weights of `network`, a head of `heads`. Its encoder is not needed afterwards.

        `precision` is one of PRECISIONS (ValueError otherwise). bfloat16 is for GPUs and for CPUs with AVX512_BF16 or
        AMX. Other CPUs compute it more slowly than float32.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.device = device or torch.device("cpu")
        network = network.eval().to(self.device)
        trunk = network.get_submodule("visual_bert")
        assert isinstance(trunk, VisualBertModel)
        self._read, make_head = _HEADS[type(network)]
        self._head = make_head(network)
        self._trunk = _Trunk(trunk, PRECISIONS[precision], self.device)

    def prepare(self, batch: Sequence[Encoded]) -> Packed:
        """Pack a batch on the CPU. This needs no GPU, so a caller can do it while the previous batch computes."""
        return pack(batch, self._read)

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
        return [parts[place] for place in _inverse(packed.order)]


# ---------------------------------------------------------------------------------------------------------------------
# heads: the positions that each head reads, and the logits from the states [R, H] at these positions

Read = Callable[[Encoded], Sequence[int]]
Head = Callable[[Tensor, Packed], list[Tensor]]


def _read_mask(sequence: Encoded) -> Sequence[int]:
    return (len(sequence.input_ids) - 2,)


def _read_cls(sequence: Encoded) -> Sequence[int]:
    return (0,)


def _read_phrases_and_regions(sequence: Encoded) -> Sequence[int]:
    text = len(sequence.input_ids)
    return (*(sequence.phrases or ()), *range(text, text + len(sequence.rows)))


def _classifier(network: Pretrained) -> Head:
    classify = network.get_submodule("cls")
    return lambda states, packed: list(classify(states).unbind())


def _pooled_classifier(network: Pretrained) -> Head:
    pool, classify = network.get_submodule("visual_bert.pooler.dense"), network.get_submodule("cls")
    return lambda states, packed: list(classify(torch.tanh(pool(states))).unbind())


def _aligner(network: Pretrained) -> Head:
    ask, answer = network.get_submodule("attention.query"), network.get_submodule("attention.key")

    def align(states: Tensor, packed: Packed) -> list[Tensor]:
        """Return [K, V] for each sequence. Its read states are those of K phrases, then those of V regions."""
        regions = [length - text for length, text in zip(packed.lengths, packed.text_lengths, strict=True)]
        queries, keys = (layer(states).split(packed.read_lengths) for layer in (ask, answer))
        return [
            query[: len(query) - count] @ key[len(key) - count :].T / query.shape[-1] ** 0.5
            for query, key, count in zip(queries, keys, regions, strict=True)
        ]

    return align


_HEADS: dict[type[Pretrained], tuple[Read, Callable[[Pretrained], Head]]] = {
    VisualBertForQuestionAnswering: (_read_mask, _classifier),
    VisualBertForVisualReasoning: (_read_cls, _pooled_classifier),
    VisualBertForMultipleChoice: (_read_cls, _pooled_classifier),
    VisualBertForRegionToPhraseAlignment: (_read_phrases_and_regions, _aligner),
}

# ---------------------------------------------------------------------------------------------------------------------
# the trunk


class _Trunk:
    """Computes the last states that the head reads, float32 [R, H], from packed sequences."""

    def __init__(self, trunk: VisualBertModel, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._embeddings = trunk.embeddings
        self._project = _dense(trunk.embeddings.visual_projection, dtype=dtype)
        layers = [layer for layer in trunk.encoder.layer if isinstance(layer, Layer)]
        self._late_fusion = trunk.config.bypass_transformer
        if self._late_fusion:
            layers.append(trunk.additional_layer)
        act = trunk.config.hidden_act
        self._layers = [_Layer(layer, act, dtype) for layer in layers[:-1]]
        self._last = _LastLayer(layers[-1], act, dtype)
        head_size = trunk.config.hidden_size // trunk.config.num_attention_heads
        # With late fusion only the last layer sees the regions. `_encode`, which a graph records, does not apply.
        graphed = has_variable_length(device, dtype, head_size) and not self._late_fusion
        self._graphed = GraphedEncoder(self._encode, Recorder(device)) if graphed else None

    def __call__(self, packed: Packed) -> Tensor:
        rows = self._embed(packed)
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

    def _embed(self, packed: Packed) -> Tensor:
        """Return the embeddings of all texts [T], then of all regions [V]: float32 [T + V, H]."""
        tables = self._embeddings
        text = tables.word_embeddings(packed.input_ids)
        text = text + tables.token_type_embeddings(packed.token_type_ids)
        text = text + tables.position_embeddings(packed.position_ids)
        regions = self._project(packed.features.to(self._dtype)).float()[packed.feature_rows]
        regions = regions + tables.visual_token_type_embeddings(packed.visual_types)
        # All regions have visual position 0, as in `modeling`.
        regions = regions + tables.visual_position_embeddings.weight[0]
        if packed.mentions is not None:
            regions = regions + tables.mentions(packed.mentions)
        return tables.LayerNorm(torch.cat((text, regions)))  # type: ignore[no-any-return]


class _Layer:
    """One encoder layer over packed tokens: float32 [N, H] → [N, H]."""

    def __init__(self, layer: Layer, act: str, dtype: torch.dtype) -> None:
        attention = layer.attention.self
        self._dtype = dtype
        self._num_heads = attention.num_heads
        self._query_key_value = _dense(attention.query, attention.key, attention.value, dtype=dtype)
        self._feed_forward = _FeedForward(layer, act, dtype)

    def __call__(self, hidden: Tensor, attend: Attend) -> Tensor:
        projected = self._query_key_value(hidden.to(self._dtype))
        query, key, value = projected.view(len(hidden), 3, self._num_heads, -1).unbind(1)
        return self._feed_forward(attend(query, key, value), hidden)


class _LastLayer:
    """The last encoder layer, for the read tokens only. They attend to all tokens: float32 [N, H] → [R, H]."""

    def __init__(self, layer: Layer, act: str, dtype: torch.dtype) -> None:
        attention = layer.attention.self
        self._dtype = dtype
        self._num_heads = attention.num_heads
        self._query = _dense(attention.query, dtype=dtype)
        self._key_value = _dense(attention.key, attention.value, dtype=dtype)
        self._feed_forward = _FeedForward(layer, act, dtype)

    def __call__(self, hidden: Tensor, reads: Tensor, attend: Attend) -> Tensor:
        read = hidden[reads]
        query = self._query(read.to(self._dtype)).view(len(read), self._num_heads, -1)
        key, value = self._key_value(hidden.to(self._dtype)).view(len(hidden), 2, self._num_heads, -1).unbind(1)
        return self._feed_forward(attend(query, key, value), read)


class _FeedForward:
    """The part of a layer that follows attention."""

    def __init__(self, layer: Layer, act: str, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._mix = _dense(layer.attention.output.dense, dtype=dtype)
        self._mix_norm = layer.attention.output.LayerNorm
        self._widen = _dense(layer.intermediate.dense, dtype=dtype, act=act)
        self._narrow = _dense(layer.output.dense, dtype=dtype)
        self._narrow_norm = layer.output.LayerNorm

    def __call__(self, mixed: Tensor, residual: Tensor) -> Tensor:
        # float32 + bfloat16 gives float32, so the residual is never rounded. A bfloat16 residual gave three times the
        # error in the logits when it was measured.
        hidden = self._mix_norm(residual + self._mix(mixed))
        return self._narrow_norm(hidden + self._narrow(self._widen(hidden.to(self._dtype))))  # type: ignore[no-any-return]


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

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend: queries [Q, heads, W], keys and values [N, heads, W] → [Q, heads * W]."""
        mixed = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        asked = [count * queries for count, queries, _ in self.groups]
        known = [count * keys for count, _, keys in self.groups]
        outs, *parts = (
            states.split_with_sizes(sizes)
            for states, sizes in ((mixed, asked), (query, asked), (key, known), (value, known))
        )
        for (count, queries, _), out, *part in zip(self.groups, outs, *parts, strict=True):
            q, k, v = (states.unflatten(0, (count, -1)).transpose(1, 2) for states in part)
            found = functional.scaled_dot_product_attention(q, k, v)
            out.unflatten(0, (count, queries)).copy_(found.transpose(1, 2))
        return mixed.flatten(1)


# ---------------------------------------------------------------------------------------------------------------------
# products


def _dense(*layers: nn.Module, dtype: torch.dtype, act: str | None = None) -> Dense:
    """Join `layers`, which take the same input, into one product, followed by an activation."""
    linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
    weight, bias = (
        torch.cat(parts).to(dtype) if len(parts) > 1 else parts[0].to(dtype)
        for parts in ([linear.weight.detach() for linear in linears], [linear.bias.detach() for linear in linears])
    )
    if weight.device.type == "cpu" and _onednn_pays(dtype):
        return _OneDnnDense(weight, bias, act)
    return _PlainDense(weight, bias, act)


@dataclass(frozen=True, eq=False)
class _PlainDense:
    """A product with the weights in torch's layout, followed by an activation."""

    weight: Tensor
    bias: Tensor
    act: str | None

    def __call__(self, inputs: Tensor) -> Tensor:
        outputs = functional.linear(inputs, self.weight, self.bias)
        return outputs if self.act is None else ACTIVATION[self.act](outputs)


class _OneDnnDense:
    """A product whose weights are reordered once into oneDNN's layout. It computes the activation inside."""

    def __init__(self, weight: Tensor, bias: Tensor, act: str | None) -> None:
        # oneDNN chooses the layout for this number of rows, about twenty questions. Any number gives right results.
        rows = 1024
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        self._bias = bias
        self._act = _ONEDNN_ACTIVATION[act]

    def __call__(self, inputs: Tensor) -> Tensor:
        name, algorithm = self._act
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._weight, self._bias, name, [], algorithm)
        return outputs


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


def _inverse(order: Sequence[int]) -> list[int]:
    """Return the place in the pack of each sequence of the batch."""
    places = [0] * len(order)
    for place, original in enumerate(order):
        places[original] = place
    return places
