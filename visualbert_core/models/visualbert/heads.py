"""The heads of VisualBERT for the four tasks and for pre-training.

Owns which state each head reads, and each loss (VisualBERT, Li et al. 2019; transformers `modeling_visual_bert`). The
forward arguments are those of Hugging Face transformers: those of `VisualBertModel.forward`, and what the docstring of
a head says. Given the same tensors, logits and losses are equal to those of transformers, with five deliberate
differences:

    raw logits        logits stay raw if labels are given; transformers returns their log-softmax for question answering
    shared features   multiple choice also takes features as [B, V, D] and `image_text_alignment` as [B, C, V, A]
    pre-training      labels need no masks, and `sentence_image_labels` alone give a loss; transformers gives none
    masks             may have any dtype
    wrong inputs      are a ValueError where transformers is silently wrong, as for padding on the left of a question
                      (see `input_checks`)

Shapes: B examples, C choices, T text tokens, V regions, K phrases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from visualbert_core.models.visualbert.checkpoint.pretrained import Pretrained
from visualbert_core.models.visualbert.config import VisualBertConfig
from visualbert_core.models.visualbert.input_checks import (
    IGNORED,
    require,
    require_ids,
    require_shape,
    require_text_first,
)
from visualbert_core.models.visualbert.inputs import Encoded, alignment, check_sizes
from visualbert_core.models.visualbert.modeling import ACTIVATION, VisualBertModel, VisualBertOutput, initialize
from visualbert_core.schema import Example, Grounding, MultipleChoice, Question, Statement


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
    check_sizes(features)
    found = {
        "input_ids": _rows(s.input_ids for s in sequences),
        "attention_mask": _rows([1] * text for text in texts),
        "token_type_ids": _rows(s.token_type_ids for s in sequences),
        "visual_embeds": pad_sequence([torch.from_numpy(each).float() for each in features], batch_first=True),
        "visual_attention_mask": _rows([1] * region for region in regions),
        "visual_token_type_ids": _rows(s.visual_types for s in sequences),
    }
    if sequences[0].mentions is not None:
        found["image_text_alignment"] = pad_sequence([*alignment(sequences).split_with_sizes(regions)], True, -1)
    if sequences[0].phrases is not None:
        found["region_to_phrase_position"] = _rows((s.phrases or () for s in sequences), fill=-1)
    if isinstance(batch[0], Encoded):
        return found
    return {name: tensor.view(len(batch), *choices, *tensor.shape[1:]) for name, tensor in found.items()}


def _rows(values: Iterable[Sequence[int] | np.ndarray], fill: int = 0) -> Tensor:
    """Return the rows padded to the length of the longest: long [B, longest]."""
    return pad_sequence([torch.as_tensor(row, dtype=torch.long) for row in values], True, fill)


@dataclass(frozen=True)
class HeadOutput:
    """The output of a head. `loss` is None without labels. The last two fields are None unless the caller asks."""

    logits: Tensor
    loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class PreTrainingOutput:
    """The output of the pre-training heads. `loss` is None without labels, the last two fields unless asked for."""

    prediction_logits: Tensor  # [B, T + V, vocab_size]
    seq_relationship_logits: Tensor  # [B, 2]
    loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class HeadNetwork(Pretrained):
    """A trunk with a head."""

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__(config)
        self.visual_bert = VisualBertModel(config)


class Classifier(HeadNetwork):
    """A trunk with dropout and one dense layer, `cls`, of `labels` outputs."""

    def __init__(self, config: VisualBertConfig, labels: int | None = None) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.cls = nn.Linear(config.hidden_size, config.num_labels if labels is None else labels)
        initialize(self.cls, config)


class VisualBertForQuestionAnswering(Classifier):
    """Scores `num_labels` answers from the state of the second-last text token ([MASK] in the authors' layout)."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        **inputs: Any,
    ) -> HeadOutput:
        """Return logits [B, num_labels].

        `labels` are soft targets of the same shape. The loss is the KL divergence, averaged over the examples.
        `attention_mask` [B, T] is required, because it says which token the head reads: at least two ones in each row,
        and zeros only on the right. Raise ValueError for any other mask.
        """
        mask = require(attention_mask, "attention_mask", "the head reads the second-last text token")
        require_shape("attention_mask", mask, B=None, T=None)
        require_text_first(mask)
        states = self.visual_bert(input_ids, mask, **inputs)
        position = (mask.bool().sum(1) - 2)[:, None, None].expand(-1, 1, states.last_hidden_state.shape[-1])
        logits = self.cls(self.dropout(states.last_hidden_state.gather(1, position).squeeze(1)))
        return _output(states, logits, labels, _divergence)


class VisualBertForVisualReasoning(Classifier):
    """Scores `num_labels` classes (NLVR2: False, True) from the pooled [CLS] state."""

    def forward(self, input_ids: Tensor | None = None, *, labels: Tensor | None = None, **inputs: Any) -> HeadOutput:
        """Return logits [B, num_labels]. `labels` are long [B]. The loss is cross-entropy."""
        states = self.visual_bert(input_ids, **inputs)
        logits = self.cls(self.dropout(states.pooler_output))
        return _output(states, logits, labels, _cross_entropy)


class VisualBertForMultipleChoice(Classifier):
    """Scores each choice (VCR) from the pooled [CLS] state of its sequence. Every choice has a sequence."""

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__(config, labels=1)

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        image_text_alignment: Tensor | None = None,
        labels: Tensor | None = None,
        **inputs: Any,
    ) -> HeadOutput:
        """Return logits [B, C].

        `labels` are long [B]. The loss is cross-entropy over the choices. The other arguments have a choice axis in
        second place: `input_ids` [B, C, T], `visual_embeds` [B, C, V, D]. `visual_embeds`, `visual_attention_mask` and
        `visual_token_type_ids` may leave this axis out. All choices then see the same regions. `image_text_alignment`
        may be [B, C, V, A] or, as in transformers, [B * C, V, A].
        """
        if inputs_embeds is None:
            words = require(input_ids, "input_ids", "they say how many choices there are")
            require_shape("input_ids", words, B=None, C=None, T=None)
        else:
            words = inputs_embeds
            require_shape("inputs_embeds", words, B=None, C=None, T=None, hidden=self.config.hidden_size)
        examples, choices = words.shape[:2]
        if image_text_alignment is not None and image_text_alignment.dim() == 4:
            image_text_alignment = image_text_alignment.flatten(0, 1)
        states = self.visual_bert(
            None if input_ids is None else input_ids.flatten(0, 1),
            inputs_embeds=None if inputs_embeds is None else inputs_embeds.flatten(0, 1),
            image_text_alignment=image_text_alignment,
            **{
                name: _flat_choices(name, value, examples, choices) if isinstance(value, Tensor) else value
                for name, value in inputs.items()
            },
        )
        logits = self.cls(self.dropout(states.pooler_output)).view(-1, choices)
        return _output(states, logits, labels, _cross_entropy)


TIED_DECODER = {
    "cls.predictions.decoder.weight": "visual_bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
"""Copy → original, as transformers ties them."""


class VisualBertForPreTraining(HeadNetwork):
    """Predicts a word for every position, regions included, and whether the sentence belongs to the image."""

    tied: ClassVar[Mapping[str, str]] = TIED_DECODER

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__(config)
        self.cls = PreTrainingHeads(config)
        initialize(self.cls, config)
        self.tie_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        sentence_image_labels: Tensor | None = None,
        **inputs: Any,
    ) -> PreTrainingOutput:
        """Return logits over words [B, T + V, vocab_size] and over {sentence of the image, random sentence} [B, 2].

        `labels` long [B, T + V] are the masked words. They are -100 at every position without a target, so at all
        regions. `sentence_image_labels` long [B] are 0 for the sentence of the image and 1 for a random one. The loss
        is the sum of the cross-entropies of the labels that are given; either may be left out. Raise ValueError if
        `labels` are not as long as text and regions together.
        """
        states = self.visual_bert(input_ids, **inputs)
        words, sentences = self.cls(states.last_hidden_state, states.pooler_output)
        losses = []
        if labels is not None:
            require_shape("labels", labels, **{"B": words.shape[0], "T+V": words.shape[1]})
            losses.append(_cross_entropy(words.flatten(0, 1), labels))
        if sentence_image_labels is not None:
            losses.append(_cross_entropy(sentences, sentence_image_labels, "sentence_image_labels"))
        loss = torch.stack(losses).sum() if losses else None
        return PreTrainingOutput(words, sentences, loss, states.hidden_states, states.attentions)


class VisualBertForRegionToPhraseAlignment(HeadNetwork):
    """Scores each region for each phrase (Flickr30K Entities) with one attention head over their last states.

    The forward does not use the pre-training heads `cls.*` and `attention.value`. They exist because checkpoints hold
    them.
    """

    tied: ClassVar[Mapping[str, str]] = TIED_DECODER

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__(config)
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
        """Return logits [B, K, V].

        Masked regions get the lowest finite number. Rows of padded phrases have no meaning.
        `region_to_phrase_position` long [B, K] is the text position that stands for each phrase, padded with -1.
        `labels` float [B, K, V] are target distributions over the regions. They are all zero for a padded phrase and
        for a phrase without a matching region. The loss is the KL divergence, averaged over the examples. Raise
        ValueError without positions or without both masks.
        """
        positions = require(region_to_phrase_position, "region_to_phrase_position", "it says where a phrase is")
        text_mask = require(attention_mask, "attention_mask", "it says where the regions start")
        visual_mask = require(visual_attention_mask, "visual_attention_mask", "it says which regions exist")
        require_shape("attention_mask", text_mask, B=None, T=None)
        require_shape("region_to_phrase_position", positions, B=text_mask.shape[0], K=None)
        require_ids("region_to_phrase_position", positions, text_mask.shape[1], least=-1)
        states = self.visual_bert(input_ids, text_mask, visual_attention_mask=visual_mask, **inputs)
        hidden = states.last_hidden_state
        phrases = hidden.gather(1, positions.long().clamp(min=0).unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        logits = self.attention(phrases, hidden[:, text_mask.shape[1] :], visual_mask)
        return _output(states, logits, labels, _divergence)


NETWORKS: dict[type[Example], type[HeadNetwork]] = {
    Question: VisualBertForQuestionAnswering,
    MultipleChoice: VisualBertForMultipleChoice,
    Statement: VisualBertForVisualReasoning,
    Grounding: VisualBertForRegionToPhraseAlignment,
}
"""Form of example → the network that answers it."""


class RegionToPhraseAttention(nn.Module):
    """Scaled dot products of phrases and regions, in the width of one attention head of the encoder."""

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
    """The masked-language head and the sentence-image head."""

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__()
        self.predictions = LanguageModelHead(config)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)

    def forward(self, hidden: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        return self.predictions(hidden), self.seq_relationship(pooled)


class LanguageModelHead(nn.Module):
    """One dense layer with activation and LayerNorm, then a decoder that shares its weights with the word table."""

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__()
        self.activation = ACTIVATION[config.hidden_act]
        self.transform = nn.ModuleDict(
            {
                "dense": nn.Linear(config.hidden_size, config.hidden_size),
                "LayerNorm": nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps),
            }
        )
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        # The same tensor as `decoder.bias` (see TIED_DECODER). Both names exist because checkpoints hold both.
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor) -> Tensor:
        transformed = self.transform["LayerNorm"](self.activation(self.transform["dense"](hidden)))
        return self.decoder(transformed)  # type: ignore[no-any-return]


def _output(
    states: VisualBertOutput, logits: Tensor, labels: Tensor | None, loss: Callable[[Tensor, Tensor], Tensor]
) -> HeadOutput:
    found = None if labels is None else loss(logits, labels)
    return HeadOutput(logits, found, states.hidden_states, states.attentions)


def _flat_choices(name: str, value: Tensor, examples: int, choices: int) -> Tensor:
    """Return one row per choice. A tensor about regions may lack the choice axis; its rows are then repeated."""
    axes = {"visual_embeds": "VD", "visual_attention_mask": "V", "visual_token_type_ids": "V"}.get(name)
    if axes is not None and value.dim() == 1 + len(axes):
        return value.unsqueeze(1).expand(-1, choices, *value.shape[1:]).flatten(0, 1)
    require_shape(name, value, **{"B": examples, "C": choices, **dict.fromkeys(axes or "T")})
    return value.flatten(0, 1)


def _cross_entropy(logits: Tensor, labels: Tensor, name: str = "labels") -> Tensor:
    """Return the mean over logits [N, classes]. Label -100 is ignored."""
    if labels.numel() != logits.shape[0]:
        raise ValueError(f"{name} must hold {logits.shape[0]} labels, got {list(labels.shape)}")
    require_ids(name, labels, logits.shape[1], ignored=IGNORED)
    return functional.cross_entropy(logits, labels.reshape(-1).long(), ignore_index=IGNORED)


def _divergence(logits: Tensor, targets: Tensor) -> Tensor:
    # The loss would broadcast other shapes without an error.
    if not targets.is_floating_point() or targets.shape != logits.shape:
        kind = f"{list(targets.shape)} of {targets.dtype}"
        raise ValueError(f"labels must be floating-point targets {list(logits.shape)}, got {kind}")
    # float32 even under autocast: on the CPU, autocast would round the log-probabilities to bfloat16.
    return functional.kl_div(logits.float().log_softmax(-1), targets, reduction="batchmean")
