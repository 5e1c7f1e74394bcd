"""Runs one evaluation, of a model on a split of a benchmark: it predicts the examples that are missing, then scores.

The same command run again resumes the run. A finished run is not computed again. A folder of a run with other
ingredients is refused. `run_folder` describes the folder.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from visualbert_core.config import EvaluateConfig
from visualbert_core.engine.pool import AnyShard, Pool
from visualbert_core.engine.shards import ShardFolder, publish
from visualbert_core.errors import CheckpointError, CoverageError, InputError
from visualbert_core.evaluation.checks import check_sizes, open_checked, trained_on
from visualbert_core.evaluation.inputs import Source, sample
from visualbert_core.evaluation.run_folder import Run, claim, encode_json, read_run, run_folder, write_json
from visualbert_core.evaluation.score import PredictionSet, score
from visualbert_core.evaluation.units import UNITS_FILE, by_metric, encode_units
from visualbert_core.evaluation.worker import EvaluationWorker, LoadModel, plan_examples, read_predictions, wrong_images
from visualbert_core.io.hub import checkpoint_name, hub_origin, with_folder
from visualbert_core.metrics.coverage import Coverage, check_coverage
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
from visualbert_core.schema import PREDICTION_VERSION, Example, Prediction
from visualbert_core.tasks import Task, open_task, score_units, title_of

_LOG = logger(__name__)
BASELINES = {"own": "", "wrong-image": " (wrong image)", "none": " (no image)"}
"""What the examples are asked about → its name behind the name of a benchmark."""


@dataclass(frozen=True)
class Share:
    """The part of one process in an evaluation by several. `wait` returns when all have predicted their shares."""

    rank: int
    size: int
    wait: Callable[[], None]

    def own(self, shards: Sequence[AnyShard]) -> list[AnyShard]:
        """Return this process's share of the shards that are left, which differ between processes: so by id."""
        return [shard for shard in shards if zlib.crc32(shard.shard_id.encode()) % self.size == self.rank]


def evaluate(
    config: EvaluateConfig,
    pool: Pool,
    load: LoadModel = load_model,
    task: Task | None = None,
    source: Source | None = None,
    share: Share | None = None,
    warn: bool = True,
) -> Run:
    """Predict the examples that are missing, then score. A finished run of the same ingredients is only read.

    A caller that has opened the configuration's task or source passes them as `task` and `source`. With `share` this
    process predicts its share only, and returns without scores unless it is the first. Without `warn` the warnings are
    in run.json only, for a caller that evaluates the same again and again. Raises InputError for inputs that do not fit
    together. Raises CoverageError where examples are left without a prediction; run.json then has the status
    "incomplete".
    """
    if load is load_model:  # a loader of the caller's own knows what its models' names mean
        config = with_folder(config)
    task = task or open_task(config.task, config.annotations, config.split)
    model, source, warnings = open_checked(config, task, load, source)
    some = None if config.limit is None else sample(task.examples(), source, config.limit)
    made_of = source.identify(task.examples() if some is None else some)
    provenance = _provenance(config, task, model) | made_of
    warnings = [*trained_on(config.model, provenance["annotations"]), *check_sizes(task, source), *warnings]
    for warning in warnings if warn else ():
        _LOG.warning("%s: %s", checkpoint_name(config.model), warning)
    folder = run_folder(config)
    record = {"spec": _spec(config), "network": model.name, "answering": model.protocol, "provenance": provenance}
    record |= {"status": "running", "warnings": warnings}
    record |= {} if (origin := hub_origin(config.model)) is None else {"hub": origin}
    if claim(folder, record):
        return read_run(folder)

    asked = list(task.examples()) if some is None else some
    donors = wrong_images(asked, source) if config.visual == "wrong-image" else None
    shards = plan_examples(asked, donors, source.files, digest_json(provenance), config.shard_size)
    predictions = ShardFolder(folder / "predictions")
    make_worker = partial(EvaluationWorker, config, task.form, source.reader(config.visual), predictions.root, load)
    label = f"{title_of(config.task)} {config.split}{BASELINES[config.visual]}"
    pending = predictions.pending(shards)
    pool.run(make_worker, pending if share is None else share.own(pending), label)
    if share is not None:
        share.wait()
        if share.rank > 0:
            return Run(folder, record, None)
    predictions.finish(shards, {"task": config.task, "split": config.split})
    return _finish(folder, record, task, some)


def _spec(config: EvaluateConfig) -> dict[str, Any]:
    """Return the settings of the evaluation without paths, so that equal evaluations in two places have equal specs."""
    answering = {name: value for name, value in vars(config.answering).items() if value not in (None, False)}
    return {
        "model": checkpoint_name(config.model),
        "task": config.task,
        "split": config.split,
        "visual": config.visual,
        "allow_feature_space_mismatch": config.allow_feature_space_mismatch,
        **({"answering": answering} if answering else {}),
        "precision": config.precision,
        "batch_size": config.batch_size,
        "shard_size": config.shard_size,
        **({} if config.feature_space is None else {"feature_space": config.feature_space}),
        **({} if config.limit is None else {"limit": config.limit}),
    }


def _provenance(config: EvaluateConfig, task: Task, model: Model[Any]) -> dict[str, Any]:
    fingerprint = model.fingerprint()
    try:
        digest_json(fingerprint)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{config.model}: its fingerprint must be JSON values: {error}") from None
    return {
        "spec": _spec(config),
        "schema": PREDICTION_VERSION,
        "annotations": digest_files(task.annotation_files()),
        "protocol": task.protocol,
        "model": fingerprint,
        "code": code_digests() | outside_code("task", type(task)) | outside_code("model", type(model)),
        "versions": versions(),
    }


def _finish(folder: Path, record: dict[str, Any], task: Task, some: Sequence[Example] | None) -> Run:
    """Check that every example has a prediction. Then score the predictions, unless they are of `some` examples."""
    predictions, failures = read_predictions(folder / "predictions")
    expected = task.expected() if some is None else [example.example_id for example in some]
    coverage = check_coverage(expected, (p.example_id for p in predictions))
    status = "sample" if some is not None else "complete" if coverage.complete else "incomplete"
    record |= {"coverage": coverage.counts(), "failed": [vars(f) for f in failures[:20]], "status": status}
    if coverage.complete and some is None:
        return _score(folder, record, task, predictions, coverage)
    # Files of an earlier, complete run must not stand beside an incomplete one.
    for name in ("scores.json", UNITS_FILE, task.submission_name):
        (folder / name).unlink(missing_ok=True)
    write_json(folder / "run.json", record)
    if not coverage.complete:
        failed = f"; e.g. {failures[0].item_id}: {failures[0].message}" if failures else ""
        remedy = "repair what failed (run.json lists it), delete this run folder and run the same line again"
        if task.has_range and some is None:
            remedy += "; until then, `visualbert score --allow-partial` prints the range of the score"
        raise CoverageError(f"{folder.name}: no score, {coverage.message()}{failed}; {remedy}")
    return Run(folder, record, None)


def _score(folder: Path, record: dict[str, Any], task: Task, predictions: list[Prediction], coverage: Coverage) -> Run:
    if "images" in record["provenance"]:  # the boxes of a store are pixels; those of a model may be anything
        try:
            predictions, said = task.in_pixels(predictions, None)
        except InputError as error:
            raise InputError(f"{folder}: no score: {error}") from None
        record["warnings"] = [*record["warnings"], *said]
    by_id = {p.example_id: p for p in predictions}
    record |= {"submission": None} if task.subset is None else {"submission": None, "subset": task.subset}
    files: dict[str, bytes] = {}
    try:
        files[task.submission_name] = task.submission(by_id)
        record["submission"] = task.submission_name
    except InputError as error:
        (folder / task.submission_name).unlink(missing_ok=True)
        # A labelled split may hold less than a leaderboard requires. That of VCR requires a rationale after each of the
        # four answers, and a labelled split has only the rationale after the right answer.
        if not task.labelled:
            write_json(folder / "run.json", record)
            raise InputError(f"{folder}: the predictions are complete, but {error}") from None
    scores = None
    if task.labelled:
        origin = {key: record["spec"][key] for key in ("model", "visual")}
        origin |= {key: record[key] for key in ("network", "answering")}
        answers = PredictionSet(folder, predictions, coverage, origin, tuple(record["warnings"]))
        units = list(score_units(task, by_id))
        scores = score(task, answers, record["provenance"]["annotations"], units=units)
        files |= {UNITS_FILE: encode_units(by_metric(units)), "scores.json": encode_json(scores)}
    record["files"] = {name: digest_bytes(data) for name, data in files.items()}
    record["files"]["predictions/manifest.json"] = digest_file(folder / "predictions" / "manifest.json")
    # run.json comes before the files that it names. After a kill in between, its digests show that a file is missing.
    write_json(folder / "run.json", record)
    for name, data in files.items():
        publish(folder / name, data)
    return Run(folder, record, scores)
