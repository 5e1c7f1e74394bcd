"""Every job's configuration: frozen dataclasses with all the defaults, and the one way from YAML or JSON to them.

An unknown key is an error that names the nearest known one; a wrong type is an error that names the key.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from upath import UPath

from visualbert_core.errors import ConfigError
from visualbert_core.io.documents import brief
from visualbert_core.io.locations import ADDRESS, Location, location
from visualbert_core.printable import printable

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """The actors that share the work of a stage."""

    workers: int | None = None
    """Actors at most; default: as many as have room on GPUs, or on CPUs where there are no GPUs, as nodes come and go.
    Actors for which there is no place yet wait for one, and are what makes an autoscaling cluster grow: there, say how
    many."""
    gpus_per_worker: float | None = None
    """GPUs of one actor, also a part of one; default: 1 where there are GPUs, else 0."""
    threads_per_worker: int = 1
    """CPU threads of one actor's network. With another number the last bits of what it computes may differ, which is
    why it follows neither from the machine nor from the number of actors: on CPUs, take more actors first."""
    inline: bool = False
    """Run in this process, without Ray: nothing survives a process that dies, and nothing is timed."""
    max_hours: float | None = None
    """Start no shard later than this; those that run are committed, the job exits 6 and the same line resumes."""
    shard_timeout: float | None = None
    """Seconds after which a shard counts as hung and its worker is replaced; default: 20 times what shards of its size
    take, at least 10 minutes, and no limit before the first one has finished."""
    start_timeout: float = 1800.0
    """Seconds without any worker after which the job gives up: no node may have what a worker needs."""

    def __post_init__(self) -> None:
        check_values(self)
        check_range(self, 1, None, "workers", "threads_per_worker")
        check_range(self, 0, None, "gpus_per_worker", "max_hours", "shard_timeout", "start_timeout")


def check_values(config: Any) -> None:
    """Raises ConfigError naming the key of a number that is none (NaN, infinity), of a text or path with a NUL, or of
    an empty text. Flags and Python can say them as well as a file; NaN is neither under a bound nor over it, and an
    empty text is what a shell makes of a variable that is not set."""
    for name, hint in typing.get_type_hints(type(config)).items():
        for key, value in _parts(config, name):
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{key} is {value}: it must be a finite number")
            if isinstance(value, str | Path | UPath) and "\0" in str(value):
                raise ConfigError(f"{key} is {str(value)!r}: no name or path holds a NUL")
            if isinstance(value, str) and not value.strip():
                raise ConfigError(f"{key} is empty: it must be a name")
            if isinstance(value, Path | UPath) and (found := ADDRESS.match(str(value))):
                if UPath not in get_args(hint):
                    raise ConfigError(f"{key} is an address ({found[1]}://): only a folder on a disk can be used there")
                location(value)  # which refuses one that has been a Path


def check_range(config: object, least: float | None, most: float | None, *names: str) -> None:
    """Raises ConfigError naming the key of a number, of a mapping or tuple too, that is out of [least, most]."""
    for name in names:
        for key, value in _parts(config, name):
            if value is not None and least is not None and not value >= least:
                raise ConfigError(f"{key} is {value}: it must be at least {least}")
            if value is not None and most is not None and not value <= most:
                raise ConfigError(f"{key} is {value}: it must be at most {most}")


def _parts(config: object, name: str) -> Iterator[tuple[str, Any]]:
    """The value of a field, or each that a mapping or tuple in it holds, with its key."""
    value = getattr(config, name)
    for key, part in value.items() if isinstance(value, Mapping) else [("", value)]:
        for one in part if isinstance(part, tuple) else (part,):
            yield f"{name}.{key}" if key else name, one


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """images → feature store. See `commands.extract`."""

    images: Location
    """The corpus: a folder, a pattern, a list of files, a .tar, tables, or an s3:// address (see `corpus`)."""
    detector: Path
    """Detector folder."""
    out: Location
    """Root of the feature stores, a folder or s3:// address; this one becomes OUT/CORPUS/FINGERPRINT."""
    corpus: str | None = None
    """Name of the corpus; default: the name of the images folder, list or tar."""
    boxes: Literal["none", "beside"] = "none"
    """`beside`: take the boxes from NAME.json beside NAME.jpg, as VCR ships them, instead of detecting."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the detector's network computes in. bfloat16 is for GPUs and for CPUs with AVX512_BF16 or AMX; its features
    are others, in a store of their own."""
    batch_size: int = 8
    """Images that the detector's network computes at once."""
    shard_size: int = 1024
    """Images per shard."""
    limit: int | None = None
    """Only the first N images; the store then holds no more than these."""
    max_failures: int | None = None
    """Exit 3 where more images than these are quarantined; default: any number, said with the result."""

    def __post_init__(self) -> None:
        check_values(self)
        check_range(self, 1, None, "batch_size", "shard_size", "limit")
        check_range(self, 0, None, "max_failures")
        if self.corpus is not None:
            folder_name(self.corpus)


@dataclass(frozen=True, kw_only=True)
class DriftConfig:
    """The drift check before an extraction. See `features.drift`."""

    canary: int | None = None
    """First extract this many images anew that a store has, and stop where they come out otherwise."""
    canary_store: Location | None = None
    """The store of the canary; default: the one that this run resumes."""

    def __post_init__(self) -> None:
        check_values(self)
        check_range(self, 1, None, "canary")
        if self.canary_store is not None and self.canary is None:
            raise ConfigError("canary_store needs to be told how many images of it to extract: add --canary N")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """One model × task × split over what the model reads → run folder. See `commands.evaluate`."""

    task: str
    """The benchmark: a name of this package (a wrong one lists them), or module:Class for one of your own."""
    split: str
    """val, dev, test1, …"""
    annotations: Path
    """Folder of the official annotation files."""
    model: Path
    """Checkpoint folder."""
    out: Path
    """Runs folder; this run becomes OUT/MODEL__TASK__SPLIT."""
    features: Location | None = None
    """Feature store, for a model that reads regions: a folder with a manifest.json, or its s3:// address."""
    images: Location | None = None
    """Corpus, for a model that reads pixels: a folder, a pattern, a list of files, a .tar, tables, or an s3:// address
    (see `corpus`)."""
    visual: Literal["own", "wrong-image"] = "own"
    """`wrong-image`: ask every example about another image, to see what the text alone answers."""
    allow_feature_space_mismatch: bool = False
    """Evaluate over features of another space than the checkpoint's all the same; every score then says so."""
    feature_space: str | None = None
    """The space of the features that the checkpoint was trained on, where it does not say so itself. Contradicting it
    is an error."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 is for GPUs and for CPUs with AVX512_BF16 or AMX; others are slower with it than with float32."""
    batch_size: int = 64
    """Examples that the model answers at once."""
    shard_size: int = 256
    """Images per shard, about."""
    limit: int | None = None
    """Predict only N examples whose images are there, drawn by a hash of their ids; there is no score then."""

    def __post_init__(self) -> None:
        check_values(self)
        if (self.features is None) == (self.images is None):
            raise ConfigError("give features (a store) or images (a corpus), whichever the model reads, and not both")
        check_range(self, 1, None, "batch_size", "shard_size", "limit")


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """One image corpus of a matrix, and the detector that makes features of it."""

    images: Location
    """Relative to the matrix's data folder."""
    detector: Path | None = None
    """Detector folder, relative to the YAML file's; without one, the models of the corpus read its pixels."""
    boxes: Literal["none", "beside"] = "none"
    precision: Literal["float32", "bfloat16"] = "float32"
    batch_size: int = 8
    shard_size: int = 1024

    def __post_init__(self) -> None:
        check_values(self)
        check_range(self, 1, None, "batch_size", "shard_size")
        if self.detector is None and self.boxes != "none":
            raise ConfigError(f"boxes: {self.boxes} is for a detector, and this corpus has none: add detector")


@dataclass(frozen=True, kw_only=True)
class CellConfig:
    """One row of a matrix: model × task × split over a corpus."""

    task: str
    """As for one evaluation."""
    split: str
    annotations: Path
    """Relative to the matrix's data folder."""
    corpus: str
    model: Path
    """Checkpoint folder, relative to the YAML file's."""
    allow_feature_space_mismatch: bool = False
    feature_space: str | None = None
    """As for one evaluation: where the checkpoint does not say it."""
    precision: Literal["float32", "bfloat16"] = "float32"
    batch_size: int = 64
    shard_size: int = 256
    """Images per shard, about."""
    floors: dict[str, float] = field(default_factory=dict)
    """metric → percent that it must reach; below, the job ends with exit code 4."""
    wrong_image: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """metric → [low, high] percent for the wrong-image baseline: above, the text gives the answers away."""
    drops: dict[str, float] = field(default_factory=dict)
    """The metrics that the gate watches → points of a drop that it must be able to see; default: the headline metric
    and the gate's `drop`."""

    def __post_init__(self) -> None:
        check_values(self)
        check_range(self, 1, None, "batch_size", "shard_size")
        check_range(self, 0, 100, "floors", "wrong_image", "drops")
        for metric, bounds in self.wrong_image.items():
            if len(bounds) != 2 or bounds[0] > bounds[1]:
                raise ConfigError(f"wrong_image.{metric}: expected [low, high], found {list(bounds)}")
        for metric, drop in self.drops.items():
            if drop == 0:
                raise ConfigError(f"drops.{metric}: 0 is not a positive number of points")


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """The embedded synthetic world, made under OUT/synthetic when it is not there yet. See `synthetic.files`."""

    seed: int = 2026
    vqa_images: int = 150
    """Four questions each."""
    vcr_images: int = 140
    """Two items each."""
    nlvr2_sets: int = 64
    """Four pairs of images and two sentences each."""
    flickr_images: int = 120
    """Five captions each."""

    def __post_init__(self) -> None:
        check_values(self)
        check_range(self, 0, None, "seed")
        check_range(self, 1, None, "vqa_images", "vcr_images", "nlvr2_sets", "flickr_images")


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """When a night got worse. See `comparison.gate`."""

    false_alarms: float = 0.01
    """Chance that a night on which nothing changed fails, over all cells together."""
    power: float = 0.8
    """Chance with which a drop that matters is found."""
    drop: float = 1.0
    """Points: the drop that matters. A cell too small to show it with that power "cannot tell"."""
    baseline: str | None = None
    """Night to compare with; default: the last one on which the cell did not fail. A fixed one shows slow drifts."""

    def __post_init__(self) -> None:
        for name in ("false_alarms", "power"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not between 0 and 1")
        if not 0 < self.drop <= 100:
            raise ConfigError(f"drop: {self.drop} is not a positive number of points, 100 at most")
        check_values(self)


@dataclass(frozen=True, kw_only=True)
class NightlyConfig:
    """A matrix: corpora, then models × tasks × splits over them. See `commands.nightly` and jobs/nightly.yaml."""

    name: str
    out: Path
    """Everything is written here: features/, runs/, report.html."""
    corpora: dict[str, CorpusConfig]
    cells: tuple[CellConfig, ...]
    data: Path = Path()
    """What relative images and annotations folders are relative to."""
    synthetic: SyntheticConfig | None = None
    """Make the embedded world and use it as `data`."""
    wrong_image_baseline: bool = False
    """Also evaluate every cell over other images."""
    examples: int = 10
    """Example pictures a cell in the report."""
    gate: GateConfig | None = None
    """Compare each night with an earlier one. Runs then lie in runs/NAME/NIGHT/, and every night enters history/NAME/;
    without a gate the matrix is a single evaluation."""
    night: str | None = None
    """Name of this night; nights follow each other in the order of their names. Default: the date, UTC."""
    limit: int | None = None
    """A smoke night: N images a corpus, N examples a cell, under OUT/smoke; no scores, no gate, no history."""
    gpu_hour: float | None = None
    """Price of a GPU for an hour, in a currency of yours; the page of a night then says what each cell cost."""
    trackers: tuple[str, ...] = ()
    """Where finished nights are sent as well: mlflow, wandb, tensorboard. See `report.trackers`."""
    pool: PoolConfig = field(default_factory=PoolConfig)

    def __post_init__(self) -> None:
        check_values(self)
        for name in (self.name, *self.corpora):
            folder_name(name)
        check_range(self, 1, None, "limit")
        check_range(self, 0, None, "examples", "gpu_hour")


# ---------------------------------------------------------------------------------------------------------------------


def from_mapping(cls: type[T], values: Any, where: str) -> T:
    """Build the dataclass `cls` from parsed YAML or JSON; every ConfigError starts with `where` and names the key."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected a mapping of {cls.__name__} keys, found {type(values).__name__}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {brief(key)}{nearest(str(key), fields)}")
    missing = [name for name, f in fields.items() if name not in values and _required(f)]
    if missing:
        raise ConfigError(f"{where}: missing key {missing[0]!r}")
    hints = typing.get_type_hints(cls)
    arguments = {key: _convert(hints[key], value, f"{where}: {key}") for key, value in values.items()}
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def folder_name(name: str) -> str:
    """`name` itself. Raises ConfigError for one that cannot name a folder below another."""
    if not re.fullmatch(r"\w[^/]*", name) or printable(name) != name:
        raise ConfigError(
            f"{brief(name)} cannot name a folder: begin with a letter or digit, without slashes and control characters"
        )
    return name


def run_name(model: Path, task: str, split: str) -> str:
    """Name an evaluation, the same every night: its run folder, its cell and its history. Of a task that is named
    module:Class it holds the class, as a folder's name holds no colon everywhere."""
    return f"{model.name}__{task.rpartition(':')[2]}__{split}"


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` or `; known: a, b` for an error message."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def _required(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        if UPath in args:
            return _location(_expect(str, value, where), where)
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where}: {brief(value)} is not one of {', '.join(map(str, args))}")
        return value
    if dataclasses.is_dataclass(hint):
        return from_mapping(typing.cast(type[Any], hint), value, where)
    if origin is tuple:
        return tuple(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(_expect(list, value, where)))
    if origin is dict:
        named = {str(k): _convert(args[1], v, f"{where}.{k}") for k, v in _expect(dict, value, where).items()}
        if len(named) < len(value):  # YAML tells 1 from "1"
            raise ConfigError(f"{where}: two of its keys are spelt alike: {', '.join(map(brief, value))}")
        return named
    if hint is Path:
        return Path(_expect(str, value, where)).expanduser()
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value if hint is Any else _expect(hint, value, where)


def _location(text: str, where: str) -> Location:
    try:
        return location(text).expanduser()
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _expect(kind: type[T], value: Any, where: str) -> T:
    # bool is an int to isinstance, but `workers: true` is a mistake
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{where}: expected {kind.__name__}, found {brief(value)}")
    return value
