"""Owns the captions of the synthetic scenes as a benchmark: what a caption says can be compared with the scene.

It is the benchmark `captions` over the files of Flickr30K Entities that `files` writes. Beside the scores it gives the
share of the phrases of all captions that are true: "a red ball" of a scene with a red ball, "two balls" of a scene with
exactly two. Only a world whose scenes are known can tell. Where a thing lies, as in "left of", is not judged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from visualbert_core.schema import Prediction
from visualbert_core.synthetic.language import DIRECTIONS, NOUNS, NUMBERS, Description
from visualbert_core.synthetic.scenes import COLORS, RADII, Thing, Things
from visualbert_core.tasks.captions import CaptionsTask
from visualbert_core.tasks.shown import Words

SCENES_FILE = "scenes.json"
"""Image id → the things in it, in the folder of the annotations."""
TRUE_PHRASES = "true phrases, percent"

_PHRASE = re.compile(
    rf"\b(?:(?P<number>{'|'.join(NUMBERS)})|an?|the(?: (?:{'|'.join(DIRECTIONS)}))?)"
    rf"(?: (?P<size>{'|'.join(RADII)}))?(?: (?P<color>{'|'.join(COLORS)}))? (?P<noun>{'|'.join(NOUNS)})\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Phrase:
    """Some words of a caption, from `start` to `end`, and whether they are true of the scene."""

    start: int
    end: int
    true: bool


def phrases(caption: str, things: Things) -> Iterator[Phrase]:
    """Yield the phrases of a caption that name things. A number must be exact; otherwise one such thing is enough."""
    for match in _PHRASE.finditer(caption):
        number, size, color, noun = (word and word.lower() for word in match.group("number", "size", "color", "noun"))
        found = len(Description(size, color, NOUNS[noun]).find(things))
        yield Phrase(match.start(), match.end(), found > 0 if number is None else found == NUMBERS.index(number))


class SceneCaptions(CaptionsTask):
    """Represents the captions of the synthetic scenes."""

    name, title = "visualbert_core.synthetic.captions:SceneCaptions", "Captions of scenes"

    def read(self) -> None:
        super().read()
        path = self.folder / SCENES_FILE
        scenes = json.loads(path.read_text())
        self.files = (*self.files, path)
        self._things = {name: tuple(Thing(**each) for each in things) for name, things in scenes.items()}

    def marked(self, example_id: str, answer: str) -> Sequence[Words]:
        """Return the words of a caption, its phrases marked as true or false of the scene."""
        found, place = [], 0
        for phrase in phrases(answer, self._things[self.images[example_id].image_id]):
            found += [Words(answer[place : phrase.start]), Words(answer[phrase.start : phrase.end], phrase.true)]
            place = phrase.end
        return [words for words in (*found, Words(answer[place:])) if words.text]

    def beside(self, predictions: Mapping[str, Prediction]) -> dict[str, float]:
        """Return the share of phrases that are true, with the numbers that stand beside all captions."""
        found = [
            phrase.true
            for example_id, image in self.images.items()
            for phrase in phrases(predictions[example_id].answer, self._things[image.image_id])
        ]
        share = {TRUE_PHRASES: 100 * sum(found) / len(found)} if found else {}
        return super().beside(predictions) | share
