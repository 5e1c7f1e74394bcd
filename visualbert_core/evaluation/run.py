"""Runs one evaluation, of a model on a split of a benchmark: it predicts the examples that are missing, then scores.

The same command run again resumes the run. A finished run is not computed again. A folder of a run with other
ingredients is refused. `run_folder` describes the folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from visualbert_core.config import AnsweringConfig, EvaluateConfig
from visualbert_core.engine.pool import Pool
from visualbert_core.engine.shards import ShardFolder, publish
from visualbert_core.errors import CheckpointError, CoverageError, InputError
from visualbert_core.evaluation.checks import check_sizes, open_checked, trained_on
from visualbert_core.evaluation.inputs import Source, sample
from visualbert_core.evaluation.run_folder import Run, claim, encode_json, is_finished, read_run, run_folder, write_json
from visualbert_core.evaluation.score import PredictionSet, score
from visualbert_core.evaluation.units import UNITS_FILE, by_metric, encode_units
from visualbert_core.evaluation.worker import EvaluationWorker, LoadModel, plan_examples, read_predictions, wrong_images
from visualbert_core.io.hub import checkpoint_name, hub_origin, with_folder
from visualbert_core.metrics.coverage import check_coverage
from visualbert_core.models import Model, load_model
from visualbert_core.printable import logger
from visualbert_core.provenance import (
    code_digests,
    digest_bytes,
    digest_file,
    digest_files,
    digest_json,
    outside_code,
    versions,
)
from visualbert_core.schema import PREDICTION_VERSION, Example, Failure, Prediction
from visualbert_core.tasks import Task, open_task, score_units, title_of

_LOG = logger(__name__)
BASELINES = {"own": "", "wrong-image": " (wrong image)", "none": " (no image)"}
"""What the examples are asked about → its name behind the name of a benchmark."""


def evaluate(
    config: EvaluateConfig,
    pool: Pool,
    load: LoadModel = load_model,
    task: Task | None = None,
    source: Source | None = None,
) -> Run:
    """Predict the examples that are missing, then score. A finished run of the same ingredients is only read.

    A caller that has opened the configuration's task or source passes them as `task` and `source`. Raises InputError
    for inputs that do not fit together. Raises CoverageError where examples are left without a prediction; run.json
    then has the status "incomplete".
    """
    if load is load_model:  # a loader of the caller's own knows what its models' names mean
        config = with_folder(config)
    task = task or open_task(config.task, config.annotations, config.split)
    model, source, warnings = open_checked(config, task, load, source)
    some = None if config.limit is None else sample(task.examples(), source, config.limit)
    made_of = source.identify(task.examples() if some is None else some)
    provenance = _provenance(config, task, model) | made_of
    warnings = [*trained_on(config.model, provenance["annotations"]), *check_sizes(task, source), *warnings]
    for warning in warnings:
        _LOG.warning("%s: %s", checkpoint_name(config.model), warning)
    folder = run_folder(config)
    asking: dict[str, Any] = {"network": model.name, "answering": model.protocol}
    asking |= {} if (origin := hub_origin(config.model)) is None else {"hub": origin}
    record = {"spec": _spec(config), **asking, "provenance": provenance, "status": "running", "warnings": warnings}
    claim(folder, record)
    if is_finished(folder):
        return read_run(folder)

    asked = list(task.examples()) if some is None else some
    donors = wrong_images(asked, source) if config.visual == "wrong-image" else None
    shards = plan_examples(asked, donors, source.files, digest_json(provenance), config.shard_size)
    predictions = ShardFolder(folder / "predictions")
    make_worker = partial(EvaluationWorker, config, task.form, source.reader(config.visual), predictions.root, load)
    label = f"{title_of(config.task)} {config.split}{BASELINES[config.visual]}"
    pool.run(make_worker, predictions.pending(shards), label)
    predictions.finish(shards, {"task": config.task, "split": config.split})
    if some is not None:
        return _keep_sample(folder, record, some)
    return _score(folder, record, task)


def _spec(config: EvaluateConfig) -> dict[str, Any]:
    """Return the settings of the evaluation without paths, so that equal evaluations in two places have equal specs."""
    return {
        "model": checkpoint_name(config.model),
        "task": config.task,
        "split": config.split,
        "visual": config.visual,
        "allow_feature_space_mismatch": config.allow_feature_space_mismatch,
        **_set(config.answering),
        "precision": config.precision,
        "batch_size": config.batch_size,
        "shard_size": config.shard_size,
        **({} if config.feature_space is None else {"feature_space": config.feature_space}),
        **({} if config.limit is None else {"limit": config.limit}),
    }


def _set(answering: AnsweringConfig) -> dict[str, Any]:
    """Return the fields that the user has set, as {"answering": …}; nothing where there is none."""
    chosen = {each.name: getattr(answering, each.name) for each in fields(answering)}
    chosen = {name: value for name, value in chosen.items() if value not in (None, False)}
    return {"answering": chosen} if chosen else {}


def _provenance(config: EvaluateConfig, task: Task, model: Model[Any]) -> dict[str, Any]:
    return {
        "spec": _spec(config),
        "schema": PREDICTION_VERSION,
        "annotations": digest_files(task.annotation_files()),
        "protocol": task.protocol,
        "model": _fingerprint(config, model),
        "code": code_digests() | outside_code("task", type(task)) | outside_code("model", type(model)),
        "versions": versions(),
    }


def _fingerprint(config: EvaluateConfig, model: Model[Any]) -> dict[str, Any]:
    found = model.fingerprint()
    try:
        digest_json(found)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{config.model}: its fingerprint must be JSON values: {error}") from None
    return found


def _keep_sample(folder: Path, record: dict[str, Any], asked: Sequence[Example]) -> Run:
    predictions, failures = read_predictions(folder / "predictions")
    coverage = check_coverage([example.example_id for example in asked], (p.example_id for p in predictions))
    record |= {"coverage": coverage.counts(), "failed": [vars(f) for f in failures[:20]], "status": "sample"}
    write_json(folder / "run.json", record)
    if not coverage.complete:
        raise CoverageError(f"{folder.name}: {coverage.message()}{_example(failures)}; {_REPAIR}")
    return Run(folder, record, None)


def _score(folder: Path, record: dict[str, Any], task: Task) -> Run:
    predictions, failures = read_predictions(folder / "predictions")
    coverage = check_coverage(task.expected(), (p.example_id for p in predictions))
    record |= {"coverage": coverage.counts(), "failed": [vars(f) for f in failures[:20]]}
    if not coverage.complete:
        # Files of an earlier, complete run must not stand beside an incomplete one.
        for name in ("scores.json", UNITS_FILE, task.submission_name):
            (folder / name).unlink(missing_ok=True)
        write_json(folder / "run.json", record | {"status": "incomplete"})
        remedy = _REPAIR + _RANGE if task.has_range else _REPAIR
        raise CoverageError(f"{folder.name}: no score, {coverage.message()}{_example(failures)}; {remedy}")
    if "images" in record["provenance"]:  # the boxes of a store are pixels; those of a model may be anything
        predictions, said = _in_pixels(folder, task, predictions)
        record["warnings"] = [*record["warnings"], *said]
    submission, fault = _submission(task, predictions)
    record |= {"status": "complete", "submission": None if submission is None else task.submission_name}
    record |= {} if task.subset is None else {"subset": task.subset}
    if submission is None:
        (folder / task.submission_name).unlink(missing_ok=True)
    if fault is not None and not task.labelled:
        write_json(folder / "run.json", record)
        raise InputError(f"{folder}: the predictions are complete, but {fault}")
    files, scores = ({} if submission is None else {task.submission_name: submission}), None
    if task.labelled:
        origin = {key: record["spec"][key] for key in ("model", "visual")}
        origin |= {key: record[key] for key in ("network", "answering")}
        answers = PredictionSet(folder, predictions, coverage, origin, tuple(record["warnings"]))
        units = list(score_units(task, {p.example_id: p for p in predictions}))
        scores = score(task, answers, record["provenance"]["annotations"], units=units)
        files |= {UNITS_FILE: encode_units(by_metric(units)), "scores.json": encode_json(scores)}
    digests = {name: digest_bytes(data) for name, data in files.items()}
    digests["predictions/manifest.json"] = digest_file(folder / "predictions" / "manifest.json")
    record |= {"files": digests}
    # run.json comes before the files that it names. After a kill in between, its digests show that a file is missing.
    write_json(folder / "run.json", record)
    for name, data in files.items():
        publish(folder / name, data)
    return Run(folder, record, scores)


_REPAIR = "repair what failed (run.json lists it), delete this run folder and run the same line again"
_RANGE = "; until then, `visualbert score --allow-partial` prints the range of the score"


def _example(failures: Sequence[Failure]) -> str:
    return f"; e.g. {failures[0].item_id}: {failures[0].message}" if failures else ""


def _in_pixels(folder: Path, task: Task, predictions: list[Prediction]) -> tuple[list[Prediction], list[str]]:
    try:
        return task.in_pixels(predictions, None)
    except InputError as error:
        raise InputError(f"{folder}: no score: {error}") from None


def _submission(task: Task, predictions: list[Prediction]) -> tuple[bytes | None, InputError | None]:
    """Return the leaderboard's file; or None and the reason, where the leaderboard requires more than the examples.

    On a labelled split that is not a fault. VCR's leaderboard, for example, requires a rationale after each of the four
    answers, but a labelled split has only the rationale after the right answer.
    """
    try:
        return task.submission({p.example_id: p for p in predictions}), None
    except InputError as error:
        return None, error
