"""Owns pairs of captions for pre-training, of which the second may belong to another image.

The pairs follow `COCODataset.__getitem__` of VisualBERT's authors (github.com/uclanlp/visualbert at 2a9e8bd58a20): the
second caption belongs to another image in half of the visits. Which one it is, is drawn anew at each visit. The files
are those of the caption benchmark. This is no benchmark: nothing is scored.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from visualbert_core.errors import AnnotationError
from visualbert_core.schema import CaptionPair
from visualbert_core.tasks.captions import CaptionsTask
from visualbert_core.tasks.example_source import ExampleSource

OTHER_IMAGE = 0.5
"""The probability that the second caption belongs to another image."""


class CaptionPairs(ExampleSource):
    """Represents the captions of one split, or of several. An example is one caption of one image."""

    name: ClassVar[str] = "caption-pairs"
    form: ClassVar[type[CaptionPair]] = CaptionPair

    def __init__(self, annotations: Path, *splits: str) -> None:
        """Read splits of the caption benchmark. The other image of a pair may be of another split.

        Raises ConfigError for an unknown split, AnnotationError for a missing or malformed file, where the captions
        are all of one image, and where two splits hold the same image.
        """
        tasks = [CaptionsTask(annotations, split) for split in splits]
        self._files = tuple(dict.fromkeys(path for task in tasks for path in task.annotation_files()))
        self._pairs: dict[str, CaptionPair] = {}
        self._of_image: dict[str, list[str]] = {}
        for task in tasks:
            for name, image in task.images.items():
                for number, caption in enumerate(image.captions):
                    example_id = f"{name}/{number}"
                    if example_id in self._pairs:
                        raise AnnotationError(
                            f"{task.split}: image {name!r} is in another of the splits, too: learn one of them"
                        )
                    self._pairs[example_id] = CaptionPair(example_id, (image.image_id,), caption)
                    self._of_image.setdefault(image.image_id, []).append(example_id)
        if len(self._of_image) < 2:
            raise AnnotationError(f"{self._files[0]}: pairs need captions of two images, here is one")
        self._ids = list(self._pairs)

    def annotation_files(self) -> tuple[Path, ...]:
        return self._files

    def examples(self) -> Iterator[CaptionPair]:
        """Yield the captions in file order, each without a second caption.

        The `example_id` is "<id of the image in result files>/<number of the caption from 0>".
        """
        yield from self._pairs.values()

    lessons = examples

    def target(self, example: CaptionPair, boxes: Sequence[np.ndarray]) -> None:
        """Return None: the masked words and `own` are the targets, and both are drawn at each visit."""

    def told(self, example: CaptionPair, draws: random.Random) -> None:
        """Return None, as `target` does."""

    def drawn(self, example: CaptionPair, draws: random.Random) -> CaptionPair:
        """Return the caption with a second one: of the same image or, in half of the visits, of another image.

        An image with one caption always gets a caption of another image; the authors' code fails there.
        """
        image_id = example.image_ids[0]
        others = [each for each in self._of_image[image_id] if each != example.example_id]
        own = draws.random() <= OTHER_IMAGE and bool(others)
        second = self._pairs[draws.choice(others if own else self._ids)]
        while not own and second.image_ids[0] == image_id:
            second = self._pairs[draws.choice(self._ids)]
        return replace(example, second=second.first, own=own)
