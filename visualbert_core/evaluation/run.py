"""One model × task × split: the worker, and the run folder.

    <out>/<model>__<task>__<split>/     "…__wrong-image" for the baseline
        run.json        what was asked, what it was made of, how far it got, digests of the files below
        predictions/    a shards.ShardFolder
        submission.*    the leaderboard's file of complete predictions, where they hold all that it asks
        units.parquet   what each scored unit is worth, by which runs are compared
        scores.json     written last, and only over complete predictions of a split with public labels

Of a `limit` only the predictions are kept: a part of a split has no score.
Running the same line again resumes; a finished run is not computed again; a folder made of something else is refused.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from visualbert_core import lfs, storage
from visualbert_core.cluster import Pool
from visualbert_core.config import EvaluateConfig, run_name
from visualbert_core.documents import parse_json
from visualbert_core.errors import ConfigError, CoverageError, InputError
from visualbert_core.evaluation.batches import ExampleShard, plan_examples, sample, wrong_images
from visualbert_core.evaluation.fit import check_fit, check_form
from visualbert_core.evaluation.inputs import Joined, Reader, Source, open_source
from visualbert_core.evaluation.predictions import encode, read_predictions
from visualbert_core.evaluation.score import Answers, score
from visualbert_core.evaluation.sizes import check_sizes
from visualbert_core.evaluation.units import UNITS_FILE, by_metric, encode_units
from visualbert_core.features.store import encode_failures
from visualbert_core.host import in_halves
from visualbert_core.metrics.coverage import check_coverage
from visualbert_core.models import NOT_FINITE, Model, load_model
from visualbert_core.printable import say
from visualbert_core.provenance import (
    code_digests,
    differences,
    digest_bytes,
    digest_file,
    digest_files,
    digest_json,
    versions,
)
from visualbert_core.schema import SCHEMA_VERSION, Example, Failure, Prediction
from visualbert_core.shards import Marker, Part, ShardFolder, publish
from visualbert_core.tasks import Task, open_task

LoadModel = Callable[[Path, type[Example], str | None, str], Model[Any]]
"""folder, form of the examples, device, precision → model"""

_AGAIN = "delete it and run the same line again"


@dataclass(frozen=True)
class Run:
    """A run folder with its two documents; `scores` is None where predictions do not cover the split (a `limit` never
    does), or where it has no public labels."""

    folder: Path
    record: dict[str, Any]
    scores: dict[str, Any] | None


def evaluate(
    config: EvaluateConfig,
    pool: Pool,
    load: LoadModel = load_model,
    task: Task | None = None,
    source: Source | None = None,
) -> Run:
    """Predict what is missing, then score; a finished run of the same ingredients is only read. `task` and `source` are
    those of the configuration, where the caller has opened them already.

    Raises InputError for inputs that do not fit together, CoverageError (after run.json says so) where examples are
    left without a prediction.
    """
    if address := storage.url(config.out):
        raise ConfigError(f"{address}: run folders lie on a disk, only features may lie in a bucket: name a folder")
    task = task or open_task(config.task, config.annotations, config.split)
    model = load(config.model, task.form, "cpu", config.precision)
    check_form(model, task.form, config)
    source = source or open_source(config, model)
    warnings = check_fit(model, source, config)
    some = None if config.limit is None else sample(task.examples(), source, config.limit)
    made_of = source.identify(task.examples() if some is None else some)
    warnings = check_sizes(task, source) + warnings
    for warning in warnings:
        say(f"WARNING: {config.model.name}: {warning}", to=sys.stderr)
    provenance = _provenance(config, task, model) | made_of
    folder = run_folder(config)
    record = {"spec": _spec(config), "provenance": provenance, "status": "running", "warnings": warnings}
    _claim(folder, record)
    if _is_finished(folder):
        return read_run(folder)

    asked = list(task.examples()) if some is None else some
    donors = wrong_images(asked, source) if config.visual == "wrong-image" else None
    shards = plan_examples(asked, donors, source.files, digest_json(provenance), config.shard_size)
    predictions = ShardFolder(folder / "predictions")
    inputs = (config.model, task.form, source.reader)
    make_worker = partial(EvaluationWorker, *inputs, predictions.root, config.batch_size, config.precision, load)
    label = f"{config.task} {config.split}" + (" (wrong image)" if donors is not None else "")
    pool.run(make_worker, predictions.pending(shards), label)
    predictions.finish(shards, {"task": config.task, "split": config.split})
    if some is not None:
        return _keep_sample(folder, record, some)
    return _score(folder, record, task)


def run_folder(config: EvaluateConfig) -> Path:
    """Where a run lives."""
    name = run_name(config.model, config.task, config.split)
    return config.out / (name if config.visual == "own" else f"{name}__{config.visual}")


def read_run(folder: Path) -> Run:
    """A run folder as it stands. Raises InputError where there is none, or naming a document that is damaged."""
    record = _read_record(folder)
    try:
        dicts = dict.fromkeys(("scores", "intervals", "units", "chance", "breakdown"), dict)
        scores = _document(folder / "scores.json", task=str, split=str, headline=str, warnings=list, **dicts)
    except FileNotFoundError:
        return Run(folder, record, None)
    return Run(folder, record, scores)


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        return _document(folder / "run.json", spec=dict, provenance=dict, status=str, warnings=list)
    except FileNotFoundError:
        raise InputError(f"{folder} is not a run folder: it has no run.json") from None


def _document(path: Path, **kinds: type) -> dict[str, Any]:
    data = path.read_bytes()
    if lfs.is_pointer(data):
        raise InputError(f"{path}: {lfs.REASON}")
    try:
        found = parse_json(data)
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): {_AGAIN}") from None
    for name, kind in kinds.items():
        if not isinstance(found, dict) or not isinstance(found.get(name), kind):
            raise InputError(f"{path} is damaged ({name!r} is no {kind.__name__}): {_AGAIN}")
    document: dict[str, Any] = found
    return document


class EvaluationWorker:
    """Holds a model and turns shards of examples into committed parts."""

    def __init__(
        self,
        model: Path,
        form: type[Example],
        reader: Callable[[], Reader],
        out: Path,
        batch_size: int,
        precision: str,
        load: LoadModel = load_model,
    ) -> None:
        self.model = load(model, form, None, precision)
        self.reader = reader()
        self.folder = ShardFolder(out)
        self.batch_size = batch_size

    def run(self, shard: ExampleShard) -> Marker:
        """Predict and commit one shard."""
        failures = list(shard.lost().values())
        answered: dict[str, Prediction] = {}
        for batch, lacking in self.reader.read(shard, self.batch_size):
            failures += lacking
            for found in in_halves(self.predict, batch) if batch else ():
                kept = _believable(found)
                if isinstance(kept, Failure):
                    failures.append(kept)
                else:
                    answered[kept.example_id] = kept
        rows = [answered[item] for item in shard.items if item in answered]
        return self.folder.commit(shard, Part(encode(rows), len(rows), encode_failures(failures), len(failures)))

    def predict(self, batch: Sequence[Joined]) -> list[Prediction | Failure]:
        """What is kept of a batch."""
        return list(self.model.predict(batch))


def _believable(found: Prediction | Failure) -> Prediction | Failure:
    """What a model gave, or a failure for an answer without a number behind it: a model of somebody else's may give
    those, and they are no wrong answers."""
    if isinstance(found, Failure) or all(map(math.isfinite, found.scores)):
        return found
    return Failure(found.example_id, "predict", "NotFinite", NOT_FINITE)


def _spec(config: EvaluateConfig) -> dict[str, Any]:
    """What was asked, without paths: the same evaluation elsewhere has the same spec."""
    return {
        "model": config.model.name,
        "task": config.task,
        "split": config.split,
        "visual": config.visual,
        "foreign_features": config.foreign_features,
        "precision": config.precision,
        "batch_size": config.batch_size,
        "shard_size": config.shard_size,
        **({} if config.feature_space is None else {"feature_space": config.feature_space}),
        **({} if config.limit is None else {"limit": config.limit}),
    }


def _provenance(config: EvaluateConfig, task: Task, model: Model[Any]) -> dict[str, Any]:
    return {
        "spec": _spec(config),
        "schema": SCHEMA_VERSION,
        "annotations": digest_files(task.annotation_files()),
        "protocol": task.protocol,
        "model": model.fingerprint(),
        "code": code_digests(),
        "versions": versions(),
    }


def _claim(folder: Path, record: dict[str, Any]) -> None:
    """Start or resume a run folder; one that was made of something else is refused, saying of what. A sample gives way
    to another one."""
    if (folder / "run.json").exists():
        held = _read_record(folder)
        found = differences(held["provenance"], record["provenance"])
        if not found:
            return
        if not ("limit" in held["spec"] and "limit" in record["spec"]):  # nothing that counts is lost with a sample
            raise InputError(
                f"{folder} holds a run made of other ingredients ({'; '.join(found[:3])}): delete it or choose another "
                "output folder"
            )
    (folder / "scores.json").unlink(missing_ok=True)  # somebody may have deleted run.json alone
    _write(folder / "run.json", record)


def _is_finished(folder: Path) -> bool:
    """Whether a claimed run is complete and its files are as they were written, so that nothing is to be scored anew.
    A file that is missing or damaged is made again."""
    files = _read_record(folder).get("files")
    try:
        return files is not None and all(digest_file(folder / name) == digest for name, digest in files.items())
    except FileNotFoundError:
        return False


def _keep_sample(folder: Path, record: dict[str, Any], asked: Sequence[Example]) -> Run:
    predictions, failures = read_predictions(folder / "predictions")
    coverage = check_coverage([example.example_id for example in asked], (p.example_id for p in predictions))
    record |= {"coverage": coverage.counts(), "failed": [vars(f) for f in failures[:20]], "status": "sample"}
    _write(folder / "run.json", record)
    if not coverage.complete:
        raise CoverageError(f"{folder.name}: {coverage.message()}; e.g. {failures[0].item_id}: {failures[0].message}")
    return Run(folder, record, None)


def _score(folder: Path, record: dict[str, Any], task: Task) -> Run:
    predictions, failures = read_predictions(folder / "predictions")
    coverage = check_coverage(task.expected(), (p.example_id for p in predictions))
    record |= {"coverage": coverage.counts(), "failed": [vars(f) for f in failures[:20]]}
    if not coverage.complete:
        for name in ("scores.json", UNITS_FILE, task.submission_name):
            (folder / name).unlink(missing_ok=True)
        _write(folder / "run.json", record | {"status": "incomplete"})
        reason = f"; e.g. {failures[0].item_id}: {failures[0].message}" if failures else ""
        raise CoverageError(f"{folder.name}: no score, {coverage.message()}{reason}")
    submission, fault = _submission(task, predictions)
    record |= {"status": "complete", "submission": None if submission is None else task.submission_name}
    record |= {} if task.subset is None else {"subset": task.subset}
    if submission is None:
        (folder / task.submission_name).unlink(missing_ok=True)
    if fault is not None and not task.labelled:
        _write(folder / "run.json", record)
        raise InputError(f"{folder}: the predictions are complete, but {fault}")
    files, scores = ({} if submission is None else {task.submission_name: submission}), None
    if task.labelled:
        origin = {"model": record["spec"]["model"], "visual": record["spec"]["visual"]}
        answers = Answers(folder, predictions, coverage, origin, tuple(record["warnings"]))
        units = by_metric(task.score({p.example_id: p for p in predictions}))
        scores = score(task, answers, record["provenance"]["annotations"])
        files |= {UNITS_FILE: encode_units(units), "scores.json": _json(scores)}
    digests = {name: digest_bytes(data) for name, data in files.items()}
    digests["predictions/manifest.json"] = digest_file(folder / "predictions" / "manifest.json")
    record |= {"files": digests}
    _write(folder / "run.json", record)
    for name, data in files.items():
        publish(folder / name, data)
    return Run(folder, record, scores)


def _submission(task: Task, predictions: list[Prediction]) -> tuple[bytes | None, InputError | None]:
    """The leaderboard's file; or None and why not, where the leaderboard asks for more than the examples hold. On a
    labelled split that is no fault: VCR's wants the rationale after each of the four answers."""
    try:
        return task.submission({p.example_id: p for p in predictions}), None
    except InputError as error:
        return None, error


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _write(path: Path, value: dict[str, Any]) -> None:
    publish(path, _json(value))
