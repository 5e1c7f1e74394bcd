"""A captioner folder behind the `Model` contract: the pixels of an image in, a caption out.

The folder is one of `model_type` vision-encoder-decoder, as transformers saves it with its image processor and its
tokenizer.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from visualbert_core.config import AnsweringConfig
from visualbert_core.errors import ConfigError
from visualbert_core.models.base import NOT_FINITE, Family, ReadsPixels
from visualbert_core.models.captioner.folder import POOLER, open_parts, positions
from visualbert_core.models.generative.protocol import CAPTION, Decoding, chosen
from visualbert_core.models.trainable import Start
from visualbert_core.models.transformers_folder import folder_fingerprint, load_network, opened
from visualbert_core.models.writing import Written, write
from visualbert_core.schema import Captioning, CaptionPair, Example, Failure, Generated, Pixels, Prediction

if TYPE_CHECKING:
    from visualbert_core.models.captioner.training import CaptionerTrainable

_GREY = np.full((64, 96, 3), 128, np.uint8)


class Captioner(Family):
    """Describes images. The default is a greedy search with at most 30 new tokens. Threads may share it."""

    visual_source = "pixels"
    called = "a captioner"
    answered = (Captioning,)
    settings = ("beams", "length_penalty", "max_new_tokens")
    reads = ReadsPixels()
    forms: frozenset[type[Example]] = frozenset({Captioning})

    def __init__(
        self, folder: Path, form: type[Example], device: torch.device, precision: str, answering: AnsweringConfig
    ) -> None:
        """Open a folder. Callers use `from_pretrained`, which checks the arguments first."""
        self._parts = parts = open_parts(folder)
        import transformers  # behind the check that it is installed

        config = parts.config
        self._decoding = decoding = _decoding(folder, answering, config)
        self._network = load_network(transformers.VisionEncoderDecoderModel, folder, precision, device, unread=POOLER)
        self._check_image(folder)
        self.name = f"{config.encoder.model_type} + {config.decoder.model_type}"
        self.protocol = f"generate, {decoding}"
        self._lock = threading.Lock()
        self._fingerprint = {
            "class": "VisionEncoderDecoderModel",
            "precision": precision,
            "decoding": decoding.settings(),
            "special_tokens": self._parts.special,
            "image_processor": type(self._parts.image_processor).__name__,
            **folder_fingerprint(folder),
        }

    @classmethod
    def without_weights(
        cls, folder: str | Path, form: type[Example], precision: str, answering: AnsweringConfig
    ) -> ReadsPixels | None:
        """Return the pixels that the model would read. Raise ConfigError also for captions longer than it can write."""
        reads = super().without_weights(folder, form, precision, answering)
        _decoding(Path(folder), answering, open_parts(Path(folder)).config)
        return reads

    @classmethod
    def to_train(cls, folder: Path, form: type[Example] | type[CaptionPair], start: Start) -> CaptionerTrainable:
        """Open a folder to train it. See `training.CaptionerTrainable`."""
        from visualbert_core.models.captioner.training import CaptionerTrainable  # only a training needs it

        return CaptionerTrainable(folder, form, start)

    def predict(self, batch: Sequence[tuple[Example, tuple[Pixels, ...]]]) -> list[Prediction | Failure]:
        """Describe every image, in order. The score is the probability of the caption, where the search is greedy.

        An empty caption is an answer. An image for which the network gives NaN gets a `Failure`.
        """
        prepared = [self._parts.pixels(image.rgb) for _, (image,) in batch]
        by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for row, pixels in enumerate(prepared):
            by_shape[tuple(pixels.shape)].append(row)
        written: dict[int, Written] = {}
        with self._lock:
            for rows in by_shape.values():
                written |= zip(rows, self._write([prepared[row] for row in rows], self._decoding), strict=True)
        return [self._prediction(example, written[row]) for row, (example, _) in enumerate(batch)]

    def _write(self, pixels: Sequence[Tensor], decoding: Decoding) -> list[Written]:
        batch = torch.stack(list(pixels)).to(self._network.device, self._network.dtype)
        return write(self._network, {"pixel_values": batch}, self._parts.special, decoding, start=1)

    def _prediction(self, example: Example, written: Written) -> Prediction | Failure:
        if written.probability is not None and not np.isfinite(written.probability):
            return Failure(example.example_id, "predict", "NotFinite", NOT_FINITE)
        text: str = self._parts.tokenizer.decode(written.ids, skip_special_tokens=True)
        scores = () if written.probability is None else (written.probability,)
        generated = (Generated(text, cut=written.cut),)
        return Prediction(example.example_id, example.image_ids[0], text.strip(), scores, generated)

    def _check_image(self, folder: Path) -> None:
        """Write one token about a grey image. Raise CheckpointError where the parts of the folder do not fit."""
        what = "an image, as its image processor prepares it,"
        opened(folder, what, lambda: self._write([self._parts.pixels(_GREY)], Decoding(max_new_tokens=1)))


def _decoding(folder: Path, answering: AnsweringConfig, config: Any) -> Decoding:
    """Return how captions are written. Raise ConfigError where they may be longer than the decoder reads."""
    decoding, most = replace(CAPTION, **chosen(answering, Decoding)), positions(config.decoder)
    # The last token is written and not read. The start token is read.
    if most is not None and decoding.max_new_tokens > most:
        raise ConfigError(
            f"{folder}: max_new_tokens is {decoding.max_new_tokens}, and the decoder reads {most} tokens: set "
            f"max_new_tokens to at most {most}"
        )
    return decoding
