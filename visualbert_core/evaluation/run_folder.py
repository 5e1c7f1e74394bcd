"""The folder of one evaluation: what it holds, and reading it without a model, a store or an image.

    <out>/<model>__<task>__<split>/     "…__wrong-image" for the baseline
        run.json        what was asked, what it was made of, how far it got, digests of the files below
        predictions/    a shards.ShardFolder
        submission.*    the leaderboard's file of complete predictions, where they hold all that it asks
        units.parquet   what each scored unit is worth, by which runs are compared
        scores.json     written last, and only over complete predictions of a split with public labels

A run with a `limit` keeps only its predictions: a part of a split has no score.
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

_AGAIN = "delete it and run the same line again"


@dataclass(frozen=True)
class Run:
    """A run folder with its two documents; `scores` is None where predictions do not cover the split (a `limit` never
    does), or where it has no public labels."""

    folder: Path
    record: dict[str, Any]
    scores: dict[str, Any] | None


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


def claim(folder: Path, record: dict[str, Any]) -> None:
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
    write_json(folder / "run.json", record)


def is_finished(folder: Path) -> bool:
    """Whether a claimed run is complete and its files are as they were written, so that nothing is to be scored anew.
    A file that is missing or damaged is made again."""
    files = _read_record(folder).get("files")
    try:
        return files is not None and all(digest_file(folder / name) == digest for name, digest in files.items())
    except FileNotFoundError:
        return False


def encode_json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def write_json(path: Path, value: dict[str, Any]) -> None:
    publish(path, encode_json(value))
