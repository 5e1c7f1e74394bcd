"""A captioner behind the `Trainable` contract: an image and one of its captions.

The loss is that of transformers' VisionEncoderDecoderModel: the mean cross-entropy over the tokens of all captions of a
batch, so a long caption counts more than a short one.
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

from visualbert_core.errors import CheckpointError
from visualbert_core.models.captioner.checks import positions
from visualbert_core.models.captioner.folder import POOLER, open_parts
from visualbert_core.models.captioner.training import caption_ids, padded_labels, summed_loss
from visualbert_core.models.trainable import Item, Start
from visualbert_core.models.transformers_folder import load_network
from visualbert_core.models.transformers_training import TransformersTrainable, check_start, set_dropout
from visualbert_core.schema import Captioning, CaptionPair, Example, Pixels, Target

INGREDIENT = "training"

_CPU = torch.device("cpu")
_SIDE = 16  # pixels of a patch, for an encoder whose configuration does not say; only the size of passes depends on it

Prepared = tuple[tuple[Tensor, Tensor], ...]
"""For each size of images: pixels [n, 3, height, width] and labels int [n, L]."""


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
        self._name_tokens()
        self._check_end()

    def _opened(self) -> Any:
        import transformers

        kind, config = transformers.VisionEncoderDecoderModel, self._parts.config
        if self._start.weights == "random":
            return kind(config)
        return load_network(kind, self._folder, "float32", _CPU, unread=POOLER, config=config)

    def _name_tokens(self) -> None:
        """Name the special tokens in both configurations: training reads the one, and writing the other."""
        for key, value in self._parts.special.items():
            if value is None:
                continue
            setattr(self.network.generation_config, key, value)
            if key in ("decoder_start_token_id", "pad_token_id"):
                setattr(self.network.config, key, value)

    def _check_end(self) -> None:
        tokenizer, ends = self._parts.tokenizer, self._parts.special["eos_token_id"]
        end = caption_ids(tokenizer, "")[-1]
        if end not in ends:
            raise CheckpointError(
                f"{self._folder}: eos_token_id is {', '.join(map(str, ends))}, but its tokenizer ends captions with "
                f"{end} ({tokenizer.convert_ids_to_tokens(end)}), so writing would not stop at the end that is learnt: "
                f"set eos_token_id to {end}"
            )

    def has_target(self, target: Target) -> bool:
        """Return whether a caption has a word."""
        return isinstance(target, str) and bool(target.strip())

    def encode(
        self,
        example: Example | CaptionPair,
        visual: tuple[Pixels, ...],
        target: Target,
        draws: random.Random,
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
