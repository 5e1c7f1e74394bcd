"""Labels and losses of captions, as the VisionEncoderDecoder page of Hugging Face's documentation has them.

The page trains on one caption. With several, the shorter ones are padded. Padding must be -100 in the labels: with any
other number the network is trained to write padding, and transformers says nothing. `trainable` trains with these
functions; `caption_labels` and `caption_loss` are for a loop of your own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from visualbert_core.errors import CheckpointError, InputError
from visualbert_core.models.captioner.checks import REQUIRED

INGREDIENT = "training"

IGNORED = -100
"""The label without a loss, as in PyTorch's cross-entropy."""


def caption_ids(tokenizer: Any, caption: str) -> list[int]:
    """Return the tokens of a caption that are learnt: those that the tokenizer gives, and an end token.

    The tokenizer's own start token is among them, as on the page. An end token is added where the tokenizer gives none,
    as GPT-2's does: without it the network would not learn to end.
    """
    end = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    ids = list(tokenizer(caption).input_ids)
    return ids if ids and ids[-1] == end else [*ids, end]


def padded_labels(rows: Sequence[Sequence[int]]) -> Tensor:
    """Return the labels of captions of different lengths, int64 [captions, longest]: their tokens, then -100."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *([IGNORED] * (longest - len(row)))] for row in rows])


def caption_labels(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    """Return the labels of captions, int64 [captions, longest]. Raise InputError for no caption."""
    if not captions:
        raise InputError("there is no caption to train on")
    return padded_labels([caption_ids(tokenizer, caption) for caption in captions])


def summed_loss(model: Any, pixel_values: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the sum of the cross-entropy over the tokens, with a gradient. It is float32 under autocast too.

    `smoothing` is the share of each target that all tokens get alike.
    """
    asked = model.prepare_decoder_input_ids_from_labels(labels)
    logits = model(pixel_values=pixel_values, decoder_input_ids=asked).logits.float()
    with torch.autocast(logits.device.type, enabled=False):
        return functional.cross_entropy(
            logits.flatten(0, 1),
            labels.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=smoothing,
        )


def caption_loss(model: Any, pixel_values: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of a VisionEncoderDecoderModel, with a gradient: the mean cross-entropy over the tokens.

    `pixel_values` is float [B, 3, H, W] and `labels` int64 [B, L]. Raise InputError where labels are padded with the
    padding token or with 0. Raise CheckpointError where the model's configuration has no start or padding token.
    """
    for key in ("decoder_start_token_id", "pad_token_id"):
        if getattr(model.config, key, None) is None:
            raise CheckpointError(
                f"the configuration of the model has no {key}, which training puts in front of a caption or behind it: "
                f"set it to the {REQUIRED[key][0]} token of the tokenizer, in generation_config too"
            )
    _check_padding(labels, model.config)
    return summed_loss(model, pixel_values, labels) / (labels != IGNORED).sum()


def _check_padding(labels: Tensor, config: Any) -> None:
    """Raise InputError where a row ends in padding. A token that also ends or begins captions may come once."""
    pad = config.pad_token_id
    once = pad in (config.eos_token_id, config.decoder_start_token_id)
    for number, row in enumerate(labels.tolist()):
        last = [label for label in row if label != IGNORED][-2:]
        if (last[-1:] == [pad] and not once) or last in ([pad, pad], [0, 0]):
            raise InputError(
                f"row {number} of the labels ends in {last[-1]}: the padding of labels must be {IGNORED}, or the "
                "network is trained to write it; make the labels with caption_labels"
            )
