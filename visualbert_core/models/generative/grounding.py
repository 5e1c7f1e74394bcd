"""Flickr30K Entities by a generative model: it writes a box, or scores the regions of a store.

generate     The model writes the box of a phrase in the format of its family (`box_formats`). The first box of a text
             counts, also where the phrase means several things: the order of the boxes is no ranking. A phrase without
             a box has no candidate, and its text is unparsed. So there is recall@1, and no recall@5.
likelihood   The model scores the text of every region of the image, as if it had written that box. The regions are
             candidates in the order of their likelihoods, so every metric has a value.

Most families are asked for one phrase at a time. Florence-2 gets the caption once and answers with all phrases. The
phrases of its answer are found by their words: the second "a man" of a caption is the second "a man" of the answer.
Kosmos-2 gets the caption up to the phrase (arXiv:2306.14824, section 4.1).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from visualbert_core.config import AnsweringConfig
from visualbert_core.errors import ConfigError, InputError
from visualbert_core.models.generative.asked import Asked, Outcome, sentence
from visualbert_core.models.generative.box_formats import FAMILIES, FORMATS, Box, BoxFormat, Resize, Size
from visualbert_core.schema import Generated, Grounding, Phrase, Pixels

_BOXES = re.compile(r"(?:<loc_[0-9]{1,3}>){4,}")  # what follows a phrase in an answer of Florence-2
_ARTICLE = re.compile(r"^(?:a|an|the) ")


@dataclass(frozen=True)
class Settings:
    """How boxes are asked for and read."""

    format: str
    """A name in FORMATS."""
    prompt: str | None = None
    """The text with {} in the place of the phrase or the caption. Default: the prompt of the format."""
    by: Literal["generate", "likelihood"] = "generate"
    normalise: Literal["sum", "mean"] = "mean"
    resize: Resize | None = None
    """How the image processor resizes. Only a format that counts pixels of the resized image needs it."""

    def __post_init__(self) -> None:
        if FORMATS[self.format].resized and self.resize is None:
            raise ConfigError(
                f"box format {self.format} counts pixels of the resized image, and the image processor of this "
                "checkpoint does not say how it resizes: choose the format of this model's family"
            )

    @property
    def protocol(self) -> str:
        """Return the settings as reports print them."""
        prompt = FORMATS[self.format].prompt if self.prompt is None else self.prompt
        how = "one box a phrase" if self.by == "generate" else f"regions of the store by likelihood, {self.normalise}"
        return f'"{prompt}", {self.format} boxes, {how}'

    def seen(self, picture: Pixels) -> Size:
        """Return the size of the image as the model sees it, where the format counts its pixels."""
        size = picture.width, picture.height
        return size if self.resize is None else self.resize.of(size)


def settings_of(answering: AnsweringConfig, model_type: str, resize: Resize | None) -> Settings:
    """Return the settings that the user has chosen, with the box format of the family as the default.

    `resize` is None where the image processor does not resize as Qwen's do. Raise ConfigError where the family has no
    format.
    """
    name = answering.box_format or FAMILIES.get(model_type)
    if name is None:
        raise ConfigError(
            f"no box format is known for models of type {model_type}: name the one that it was trained with as "
            f"box_format ({', '.join(FORMATS)})"
        )
    by, normalise = answering.answer_by or "generate", answering.normalise or "mean"
    return Settings(name, answering.prompt, by, normalise, resize if FORMATS[name].resized else None)


def ask(example: Grounding, pictures: Sequence[Pixels], settings: Settings) -> list[Asked]:
    """Return a question for each phrase, or one for the caption where the format asks so.

    Raise InputError where the regions of an image are to be scored and the picture comes without them.
    """
    style, image = FORMATS[settings.format], (pictures[0].rgb,)
    prompt = style.prompt if settings.prompt is None else settings.prompt
    if settings.by == "likelihood":
        texts = [_texts(pictures[0], phrase.text, settings) for phrase in example.phrases]
    elif style.caption:
        return [Asked(prompt.replace("{}", sentence(example.words)), image)]
    else:
        texts = [()] * len(example.phrases)
    slots = (_slot(example, phrase, style) for phrase in example.phrases)
    return [Asked(prompt.replace("{}", slot), image, of) for slot, of in zip(slots, texts, strict=True)]


def read(
    example: Grounding, pictures: Sequence[Pixels], outcomes: Sequence[Outcome], settings: Settings
) -> tuple[list[list[list[float]]], tuple[float, ...], tuple[Generated, ...]]:
    """Return the boxes of each phrase in pixels of the original image, probabilities of first boxes, and texts.

    A written box has no probability. A scored region has no text.
    """
    picture = pictures[0]
    if settings.by == "likelihood":
        ranked = [_ranked(picture, outcome, settings) for outcome in outcomes]
        return [boxes for boxes, _ in ranked], tuple(first for _, first in ranked), ()
    style, size = FORMATS[settings.format], settings.seen(picture)
    if style.caption:
        texts, outcomes = list(_parts(example, outcomes[0].text)), list(outcomes) * len(example.phrases)
    else:
        texts = [outcome.text for outcome in outcomes]
    found = [style.read(text, size) for text in texts]
    answer = [[] if box is None else [_pixels(box, picture)] for box in found]
    pairs = zip(outcomes, found, strict=True)
    return answer, (), tuple(Generated(outcome.text, box is not None, outcome.cut) for outcome, box in pairs)


# ---------------------------------------------------------------------------------------------------------------------
# asking


def _slot(example: Grounding, phrase: Phrase, style: BoxFormat) -> str:
    """Return what stands for {} in the prompt for one phrase."""
    words = sentence(phrase.text.split())
    if not style.so_far:
        return words
    before = sentence(example.words[: phrase.start])
    return f"{f' {before}' if before else ''}<phrase> {words}</phrase>"


def _texts(picture: Pixels, phrase: str, settings: Settings) -> tuple[str, ...]:
    """Return the text of each region's box."""
    if picture.boxes is None:
        raise InputError(
            f"image {picture.image_id!r} comes without regions: boxes by likelihood need a feature store beside the "
            "images"
        )
    sides, size = np.array([picture.width, picture.height] * 2), settings.seen(picture)
    boxes = (picture.boxes.astype(np.float64) / sides).tolist()
    return tuple(FORMATS[settings.format].write(tuple(box), size, phrase) for box in boxes)


# ---------------------------------------------------------------------------------------------------------------------
# reading


def _pixels(box: Box, picture: Pixels) -> list[float]:
    return [side * length for side, length in zip(box, (picture.width, picture.height) * 2, strict=True)]


def _ranked(picture: Pixels, outcome: Outcome, settings: Settings) -> tuple[list[list[float]], float]:
    """Return the regions from the likeliest on, and the probability of the first. Ties keep the order of the store."""
    assert picture.boxes is not None
    scores = outcome.probabilities(settings.normalise)
    order = sorted(range(len(scores)), key=lambda region: -scores[region])
    return picture.boxes[order].astype(np.float64).tolist(), max(scores, default=0.0)


def _parts(example: Grounding, text: str) -> Iterator[str]:
    """Yield, for each phrase, its part of an answer to the whole caption; "" where the answer lacks the phrase."""
    parts: defaultdict[str, list[str]] = defaultdict(list)
    start = 0
    for boxes in _BOXES.finditer(text):
        words = text[start : boxes.start()].rpartition(">")[2]  # behind <s> and other marks
        parts[_key(words)].append(boxes[0])
        start = boxes.end()
    for phrase in example.phrases:
        left = parts[_key(sentence(phrase.text.split()))]
        yield left.pop(0) if left else ""


def _key(words: str) -> str:
    """Return the words in the form in which a phrase of an answer equals a phrase of the caption."""
    plain = words.encode("ascii", "ignore").decode().lower()  # transformers drops other characters from phrases too
    return _ARTICLE.sub("", " ".join(re.findall(r"\w+", plain)))
