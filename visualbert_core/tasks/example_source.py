"""Owns the contract of data that is only learnt, and never scored: generated questions, pairs of captions.

A class of this kind is named module:Class in a recipe, as a benchmark of your own is. Its examples may be made anew at
each visit: `examples` lists what an epoch visits, such as images, and `drawn` makes the example of one visit. All
chance comes from the generator that `drawn` gets. It is seeded by the recipe's seed, the epoch and the example's id. So
the stream has no end, two runs see the same examples, and a resumed run goes on with the right one.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from visualbert_core.errors import ConfigError
from visualbert_core.schema import CaptionPair, Example, NamedRegions, Target


class ExampleSource(ABC):
    """Represents one split of data to learn from. A subclass is opened with (annotations, split).

    `example` is always an object of `form`, or of a class that derives from it.
    """

    name: ClassVar[str]
    """The name in recipes. Default: module:Class."""
    form: ClassVar[type[Example] | type[CaptionPair]]
    """The form of the examples. It decides which network and which loss learn them."""

    def __init_subclass__(cls) -> None:
        """Set `name` where the class does not set it."""
        cls.name = vars(cls).get("name", f"{cls.__module__}:{cls.__qualname__}")

    @abstractmethod
    def __init__(self, annotations: Path, split: str) -> None:
        """Read a split. Raises ConfigError for an unknown split, AnnotationError that names the file and the record."""

    @abstractmethod
    def annotation_files(self) -> tuple[Path, ...]:
        """Return the files that were read; their digest identifies the data."""

    @abstractmethod
    def examples(self) -> Iterator[Example | CaptionPair]:
        """Yield what an epoch visits. Each `example_id` is unique, and every image needs features."""

    def lessons(self) -> Iterator[Example | CaptionPair]:
        """Yield what an epoch visits: `examples`. A benchmark may learn other examples than it scores."""
        yield from self.examples()

    @abstractmethod
    def target(self, example: Any, boxes: Sequence[np.ndarray]) -> Target:
        """Return what is to be learnt from an example that `drawn` returned. `boxes`: as in `Task.target`."""

    def drawn(self, example: Any, draws: random.Random) -> Any:
        """Return the example of one visit. Default: the example itself.

        It keeps the `example_id`, and may ask about other images that have features. Its class may derive from the form
        and carry what `target` needs, such as the answer.
        """
        return example

    def told(self, example: Any, draws: random.Random) -> Target:
        """Return what pre-training with masked words tells of an example. Default: ConfigError."""
        raise ConfigError(f"{self.name}: masked words are not taught here; leave objective out")

    def named_regions(self, example: Any, boxes: Sequence[np.ndarray]) -> NamedRegions:
        """Return which regions the words of an example name, for the term `grounding`. Default: ConfigError."""
        raise ConfigError(f"{self.name}: it does not say which regions the words name; leave grounding out")
