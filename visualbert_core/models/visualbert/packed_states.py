"""The trunk over packed sequences, for training: with gradients, with dropout, without padding.

It computes what `modeling` computes, from the same modules, and skips what no loss needs: nothing for padding, and the
last layer only for the tokens that the head reads. `inference.py` does the same for answers, from weights that it
prepares once. A training cannot prepare them, because they change at every step. With checkpointing only the input of
each layer is kept, and the backward pass computes the layer again (Chen et al. 2016, https://arxiv.org/abs/1604.06174).

Shapes: T text tokens and V regions of all sequences, N = T + V, R read tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from visualbert_core.models.visualbert.inference import Groups
from visualbert_core.models.visualbert.modeling import Embeddings, Layer, SelfAttention, VisualBertModel
from visualbert_core.models.visualbert.packing import Packed

INGREDIENT = "training"


Compute = Callable[[Layer, Tensor, Tensor, Groups], Tensor]
"""Computes a layer: its arguments are those of `_layer`."""


def read_states(trunk: VisualBertModel, packed: Packed, checkpointing: bool = False) -> Tensor:
    """Return the last states of the read tokens: [R, H], in the order of the pack.

    With `checkpointing`, values and gradients are the same, with the same draws of dropout, for less memory.
    """
    compute = _recomputed if checkpointing else _layer
    rows = _embed(trunk.embeddings, packed)
    layers = [layer for layer in trunk.encoder.layer if isinstance(layer, Layer)]
    read = Groups.of(packed.read_lengths, packed.lengths)
    if trunk.config.bypass_transformer:
        text = len(packed.input_ids)
        alone = _through(layers, rows[:text], Groups.of(packed.text_lengths, packed.text_lengths), compute)
        joined = torch.cat((alone, rows[text:])).index_select(0, packed.source)
        return compute(trunk.additional_layer, joined.index_select(0, packed.reads), joined, read)
    hidden = rows.index_select(0, packed.source)
    hidden = _through(layers[:-1], hidden, Groups.of(packed.lengths, packed.lengths), compute)
    return compute(layers[-1], hidden.index_select(0, packed.reads), hidden, read)


def _embed(tables: Embeddings, packed: Packed) -> Tensor:
    """Return the embeddings of all texts, then of all regions: [T + V, H]."""
    text: Tensor = tables.word_embeddings(packed.input_ids)
    text = text + tables.token_type_embeddings(packed.token_type_ids)
    text = text + tables.position_embeddings(packed.position_ids)
    projected: Tensor = tables.visual_projection(packed.features.float())
    regions = projected.index_select(0, packed.feature_rows)
    regions = regions + tables.visual_token_type_embeddings(packed.visual_types)
    # All regions have visual position 0, as in `modeling`.
    regions = regions + tables.visual_position_embeddings.weight[0]
    if packed.mentions is not None:
        regions = regions + tables.mentions(packed.mentions)
    return tables.dropout(tables.LayerNorm(torch.cat((text, regions))))  # type: ignore[no-any-return]


def _through(layers: list[Layer], hidden: Tensor, groups: Groups, compute: Compute) -> Tensor:
    for layer in layers:
        hidden = compute(layer, hidden, hidden, groups)
    return hidden


def _layer(layer: Layer, asking: Tensor, known: Tensor, groups: Groups) -> Tensor:
    """Return the states [Q, H] of the asking tokens after a layer, whose attention reads the known tokens [N, H]."""
    hidden = layer.attention.output(_attend(layer.attention.self, asking, known, groups), asking)
    return layer.output(layer.intermediate(hidden), hidden)  # type: ignore[no-any-return]


def _recomputed(layer: Layer, asking: Tensor, known: Tensor, groups: Groups) -> Tensor:
    """Return the states of `_layer`. Keep its inputs and the state of the generator, and nothing in between."""
    states: Tensor = checkpoint(_layer, layer, asking, known, groups, use_reentrant=False)
    return states


def _attend(attention: SelfAttention, asking: Tensor, known: Tensor, groups: Groups) -> Tensor:
    """Return what each asking token [Q, H] mixes of the known tokens [N, H] of its sequence: [Q, H].

    Neighbouring sequences of equal shape take one call, without padding or mask.
    """
    dropout = attention.dropout if attention.training else 0.0
    query, key, value = (
        layer(states).unflatten(1, (attention.num_heads, -1))
        for layer, states in ((attention.query, asking), (attention.key, known), (attention.value, known))
    )
    asked = [count * queries for count, queries, _ in groups.groups]
    held = [count * keys for count, _, keys in groups.groups]
    parts = zip(groups.groups, query.split(asked), key.split(held), value.split(held), strict=True)
    mixed = []
    for (count, queries, keys), *states in parts:
        # The lengths are explicit, because a caption without a masked word has no query.
        sizes = (queries, keys, keys)
        q, k, v = (each.unflatten(0, (count, size)).transpose(1, 2) for each, size in zip(states, sizes, strict=True))
        found = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        mixed.append(found.transpose(1, 2).flatten(2).flatten(0, 1))
    return torch.cat(mixed)
