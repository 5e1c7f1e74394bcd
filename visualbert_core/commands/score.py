"""`visualbert score`: predictions of any system → the official score. No model, no Ray, no torch."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from visualbert_core.errors import ConfigError
from visualbert_core.evaluation.score import JAVA, Mode, describe, read_prediction_set, score
from visualbert_core.metrics.boxes import CONVENTIONS
from visualbert_core.printable import say, say_result
from visualbert_core.provenance import digest_files
from visualbert_core.tasks import open_task
from visualbert_core.tasks.reading import choose


@dataclass(frozen=True, kw_only=True)
class Command:
    """Score the predictions of any system, from a leaderboard's file or a run folder.

    Exit code 3: an example has no prediction, or several, or an answer of the wrong type; or an id is unknown. Then
    there is no score, and a table on stderr lists these ids.

        visualbert score --task nlvr2 --split dev --annotations DIR --predictions predictions.csv
        visualbert score --task vqa --split val --annotations DIR --predictions RUNS/MODEL__vqa__val --json
    """

    task: str
    """The benchmark: a name of this package (a wrong name lists them all), or module:Class for a task of your own."""
    split: str
    """val, dev, test1, …"""
    annotations: Path
    """Folder of the official annotation files."""
    predictions: Path
    """Submission file or run folder."""
    protocol: str | None = None
    """The scoring protocol, for a benchmark with several. Default: the official or usual protocol."""
    boxes: str | None = None
    """Convention of the predicted boxes: xyxy, xywh, normalised, normalised-xywh, … Boxes are converted to xyxy.
    Default: xyxy, and an error where the boxes look otherwise."""
    allow_partial: bool = False
    """If predictions are missing, print the range in which the score lies."""
    official_lenient: bool = False
    """Accept every predictions file that the official program accepts."""
    java: tuple[str, ...] = ()
    """Also print the scores of Java programs that you have installed. For captions: meteor, spice."""
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self) -> None:
        if self.allow_partial and self.official_lenient:
            raise ConfigError("--allow-partial and --official-lenient exclude each other: give one of them")
        if self.allow_partial and self.java:
            raise ConfigError("--allow-partial and --java exclude each other: a Java program gives no range")
        if self.boxes is not None:
            choose("convention of boxes", self.boxes, CONVENTIONS)

    def run(self) -> int:
        mode: Mode = "partial" if self.allow_partial else "official" if self.official_lenient else "strict"
        task = open_task(self.task, self.annotations, self.split, self.protocol)
        other = task.other_scorer(self.java) if self.java else None
        digest = digest_files(task.annotation_files())
        answers = read_prediction_set(task, self.predictions, digest, mode, self.boxes)
        if not answers.coverage.complete:
            for line in answers.coverage.table().splitlines():
                say(line, to=sys.stderr)
        document = score(task, answers, digest, mode)
        if other:
            document[JAVA] = other({row.example_id: row for row in answers.predictions})
        say_result(self.json, document, describe(document, task))
        return 0
