"""The contract that every benchmark keeps, and the parts that most benchmarks share.

A task file is read top to bottom: the constants say what the benchmark is, `read` reads its files, `examples` asks,
`score` judges. `scoring.summarize` then adds up, the same for all. Every other member has a default here, which a
benchmark replaces where its official program does something else.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from visualbert_core.errors import ConfigError, InputError
from visualbert_core.metrics.coverage import Lenient
from visualbert_core.schema import (
    Example,
    Grounding,
    JudgedAnswer,
    MultipleChoice,
    Prediction,
    Question,
    Score,
    Statement,
)
from visualbert_core.tasks.reading import choose
from visualbert_core.tasks.splits import protocol_name, subset_line
from visualbert_core.tasks.submissions import submission_records

TRUTH_VALUES = ("False", "True")
"""The answers to a `Statement`, in the order of a prediction's `scores`."""


@dataclass(frozen=True)
class Paper:
    """VisualBERT's published numbers on one benchmark: the table they stand in, and split → metric → percent."""

    table: str = ""
    percent: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


class Task(ABC):
    """One benchmark split, opened.

    Where a split has no public labels, the members that need them (`score`, `chance`, `gold`, `best`, `worst`) raise
    ConfigError; one can still ask a model, and write and read submissions.
    """

    # what a benchmark declares

    name: ClassVar[str]
    """What `--task` takes. Default: module:Class, by which a benchmark outside this package is found."""
    title: ClassVar[str]
    """The benchmark's name in sentences. Default: the name of the class."""
    form: ClassVar[type[Example]]
    """The form of its examples, which says which models can answer them."""
    splits: ClassVar[Collection[str]]
    """The names that `--split` takes."""
    unlabelled: ClassVar[Collection[str]] = ()
    """The splits without public labels."""
    metrics: ClassVar[tuple[str, ...]]
    """Every metric that it may score; the first is the headline. A metric that needs a file which is not there, as
    VQA's pairs do, is left out of the scores."""
    metric_labels: ClassVar[Mapping[str, str]] = {}
    """Metric → its name for people, where that is another one."""
    protocols: ClassVar[Mapping[str, str]]
    """Short name, as `--protocol` takes it → full name, which names the official program; the first is the default."""
    sizes: ClassVar[Mapping[str, Mapping[str, int]]] = {}
    """Unit, such as "questions" → split → the number of them that the authors published."""
    guess: ClassVar[str] = ""
    """How `chance` guesses, for people: "a fair coin"."""
    paper: ClassVar[Paper] = Paper()
    """Published numbers, to be shown beside a score."""
    submission_name: ClassVar[str] = "submission.json"
    """File name of a submission."""
    lenient: ClassVar[Lenient] = Lenient(duplicate="refuse", unknown="refuse")
    """What the official program does where coverage is refused here."""

    # what an opened split has

    split: str
    """The one that was opened."""
    labelled: bool
    """Whether the split's labels are public, so that predictions can be scored here."""
    protocol: str
    """Name of the metric's protocol and of the official program it is tested against; where the annotations are not the
    official split, it says so."""
    protocol_key: str
    """Its short name, a key of `protocols`."""
    subset: str | None
    """The line that must be said where the annotations are not the whole official split; None where they are."""
    folder: Path
    """The folder of the official files."""
    files: tuple[Path, ...]
    """The files that were read; their digest identifies the annotations. Default: {split}.jsonl."""

    def __init_subclass__(cls) -> None:
        """Name a class that does not name itself."""
        own = vars(cls)
        cls.name = own.get("name", f"{cls.__module__}:{cls.__qualname__}")
        cls.title = own.get("title", cls.__name__)

    def __init__(self, annotations: Path, split: str, protocol: str | None = None) -> None:
        """Read a split from the folder of its official files. Raises ConfigError (split, protocol), AnnotationError."""
        self.split = choose(f"{self.title} split", split, self.splits)
        self.protocol_key = choose(f"{self.title} protocol", protocol, self.protocols)
        self.labelled = split not in self.unlabelled
        self.folder = Path(annotations)
        self.files = (self.folder / f"{split}.jsonl",)
        self.subset, self.protocol = None, self.protocols[self.protocol_key]
        self.read()

    @property
    def headline(self) -> str:
        """Return the metric of a summary with a single number."""
        return self.metrics[0]

    # what every benchmark writes

    @abstractmethod
    def read(self) -> None:
        """Read the split. Raises AnnotationError naming file and record."""

    @abstractmethod
    def examples(self) -> Iterator[Example]:
        """Ask: every example of the split, in file order. `example_id`s are unique."""

    @abstractmethod
    def score(self, predictions: Mapping[str, Prediction]) -> Iterator[Score]:
        """Judge a complete set of predictions (coverage is checked before), unit by unit."""

    @abstractmethod
    def gold(self, example_id: str) -> Any:
        """Return the right answer in the form of `Prediction.answer`, for reports."""

    # what most share

    def expected(self) -> dict[str, str]:
        """Return example_id → first image id: what a complete set of predictions must cover."""
        return {example.example_id: example.image_ids[0] for example in self.examples()}

    def chance(self, predictions: Mapping[str, Prediction]) -> dict[str, float]:
        """Return the percent that guessing gets, per metric, where that is defined."""
        return {}

    def best(self, example_id: str) -> Any:
        """Return an answer that gets the highest possible value of every metric."""
        return self.gold(example_id)

    def worst(self, example_id: str) -> Any:
        """Return an answer that gets the lowest possible value of every metric.

        Default: no word, another choice, the other truth value, no box.
        """
        gold = self.gold(example_id)
        if self.form is Grounding:
            return [[] for _ in gold]
        if self.form is MultipleChoice:
            return int(gold == 0)
        return TRUTH_VALUES[gold == TRUTH_VALUES[0]] if self.form is Statement else ""

    def official(self, scores: Sequence[Score]) -> dict[str, Any]:
        """Return the scores under the official program's own names, in its own form and rounding.

        Default: the mean of every metric as a fraction.
        """
        values = {metric: [s.value for s in scores if s.metric == metric] for metric in self.metrics}
        return {metric: sum(every) / len(every) for metric, every in values.items() if every}

    def submission(self, predictions: Mapping[str, Prediction]) -> bytes:
        """Return the leaderboard's file, in the split's order: equal predictions give equal bytes.

        Default: a JSON list of {"example_id", "answer"}. Raises InputError where the predictions do not hold all that
        the leaderboard asks.
        """
        records = [{"example_id": name, "answer": predictions[name].answer} for name in self.expected()]
        return json.dumps(records).encode()

    def read_submission(self, path: Path, lenient: bool = False) -> list[Prediction]:
        """Read a file in that format, of any system, in file order; duplicates and unknown ids (with image id "") stay.

        `lenient` accepts as a record what the official program accepts in silence. Raises InputError naming the file
        and the record.
        """
        image_ids, found = self.expected(), []
        for number, record in enumerate(submission_records(path), start=1):
            match record:
                case {"example_id": str(example_id), "answer": answer}:
                    found.append(Prediction(example_id, image_ids.get(example_id, ""), answer, ()))
                case _:
                    raise InputError(f"{path} record {number}: a record reads {{'example_id': a string, 'answer': …}}")
        return found

    def in_pixels(
        self, predictions: Sequence[Prediction], convention: str | None, believe: bool = False
    ) -> tuple[list[Prediction], list[str]]:
        """Return the predictions of a file with their boxes as `score` judges them, and what must be said of them.

        Default: as they are. Raises ConfigError for a convention of what has no boxes, InputError where the boxes look
        like another one, unless one is to `believe` them.
        """
        if convention is not None:
            raise ConfigError(f"--boxes {convention}: predictions of {self.name} hold no boxes; leave the flag out")
        return list(predictions), []

    def image_sizes(self) -> Mapping[str, tuple[int, int]]:
        """Return image id → the (width, height) that its annotations are for; empty where they do not tell."""
        return {}

    def annotation_files(self) -> tuple[Path, ...]:
        """Return the files that were read; their digest identifies the annotations."""
        return self.files

    # what none replaces

    def paper_numbers(self) -> Mapping[str, float]:
        """Return metric → the percent that VisualBERT's paper reports for this split; nothing under another protocol
        than its, and nothing for a part of the split."""
        official = self.subset is None and self.protocol_key == next(iter(self.protocols))
        return self.paper.percent.get(self.split, {}) if official else {}

    def compare_size(self, **counts: int) -> None:
        """Say of what was read, as units=count, whether it is the whole official split. Benchmarks with `sizes` call
        this at the end of `read`."""
        lines = [subset_line(self.split, units, count, self.sizes[units]) for units, count in counts.items()]
        self.subset = next(filter(None, lines), None)
        units, count = list(counts.items())[-1]
        self.protocol = protocol_name(self.protocols[self.protocol_key], units, count, self.subset)

    def judged(self, example: Example, prediction: Prediction) -> JudgedAnswer:
        """Return a prediction's answer, and the model's confidence in it, for `Score.judged`.

        Raises InputError where it is not an answer to the example: a string, the index of a choice, "True" or "False".
        """
        answer, scores = prediction.answer, prediction.scores
        match example:
            case Question() if isinstance(answer, str):
                at = 0
            case MultipleChoice() if type(answer) is int and 0 <= answer < len(example.choices):
                at = answer
            case Statement() if answer in TRUTH_VALUES:
                at = TRUTH_VALUES.index(answer)
            case _:
                asked = type(example).__name__
                raise InputError(f"prediction of {example.example_id}: {answer!r} is no answer to a {asked}")
        return JudgedAnswer(example.example_id, answer, scores[at] if scores else None)
