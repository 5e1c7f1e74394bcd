"""A captioner behind the `Trainable` contract: an image and one of its captions. And labels and a loss for a loop of
your own.

The loss is that of transformers' VisionEncoderDecoderModel: the mean cross-entropy over the tokens of all captions of a
batch, so a long caption counts more than a short one. The VisionEncoderDecoder page of Hugging Face's documentation
trains on one caption. With several, the shorter ones are padded. Padding must be -100 in the labels: with any other
number the network is trained to write padding, and transformers says nothing.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from visualbert_core.errors import CheckpointError, InputError
from visualbert_core.models.captioner.folder import POOLER, REQUIRED, open_parts, positions
from visualbert_core.models.trainable import Item, Start
from visualbert_core.models.transformers_folder import load_network
from visualbert_core.models.transformers_training import TransformersTrainable, check_start, set_dropout
from visualbert_core.schema import Captioning, CaptionPair, Example, Pixels, Target

INGREDIENT = "training"

IGNORED = -100
"""The label without a loss, as in PyTorch's cross-entropy."""
_SIDE = 16  # pixels of a patch, for an encoder whose configuration does not say; only the size of passes depends on it

Prepared = tuple[tuple[Tensor, Tensor], ...]
"""For each size of images: pixels [n, 3, height, width] and labels int [n, L]."""


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
    return pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], True, IGNORED)


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


@dataclass(frozen=True, eq=False)
class Content:
    """An image as the encoder reads it, float32 [3, height, width], and the tokens of a caption."""

    pixels: Tensor
    ids: tuple[int, ...]


class CaptionerTrainable(TransformersTrainable):
    """A joined network with its image processor and its tokenizer."""

    terms = ("words",)

    def __init__(self, folder: Path, form: type[Example] | type[CaptionPair], start: Start) -> None:
        """Open a folder. With random weights it needs the configurations, the image processor and the tokenizer alone.

        Raise CheckpointError where it is incomplete, contradicts itself or would not learn to end a caption. Raise
        ConfigError where `start` does not fit it.
        """
        if form is not Captioning:
            raise CheckpointError(f"{folder}: a captioner learns Captioning and not {form.__name__}")
        check_start(folder, start)
        self._parts = open_parts(folder)
        for part in (self._parts.config.encoder, self._parts.config.decoder):
            set_dropout(part, start.dropout)
        super().__init__(folder, start, self._opened)
        tokens = self._parts.special
        for key, value in tokens.items():  # in both configurations: training reads the one, and writing the other
            if value is not None:
                setattr(self.network.generation_config, key, value)
            if key in ("decoder_start_token_id", "pad_token_id"):
                setattr(self.network.config, key, value)
        tokenizer, ends = self._parts.tokenizer, tokens["eos_token_id"]
        end = caption_ids(tokenizer, "")[-1]
        if end not in ends:
            raise CheckpointError(
                f"{folder}: eos_token_id is {', '.join(map(str, ends))}, but its tokenizer ends captions with {end} "
                f"({tokenizer.convert_ids_to_tokens(end)}), so writing would not stop at the end that is learnt: set "
                f"eos_token_id to {end}"
            )

    def _opened(self) -> Any:
        import transformers

        kind, config = transformers.VisionEncoderDecoderModel, self._parts.config
        if self._start.weights == "random":
            return kind(config)
        return load_network(kind, self._folder, "float32", torch.device("cpu"), unread=POOLER, config=config)

    def has_target(self, target: Target) -> bool:
        """Return whether a caption has a word."""
        return isinstance(target, str) and bool(target.strip())

    def encode(
        self, example: Example | CaptionPair, visual: tuple[Pixels, ...], target: Target, draws: random.Random
    ) -> Item:
        """Turn an image and its caption into an item. A caption without a word has no token to learn.

        A caption that is longer than the decoder reads loses its end.
        """
        assert isinstance(target, str)
        with self._lock:
            ids = caption_ids(self._parts.tokenizer, target) if self.has_target(target) else []
        ids = ids[: positions(self._parts.config.decoder)]
        pixels = self._parts.pixels(visual[0].rgb)
        return Item(example.example_id, self._patches(pixels) + len(ids), (len(ids),), Content(pixels, tuple(ids)))

    def _patches(self, pixels: Tensor) -> int:
        side = getattr(self._parts.config.encoder, "patch_size", _SIDE)
        side = side if isinstance(side, int) else side[0]
        return int(pixels.shape[1] // side) * int(pixels.shape[2] // side)

    def prepare(self, items: Sequence[Item]) -> Prepared:
        """Stack images of one size with their labels. Items without a token to learn are left out."""
        sizes: dict[tuple[int, ...], list[Content]] = defaultdict(list)
        for item in items:
            if item.content.ids:
                sizes[tuple(item.content.pixels.shape)].append(item.content)
        return tuple(
            (torch.stack([each.pixels for each in contents]), padded_labels([each.ids for each in contents]))
            for contents in sizes.values()
        )

    def padded(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Return the arguments of the network of transformers, `pixel_values` and `labels`.

        Raise CheckpointError where the images have different sizes, which a batch of transformers cannot hold.
        """
        contents: list[Content] = [item.content for item in items]
        sizes = {tuple(each.pixels.shape) for each in contents}
        if len(sizes) > 1:
            raise CheckpointError(
                f"{self._folder}: its image processor gives images of different sizes, which one tensor cannot hold: "
                "set a fixed size in preprocessor_config.json, or batch_size to 1"
            )
        return {
            "pixel_values": torch.stack([each.pixels for each in contents]),
            "labels": padded_labels([each.ids for each in contents]),
        }

    def losses(self, prepared: Prepared) -> Tensor:
        """Return the sum of the losses of the tokens: float32 [1]."""
        device, smoothing = self.network.device, self._start.label_smoothing
        sums = [
            summed_loss(self.network, pixels.to(device), labels.to(device), smoothing) for pixels, labels in prepared
        ]
        if not sums:  # no item of the pass has a token; the sum still needs a gradient
            sums = [next(each for each in self.network.parameters() if each.requires_grad).sum() * 0]
        return torch.stack(sums).sum()[None]

    def save(self, folder: Path, task: str | None, space: str | None) -> None:
        """Write both configurations, float32 weights, the image processor and the tokenizer into `folder`."""
        self.network.save_pretrained(folder)
        self._parts.image_processor.save_pretrained(folder)
        self._parts.tokenizer.save_pretrained(folder)
