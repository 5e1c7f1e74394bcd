"""A task and predictions → the scores document, and the document as text.

Predictions come from a leaderboard's file, of any system, or from a run folder. Every example needs exactly one, or
there is no score; two modes say what else may be had. Used by `run.py` for scores.json and by `visualbert score`, where
there may be no GPU stack: nothing here imports torch or ray.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from visualbert_core.errors import ConfigError, CoverageError, InputError
from visualbert_core.evaluation.predictions import read_predictions
from visualbert_core.io.documents import read_json
from visualbert_core.metrics.coverage import Coverage, Lenient, check_coverage
from visualbert_core.printable import printable
from visualbert_core.schema import Prediction, Score
from visualbert_core.tasks import Task, summarize

OFFICIAL, OFFICIAL_FORM = "official", "official_form_of_subset"
"""Keys of a document: the score of the official split, or that of anything else as the official program words it."""

Mode = Literal["strict", "partial", "official"]
"""What happens where predictions do not cover the split. `strict`: no score. `partial`: where some are missing, and
nothing else is wrong, the range that they leave open. `official`: what the official program does in silence, said."""


@dataclass(frozen=True)
class PredictionSet:
    """Predictions as they were found, duplicates and unknown ids included."""

    source: Path
    predictions: list[Prediction]
    coverage: Coverage
    origin: Mapping[str, Any] = field(default_factory=dict)
    """What a run adds to the document: `model` and `visual`."""
    warnings: tuple[str, ...] = ()
    """What has to be said with every score."""


# ---------------------------------------------------------------------------------------------------------------------
# predictions in


def read_prediction_set(
    task: Task, path: Path, annotations_digest: str, mode: Mode = "strict", boxes: str | None = None
) -> PredictionSet:
    """The predictions of a submission file, whose boxes are of the convention `boxes` (None: undeclared pixels), or of
    a run folder.

    Raises ConfigError where the split has no public labels, or for a convention of what has no boxes, InputError for a
    path that cannot be read, a run of something else or boxes of another convention, CoverageError for a file that
    holds anything but predictions.
    """
    if not task.labelled:
        raise ConfigError(
            f"{task.name} {task.split} has no public labels: its {task.submission_name} is scored by the leaderboard"
        )
    if path.is_dir():
        if boxes is not None:
            raise ConfigError(f"--boxes {boxes}: {path} is a run folder, whose boxes are pixels; leave the flag out")
        return _from_run(task, path, annotations_digest)
    if not path.exists():
        raise InputError(f"{path}: not found; --predictions is a submission file or a run folder")
    predictions, warnings = _from_file(task, path, mode)
    try:
        predictions, said = task.in_pixels(predictions, boxes, believe=mode == "official" or boxes == "xyxy")
    except ConfigError:
        raise
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return PredictionSet(path, predictions, _coverage(task, predictions), warnings=(*warnings, *said))


def _from_file(task: Task, path: Path, mode: Mode) -> tuple[list[Prediction], tuple[str, ...]]:
    """A record that holds no answer is one of the ways in which a file may fail to cover a split."""
    warnings: tuple[str, ...] = ()
    try:
        predictions = task.read_submission(path)
    except InputError as error:
        if mode != "official":
            raise CoverageError(f"no score, {error}") from None
        warnings = (f"read as the official program reads it: {error}",)
    if mode == "official":
        try:
            predictions = task.read_submission(path, lenient=True)
        except InputError as error:
            raise CoverageError(f"no score, {error}") from None
    return predictions, warnings


def _from_run(task: Task, folder: Path, annotations_digest: str) -> PredictionSet:
    try:
        record = read_json(folder / "run.json")
        spec, made_of, warnings = record["spec"], record["provenance"], record["warnings"]
        made_for = {"task": spec["task"], "split": spec["split"], "annotations": made_of["annotations"]}
        origin = {"model": spec["model"], "visual": spec["visual"]}
    except ConfigError as error:
        raise InputError(f"{folder} is not a run folder: {error}") from None
    except (LookupError, TypeError) as error:
        raise InputError(f"{folder} is not a run folder: {type(error).__name__} in run.json ({error})") from None
    for name, value in {"task": task.name, "split": task.split, "annotations": annotations_digest}.items():
        if made_for[name] != value:
            raise InputError(f"{folder} ran on other {name}: {made_for[name]}, not {value}; ask for what it ran on")
    predictions, _ = read_predictions(folder / "predictions")
    return PredictionSet(folder, predictions, _coverage(task, predictions), origin, tuple(warnings))


def _coverage(task: Task, predictions: Iterable[Prediction]) -> Coverage:
    return check_coverage(task.expected(), (row.example_id for row in predictions))


# ---------------------------------------------------------------------------------------------------------------------
# scores out


def score(
    task: Task,
    answers: PredictionSet,
    annotations_digest: str,
    mode: Mode = "strict",
    units: Sequence[Score] | None = None,
) -> dict[str, Any]:
    """The document that a reader of scores needs, without times or paths: equal predictions give equal bytes.

    JSON values only, no NaN; percent, but for `official`. Where predictions are missing and the mode is "partial",
    `ranges` (all missing answered worst … best) stand instead of scores, intervals, breakdown and the like. Where the
    annotations are not the official split, `subset` says so, and `official_form_of_subset` stands instead of
    `official`. `units` is what `task.score` gave for these predictions, where the caller has it.
    Raises CoverageError where there is no score: incomplete predictions, or answers of the wrong type.
    """
    predictions, left, warnings = answers.predictions, answers.coverage, list(answers.warnings)
    if mode == "official":
        predictions, ignored = _as_officially(task, answers)
        left = _coverage(task, predictions)
        warnings += ignored
    partial = mode == "partial" and bool(left.missing)
    if left.duplicate or left.unknown or (left.missing and not partial):
        raise CoverageError(f"{answers.source}: no score, {left.message()}; {_remedy(left, task.lenient, mode)}")
    by_id = {row.example_id: row for row in predictions}
    try:
        values = _ranges(task, by_id, left.missing) if partial else _scores(task, by_id, units)
    except InputError as error:
        raise CoverageError(f"{answers.source}: no score, {error}") from None
    if answers.origin.get("visual", "own") == "own":  # a wrong image may well be worse than none
        warnings += _under_chance(values)
    return {
        "task": task.name,
        "split": task.split,
        "protocol": task.protocol,
        **({} if task.subset is None else {"subset": task.subset}),
        "headline": task.headline,
        **answers.origin,
        "n": left.expected,
        "partial": partial,
        **values,
        "coverage": answers.coverage.counts(),
        "warnings": warnings,
        "annotations_digest": annotations_digest,
    }


def _scores(task: Task, predictions: Mapping[str, Prediction], units: Sequence[Score] | None) -> dict[str, Any]:
    scores = list(task.score(predictions)) if units is None else units
    summary = summarize(scores)
    metrics = summary.metrics
    return {
        "scores": {name: m.value for name, m in metrics.items()},
        "intervals": {name: [_number(m.low), _number(m.high)] for name, m in metrics.items()},
        "units": {name: m.n for name, m in metrics.items()},
        "chance": task.chance(predictions),
        OFFICIAL if task.subset is None else OFFICIAL_FORM: task.official(scores),
        "breakdown": summary.breakdown,
    }


def _under_chance(values: Mapping[str, Any]) -> list[str]:
    """Worse than guessing is no accident: most likely the answer list or the features are another checkpoint's."""
    return [
        f"{name} is under chance ({values['scores'][name]:.2f}, guessing gets {chance:.2f}): do the answer list, the "
        "features and the annotations belong to this checkpoint?"
        for name, chance in values.get("chance", {}).items()
        if (high := values["intervals"][name][1]) is not None and high < chance
    ]


def _ranges(task: Task, predictions: Mapping[str, Prediction], missing: Iterable[str]) -> dict[str, Any]:
    images = task.expected()

    def percent(answer: Callable[[str], Any]) -> dict[str, float]:
        filled = {name: Prediction(name, images[name], answer(name), ()) for name in missing}
        return {name: m.value for name, m in summarize(task.score({**predictions, **filled})).metrics.items()}

    low, high = percent(task.worst), percent(task.best)
    return {"ranges": {name: [low[name], high[name]] for name in low}}


def _as_officially(task: Task, answers: PredictionSet) -> tuple[list[Prediction], list[str]]:
    """The predictions that the official program would look at, and a line for everything that it passes over."""
    known, rows, said = task.expected(), answers.predictions, []
    if answers.coverage.unknown and task.lenient.unknown == "ignore":
        found = len(rows)
        rows = [row for row in rows if row.example_id in known]
        said.append(f"ignored as the official program does: {found - len(rows):,} predictions of unknown ids")
    if answers.coverage.duplicate and task.lenient.duplicate != "refuse":
        kept = task.lenient.duplicate
        by_id = {row.example_id: row for row in (rows if kept == "last" else reversed(rows))}
        said.append(
            f"ignored as the official program does: {len(rows) - len(by_id):,} predictions of ids that occur again "
            f"(the {kept} one counts)"
        )
        rows = list(by_id.values())
    return rows, said


def _remedy(coverage: Coverage, lenient: Lenient, mode: Mode) -> str:
    """What to do; and where the official program would say nothing, that it would."""
    silent = []
    if coverage.duplicate and lenient.duplicate != "refuse":
        silent.append(f"takes the {lenient.duplicate} of two")
    if coverage.unknown and lenient.unknown == "ignore":
        silent.append("ignores unknown ids")
    if silent:
        return f"predict each example once (the official program silently {' and '.join(silent)}: --official-lenient)"
    if mode == "official":
        return "the official program gives none either"
    return "predict each example once" + ("" if coverage.duplicate or coverage.unknown else " (or see --allow-partial)")


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


# ---------------------------------------------------------------------------------------------------------------------
# for people


def describe(document: Mapping[str, Any], paper: Mapping[str, float]) -> Iterator[str]:
    """The lines of a scores document; `paper` is metric → percent published for the same split and protocol."""
    yield document["protocol"]
    wrong_image = ", asked about other images" if document.get("visual") == "wrong-image" else ""
    yield f"{document['task']} {document['split']}, {document['n']:,} examples{wrong_image}"
    yield from (f"WARNING: {warning}" for warning in (*_subset(document), *document["warnings"]))
    if document["partial"]:
        yield from _partial(document)
        return
    yield from ("", f"{'metric':<14} {'score':>6}  {'95 % interval':<16} {'n':>9}  {'paper':>6}")
    for name, value in document["scores"].items():
        low, high = document["intervals"][name]
        spread = "" if low is None else f"[{low:.2f}, {high:.2f}]"
        published = f"{paper[name]:.2f}" if name in paper else "–"
        yield f"{name:<14} {value:6.2f}  {spread:<16} {document['units'][name]:>9,}  {published:>6}"
    official = OFFICIAL in document
    yield from ("", "as the official program has it:" if official else "no official score; in the official form:")
    values = document[OFFICIAL if official else OFFICIAL_FORM]
    yield from (f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items())
    for kind, groups in document["breakdown"].items():
        yield from _breakdown(kind, groups)


def _subset(document: Mapping[str, Any]) -> tuple[str, ...]:
    return (document["subset"],) if "subset" in document else ()


def _partial(document: Mapping[str, Any]) -> Iterator[str]:
    missing = document["coverage"]["missing"]
    yield from ("", f"PARTIAL, no score: {missing:,} missing; between all of them answered worst and all answered best")
    yield from (f"{name:<14} {low:.2f} … {high:.2f}" for name, (low, high) in document["ranges"].items())


def _breakdown(kind: str, groups: Mapping[str, Mapping[str, tuple[float, int]]]) -> Iterator[str]:
    """A row a group, a column a metric: percent and, in brackets, the number of units."""
    metrics = list(dict.fromkeys(chain.from_iterable(groups.values())))
    names = [printable(group) for group in groups]  # before they are set under one another
    width = max(map(len, (kind, *names)))
    yield from ("", f"{kind:<{width}}" + "".join(f"  {metric:>18}" for metric in metrics))
    for group, values in zip(names, groups.values(), strict=True):
        cells = (f"{values[m][0]:.2f} {f'({values[m][1]:,})':>10}" if m in values else "" for m in metrics)
        yield f"{group:<{width}}" + "".join(f"  {cell:>18}" for cell in cells)
