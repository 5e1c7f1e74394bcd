"""`visualbert score`: predictions of any system → the official score. No model, no Ray, no torch."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from visualbert_core.errors import ConfigError
from visualbert_core.evaluation.score import Mode, describe, read_prediction_set, score
from visualbert_core.metrics.boxes import CONVENTIONS
from visualbert_core.printable import say, say_json
from visualbert_core.provenance import digest_files
from visualbert_core.tasks import open_task
from visualbert_core.tasks.reading import choose


@dataclass(frozen=True, kw_only=True)
class Command:
    """Score predictions: a leaderboard's file, of any system, or a run folder.

    Exit code 3: some examples have no prediction, several, or an answer of the wrong type, or ids are unknown. Then
    there is no score, and a table on stderr says which.

        visualbert score --task nlvr2 --split dev --annotations DIR --predictions predictions.csv
        visualbert score --task vqa --split val --annotations DIR --predictions RUNS/MODEL__vqa__val --json
    """

    task: str
    """The benchmark: a name of this package (a wrong one lists them), or module:Class for one of your own."""
    split: str
    """val, dev, test1, …"""
    annotations: Path
    """Folder of the official annotation files."""
    predictions: Path
    """Submission file or run folder."""
    protocol: str | None = None
    """Where a benchmark has several; default: the official or usual one."""
    boxes: str | None = None
    """How predicted boxes are written: xyxy, xywh, normalised, normalised-xywh, … They are then converted. Default:
    xyxy, and a refusal where they look otherwise."""
    allow_partial: bool = False
    """Where predictions are missing, print the range that they leave."""
    official_lenient: bool = False
    """Accept what the official program accepts."""
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self) -> None:
        if self.allow_partial and self.official_lenient:
            raise ConfigError("--allow-partial and --official-lenient exclude each other: give one of them")
        if self.boxes is not None:
            choose("convention of boxes", self.boxes, CONVENTIONS)

    def run(self) -> int:
        """Read, check coverage, score."""
        mode: Mode = "partial" if self.allow_partial else "official" if self.official_lenient else "strict"
        task = open_task(self.task, self.annotations, self.split, self.protocol)
        digest = digest_files(task.annotation_files())
        answers = read_prediction_set(task, self.predictions, digest, mode, self.boxes)
        if not answers.coverage.complete:
            for line in answers.coverage.table().splitlines():
                say(line, to=sys.stderr)
        document = score(task, answers, digest, mode)
        if self.json:
            say_json(document)
            return 0
        for line in describe(document, task.paper_numbers()):
            say(line)
        return 0
