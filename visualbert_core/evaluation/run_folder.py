"""Owns the run folder of an evaluation. It can be read without a model, a store or an image.

    <out>/<model>__<task>__<split>/     "…__wrong-image" for the baseline
        run.json        the settings, the ingredients, the status, and digests of the files below
        predictions/    a shards.ShardFolder
        submission.*    the leaderboard's file; only where the predictions hold all that the leaderboard requires
        units.parquet   the score of each unit, by which runs are compared
        scores.json     written last, and only over complete predictions of a split with public labels

A run with a `limit` keeps only its predictions, because a part of a split has no score.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visualbert_core.config import EvaluateConfig, run_name
from visualbert_core.engine.shards import publish
from visualbert_core.errors import InputError
from visualbert_core.io import lfs
from visualbert_core.io.documents import parse_json
from visualbert_core.provenance import differences, digest_file

ANSWERING = "answering"
"""The key of run.json that holds `Model.protocol`."""
TRAINED = "trained"
"""The key of `Run.record` that holds recipe, data and parent of the training of the checkpoint, where they are known.
It is not in run.json."""
_AGAIN = "delete it and run the same line again"


@dataclass(frozen=True)
class Run:
    """Holds a run folder with its documents run.json (`record`) and scores.json (`scores`).

    `scores` is None where the split has no public labels, and where predictions do not cover the split. A run with a
    `limit` never covers it.
    """

    folder: Path
    record: dict[str, Any]
    scores: dict[str, Any] | None


def made_of(run: Run) -> dict[str, Any]:
    """Return the provenance of a run, and how its model was asked where the run says it.

    The fingerprint of the model decides how it was asked. The line is for readers, who do not know the fingerprint.
    """
    asked = {ANSWERING: run.record[ANSWERING]} if ANSWERING in run.record else {}
    return {**run.record["provenance"], **asked}


def run_folder(config: EvaluateConfig) -> Path:
    """Return the run folder of an evaluation."""
    name = run_name(config.model, config.task, config.split)
    return config.out / (name if config.visual == "own" else f"{name}__{config.visual}")


def read_run(folder: Path) -> Run:
    """Read a run folder. Raises InputError where it has no run.json, or where one of its documents is damaged."""
    record = _read_record(folder)
    try:
        dicts = dict.fromkeys(("scores", "intervals", "units", "chance", "breakdown"), dict)
        scores = _document(folder / "scores.json", task=str, split=str, headline=str, warnings=list, **dicts)
    except FileNotFoundError:
        return Run(folder, record, None)
    return Run(folder, record, scores)


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        if (folder / "steps.jsonl").exists():
            raise InputError(
                f"{folder} is the folder of a training: name the run of an evaluation; `visualbert evaluate` makes one "
                "of a checkpoint"
            )
        return _document(folder / "run.json", spec=dict, provenance=dict, status=str, warnings=list)
    except FileNotFoundError:
        raise InputError(f"{folder} is not a run folder: it has no run.json; name the folder of a run") from None


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
            raise InputError(f"{path} is damaged ({name!r} is not a {kind.__name__}): {_AGAIN}")
    document: dict[str, Any] = found
    return document


def claim(folder: Path, record: dict[str, Any]) -> bool:
    """Start or resume a run folder. Return whether the run is complete and its files are as they were written.

    A sample (a run with a `limit`) replaces a sample of other ingredients. Otherwise other ingredients raise
    InputError, which names them.
    """
    if (folder / "run.json").exists():
        held = _read_record(folder)
        found = differences(held["provenance"], record["provenance"])
        if not found:
            return _is_finished(folder, held.get("files"))
        if not ("limit" in held["spec"] and "limit" in record["spec"]):  # A sample has no score that could be lost.
            raise InputError(
                f"{folder} holds a run of other ingredients ({'; '.join(found[:3])}): delete it or choose another "
                "output folder"
            )
    # A user may delete run.json alone. Then scores.json would still stand for the old run.
    (folder / "scores.json").unlink(missing_ok=True)
    write_json(folder / "run.json", record)
    return False


def _is_finished(folder: Path, files: dict[str, str] | None) -> bool:
    try:
        return files is not None and all(digest_file(folder / name) == digest for name, digest in files.items())
    except FileNotFoundError:
        return False


def encode_json(value: dict[str, Any]) -> bytes:
    """Return a document as JSON. Equal documents give equal bytes."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a document as JSON in one step, so that no reader sees a part of it."""
    publish(path, encode_json(value))
