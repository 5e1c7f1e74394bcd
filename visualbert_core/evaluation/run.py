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
from visualbert_core.errors import CheckpointError, ConfigError, CoverageError, InputError
from visualbert_core.evaluation.batches import ExampleShard, Joined, batches, join, plan_examples, sample, wrong_images
from visualbert_core.evaluation.predictions import encode, read_predictions
from visualbert_core.evaluation.score import Answers, score
from visualbert_core.evaluation.sizes import check_sizes
from visualbert_core.evaluation.units import UNITS_FILE, by_metric, encode_units
from visualbert_core.features.store import FeatureStore, encode_failures
from visualbert_core.host import in_halves
from visualbert_core.metrics.coverage import check_coverage
from visualbert_core.models import NOT_FINITE, SIDECAR_FILE, Model, load_model
from visualbert_core.models.published import published_space
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

LoadModel = Callable[[Path, str, str | None, str], Model]
"""folder, task, device, precision → model"""

_AGAIN = "delete it and run the same line again"


@dataclass(frozen=True)
class Run:
    """A run folder with its two documents; `scores` is None where predictions do not cover the split (a `limit` never
    does), or where it has no public labels."""

    folder: Path
    record: dict[str, Any]
    scores: dict[str, Any] | None


def evaluate(config: EvaluateConfig, pool: Pool, load: LoadModel = load_model, task: Task | None = None) -> Run:
    """Predict what is missing, then score; a finished run of the same ingredients is only read. `task` is that of the
    configuration, where the caller has opened it already.

    Raises InputError for inputs that do not fit together, CoverageError (after run.json says so) where examples are
    left without a prediction.
    """
    if address := storage.url(config.out):
        raise ConfigError(f"{address}: run folders lie on a disk, only features may lie in a bucket: name a folder")
    task = task or open_task(config.task, config.annotations, config.split)
    store = FeatureStore.open(config.features)
    warnings = check_sizes(task, store)
    model = load(config.model, config.task, "cpu", config.precision)
    warnings += check_fit(model, store, config)
    for warning in warnings:
        say(f"WARNING: {config.model.name}: {warning}", to=sys.stderr)
    provenance = _provenance(config, task, store, model)
    folder = run_folder(config)
    record = {"spec": _spec(config), "provenance": provenance, "status": "running", "warnings": warnings}
    _claim(folder, record)
    if _is_finished(folder):
        return read_run(folder)

    asked = list(task.examples()) if config.limit is None else sample(task.examples(), store, config.limit)
    donors = wrong_images(asked, store) if config.regions == "wrong-image" else None
    shards = plan_examples(asked, donors, digest_json(provenance), config.shard_size)
    predictions = ShardFolder(folder / "predictions")
    inputs = (config.model, config.task, config.features)
    make_worker = partial(EvaluationWorker, *inputs, predictions.root, config.batch_size, config.precision, load)
    label = f"{config.task} {config.split}" + (" (wrong image)" if donors is not None else "")
    pool.run(make_worker, predictions.pending(shards), label)
    predictions.finish(shards, {"task": config.task, "split": config.split})
    if config.limit is not None:
        return _keep_sample(folder, record, asked)
    return _score(folder, record, task)


def run_folder(config: EvaluateConfig) -> Path:
    """Where a run lives."""
    name = run_name(config.model, config.task, config.split)
    return config.out / (name if config.regions == "own" else f"{name}__{config.regions}")


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
        task: str,
        features: Path,
        out: Path,
        batch_size: int,
        precision: str,
        load: LoadModel = load_model,
    ) -> None:
        self.model = load(model, task, None, precision)
        self.store = FeatureStore.open(features)
        self.folder = ShardFolder(out)
        self.batch_size = batch_size

    def run(self, shard: ExampleShard) -> Marker:
        """Predict and commit one shard."""
        joined, failures = join(shard, self.store)
        answered: dict[str, Prediction] = {}
        for batch in batches(joined, self.batch_size):
            for found in in_halves(self.predict, batch):
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


def check_fit(model: Model, store: FeatureStore, config: EvaluateConfig) -> list[str]:
    """What must be said with every score. Raises CheckpointError for features that cannot or must not be used."""
    if model.feature_size != store.feature_size:
        raise CheckpointError(
            f"{config.model} needs {model.feature_size}-d region features, {config.features} holds "
            f"{store.feature_size}-d ones: extract them with the detector that the checkpoint was trained on"
        )
    space = _space(model, config)
    if space is None:
        return [_unnamed(store, config)]
    if space == store.space:
        return []
    if not config.foreign_features:
        raise CheckpointError(
            f"{config.model} was trained on features of {space!r}, {config.features} holds "
            f"{store.space!r}: equal sizes do not make them comparable, extract the right ones (or force it with "
            "foreign_features)"
        )
    return [f"foreign features: the checkpoint was trained on {space!r}, these are {store.space!r}"]


def _space(model: Model, config: EvaluateConfig) -> str | None:
    """The space that the checkpoint or else the caller names. Raises CheckpointError where they contradict."""
    if None not in (model.feature_space, config.feature_space) and model.feature_space != config.feature_space:
        raise CheckpointError(
            f"{config.model / SIDECAR_FILE} says that the checkpoint was trained on features of "
            f"{model.feature_space!r}, feature_space says {config.feature_space!r}: correct one of them"
        )
    return model.feature_space or config.feature_space


def _unnamed(store: FeatureStore, config: EvaluateConfig) -> str:
    """Two spaces of one size differ in everything else: a checkpoint over another's features loses a third of its
    accuracy and looks well."""
    likely = published_space(config.model, config.task)
    if likely is None:
        which = ""
    elif likely == store.space:
        which = f", as the published checkpoint that it looks like wants them; feature_space {likely} says so"
    else:
        which = f", and the published checkpoint that it looks like wants {likely!r}: then these scores are wrong"
    return (
        f"unnamed feature space: the checkpoint does not say which features it was trained on; these are "
        f"{store.space!r}{which} (--feature-space NAME, or {SIDECAR_FILE} beside its weights, names it)"
    )


def _spec(config: EvaluateConfig) -> dict[str, Any]:
    """What was asked, without paths: the same evaluation elsewhere has the same spec."""
    return {
        "model": config.model.name,
        "task": config.task,
        "split": config.split,
        "regions": config.regions,
        "foreign_features": config.foreign_features,
        "precision": config.precision,
        "batch_size": config.batch_size,
        "shard_size": config.shard_size,
        **({} if config.feature_space is None else {"feature_space": config.feature_space}),
        **({} if config.limit is None else {"limit": config.limit}),
    }


def _provenance(config: EvaluateConfig, task: Task, store: FeatureStore, model: Model) -> dict[str, Any]:
    return {
        "spec": _spec(config),
        "schema": SCHEMA_VERSION,
        "annotations": digest_files(task.annotation_files()),
        "protocol": task.protocol,
        "features": {"detector": store.fingerprint, "manifest": store.manifest_digest()},
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
        origin = {"model": record["spec"]["model"], "regions": record["spec"]["regions"]}
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
