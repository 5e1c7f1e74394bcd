"""Models that read pixels and give neither logits nor attentions. Tests run them through the whole library to show that
no part assumes regions. One of them writes its answers as texts.

The model answers every form of example from the mean brightness of the image. Its answers therefore follow from the
image and are mostly wrong. `config.json` holds its only weight, `shift`. The library finds it through an entry point,
like any installed model family.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from visualbert_core.config import AnsweringConfig
from visualbert_core.models import ReadsPixels
from visualbert_core.schema import (
    Captioning,
    Example,
    Generated,
    Grounding,
    MultipleChoice,
    Pixels,
    Prediction,
    Question,
    Statement,
)

FORMS = frozenset({Question, MultipleChoice, Statement, Grounding, Captioning})


class BrightnessModel:
    """Implements `models.Model[Pixels]`."""

    visual_source = "pixels"
    reads = ReadsPixels()
    forms = FORMS
    name = "Brightness"
    protocol = ""

    def __init__(self, shift: int) -> None:
        self.shift = shift

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, form: type[Example], device: str | None, precision: str, answering: AnsweringConfig
    ) -> BrightnessModel:
        return cls(json.loads((Path(folder) / "config.json").read_text())["shift"])

    def fingerprint(self) -> dict[str, Any]:
        return {"class": "BrightnessModel", "shift": self.shift}

    def predict(self, batch: Sequence[tuple[Example, tuple[Pixels, ...]]]) -> list[Prediction]:
        return [self._answer(example, pictures) for example, pictures in batch]

    def _answer(self, example: Example, pictures: tuple[Pixels, ...]) -> Prediction:
        level = int(sum(picture.rgb.mean() for picture in pictures)) + self.shift
        answer: Any
        scores: tuple[float, ...] = (level % 10 / 10,)
        if isinstance(example, Question):
            answer = ("yes", "no", "2", "red")[level % 4]
        elif isinstance(example, MultipleChoice):
            answer, scores = level % len(example.choices), (0.25,) * len(example.choices)
        elif isinstance(example, Statement):
            answer, scores = str(level % 2 == 0), (0.5, 0.5)
        elif isinstance(example, Captioning):
            answer = f"there is a {('red', 'blue', 'green', 'large')[level % 4]} thing next to a small square ."
        else:
            width, height = pictures[0].width, pictures[0].height
            left = (level % 3) * width / 6
            box = [left, height / 4, left + width / 2, height * 3 / 4]
            answer, scores = [[box] for _ in example.phrases], (0.5,) * len(example.phrases)
        return Prediction(example.example_id, example.image_ids[0], answer, scores)


class WritingModel(BrightnessModel):
    """Writes the same answers as texts, such as "Yes.". In about `babble` of ten texts it finds no answer, and one text
    in five is cut."""

    name, protocol = "Scribe", "Question: {} Answer:; generate"

    def __init__(self, shift: int, babble: int) -> None:
        super().__init__(shift)
        self.babble = babble

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, form: type[Example], device: str | None, precision: str, answering: AnsweringConfig
    ) -> WritingModel:
        config = json.loads((Path(folder) / "config.json").read_text())
        return cls(config["shift"], config["babble"])

    def fingerprint(self) -> dict[str, Any]:
        return {"class": "WritingModel", "shift": self.shift, "babble": self.babble}

    def _answer(self, example: Example, pictures: tuple[Pixels, ...]) -> Prediction:
        found = super()._answer(example, pictures)
        draw = zlib.crc32(example.example_id.encode())
        parsed, cut = draw % 10 >= self.babble, draw % 5 == 0
        if isinstance(example, Question):
            text = f"{found.answer.capitalize()}." if parsed else "<i>hm</i>, " * 20
            return replace(found, answer=text if parsed else "", generated=(Generated(text, parsed, cut),))
        if isinstance(example, Grounding):
            texts = tuple(Generated(str(boxes[0]) if parsed else "", parsed, cut) for boxes in found.answer)
            return replace(found, answer=found.answer if parsed else [[] for _ in texts], generated=texts)
        return found


def install(folder: Path) -> Path:
    """Write the metadata of an installed package with this model family. The returned folder must be on Python's
    path."""
    info = folder / "brightness-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brightness\nVersion: 1.0\n")
    families = "brightness = pixel_model:BrightnessModel\nscribe = pixel_model:WritingModel\n"
    (info / "entry_points.txt").write_text(f"[visualbert_core.models]\n{families}")
    return folder


def write_checkpoint(folder: Path, shift: int, family: str = "brightness", **weights: int) -> Path:
    """Write a model folder with the given weights and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": family, "shift": shift} | weights))
    return folder
