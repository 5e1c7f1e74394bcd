"""A generative vision-language model behind the `Model` contract: any model type of transformers' Auto class.

What is particular to a form of example lies in `question`, `statement`, `multiple_choice`, `grounding` and
`captioning`. They make prompts and read what comes back, and know no network. A folder may have any name, so the sizes
in its `config.json` say whose published numbers are its own (Li et al. 2023, arXiv:2301.12597, and the configurations
of the published checkpoints as transformers has them).
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visualbert_core.config import AnsweringConfig
from visualbert_core.errors import ConfigError, first_line
from visualbert_core.models.base import NOT_FINITE, Family, ReadsPixels
from visualbert_core.models.generative import captioning, grounding, multiple_choice, question, statement
from visualbert_core.models.generative.asked import Asked, Outcome
from visualbert_core.models.generative.box_formats import FORMATS, Resize
from visualbert_core.models.generative.inputs import Tensors
from visualbert_core.models.generative.network import GenerativeNetwork
from visualbert_core.models.generative.protocol import Decoding, Protocol, resolve
from visualbert_core.models.transformers_folder import folder_fingerprint, read_config
from visualbert_core.schema import (
    Captioning,
    Example,
    Failure,
    Grounding,
    MultipleChoice,
    Pixels,
    Prediction,
    Question,
    Statement,
)

FILES = {
    Question: question,
    Statement: statement,
    MultipleChoice: multiple_choice,
    Grounding: grounding,
    Captioning: captioning,
}
WRITTEN = (Question, Captioning)
"""The forms whose answer is the text itself. Its probability is the confidence."""
SEVERAL_IMAGES = ("paligemma",)
"""Model types without a chat template that read several images."""
_GREY = np.full((64, 96, 3), 128, np.uint8)
_VISION = {1408: "ViT-g", 1024: "ViT-L"}
"""Hidden size of BLIP-2's image encoder → its name."""
_LANGUAGE = {
    ("opt", 2560): "OPT-2.7B",
    ("opt", 4096): "OPT-6.7B",
    ("t5", 2048): "FlanT5-XL",
    ("t5", 4096): "FlanT5-XXL",
}
"""Model type and hidden size of BLIP-2's language model → its name."""


@dataclass(frozen=True)
class _Asking:
    """Everything that is asked about one example."""

    example: Example
    pictures: tuple[Pixels, ...]
    asked: list[Asked]
    prompts: list[Tensors]


class GenerativeModel(Family):
    """Answers examples of one form. The weights are read at the first batch. Threads may share it."""

    visual_source = "pixels"
    called = "a generative model"
    answered = FILES
    settings = tuple(each.name for each in fields(AnsweringConfig))
    reads: ReadsPixels

    def __init__(
        self, folder: Path, form: type[Example], device: torch.device, precision: str, answering: AnsweringConfig
    ) -> None:
        """Open a folder. Callers use `from_pretrained`, which checks the arguments first."""
        config = read_config(folder)
        self._network = GenerativeNetwork(folder, precision, device)
        self._inputs = self._network.inputs
        model_type = str(config["model_type"])
        t5 = self._network.encoder_decoder
        self._protocol = resolve(form, model_type, self._inputs.chat, t5, answering)
        self._settings = self._form_settings(folder, form, model_type, answering)
        self._decoding = _decoding(self._protocol, self._settings, answering)
        self._form, self.forms = form, frozenset({form})
        self._ask: Callable[..., list[Asked]] = FILES[form].ask
        self._read: Callable[..., Any] = FILES[form].read
        self.reads = ReadsPixels(_boxes(self._settings))
        self.name = network_name(config)
        self.protocol = str(self._protocol) if form in WRITTEN else self._settings.protocol
        if isinstance(self._settings, grounding.Settings) and self._settings.by == "generate":
            self.protocol += f", {self._decoding}"
        images = (_GREY,) * (2 if form is Statement and self._settings.pair == "two" else 1)
        self._inputs.check_image(Asked(self._protocol.ask("what is this?"), images))
        self._lock, self._strict = threading.Lock(), answering.strict_length
        self._fingerprint = {
            "class": "GenerativeModel",
            "precision": precision,
            "protocol": self.protocol,
            "decoding": self._decoding.settings(),
            "special_tokens": self._network.special_tokens,
            "strict_length": answering.strict_length,
            "padding": "right" if t5 else "left",
            "image_processor": _image_processor(self._inputs.processor.image_processor),
            **folder_fingerprint(folder),
        }

    @classmethod
    def without_weights(
        cls, folder: str | Path, form: type[Example], precision: str, answering: AnsweringConfig
    ) -> ReadsPixels | None:
        """Return the pixels that the model would read. Raise all that `from_pretrained` raises."""
        return cls.from_pretrained(folder, form, "cpu", precision, answering).reads

    def predict(self, batch: Sequence[tuple[Example, tuple[Pixels, ...]]]) -> list[Prediction | Failure]:
        """Answer every example, in order. `schema.Prediction` describes the answer of each form.

        A prompt that is longer than the positions of the network gives a `Failure`, and so do an image that the image
        processor refuses and likelihoods that are not finite. Raise ConfigError under `strict_length` for a prompt that
        is too long.
        """
        failures: dict[str, Failure] = {}
        askings = []
        asked = [self._ask(example, pictures, self._settings) for example, pictures in batch]
        prepared = iter(self._inputs.prepared([each for own in asked for each in own]))
        for (example, pictures), own in zip(batch, asked, strict=True):
            found = list(itertools.islice(prepared, len(own)))
            if refused := [each for each in found if isinstance(each, ValueError)]:
                failures[example.example_id] = _refused(example, pictures, refused[0])
                continue
            asking = _Asking(example, pictures, own, [each for each in found if not isinstance(each, ValueError)])
            if too_long := self._too_long(asking):
                if self._strict:
                    raise ConfigError(f"{example.example_id}: {too_long}; without strict_length they are counted")
                failures[example.example_id] = Failure(example.example_id, "predict", "PromptTooLong", too_long)
            else:
                askings.append(asking)
        with self._lock:
            outcomes = iter(self._outcomes(askings))
        predictions = {
            asking.example.example_id: self._prediction(asking, [next(outcomes) for _ in asking.asked])
            for asking in askings
        }
        return [failures.get(each.example_id) or predictions[each.example_id] for each, _ in batch]

    def _outcomes(self, askings: Sequence[_Asking]) -> list[tuple[Outcome, float | None]]:
        asked = [each for asking in askings for each in asking.asked]
        prompts = [each for asking in askings for each in asking.prompts]
        if not asked:
            return []
        if any(each.continuations for each in asked):
            return [(outcome, None) for outcome in self._network.score(prompts, asked)]
        return self._network.write(prompts, asked, self._decoding)

    def _prediction(self, asking: _Asking, outcomes: Sequence[tuple[Outcome, float | None]]) -> Prediction | Failure:
        example = asking.example
        texts = [outcome for outcome, _ in outcomes]
        answer, scores, generated = self._read(example, asking.pictures, texts, self._settings)
        sure = outcomes[0][1] if outcomes else None
        if isinstance(example, WRITTEN) and sure is not None:
            scores = (sure,)
        likelihoods = [value for text in texts for value in text.log_likelihoods]
        if not np.isfinite([*scores, *likelihoods]).all():
            return Failure(example.example_id, "predict", "NotFinite", NOT_FINITE)
        return Prediction(example.example_id, example.image_ids[0], answer, tuple(scores), generated)

    def _too_long(self, asking: _Asking) -> str | None:
        """Return why a prompt does not fit into the network. A cut prompt would lose its question, so none is cut."""
        positions = self._network.positions
        if positions is None:
            return None
        for asked, prompt in zip(asking.asked, asking.prompts, strict=True):
            longest = max((len(self._inputs.continuation(prompt, text)) for text in asked.continuations), default=0)
            length = prompt["input_ids"].shape[1] + (longest or self._decoding.max_new_tokens)
            if length > positions:
                return f"its prompt and answer have up to {length} tokens, and the network reads {positions}"
        return None

    def _form_settings(self, folder: Path, form: type[Example], model_type: str, answering: AnsweringConfig) -> Any:
        """Return the settings of the form's file."""
        protocol = self._protocol
        if form in WRITTEN:
            return protocol
        if form is MultipleChoice:
            return multiple_choice.settings_of(answering)
        if form is Statement:
            pair = answering.pair or "two"
            if pair == "two" and not (self._inputs.chat or model_type in SEVERAL_IMAGES):
                raise ConfigError(
                    f"{folder}: a {model_type} was trained on one image at a time, and a Statement has two: set pair "
                    "stitched to show both in one picture"
                )
            return statement.Settings(protocol, pair)
        resize = _resize(self._inputs.processor.image_processor)
        return grounding.settings_of(answering, model_type, resize)


def _refused(example: Example, pictures: Sequence[Pixels], error: ValueError) -> Failure:
    shown = ", ".join(f"image {each.image_id!r} of {each.width}×{each.height} pixels" for each in pictures)
    return Failure(example.example_id, "predict", "Refused", f"the processor refuses {shown}: {first_line(error)}")


def _decoding(protocol: Protocol, settings: Any, answering: AnsweringConfig) -> Decoding:
    """Return how texts are written. A format of boxes needs as many tokens as its boxes are long."""
    if isinstance(settings, grounding.Settings) and answering.max_new_tokens is None:
        return replace(protocol.decoding, max_new_tokens=FORMATS[settings.format].new_tokens)
    return protocol.decoding


def _boxes(settings: Any) -> Any:
    if isinstance(settings, multiple_choice.Settings) and settings.people == "drawn":
        return "beside"
    return "store" if isinstance(settings, grounding.Settings) and settings.by == "likelihood" else "none"


def _resize(image_processor: Any) -> Resize | None:
    """Return how an image processor of Qwen resizes; None for another image processor."""
    patch, merged = (getattr(image_processor, name, None) for name in ("patch_size", "merge_size"))
    size = getattr(image_processor, "size", None)
    if not isinstance(patch, int) or not isinstance(merged, int) or size is None:
        return None
    return Resize(patch * merged, int(size["shortest_edge"]), int(size["longest_edge"]))


def _image_processor(image_processor: Any) -> dict[str, Any]:
    """Return the class and the sizes of an image processor. Its pixels differ between the backends of transformers."""
    size = getattr(image_processor, "size", None)
    return {"class": type(image_processor).__name__, "size": dict(size) if size is not None else None}


def network_name(config: Mapping[str, Any]) -> str:
    """Return the name of a network: "BLIP-2 ViT-g OPT-2.7B", or its model type where no paper's sizes are found."""
    model_type = str(config["model_type"])
    if model_type != "blip-2":
        return model_type
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    # transformers saves only what differs from its defaults. The defaults of BLIP-2 are ViT-g and OPT-2.7B.
    image = _VISION.get(vision.get("hidden_size", 1408))
    kind = text.get("model_type", "opt")
    size = text.get("d_model") or text.get("hidden_size")
    language = _LANGUAGE.get((kind, size or 0))
    return f"BLIP-2 {image} {language}" if image and language else model_type
