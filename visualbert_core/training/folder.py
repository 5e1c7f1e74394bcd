"""The folder of a training: who may write to it, which training it holds, and its copy in an object store.

OUT/run.json            the recipe, what it was made of, the status, the best and the last checkpoint
OUT/steps.jsonl         a line for each step
OUT/validations.jsonl   a line for each validation
OUT/validation/         the run folders of the validations; step 0 is the checkpoint that the training starts from
OUT/training.html       see `page`
OUT/curves.parquet      see `log`
OUT/trackers.json       what trackers have received, see `watch`
OUT/checkpoints/        see `state`

Where OUT is in an object store, the training works in a folder of this machine, which is copied at each checkpoint:

    1. start         what the bucket holds is fetched; a checkpoint without its training.json is not
    2. checkpoint    files that are new or changed are sent: a checkpoint's training.json after its other files, and
                     run.json last; files that are gone here are removed there, training.json first
    3. end           the folder of this machine is removed

So a checkpoint whose upload or removal was interrupted is never taken for one. (Ray Train copies the files of a
checkpoint straight to their place, and one that is not listed elsewhere may be incomplete.)

An object store has no lock that ends with its process. The file `owner` therefore names the process that started last.
An earlier one sees it before its next upload, and stops. Between that look and the end of an upload nothing keeps two
processes apart; the digests in training.json then show a mixture, and it is not resumed from.
"""

from __future__ import annotations

import fcntl
import json
import math
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from upath import UPath

from visualbert_core.engine.processes import NO_LOCKS
from visualbert_core.engine.shards import publish
from visualbert_core.errors import ConfigError, InputError, VisualBertCoreError
from visualbert_core.io import storage
from visualbert_core.io.documents import parse_json, read_json
from visualbert_core.io.hub import checkpoint_name
from visualbert_core.io.locations import Location
from visualbert_core.printable import logger
from visualbert_core.provenance import differences
from visualbert_core.training.recipe import TrainConfig
from visualbert_core.training.sources import Lessons
from visualbert_core.training.state import RECORD
from visualbert_core.training.validation import Validation, on_training_annotations

_LOG = logger(__name__)
OWNER, SWEEP = "owner", "sweep.json"
_LAST = {RECORD: 1, "run.json": 2}
"""Files that say that others are complete → their place in an upload."""


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
    if (config.folder / SWEEP).exists():
        raise InputError(f"out: {config.out} holds a sweep, and a training needs a folder of its own: name another")
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


def read_validations(out: Path, step: float = math.inf) -> list[Validation]:
    """Return the validations of the first `step` steps. Default: all of them."""
    path = out / "validations.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [each for line in lines if (each := Validation(**parse_json(line))).step <= step]


def write_validations(out: Path, history: Sequence[Validation]) -> None:
    """Write validations.jsonl, whole or not at all."""
    lines = "".join(json.dumps(asdict(each)) + "\n" for each in history)
    publish(out / "validations.jsonl", lines.encode())


class Copy:
    """The copy of a training's folder in a bucket."""

    def __init__(self, folder: Path, bucket: UPath) -> None:
        self.folder, self._bucket = folder, bucket
        self._there: dict[str, tuple[int, int]] = {}
        """Name below the bucket → size and time of the file that was sent or fetched."""
        self._mine = uuid.uuid4().hex.encode()

    def fetch(self) -> None:
        """Fetch what the bucket holds, except for checkpoints that are not whole. Take the bucket over."""
        root = f"{str(self._bucket).rstrip('/')}/"
        sizes = {address.removeprefix(root): size for address, size in storage.listed(self._bucket)}
        sizes.pop(OWNER, None)
        torn = {name for name in sizes if _is_torn(name, sizes)}
        for name in sorted({name.rpartition("/")[0] for name in torn}):
            _LOG.warning("%s/%s is not whole and is not resumed from", self._bucket, name)
        storage.gather(self._fetch_file, [name for name in sizes if name not in torn])
        self._there = dict.fromkeys(torn, (0, 0)) | {name: self._stamp(name) for name in sizes if name not in torn}
        (self._bucket / OWNER).write_bytes(self._mine)

    def send(self) -> None:
        """Make the bucket equal to the folder. Raise InputError where another process has taken the bucket over."""
        if (self._bucket / OWNER).read_bytes() != self._mine:
            raise InputError(f"{self._bucket}: another process trains here since: this one stops; name another folder")
        here = {name: self._stamp(name) for name in self._names()}
        changed = [name for name, stamp in here.items() if self._there.get(name) != stamp]
        for rank in (0, 1, 2):
            storage.gather(self._send_file, [name for name in changed if _rank(name) == rank])
        gone = self._there.keys() - here.keys()
        for rank in (2, 1, 0):
            storage.gather(self._remove_file, [name for name in gone if _rank(name) == rank])
        self._there = here

    def placed(self, training: Training) -> Training:
        """Return a training with its places in the bucket."""
        checkpoints = self._bucket / "checkpoints"
        best = None if training.best is None else checkpoints / training.best.name
        return replace(training, folder=self._bucket, last=checkpoints / training.last.name, best=best)

    def _names(self) -> list[str]:
        """Return the files of the folder. Drafts and locks have names that begin with a point."""
        found = (path.relative_to(self.folder) for path in sorted(self.folder.rglob("*")) if path.is_file())
        return [path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts)]

    def _stamp(self, name: str) -> tuple[int, int]:
        about = (self.folder / name).stat()
        return about.st_size, about.st_mtime_ns

    def _fetch_file(self, name: str) -> None:
        place = self.folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        self._bucket.fs.get_file((self._bucket / name).path, str(place))

    def _send_file(self, name: str) -> None:
        self._bucket.fs.put_file(str(self.folder / name), (self._bucket / name).path)

    def _remove_file(self, name: str) -> None:
        self._bucket.fs.rm_file((self._bucket / name).path)


@contextmanager
def workplace(config: TrainConfig) -> Iterator[tuple[TrainConfig, Copy | None]]:
    """Give a recipe whose OUT is a folder of this machine, and the copy in the bucket of the recipe, if it names one.

    The folder lies where temporary files lie (TMPDIR). Raise ConfigError for a bucket and several workers, who read the
    folder themselves. Input errors from inside name the bucket.
    """
    if isinstance(config.out, Path):
        yield config, None
        return
    if config.workers > 1:
        raise ConfigError(f"out: {config.out} is an address: several workers need a folder that all nodes share")
    with tempfile.TemporaryDirectory(prefix="visualbert-training-") as name:
        copy = Copy(Path(name), config.out)
        copy.fetch()
        try:
            yield replace(config, out=Path(name)), copy
        except VisualBertCoreError as error:
            error.args = tuple(str(each).replace(name, str(config.out)) for each in error.args)
            raise


def _rank(name: str) -> int:
    return _LAST.get(name.rpartition("/")[2], 0)


def _is_torn(name: str, names: dict[str, int]) -> bool:
    """Return whether a file is of a checkpoint without its record."""
    folder, _, _ = name.rpartition("/")
    return folder.startswith("checkpoints/") and f"{folder}/{RECORD}" not in names
