"""The folder of a training: who may write to it, what its run.json says, and which training it holds.

OUT/run.json            the recipe, what it was made of, the status, the best and the last checkpoint
OUT/steps.jsonl         a line for each step
OUT/validations.jsonl   a line for each validation
OUT/validation/         the run folders of the validations; step 0 is the checkpoint that the training starts from
OUT/training.html       see `page`
OUT/curves.parquet      see `curves`
OUT/trackers.json       what trackers have received, see `watch`
OUT/checkpoints/        see `state`
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from visualbert_core.engine.processes import NO_LOCKS
from visualbert_core.engine.shards import publish
from visualbert_core.errors import InputError
from visualbert_core.io.documents import parse_json, read_json
from visualbert_core.io.hub import checkpoint_name
from visualbert_core.io.locations import Location
from visualbert_core.printable import logger
from visualbert_core.provenance import differences
from visualbert_core.training.recipe import TrainConfig
from visualbert_core.training.sources import Lessons
from visualbert_core.training.validation import Validation, on_training_annotations

_LOG = logger(__name__)


@dataclass(frozen=True)
class Training:
    """A finished training: its folder, its run.json, and its checkpoints. `best` is None without validations."""

    folder: Location
    record: dict[str, Any]
    last: Location
    best: Location | None


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold a lock on the folder, which ends with this process. Raise InputError where another process holds it."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:  # a file system without locks keeps nobody out
                raise InputError(f"{out}: another process trains here: wait for it, or name another folder") from None
        yield


def claim(config: TrainConfig, provenance: dict[str, Any], lessons: Lessons) -> dict[str, Any]:
    """Start a folder, or return the run.json of the training that it holds.

    Raise InputError naming the keys where that training has another recipe, other data or another start. Code and
    libraries may change in between: that is logged, and the result may differ in the last bits.
    """
    path = config.folder / "run.json"
    warnings = on_training_annotations(config, provenance)
    for line in warnings:
        _LOG.warning("%s: %s", config.out, line)
    record = {"status": "running", "model": checkpoint_name(config.model), "examples": lessons.remarks}
    record |= {"warnings": warnings, "provenance": provenance}
    if not path.exists():
        write_record(path, record)
        return record
    held = read_json(path, InputError)
    try:
        found = differences(held["provenance"], provenance)
        status = held["status"]
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is not of a training: name another folder") from None
    other = [line for line in found if line.startswith(("recipe.", "data.", "parent."))]
    if other:
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        raise InputError(
            f"{config.out} holds a training by another recipe ({'; '.join(other[:3])}{more}): name another folder, or "
            "delete it"
        )
    if status == "finished":
        return dict(held)
    for line in found:
        _LOG.warning("%s: goes on with another version: %s", config.out, line)
    write_record(path, record)
    return record


def opened(out: Path) -> Training:
    """Return the finished training of a folder."""
    record, folder = read_json(out / "run.json", InputError), out / "checkpoints"
    return Training(out, record, folder / record["last"], folder / record["best"] if record["best"] else None)


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write run.json, whole or not at all."""
    publish(path, (json.dumps(record, indent=1) + "\n").encode())


def read_validations(out: Path, step: int) -> list[Validation]:
    """Return the validations of the first `step` steps."""
    path = out / "validations.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [each for line in lines if (each := Validation(**parse_json(line))).step <= step]


def write_validations(out: Path, history: Sequence[Validation]) -> None:
    """Write validations.jsonl, whole or not at all."""
    lines = "".join(json.dumps(asdict(each)) + "\n" for each in history)
    publish(out / "validations.jsonl", lines.encode())
