"""The four task heads of VisualBERT, with the forward arguments of Hugging Face transformers.

Owns which state each task reads and its loss (VisualBERT, Li et al. 2019; transformers `modeling_visual_bert`).
Given the same tensors the logits are those of transformers, with three deliberate differences: logits stay raw when
labels are given (transformers returns log-softmax for question answering), multiple choice also takes
`image_text_alignment` as [B, C, V, A], and a missing mask that a head needs is a ValueError.
Shapes: B examples, C choices, T text tokens, V regions, K phrases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from visualbert_core.models.visualbert.checkpoint import Pretrained
from visualbert_core.models.visualbert.config import VisualBertConfig
from visualbert_core.models.visualbert.modeling import VisualBertModel, VisualBertOutput, initialize


@dataclass(frozen=True)
class HeadOutput:
    """What a head answers; `loss` is None without labels, the last two unless asked for."""

    logits: Tensor
    loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class VisualBertForQuestionAnswering(Pretrained):
    """Scores of `num_labels` answers, read off the last text token but one ([MASK] in the authors' layout)."""

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__(config)
        self.visual_bert = VisualBertModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.cls = nn.Linear(config.hidden_size, config.num_labels)
        initialize(self.cls, config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        **inputs: Any,
    ) -> HeadOutput:
        """Logits [B, num_labels]; `labels` are soft targets of that shape, the loss is KL divergence per example.

        The other arguments are `VisualBertModel.forward`'s. `attention_mask` [B, T] is required and its zeros must be
        on the right, because it says which token is read. Raises ValueError without it.
        """
        mask = _needed(attention_mask, "attention_mask", "the head reads the last text token but one")
        states = self.visual_bert(input_ids, mask, **inputs)
        position = (mask.long().sum(1) - 2)[:, None, None].expand(-1, 1, states.last_hidden_state.shape[-1])
        logits = self.cls(self.dropout(states.last_hidden_state.gather(1, position).squeeze(1)))
        loss = None if labels is None else _divergence(logits, labels)
        return _output(logits, loss, states)


class VisualBertForVisualReasoning(Pretrained):
    """Scores of `num_labels` classes (NLVR2: False, True), read off the pooled [CLS] state."""

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__(config)
        self.visual_bert = VisualBertModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.cls = nn.Linear(config.hidden_size, config.num_labels)
        initialize(self.cls, config)

    def forward(self, input_ids: Tensor | None = None, *, labels: Tensor | None = None, **inputs: Any) -> HeadOutput:
        """Logits [B, num_labels]; `labels` long [B], the loss is cross-entropy.

        The other arguments are `VisualBertModel.forward`'s.
        """
        states = self.visual_bert(input_ids, **inputs)
        logits = self.cls(self.dropout(states.pooler_output))
        loss = None if labels is None else functional.cross_entropy(logits, labels.view(-1))
        return _output(logits, loss, states)


class VisualBertForMultipleChoice(Pretrained):
    """One score per choice (VCR), read off the pooled [CLS] state of each choice's own sequence."""

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__(config)
        self.visual_bert = VisualBertModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.cls = nn.Linear(config.hidden_size, 1)
        initialize(self.cls, config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        image_text_alignment: Tensor | None = None,
        labels: Tensor | None = None,
        **inputs: Any,
    ) -> HeadOutput:
        """Logits [B, C]; `labels` long [B], the loss is cross-entropy over choices.

        The other arguments are `VisualBertModel.forward`'s with a choice axis second: `input_ids` [B, C, T],
        `visual_embeds` [B, C, V, D]. `image_text_alignment` may be [B, C, V, A] or, as in transformers, [B * C, V, A].
        """
        words = input_ids if inputs_embeds is None else inputs_embeds
        choices = _needed(words, "input_ids", "they say how many choices there are").shape[1]
        flat = {key: value.flatten(0, 1) if isinstance(value, Tensor) else value for key, value in inputs.items()}
        if image_text_alignment is not None and image_text_alignment.dim() == 4:
            image_text_alignment = image_text_alignment.flatten(0, 1)
        states = self.visual_bert(
            None if input_ids is None else input_ids.flatten(0, 1),
            inputs_embeds=None if inputs_embeds is None else inputs_embeds.flatten(0, 1),
            image_text_alignment=image_text_alignment,
            **flat,
        )
        logits = self.cls(self.dropout(states.pooler_output)).view(-1, choices)
        loss = None if labels is None else functional.cross_entropy(logits, labels.view(-1))
        return _output(logits, loss, states)


class VisualBertForRegionToPhraseAlignment(Pretrained):
    """A score per phrase and region (Flickr30K Entities): one attention head between their last states.

    The pre-training heads `cls.*` and `attention.value` take no part; they are here because checkpoints hold them.
    """

    tied: ClassVar[Mapping[str, str]] = {
        "cls.predictions.decoder.weight": "visual_bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__(config)
        self.visual_bert = VisualBertModel(config)
        self.cls = PreTrainingHeads(config)
        self.attention = RegionToPhraseAttention(config)
        initialize(self.cls, config)
        initialize(self.attention, config)
        self.tie_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        visual_attention_mask: Tensor | None = None,
        region_to_phrase_position: Tensor | None = None,
        labels: Tensor | None = None,
        **inputs: Any,
    ) -> HeadOutput:
        """Logits [B, K, V], the lowest finite number for masked regions; rows of padded phrases mean nothing.

        `region_to_phrase_position` long [B, K] is the text position that stands for each phrase, padded with -1;
        `labels` float [B, K, V] are target distributions (all zero for a phrase without a matching region or a padded
        one), the loss is KL divergence per example. The other arguments are `VisualBertModel.forward`'s. Raises
        ValueError without positions or without both masks.
        """
        positions = _needed(region_to_phrase_position, "region_to_phrase_position", "it says where a phrase is")
        text_mask = _needed(attention_mask, "attention_mask", "it says where the regions start")
        visual_mask = _needed(visual_attention_mask, "visual_attention_mask", "it says which regions exist")
        states = self.visual_bert(input_ids, text_mask, visual_attention_mask=visual_mask, **inputs)
        hidden = states.last_hidden_state
        phrases = hidden.gather(1, positions.clamp(min=0).unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        logits = self.attention(phrases, hidden[:, text_mask.shape[1] :], visual_mask)
        loss = None if labels is None else _divergence(logits, labels)
        return _output(logits, loss, states)


class RegionToPhraseAttention(nn.Module):
    """Scaled dot products of phrases and regions in the width of one encoder head."""

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__()
        width = config.hidden_size // config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, width)
        self.key = nn.Linear(config.hidden_size, width)
        self.value = nn.Linear(config.hidden_size, width)

    def forward(self, phrases: Tensor, regions: Tensor, mask: Tensor) -> Tensor:
        query, key = self.query(phrases), self.key(regions)
        scores: Tensor = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
        return scores.masked_fill(~mask.bool()[:, None, :], torch.finfo(scores.dtype).min)


class PreTrainingHeads(nn.Module):
    """Parameters of the masked-language and sentence-image heads."""

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__()
        self.predictions = LanguageModelHead(config)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)


class LanguageModelHead(nn.Module):
    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__()
        self.transform = LanguageModelTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))


class LanguageModelTransform(nn.Module):
    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


def _output(logits: Tensor, loss: Tensor | None, states: VisualBertOutput) -> HeadOutput:
    return HeadOutput(logits, loss, states.hidden_states, states.attentions)


def _divergence(logits: Tensor, targets: Tensor) -> Tensor:
    # float32 even under autocast, which on the CPU would round the log-probabilities to bfloat16.
    return functional.kl_div(logits.float().log_softmax(-1), targets, reduction="batchmean")


def _needed(value: Tensor | None, name: str, why: str) -> Tensor:
    if value is None:
        raise ValueError(f"{name} is required: {why}")
    return value
