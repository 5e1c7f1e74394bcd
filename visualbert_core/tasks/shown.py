"""What a benchmark tells reports beside its scores: published numbers, what a person gets, which words are true."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """Holds what a source reports for one network on one split. Reports show it beside runs of equal protocols only."""

    network: str
    """The network, as `Model.name` has it."""
    split: str
    """The split, as the source names it. It may be a split that is not scored here."""
    percent: Mapping[str, float]
    """Metric → percent."""
    source: str
    protocol: str
    """How the answers were scored: a short name of the benchmark's `protocols`, or other words where it is none."""
    answering: str = ""
    """How the network was asked, as `Model.protocol` has it. Empty where a head gives the answers."""
    note: str = ""
    """What else a reader must know, such as the data of the training."""

    def __str__(self) -> str:
        scores = ", ".join(f"{metric} {value:.2f}" for metric, value in self.percent.items())
        asked = f"; asked: {self.answering}" if self.answering else ""
        note = f"; {self.note}" if self.note else ""
        return f"{self.network}: {scores}; scored: {self.protocol}{asked}{note} ({self.source})"


@dataclass(frozen=True, slots=True)
class Person:
    """Holds what a person gets, as metric → the score as it is shown.

    A person may be judged by fewer annotations than a model, because the person wrote one of them. So `predictions` has
    what the predictions get under the same conditions. Compare these two.
    """

    person: Mapping[str, float]
    predictions: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Words:
    """Holds some words of an answer, with the spaces around them, and whether they are true of the image.

    `true` is None where that is not known, or where the words state nothing.
    """

    text: str
    true: bool | None = None
