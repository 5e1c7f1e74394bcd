"""Computes the scores document from a task and predictions, and shows the document as text.

The predictions come from a leaderboard's file of any system, or from a run folder. There is a score only if every
example has exactly one prediction; two modes relax this rule. `run.py` writes the document as scores.json, and
`visualbert score` prints it. That command must work where torch and Ray are not installed, so this file imports
neither.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import isnan
from pathlib import Path
from typing import Any, Literal

from visualbert_core.errors import ConfigError, CoverageError, InputError
from visualbert_core.evaluation.worker import read_predictions
from visualbert_core.io.documents import read_json
from visualbert_core.metrics.coverage import Coverage, check_coverage
from visualbert_core.printable import printable
from visualbert_core.schema import Captioning, Prediction, Score
from visualbert_core.tasks import Task, score_units, summarize
from visualbert_core.tasks.scoring import without_unparsed

OFFICIAL, OFFICIAL_FORM = "official", "official_form_of_subset"
"""Keys of a document. The first is for the official split. The second is for other annotations: it holds their scores
in the form of the official program."""

PERSON, AS_PERSON = "person", "as_person"
"""Keys of a document: what a person gets, and what the predictions get under the same conditions."""
JAVA = "java"
"""Key of a printed document: the scores of `--java`. scores.json does not have them, because they need more than this
package."""

Mode = Literal["strict", "partial", "official"]
"""What happens where predictions do not cover the split. `strict` gives no score. `partial` gives the possible range
where predictions are missing but nothing else is wrong. `official` does what the official program does silently, with a
warning."""


@dataclass(frozen=True)
class PredictionSet:
    """Holds predictions as they were read, with duplicates and unknown ids."""

    source: Path
    predictions: list[Prediction]
    coverage: Coverage
    origin: Mapping[str, Any] = field(default_factory=dict)
    """The keys that a run adds to the document: `model`, `visual`, `network` and `answering`."""
    warnings: tuple[str, ...] = ()
    """The warnings that stand with every score."""


# ---------------------------------------------------------------------------------------------------------------------
# reading predictions


def read_prediction_set(
    task: Task, path: Path, annotations_digest: str, mode: Mode = "strict", boxes: str | None = None
) -> PredictionSet:
    """Read the predictions of a submission file or of a run folder.

    `boxes` is the convention of a file's boxes; None means undeclared pixels. Raises ConfigError where the split has no
    public labels, and for `boxes` with a run folder or with a benchmark without boxes. Raises InputError for a path
    that cannot be read, for a run of another split, and for boxes that look like another convention. Raises
    CoverageError for a file with a record that is not a prediction.
    """
    if not task.labelled:
        raise ConfigError(
            f"{task.name} {task.split} has no public labels: send the leaderboard its {task.submission_name} instead"
        )
    if path.is_dir():
        if boxes is not None:
            raise ConfigError(
                f"--boxes {boxes}: {path} is a run folder, so its boxes are in pixels; leave the flag out"
            )
        return _from_run(task, path, annotations_digest)
    if not path.exists():
        raise InputError(f"{path}: not found; name a submission file or a run folder with --predictions")
    predictions, warnings = _from_file(task, path, mode)
    try:
        predictions, said = task.in_pixels(predictions, boxes, believe=mode == "official" or boxes == "xyxy")
    except ConfigError:
        raise
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return PredictionSet(path, predictions, _coverage(task, predictions), warnings=(*warnings, *said))


def _from_file(task: Task, path: Path, mode: Mode) -> tuple[list[Prediction], tuple[str, ...]]:
    """Read a submission file and return its predictions and warnings.

    Raises CoverageError, not InputError, for a malformed record: a record without an answer leaves an example without a
    prediction.
    """
    try:
        predictions = task.read_submission(path, lenient=mode == "official")
    except InputError as error:
        if _has_records(task, path):
            raise CoverageError(f"no score, {error}") from None
        raise
    if mode == "official":
        try:
            task.read_submission(path)
        except InputError as error:
            return predictions, (f"read as the official program reads it: {error}",)
    return predictions, ()


def _has_records(task: Task, path: Path) -> bool:
    """Return whether a file is text, and JSON where the benchmark's submissions are."""
    try:
        text = path.read_text("utf-8-sig")
        if task.submission_name.endswith(".json"):
            json.loads(text)
    except (OSError, ValueError, RecursionError):
        return False
    return True


def _from_run(task: Task, folder: Path, annotations_digest: str) -> PredictionSet:
    try:
        record = read_json(folder / "run.json")
        spec, made_of, warnings = record["spec"], record["provenance"], record["warnings"]
        made_for = {"task": spec["task"], "split": spec["split"], "annotations": made_of["annotations"]}
        origin = {"model": spec["model"], "visual": spec["visual"]}
        origin |= {key: record[key] for key in ("network", "answering")}
    except (ConfigError, LookupError, TypeError) as error:
        raise InputError(
            f"{folder} is not a run folder: run.json is not as evaluate writes it ({type(error).__name__}: {error}); "
            "run the evaluation again"
        ) from None
    for name, value in {"task": task.name, "split": task.split, "annotations": annotations_digest}.items():
        if made_for[name] != value:
            raise InputError(
                f"{folder} is a run with another value of {name}: {made_for[name]}, not {value}; use the run's value"
            )
    predictions, _ = read_predictions(folder / "predictions")
    return PredictionSet(folder, predictions, _coverage(task, predictions), origin, tuple(warnings))


def _coverage(task: Task, predictions: Iterable[Prediction]) -> Coverage:
    return check_coverage(task.expected(), (row.example_id for row in predictions))


# ---------------------------------------------------------------------------------------------------------------------
# computing scores


def score(
    task: Task,
    answers: PredictionSet,
    annotations_digest: str,
    mode: Mode = "strict",
    units: Sequence[Score] | None = None,
) -> dict[str, Any]:
    """Return the scores document. It holds no times and no paths, so equal predictions give equal bytes.

    The document holds JSON values without NaN. Its scores are in percent, except under `official`. In the mode
    "partial", where predictions are missing, `ranges` replaces scores, intervals, units, chance, `official` and
    breakdown. A range goes from the worst to the best answer to every missing example. Where the annotations are not
    the official split, `subset` says so, and `official_form_of_subset` replaces `official`. A caller that has the
    result of `task.score` for these predictions passes it as `units`.

    Raises CoverageError where there is no score, because predictions are incomplete or an answer has a wrong type.
    """
    predictions, left, warnings = answers.predictions, answers.coverage, list(answers.warnings)
    if mode == "official":
        predictions, ignored = _as_officially(task, answers)
        left = _coverage(task, predictions)
        warnings += ignored
    partial = mode == "partial" and bool(left.missing)
    if left.duplicate or left.unknown or (left.missing and not partial):
        raise CoverageError(f"{answers.source}: no score, {left.message()}; {_remedy(left, task, mode)}")
    by_id = {row.example_id: row for row in predictions}
    try:
        values = _ranges(task, by_id, left.missing) if partial else _scores(task, by_id, units)
    except InputError as error:
        raise CoverageError(f"{answers.source}: no score, {error}") from None
    if not partial:
        warnings += task.remarks(by_id)
    if answers.origin.get("visual", "own") == "own":  # With a wrong image, a score under chance is not a fault.
        warnings += _under_chance(values)
    return {
        "task": task.name,
        "split": task.split,
        "protocol": task.protocol,
        **_present({"subset": task.subset}),
        "headline": task.headline,
        **answers.origin,
        "n": left.expected,
        "partial": partial,
        **values,
        **_written(task, by_id.values()),
        "coverage": answers.coverage.counts(),
        "warnings": warnings,
        "annotations_digest": annotations_digest,
    }


def _scores(task: Task, predictions: Mapping[str, Prediction], units: Sequence[Score] | None) -> dict[str, Any]:
    scores = list(score_units(task, predictions)) if units is None else units
    summary = summarize(scores, task.scales)
    metrics = summary.metrics
    person = task.person(predictions)
    # Other protocols judge the form of an answer. That of a head comes from a list, so its form is always the same.
    writes = any(row.generated for row in predictions.values())
    others = {
        "scales": dict(task.scales),
        PERSON: person and dict(person.person),
        AS_PERSON: person and dict(person.predictions),
        "beside": task.beside(predictions),
        "other_protocols": writes and task.other_protocols(without_unparsed(task, predictions)),
    }
    return {
        "scores": {name: m.value for name, m in metrics.items()},
        "intervals": {name: [None if isnan(x) else x for x in (m.low, m.high)] for name, m in metrics.items()},
        "units": {name: m.n for name, m in metrics.items()},
        "chance": task.chance(predictions),
        **_present(others),
        OFFICIAL if task.subset is None else OFFICIAL_FORM: task.official(scores),
        "breakdown": summary.breakdown,
    }


def _present(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that have a value, neither None nor 0 nor empty."""
    return {key: value for key, value in values.items() if value}


def _written(task: Task, predictions: Collection[Prediction]) -> dict[str, Any]:
    """Return how many generated texts held no answer or were cut, and how many examples the model read in part."""
    texts = [text for row in predictions for text in row.generated]
    found = {"texts": len(texts), "cut": sum(text.cut for text in texts)}
    if task.form is not Captioning:  # a caption is never without an answer
        found["unparsed"] = sum(not text.parsed for text in texts)
    return _present({"generated": texts and found, "input_cut": sum(row.input_cut for row in predictions)})


def _under_chance(values: Mapping[str, Any]) -> list[str]:
    """Return a warning for each metric whose whole interval is under chance, which hardly happens by accident."""
    return [
        f"{name} is under chance ({values['scores'][name]:.2f}; guessing gets {chance:.2f}): check that the answer "
        "list, the features and the annotations belong to this checkpoint"
        for name, chance in values.get("chance", {}).items()
        if (high := values["intervals"][name][1]) is not None and high < chance
    ]


def _ranges(task: Task, predictions: Mapping[str, Prediction], missing: Iterable[str]) -> dict[str, Any]:
    images, predictions = task.expected(), without_unparsed(task, predictions)
    ends = []
    for answer in (task.worst, task.best):
        filled = {name: Prediction(name, images[name], answer(name), ()) for name in missing}
        ends.append(summarize(task.score({**predictions, **filled}), task.scales).metrics)
    return {"ranges": {name: [each[name].value for each in ends] for name in ends[0]}}


def _as_officially(task: Task, answers: PredictionSet) -> tuple[list[Prediction], list[str]]:
    """Return the predictions that the official program would judge, and a warning for each kind that it ignores."""
    known, rows, kept = task.expected(), answers.predictions, task.lenient.duplicate
    ignored = []
    if answers.coverage.unknown and task.lenient.unknown == "ignore":
        found = len(rows)
        rows = [row for row in rows if row.example_id in known]
        ignored.append(f"{found - len(rows):,} predictions of unknown ids")
    if answers.coverage.duplicate and kept != "refuse":
        found = len(rows)
        rows = list({row.example_id: row for row in (rows if kept == "last" else reversed(rows))}.values())
        ignored.append(f"{found - len(rows):,} predictions of repeated ids (the {kept} prediction of an id counts)")
    return rows, [f"ignored as the official program does: {line}" for line in ignored]


def _remedy(coverage: Coverage, task: Task, mode: Mode) -> str:
    """Return what to do. Where the official program would silently accept the predictions, say so."""
    kept = task.lenient.duplicate
    silent = [f"takes the {kept} of two"] if coverage.duplicate and kept != "refuse" else []
    silent += ["ignores unknown ids"] if coverage.unknown and task.lenient.unknown == "ignore" else []
    if silent:
        return f"predict each example once (the official program silently {' and '.join(silent)}: --official-lenient)"
    if mode == "official":
        return "the official program gives no score either; predict each example once"
    ranged = task.has_range and not (coverage.duplicate or coverage.unknown)
    return "predict each example once" + (" (or see --allow-partial)" if ranged else "")


# ---------------------------------------------------------------------------------------------------------------------
# the document as text


_VISUALS = {"wrong-image": ", each asked about other images", "none": ", each asked about a grey image"}


def describe(document: Mapping[str, Any], task: Task) -> Iterator[str]:
    """Yield a scores document as lines of text.

    A published number stands beside a score of the same network, split and protocols. Where the network is not known,
    as for a file of predictions, everything that is published for the split is listed below the scores.
    """
    yield document["protocol"]
    visual = _VISUALS.get(document.get("visual", "own"), "")
    yield f"{document['task']} {document['split']}, {document['n']:,} examples{visual}"
    yield from how_answered(document)
    subset = [document["subset"]] if "subset" in document else []
    yield from (f"WARNING: {warning}" for warning in (*subset, *document["warnings"]))
    if document["partial"]:
        missing = document["coverage"]["missing"]
        yield from ("", f"PARTIAL, no score: {missing:,} missing; from the worst to the best answer to each of them:")
        yield from (f"{name:<14} {low:.2f} … {high:.2f}" for name, (low, high) in document["ranges"].items())
        return
    others: Mapping[str, Mapping[str, float]] = document.get("other_protocols", {})
    person = {"person": document[PERSON], "as person": document[AS_PERSON]} if PERSON in document else {}
    columns: Mapping[str, Mapping[str, float]] = {**person, **others}
    header = f"{'metric':<14} {'score':>6}  {'95 % interval':<16} {'n':>9}  {'paper':>6}"
    yield from ("", header + "".join(f"  {name:>6}" for name in columns))
    published = task.published_for(document)
    for name, value in document["scores"].items():
        low, high = document["intervals"][name]
        spread = "" if low is None else f"[{low:.2f}, {high:.2f}]"
        paper = _percent(published.percent if published else {}, name)
        line = f"{name:<14} {value:6.2f}  {spread:<16} {document['units'][name]:>9,}  {paper:>6}"
        yield line + "".join(f"  {_percent(values, name):>{max(6, len(key))}}" for key, values in columns.items())
    if person:
        yield f"person: {task.person_is}; as person: the score, by the judges that the person has"
    official = OFFICIAL in document
    yield from ("", "in the official form:" if official else "no official score; in the official form:")
    values = document[OFFICIAL if official else OFFICIAL_FORM]
    yield from (f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items())
    for kind, groups in document["breakdown"].items():
        yield from _breakdown(kind, groups)
    if "network" not in document and (listed := task.published_here()):
        yield from ("", f"published for {document['split']}, under the protocols that are named:")
        yield from map(str, listed)


def _percent(values: Mapping[str, float], metric: str) -> str:
    return f"{values[metric]:.2f}" if metric in values else "–"


def _breakdown(kind: str, groups: Mapping[str, Mapping[str, tuple[float, int]]]) -> Iterator[str]:
    """Yield a table with one row per group and one column per metric: percent, and the number of units in brackets."""
    metrics = list(dict.fromkeys(chain.from_iterable(groups.values())))
    names = [printable(group) for group in groups]  # Escaping comes first, because it changes the width of a name.
    width = max(map(len, (kind, *names)))
    yield from ("", f"{kind:<{width}}" + "".join(f"  {metric:>18}" for metric in metrics))
    for group, values in zip(names, groups.values(), strict=True):
        cells = (f"{values[m][0]:.2f} {f'({values[m][1]:,})':>10}" if m in values else "" for m in metrics)
        yield f"{group:<{width}}" + "".join(f"  {cell:>18}" for cell in cells)


def how_answered(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield how the model was asked, and what became of its texts. A head that answers whole inputs gives no line."""
    if document.get("answering"):
        yield f"asked: {document['answering']}"
    yield from what_came(document)


def what_came(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the shares of texts without an answer, of texts that were cut, and of examples that were read in part.

    Then yield the numbers of `Task.beside`, and the scores of Java programs.
    """
    if "generated" in document:
        texts, cut = document["generated"]["texts"], document["generated"]["cut"]
        if "unparsed" in document["generated"]:
            unparsed = document["generated"]["unparsed"]
            yield f"unparsed: {100 * unparsed / texts:.1f} % of {texts:,} texts held no answer and count as wrong"
        yield f"cut: {100 * cut / texts:.1f} % of {texts:,} texts ended at the limit of their length"
    if "input_cut" in document:
        yield f"input cut: {document['input_cut']:,} of {document['n']:,} examples were too long and were read in part"
    yield from (f"{name}: {value:,.4g}" for name, value in document.get("beside", {}).items())
    yield from (f"{name}: {value:.2f}" for name, value in document.get(JAVA, {}).items())


def against_person(document: Mapping[str, Any], labels: Mapping[str, str]) -> Iterator[str]:
    """Yield one line with the scores of a person, and of the predictions under the same conditions.

    `labels` has the names of metrics for users. There is no line where a person's score is not known.
    """
    if PERSON in document:
        scores = document[AS_PERSON]
        pairs = [
            f"{labels.get(name, name)} {value:.1f} and {scores[name]:.1f}" for name, value in document[PERSON].items()
        ]
        yield f"a person, and the model judged as the person is: {', '.join(pairs)}"
