"""Questions about the synthetic scenes that are made anew at each visit: data to learn from, for `visualbert train`.

Each class is an ExampleSource over the files of `training_files`. An epoch visits each scene once. The questions are
those of `questions` and `references`, which also make the validation files. No scene is in both.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from visualbert_core.errors import AnnotationError
from visualbert_core.metrics.recall import region_shares
from visualbert_core.schema import Grounding, MultipleChoice, NamedRegions, Phrase, Question, Statement
from visualbert_core.synthetic import questions as ask
from visualbert_core.synthetic import references as refer
from visualbert_core.synthetic.language import DIRECTIONS, descriptions
from visualbert_core.synthetic.scenes import Thing, Things
from visualbert_core.tasks.example_source import ExampleSource

ANSWER_SHARE = 0.4
"""The share of VCR visits that ask for the answer. The others ask for the rationale, which is learnt later."""
SIDES = ("left", "right")
"""How a sentence names the first and the second image: "the left image"."""
VCR_MIN_THINGS = 4
"""Most VCR families offer four objects as choices."""


@dataclass(frozen=True)
class AskedQuestion(Question):
    right: Any = None


@dataclass(frozen=True)
class AskedStatement(Statement):
    right: Any = None


@dataclass(frozen=True)
class AskedChoice(MultipleChoice):
    right: Any = None


@dataclass(frozen=True)
class AskedCaption(Grounding):
    named: tuple[tuple[int, ...], ...] = ()
    """The indices of the things that each phrase names."""


class SceneLessons(ExampleSource):
    """Reads {split}.jsonl: a line for each scene with its image id and its things."""

    min_things: ClassVar[int] = 2
    images: ClassVar[int] = 1
    """The number of images of an example."""
    blank: ClassVar[tuple[Any, ...]] = ("",)
    """What an example asks before it is drawn."""

    def __init__(self, annotations: Path, split: str) -> None:
        """Read a split. Raises AnnotationError where its file is missing or malformed."""
        self._path = annotations / f"{split}.jsonl"
        try:
            records = [json.loads(line) for line in self._path.read_text().splitlines()]
            scenes: dict[str, Things] = {r["image_id"]: tuple(map(_thing, r["things"])) for r in records}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AnnotationError(f"{self._path}: not a file of synthetic scenes: {error}") from None
        self._scenes = scenes
        self._ids = list(scenes)

    def annotation_files(self) -> tuple[Path, ...]:
        return (self._path,)

    def examples(self) -> Iterator[Any]:
        """Yield a blank example for each scene with enough things."""
        form: Any = self.form
        for name, things in self._scenes.items():
            if len(things) >= self.min_things:
                yield form(name, (name,) * self.images, *self.blank)

    def target(self, example: Any, boxes: Sequence[np.ndarray]) -> Any:
        """Return what was drawn with the question: its answer with the weight 1, its truth value or its choice."""
        return example.right

    def _named(
        self, example: Question | Statement, boxes: Sequence[np.ndarray], images: Sequence[int]
    ) -> list[tuple[Phrase, np.ndarray]]:
        """Return what each description in a text names: all things that fit in `images`, as bool [R]."""
        words = example.text.split(" ")
        found = []
        for start, stop, it in descriptions(words):
            if start and words[start - 1] in DIRECTIONS:
                continue  # "the leftmost thing" names one thing, not all that fit
            hits = []
            for image, (image_id, regions) in enumerate(zip(example.image_ids, boxes, strict=True)):
                things = self._scenes[image_id]
                fitting = [things[i].box for i in it.find(things)] if image in images else []
                hits.append(region_shares(regions, [np.array(fitting).reshape(-1, 4)])[0] > 0)
            found.append((Phrase(start, stop, " ".join(words[start:stop])), np.concatenate(hits)))
        return found


class Questions(SceneLessons):
    """Gives VQA questions."""

    form = Question

    def drawn(self, example: Any, draws: random.Random) -> AskedQuestion:
        item = ask.vqa_item(_generator(draws), self._scenes[example.example_id])
        return AskedQuestion(example.example_id, example.image_ids, item.question, right={item.answer: 1.0})

    def named_regions(self, example: Any, boxes: Sequence[np.ndarray]) -> NamedRegions:
        return _shared(self._named(example, boxes, [0]), boxes)


class Statements(SceneLessons):
    """Gives NLVR2 sentences about pairs of scenes."""

    form = Statement
    images = 2

    def drawn(self, example: Any, draws: random.Random) -> AskedStatement:
        """Return a sentence about the scene and a second one, drawn as a set of NLVR2: true for two of four pairs."""
        rng = _generator(draws)
        item = None
        while item is None:
            names = [self._ids[i] for i in rng.integers(len(self._ids), size=2 * ask.PAIRS)]
            names[0] = example.example_id
            pairs = list(zip(names[::2], names[1::2], strict=True))
            item = ask.nlvr2_item(rng, [(self._scenes[left], self._scenes[right]) for left, right in pairs])
        return AskedStatement(example.example_id, pairs[0], item.sentence, right=int(item.labels[0]))

    def named_regions(self, example: Any, boxes: Sequence[np.ndarray]) -> NamedRegions:
        """Return which regions the sentence names.

        "The left image" names all of its regions. A description names what fits in the one image that the sentence is
        about, or in both. So words also teach which region is of which image.
        """
        words = example.text.split(" ")
        sides = {n: SIDES.index(word) for n, word in enumerate(words) if word in SIDES}
        of_image = np.repeat([0, 1], [len(each) for each in boxes])
        named = [(Phrase(n, n + 2, " ".join(words[n : n + 2])), of_image == side) for n, side in sides.items()]
        about = set(sides.values())
        return _shared(named + self._named(example, boxes, list(about) if len(about) == 1 else [0, 1]), boxes)


class Choices(SceneLessons):
    """Gives VCR questions with four answers or four rationales. The regions are at the true boxes."""

    form = MultipleChoice
    min_things = VCR_MIN_THINGS
    blank = ((), (), (), ())

    def drawn(self, example: Any, draws: random.Random) -> AskedChoice:
        """Return a question about the scene, or the question with its right answer and rationales as choices."""
        rng, things = _generator(draws), self._scenes[example.example_id]
        item = refer.vcr_item(rng, things)
        answering = bool(rng.random() < ANSWER_SHARE)
        texts = (item.question, *item.answers, *item.rationales)
        mentioned = sorted({i for text in texts for token in text if isinstance(token, tuple) for i in token})
        return AskedChoice(
            example.example_id,
            example.image_ids,
            tuple(thing.shape for thing in things),
            item.question if answering else item.question + item.answers[item.answer_label],
            item.answers if answering else item.rationales,
            tuple(mentioned),
            right=item.answer_label if answering else item.rationale_label,
        )


class Captions(SceneLessons):
    """Gives captions of Flickr30K Entities."""

    form = Grounding
    blank = ((), ())

    def drawn(self, example: Any, draws: random.Random) -> AskedCaption:
        words: list[str] = []
        phrases: list[Phrase] = []
        made = refer.caption(_generator(draws), self._scenes[example.example_id])
        for part in made:
            start = len(words)
            words += str(part).split()
            if not isinstance(part, str):
                phrases.append(Phrase(start, len(words), part.words))
        named = tuple(part.things for part in made if not isinstance(part, str))
        return AskedCaption(example.example_id, example.image_ids, tuple(words), tuple(phrases), named=named)

    def target(self, example: Any, boxes: Sequence[np.ndarray]) -> np.ndarray:
        """Return equal shares of the regions that show each phrase: float32 [K, R]."""
        things = self._scenes[example.example_id]
        return region_shares(boxes[0], [np.array([things[i].box for i in members]) for members in example.named])


def _shared(named: Sequence[tuple[Phrase, np.ndarray]], boxes: Sequence[np.ndarray]) -> NamedRegions:
    """Return phrases with equal shares of the regions that each names."""
    hits = np.array([hit for _, hit in named], np.float32).reshape(-1, sum(map(len, boxes)))
    return NamedRegions(tuple(phrase for phrase, _ in named), hits / hits.sum(axis=1, keepdims=True).clip(min=1))


def _thing(record: dict[str, Any]) -> Thing:
    return Thing(**record | {"box": tuple(record["box"])})


def _generator(draws: random.Random) -> np.random.Generator:
    return np.random.default_rng(draws.getrandbits(64))
