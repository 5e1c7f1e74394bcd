"""Owns the contract that every benchmark keeps, and the parts that most benchmarks share.

A task file reads from top to bottom. The constants describe the benchmark. `read` reads its files, `examples` gives
its examples, and `score` judges the answers. `metrics.statistics` then averages the scores of every benchmark in the
same way. Every other member has a default in this file. A benchmark replaces a default where its official program does
something else.
"""

from __future__ import annotations

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from msgspec import Struct
from msgspec.structs import astuple

from visualbert_core.errors import ConfigError, InputError
from visualbert_core.metrics.coverage import Lenient
from visualbert_core.metrics.recall import region_shares
from visualbert_core.schema import (
    Captioning,
    Example,
    Grounding,
    JudgedAnswer,
    MultipleChoice,
    NamedRegions,
    Prediction,
    Question,
    Score,
    Statement,
    Target,
)
from visualbert_core.tasks.reading import choose, submission_records
from visualbert_core.tasks.shown import Person, Published, Words

TRUTH_VALUES = ("False", "True")
"""The two answers to a `Statement`, in the order of a prediction's `scores`."""


class ResultRecord(Struct):
    """Holds a record of the default submission."""

    example_id: str
    answer: Any


class Task(ABC):
    """Represents one open split of a benchmark.

    Some splits have no public labels. There, the members that need labels (`score`, `chance`, `gold`, `best`, `worst`)
    raise ConfigError. A model can still answer the examples, and submissions can still be written and read.
    """

    # A benchmark declares these.

    name: ClassVar[str]
    """The name that `--task` takes. Default: module:Class, which finds a benchmark outside this package."""
    title: ClassVar[str]
    """The benchmark's name in sentences. Default: the name of the class."""
    form: ClassVar[type[Example]]
    """The form of the benchmark's examples. It decides which models can answer them."""
    splits: ClassVar[Collection[str]]
    """The names that `--split` takes."""
    unlabelled: ClassVar[Collection[str]] = ()
    """The splits without public labels."""
    metrics: ClassVar[tuple[str, ...]]
    """Every metric of the benchmark; the first is the headline. The scores leave out a metric whose file is missing,
    such as the file of VQA's complementary pairs."""
    metric_labels: ClassVar[Mapping[str, str]] = {}
    """Metric → its name in reports. A metric that is not listed keeps its own name."""
    parts: ClassVar[Mapping[str, str]] = {}
    """Part of a unit that is an example of its own → the metric that scores it alone. A training may learn one part.
    The id of an example ends with a slash and the name of its part. Default: a unit has no parts."""
    scales: ClassVar[Mapping[str, float]] = {}
    """Metric → what its value 1 is shown as, for a metric that is not shown in percent: CIDEr goes to 1,000."""
    protocols: ClassVar[Mapping[str, str]]
    """Short name, as `--protocol` takes it → full name, which names the official program. The first is the default."""
    sizes: ClassVar[Mapping[str, Mapping[str, int]]] = {}
    """Unit, such as "questions" → split → the number of units that the authors published."""
    person_is: ClassVar[str] = ""
    """Who `person` is and who judges, in words for reports: "each reference, judged by the others"."""
    guess: ClassVar[str] = ""
    """How `chance` guesses, in words for reports: "a fair coin"."""
    published: ClassVar[tuple[Published, ...]] = ()
    """The published numbers. Reports show those of the same network, split and protocols beside a score."""
    submission_name: ClassVar[str] = "submission.json"
    """The file name of a submission."""
    result: ClassVar[type[Struct]] = ResultRecord
    """The form of the records that `read_submission` reads: an id, then an answer. Further keys are not read."""
    has_range: ClassVar[bool] = True
    """Whether missing answers have a worst and a best value, so that an incomplete set has a range of scores."""
    lenient: ClassVar[Lenient] = Lenient(duplicate="refuse", unknown="refuse")
    """What the official program does with duplicates and unknown ids, which are refused here."""

    # An open split has these.

    split: str
    """The name of this split."""
    labelled: bool
    """Whether the split's labels are public, so that predictions can be scored here."""
    protocol: str
    """The full name of the protocol and of the official program that the tests compare it with. It says so where the
    annotations are not the official split."""
    protocol_key: str
    """The short name of the protocol, a key of `protocols`."""
    subset: str | None
    """A warning where the annotations are not the whole official split; None where they are."""
    folder: Path
    """The folder of the official files."""
    files: tuple[Path, ...]
    """The files that were read; their digest identifies the annotations. Default: {split}.jsonl."""

    def __init_subclass__(cls) -> None:
        """Set `name` and `title` where the class does not set them.

        A subclass of a benchmark does not inherit them: two classes of one name would share their run folders.
        """
        own = vars(cls)
        cls.name = own.get("name", f"{cls.__module__}:{cls.__qualname__}")
        cls.title = own.get("title", cls.__name__)

    def __init__(self, annotations: Path, split: str, protocol: str | None = None) -> None:
        """Read a split from the folder of its official files.

        Raises ConfigError for an unknown split or protocol, AnnotationError for files that are missing or malformed.
        """
        self.split = choose(f"{self.title} split", split, self.splits)
        self.protocol_key = choose(f"{self.title} protocol", protocol, self.protocols)
        self.labelled = split not in self.unlabelled
        self.folder = Path(annotations)
        self.files = (self.folder / f"{split}.jsonl",)
        self.subset, self.protocol = None, self.protocols[self.protocol_key]
        self.read()

    @property
    def headline(self) -> str:
        """Return the metric that a summary with a single number shows."""
        return self.metrics[0]

    # Every benchmark writes these.

    @abstractmethod
    def read(self) -> None:
        """Read the split. Raises AnnotationError that names the file and the record."""

    @abstractmethod
    def examples(self) -> Iterator[Example]:
        """Yield every example of the split in file order. Each `example_id` is unique."""

    @abstractmethod
    def score(self, predictions: Mapping[str, Prediction]) -> Iterator[Score]:
        """Judge predictions and yield the score of each unit. The caller has checked that they are complete."""

    @abstractmethod
    def gold(self, example_id: str) -> Any:
        """Return the right answer in the form of `Prediction.answer`, for reports."""

    # Most benchmarks keep these defaults.

    def expected(self) -> dict[str, str]:
        """Return example_id → first image id of every example that a complete set of predictions must cover."""
        return {example.example_id: example.image_ids[0] for example in self.examples()}

    def chance(self, predictions: Mapping[str, Prediction]) -> dict[str, float]:
        """Return metric → the percent that guessing gets; a metric for which guessing is not defined is left out."""
        return {}

    def person(self, predictions: Mapping[str, Prediction]) -> Person | None:
        """Return what a person gets, and the predictions under the same conditions; None where that is not known."""
        return None

    def beside(self, predictions: Mapping[str, Prediction]) -> dict[str, float]:
        """Return numbers that stand beside the scores because a score alone may mislead, by their names in words."""
        return {}

    def other_scorer(self, programs: Sequence[str]) -> Callable[[Mapping[str, Prediction]], dict[str, float]]:
        """Return the function from predictions to scores that programs outside Python compute, by name → percent.

        Raises ConfigError where the benchmark has no such program, or a program is not installed. Default: none.
        """
        raise ConfigError(f"--java {' '.join(programs)}: {self.name} is scored without Java; leave the flag out")

    def remarks(self, predictions: Mapping[str, Prediction]) -> list[str]:
        """Return warnings about the predictions of a whole split, which stand with its scores."""
        return []

    def other_protocols(self, predictions: Mapping[str, Prediction]) -> Mapping[str, Mapping[str, float]]:
        """Return short name of another protocol → metric → the percent of the same answers under it.

        Reports show these numbers beside the scores of a model that writes text, because such a model may know an
        answer and lose it by its form. Default: nothing.
        """
        return {}

    def references(self, example_id: str) -> tuple[str, ...]:
        """Return everything that people answered in their own words, for reports. Default: nothing."""
        return ()

    def marked(self, example_id: str, answer: str) -> Sequence[Words]:
        """Return the words of an answer, marked as true or false of the image, for reports. Joined, they are it.

        A benchmark that knows all that its images show can tell. Default: nothing; the answer is shown without marks.
        """
        return ()

    def best(self, example_id: str) -> Any:
        """Return an answer that gets the highest possible value of every metric."""
        return self.gold(example_id)

    def worst(self, example_id: str) -> Any:
        """Return an answer that gets the lowest possible value of every metric.

        Default: the empty string, a wrong choice, the other truth value, or no boxes.
        """
        gold = self.gold(example_id)
        if self.form is Grounding:
            return [[] for _ in gold]
        if self.form is MultipleChoice:
            return int(gold == 0)
        return TRUTH_VALUES[gold == TRUTH_VALUES[0]] if self.form is Statement else ""

    def official(self, scores: Sequence[Score]) -> dict[str, Any]:
        """Return the scores with the names, the form and the rounding of the official program.

        Default: metric → its mean as a fraction.
        """
        values = {metric: [s.value for s in scores if s.metric == metric] for metric in self.metrics}
        return {metric: sum(every) / len(every) for metric, every in values.items() if every}

    def submission(self, predictions: Mapping[str, Prediction]) -> bytes:
        """Return the leaderboard's file, in the order of the split. Equal predictions give equal bytes.

        Default: a JSON list of {"example_id", "answer"}. Raises InputError where the predictions lack something that
        the leaderboard requires.
        """
        records = [{"example_id": name, "answer": predictions[name].answer} for name in self.expected()]
        return json.dumps(records).encode()

    def read_submission(self, path: Path, lenient: bool = False) -> list[Prediction]:
        """Read a leaderboard's file of any system, in file order.

        Duplicates stay. So do unknown ids, whose image id is "". With `lenient`, every record that the official program
        accepts silently is accepted. Default: a JSON list of `result`. Raises InputError that names the file and the
        record.
        """
        found, image_ids = map(astuple, submission_records(path, self.result)), self.expected()
        named = ((str(example_id), answer) for example_id, answer in found)
        return [Prediction(example_id, image_ids.get(example_id, ""), answer, ()) for example_id, answer in named]

    def in_pixels(
        self, predictions: Sequence[Prediction], convention: str | None, believe: bool = False
    ) -> tuple[list[Prediction], list[str]]:
        """Return predictions whose boxes have the coordinates that `score` judges, and warnings about the boxes.

        `convention` is the declared one; None means undeclared. Default: the predictions as they are. Raises
        ConfigError for a convention where the benchmark has no boxes, and InputError where the boxes look like another
        convention, unless `believe` is set.
        """
        if convention is not None:
            raise ConfigError(f"--boxes {convention}: predictions of {self.name} hold no boxes; leave the flag out")
        return list(predictions), []

    def image_sizes(self) -> Mapping[str, tuple[int, int]]:
        """Return image id → the (width, height) in pixels that the annotations give; images without a size are absent.

        Default: no image has a size.
        """
        return {}

    def annotation_files(self) -> tuple[Path, ...]:
        """Return the files that were read; their digest identifies the annotations."""
        return self.files

    def lessons(self) -> Iterator[Example]:
        """Yield the examples of an epoch of training. Default: those of the evaluation."""
        yield from self.examples()

    def target(self, example: Example, boxes: Sequence[np.ndarray]) -> Target:
        """Return what a model is to learn from an example. `boxes` holds the regions of each image, float32 [R, 4].

        Default: the right answer with the weight 1, the right choice, the truth value. For a phrase, every region with
        IoU ≥ 0.5 with any of its boxes gets the same share of 1; where there is no such region, the row is zero. This
        is the rule of VisualBERT's authors. Raises ConfigError on an unlabelled split.
        """
        gold = self.gold(example.example_id)
        match example:
            case Question():
                return {gold: 1.0}
            case MultipleChoice():
                return int(gold)
            case Statement():
                return TRUTH_VALUES.index(gold)
            case Grounding():
                return region_shares(boxes[0], gold)
            case _:
                raise ConfigError(f"{self.name}: a {type(example).__name__} cannot be learnt here")

    def told(self, example: Example, draws: random.Random) -> Target:
        """Return what pre-training with masked words tells of an example: the answer to a question, the right choice,
        the truth value.

        Default: the right answer; None for phrases. Raises ConfigError on an unlabelled split.
        """
        match example:
            case Grounding():
                return None
            case Question():
                return str(self.gold(example.example_id))
            case _:
                return self.target(example, ())

    def drawn(self, example: Example, draws: random.Random) -> Example:
        """Return the example as training sees it on one visit. Default: the example itself."""
        return example

    def named_regions(self, example: Example, boxes: Sequence[np.ndarray]) -> NamedRegions:
        """Return which regions the words of an example name, for the term `grounding` of a training.

        `boxes` holds the regions of each image, float32 [R, 4]. Default: ConfigError, because most benchmarks do not
        say it.
        """
        raise ConfigError(f"{self.name}: it does not say which regions the words name; leave grounding out")

    # No benchmark replaces these.

    def need_labels(self) -> None:
        """Raise ConfigError on an unlabelled split."""
        if not self.labelled:
            raise ConfigError(
                f"{self.title} {self.split} has no public labels, so it has no score here; send the leaderboard its "
                f"{self.submission_name} instead"
            )

    def published_here(self) -> tuple[Published, ...]:
        """Return everything that is published for this split, under any protocol; nothing for a part of the split."""
        return tuple(each for each in self.published if each.split == self.split) if self.subset is None else ()

    def published_for(self, document: Mapping[str, Any]) -> Published | None:
        """Return what is published for the network of a scores document, asked and scored in the same way.

        Return None where nothing is, and for a part of the split. Predictions from a file have no known network.
        """
        wanted = (document.get("network"), document.get("answering"), self.protocol_key)
        return next((p for p in self.published_here() if (p.network, p.answering, p.protocol) == wanted), None)

    def compare_size(self, **counts: int) -> None:
        """Set `subset` and `protocol` by comparing the sizes that were read, as units=count, with the official ones.

        A benchmark with `sizes` calls this at the end of `read`.
        """
        # A file that was cut at the end of a line reads without an error, and so does one file of two. Only the size
        # shows the fault.
        for units, count in counts.items():
            known = self.sizes[units][self.split]
            if self.subset is None and count != known:
                less = f"{count:,} of {known:,} {units}"
                more = f"{count:,} {units} where {known:,} are official"
                self.subset = (
                    f"{less if count < known else more}: this is not the official {self.split} split, so its score is "
                    "not official and has no paper's number"
                )
        if self.subset is not None:
            self.protocol += f"; own set or subset of {count:,} {units}"

    def judged(self, example: Example, prediction: Prediction) -> JudgedAnswer:
        """Return a prediction's answer and the model's confidence in it, for `Score.judged`.

        Raises InputError where the answer does not fit the example's form. A `Question` and a `Captioning` need a
        string, a `MultipleChoice` the index of a choice, a `Statement` "True" or "False".
        """
        answer, scores = prediction.answer, prediction.scores
        match example:
            case Question() | Captioning() if isinstance(answer, str):
                at = 0
            case MultipleChoice() if type(answer) is int and 0 <= answer < len(example.choices):
                at = answer
            case Statement() if answer in TRUTH_VALUES:
                at = TRUTH_VALUES.index(answer)
            case _:
                asked = type(example).__name__
                raise InputError(f"prediction of {example.example_id}: {answer!r} is not an answer to a {asked}")
        return JudgedAnswer(example.example_id, answer, scores[at] if scores else None)
