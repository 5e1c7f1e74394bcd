"""The VisualBERT trunk: one BERT encoder over text and regions in one sequence, in plain PyTorch.

Owns the network up to the pooled [CLS] state, and its initial weights (VisualBERT, Li et al. 2019,
https://arxiv.org/abs/1908.03557). Parameters have the names of Hugging Face transformers, and the forward computes the
same numbers. So each library can load the checkpoints of the other. Shapes: B sequences, T text tokens, V regions,
L = T + V.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from visualbert_core.models.visualbert.checkpoint.pretrained import Pretrained
from visualbert_core.models.visualbert.config import VisualBertConfig
from visualbert_core.models.visualbert.input_checks import check_inputs

ACTIVATION: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
}


@dataclass(frozen=True)
class VisualBertOutput:
    """The states of the trunk. The last two fields are None unless the caller asks for them.

    With `bypass_transformer` the encoder sees the text alone, so its states and attentions have width T. The states and
    attentions of the additional layer come last and have width L.
    """

    last_hidden_state: Tensor  # [B, L, hidden]
    pooler_output: Tensor  # [B, hidden]
    hidden_states: tuple[Tensor, ...] | None = None  # layers + 1, each [B, L, hidden]
    attentions: tuple[Tensor, ...] | None = None  # layers, each [B, heads, L, L]


class Embeddings(nn.Module):
    """Sums the embeddings of text and regions.

    A text token is word + type + position. A region is projected feature + type + position 0 + the mean position of the
    words that name it.
    """

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.visual_token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.visual_position_embeddings = nn.Embedding(config.max_position_embeddings, size)
        self.visual_projection = nn.Linear(config.visual_embedding_dim, size)
        self.LayerNorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def text(self, words: Tensor, types: Tensor, positions: Tensor) -> Tensor:
        """Return the sums of text tokens, [..., hidden], from the embeddings of their words."""
        return words + self.token_type_embeddings(types) + self.position_embeddings(positions)  # type: ignore[no-any-return]

    def regions(self, projected: Tensor, types: Tensor, alignment: Tensor | None) -> Tensor:
        """Return the sums of regions, [..., hidden], from their projected features."""
        # Every region has visual position 0, as in the authors' code: regions are a set, and no other row was trained.
        position = self.visual_position_embeddings.weight[0]
        embedded: Tensor = projected + self.visual_token_type_embeddings(types) + position
        return embedded if alignment is None else embedded + self._mentions(alignment)

    def normalised(self, embedded: Tensor) -> Tensor:
        """Return the embeddings as the first layer takes them."""
        return self.dropout(self.LayerNorm(embedded))  # type: ignore[no-any-return]

    @torch.no_grad()
    def copy_text_tables(self) -> None:
        """Start the visual type and position tables as copies of the text tables."""
        self.visual_token_type_embeddings.weight.copy_(self.token_type_embeddings.weight)
        self.visual_position_embeddings.weight.copy_(self.position_embeddings.weight)

    def _mentions(self, alignment: Tensor) -> Tensor:
        """Return the mean embedding [..., hidden] of the text positions [..., A] that name each region.

        Positions are padded with -1. A region without a position gets 0.
        """
        named = (alignment != -1).unsqueeze(-1)
        total = (self.position_embeddings(alignment.clamp(min=0)) * named).sum(-2)
        return total / named.sum(-2).clamp(min=1)  # type: ignore[no-any-return]


class SelfAttention(nn.Module):
    """Multi-head attention over the keys that `mask` (bool [B, 1, 1, L]) allows."""

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, mask: Tensor, with_weights: bool) -> tuple[Tensor, Tensor | None]:
        query, key, value = (self._heads(layer(hidden)) for layer in (self.query, self.key, self.value))
        dropout = self.dropout if self.training else 0.0
        weights = None
        if with_weights:  # the fused kernel does not return weights
            scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
            weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
            weights = functional.dropout(weights, dropout, self.training)
            mixed = weights.to(value.dtype) @ value
        else:
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return mixed.transpose(1, 2).flatten(2), weights

    def _heads(self, states: Tensor) -> Tensor:
        return states.view(*states.shape[:2], self.num_heads, -1).transpose(1, 2)


class ResidualOutput(nn.Module):
    """Dense, dropout, add the input, normalise. Both halves of a layer end with this."""

    def __init__(self, size: int, config: VisualBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(hidden)) + residual)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """The first half of a layer: attention and its residual."""

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = ResidualOutput(config.hidden_size, config)

    def forward(self, hidden: Tensor, mask: Tensor, with_weights: bool) -> tuple[Tensor, Tensor | None]:
        mixed, weights = self.self(hidden, mask, with_weights)
        return self.output(mixed, hidden), weights


class Intermediate(nn.Module):
    """The dense layer that widens the states, with the activation."""

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATION[config.hidden_act]

    def forward(self, hidden: Tensor) -> Tensor:
        return self.activation(self.dense(hidden))


class Layer(nn.Module):
    """One encoder layer of BERT (Devlin et al. 2019). LayerNorm comes after each residual."""

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = ResidualOutput(config.intermediate_size, config)

    def forward(self, hidden: Tensor, mask: Tensor, with_weights: bool) -> tuple[Tensor, Tensor | None]:
        hidden, weights = self.attention(hidden, mask, with_weights)
        return self.output(self.intermediate(hidden), hidden), weights


class Encoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))


class Pooler(nn.Module):
    """A dense layer and tanh over the state of [CLS]: float [B, hidden]."""

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.dense(hidden[:, 0]))


class VisualBertModel(Pretrained):
    """The trunk without a head. `VisualBertModel.from_pretrained(folder)` also reads the checkpoint of a head."""

    trunk = None

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.pooler = Pooler(config)
        if config.bypass_transformer:
            self.additional_layer = Layer(config)
        initialize(self, config)
        if config.special_visual_initialize:
            self.embeddings.copy_text_tables()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        visual_embeds: Tensor | None = None,
        visual_attention_mask: Tensor | None = None,
        visual_token_type_ids: Tensor | None = None,
        image_text_alignment: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> VisualBertOutput:
        """Encode the text followed by the regions, or the text alone without `visual_embeds`.

            input_ids, token_type_ids, position_ids   long [B, T]
            inputs_embeds                             float [B, T, hidden], in place of `input_ids`
            visual_embeds                             float [B, V, visual_embedding_dim]
            visual_token_type_ids                     long [B, V]
            attention_mask, visual_attention_mask     [B, T] and [B, V]; 0 hides a position; the default hides none
            image_text_alignment                      long [B, V, A], the text positions that name each region, padded
                                                      with -1

        `visual_token_type_ids` defaults to ones, as in transformers. But the authors trained with zeros (NLVR2: 0 for
        the left image, 1 for the right), so `inputs.py` always passes them. Raise ValueError if the arguments do not
        fit the network or each other (see `input_checks`).
        """
        check_inputs(
            self.config,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            visual_embeds=visual_embeds,
            visual_attention_mask=visual_attention_mask,
            visual_token_type_ids=visual_token_type_ids,
            image_text_alignment=image_text_alignment,
        )
        words = self.embeddings.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        mask = _key_mask(words, attention_mask, visual_embeds, visual_attention_mask)
        tables, device = self.embeddings, words.device
        if position_ids is None:
            position_ids = torch.arange(words.shape[1], device=device)[None]
        if token_type_ids is None:
            token_type_ids = torch.zeros(words.shape[:2], dtype=torch.long, device=device)
        embedded = tables.text(words, token_type_ids, position_ids)
        if visual_embeds is not None:
            if visual_token_type_ids is None:
                visual_token_type_ids = torch.ones(visual_embeds.shape[:2], dtype=torch.long, device=device)
            if image_text_alignment is not None:
                image_text_alignment = image_text_alignment[:, : visual_embeds.shape[1]]
            projected = tables.visual_projection(visual_embeds)
            regions = tables.regions(projected, visual_token_type_ids, image_text_alignment)
            embedded = torch.cat((embedded, regions), dim=1)
        embedded = tables.normalised(embedded)
        # Late fusion encodes the text alone, then joins it with the regions in one additional layer. This follows the
        # authors' code. transformers has the parameters of this variant, but its forward fails
        # (https://github.com/huggingface/transformers/issues/15322).
        late = self.config.bypass_transformer and visual_embeds is not None
        hidden = embedded[:, : words.shape[1]] if late else embedded
        states, attentions = [hidden], list[Tensor]()
        for layer in self.layers() if late else self.encoder.layer:
            if late and layer is self.additional_layer:
                hidden = torch.cat((hidden, embedded[:, words.shape[1] :]), dim=1)
            hidden, weights = layer(hidden, mask[..., : hidden.shape[1]], output_attentions)
            states.append(hidden)
            if weights is not None:
                attentions.append(weights)
        return VisualBertOutput(
            last_hidden_state=hidden,
            pooler_output=self.pooler(hidden),
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def layers(self) -> list[Layer]:
        """Return all layers. With late fusion, the last one alone reads the regions."""
        late = [self.additional_layer] if self.config.bypass_transformer else []
        return [layer for layer in (*self.encoder.layer, *late) if isinstance(layer, Layer)]


def initialize(network: nn.Module, config: VisualBertConfig) -> None:
    """Set the initial weights of BERT, in place.

    Matrices are normal, biases zero, and the vector of the padding word is zero. LayerNorm weights stay at one.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])


def _key_mask(words: Tensor, text: Tensor | None, regions: Tensor | None, visual: Tensor | None) -> Tensor:
    """Return which of the L positions attention may read: bool [B, 1, 1, L]."""
    mask = torch.ones(words.shape[:2], dtype=torch.bool, device=words.device) if text is None else text.bool()
    if regions is not None:
        every = torch.ones(regions.shape[:2], dtype=torch.bool, device=words.device)
        mask = torch.cat((mask, every if visual is None else visual.bool()), dim=1)
    return mask[:, None, None, :]
