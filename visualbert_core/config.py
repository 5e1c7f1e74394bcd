"""The configuration of every job: frozen dataclasses with all defaults. `config_mapping` fills them from YAML.

The docstring of a field is also the help of its flag (see `commands.declarations`).
"""

from __future__ import annotations

import difflib
import math
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from upath import UPath

from visualbert_core.errors import ConfigError
from visualbert_core.io.documents import brief
from visualbert_core.io.hub import checkpoint_name
from visualbert_core.io.locations import ADDRESS, Location, Locations, location
from visualbert_core.printable import printable


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """The actors that compute the shards of a stage."""

    workers: int | None = None
    """Largest number of actors. Default: as many as fit on the GPUs, or on the CPUs where there are no GPUs, as nodes
    come and go. Set it on an autoscaling cluster: such a cluster grows only for actors that wait for a node."""
    gpus_per_worker: float | None = None
    """GPUs of one actor; a fraction is allowed. Default: 1 where there are GPUs, else 0."""
    threads_per_worker: int = 1
    """CPU threads of one actor's network. Another number may change the last bits of a result, so the default is the
    same on every machine. On CPUs, add actors before threads."""
    inline: bool = False
    """Run in this process, without Ray. Then nothing replaces a process that dies, and no time limit is kept."""
    max_hours: float | None = None
    """Hours after which no shard is started. Running shards are committed, then the job exits with code 6."""
    shard_timeout: float | None = None
    """Seconds after which a shard counts as hung and its worker is replaced. Default: 20 times the usual time of a
    shard of its size, at least 10 minutes; no limit before the first shard has finished."""
    start_timeout: float = 1800.0
    """Seconds without any worker after which the job gives up. Perhaps no node has what a worker needs."""

    def __post_init__(self) -> None:
        check_values(self)
        check_range(self, 1, None, "workers", "threads_per_worker")
        check_range(self, 0, None, "gpus_per_worker", "max_hours", "shard_timeout", "start_timeout")


def check_values(config: Any) -> None:
    """Raise ConfigError naming the key of a number that is NaN or infinite, of a text or path with a NUL, of an empty
    text, of a word that is not among the known ones, or of an address where only a disk will do. NaN passes every range
    check. A shell makes an empty text of an unset variable."""
    for name, hint in typing.get_type_hints(type(config)).items():
        for key, value in _parts(config, name):
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{key} is {value}: it must be a finite number")
            if isinstance(value, str | Path | UPath) and "\0" in str(value):
                raise ConfigError(f"{key} is {str(value)!r}: a name or path cannot hold a NUL")
            if isinstance(value, str) and not value.strip():
                raise ConfigError(f"{key} is empty: it must be a name")
            if typing.get_origin(hint) is Literal and value not in get_args(hint):
                raise ConfigError(f"{key}: {brief(value)} is not one of {', '.join(map(str, get_args(hint)))}")
            if isinstance(value, Path | UPath) and (found := ADDRESS.match(str(value))):
                if UPath not in get_args(hint):
                    raise ConfigError(f"{key} is an address ({found[1]}://): use a folder on a disk")
                location(value)  # raises for an address that has been a pathlib.Path


def check_range(config: object, least: float | None, most: float | None, *names: str) -> None:
    """Raise ConfigError naming the key of a number outside [least, most], also inside a mapping or tuple."""
    for name in names:
        for key, value in _parts(config, name):
            if value is not None and least is not None and not value >= least:
                raise ConfigError(f"{key} is {value}: it must be at least {least}")
            if value is not None and most is not None and not value <= most:
                raise ConfigError(f"{key} is {value}: it must be at most {most}")


def _parts(config: object, name: str) -> Iterator[tuple[str, Any]]:
    """Yield (key, value) for a field, or for each value that a mapping or tuple in the field holds."""
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
    """Root of the feature stores, a folder or s3:// address. The new store is OUT/CORPUS/FINGERPRINT."""
    corpus: str | None = None
    """Name of the corpus. Default: the name of the images folder, list or tar."""
    boxes: Literal["none", "beside"] = "none"
    """`beside`: detect nothing, and take the boxes from NAME.json beside NAME.jpg, as VCR ships them."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format in which the detector's network computes. bfloat16 is for GPUs, and for CPUs with AVX512_BF16 or
    AMX. It gives other features, which go into another store."""
    batch_size: int = 8
    """Images that the detector's network computes at once."""
    shard_size: int = 1024
    """Images per shard."""
    limit: int | None = None
    """Extract only the first N images. The store then holds only these."""
    max_failures: int | None = None
    """Exit with code 3 where more images than this fail. Default: any number may fail, and the result says how many."""

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
    """First extract this many images of a store again, and stop where their features differ."""
    canary_store: Location | None = None
    """The store that --canary compares with. Default: the store that this run resumes."""

    def __post_init__(self) -> None:
        check_values(self)
        check_range(self, 1, None, "canary")
        if self.canary_store is not None and self.canary is None:
            raise ConfigError("canary_store does not say how many of its images to extract: add --canary N")


@dataclass(frozen=True, kw_only=True)
class AnsweringConfig:
    """How a model that writes text is asked, and how its text becomes an answer.

    Without a value, a field is as the preset says; without a preset, as the model's family does by default. What is in
    force is part of the printed protocol and of the model's fingerprint.
    """

    preset: Literal["hf-guide", "blip2-paper", "lavis"] | None = None
    """A published way to ask, which the other fields change in single parts."""
    prompt: str | None = None
    """The text around the question or statement, which {} stands for: "Question: {} Answer:". For captions, the text
    that the caption continues or answers, without {}: "a photo of"."""
    answer_by: Literal["generate", "likelihood"] | None = None
    """`generate`: the model writes text. `likelihood`: the likeliest of the given answers counts."""
    normalise: Literal["sum", "mean"] | None = None
    """The likelihood of an answer: the sum or the mean over its tokens."""
    people: Literal["named", "drawn"] | None = None
    """How VCR says who is meant: `named` gives people neutral names; `drawn` also draws the boxes of the objects on the
    image, in colours that the prompt tells. The boxes lie in NAME.json beside NAME.jpg, as VCR ships them."""
    pair: Literal["two", "stitched"] | None = None
    """How NLVR2 shows its two images: `two` images in the prompt, or `stitched` into one picture."""
    box_format: Literal["qwen-vl", "qwen2.5-vl", "qwen3-vl", "paligemma", "florence-2", "kosmos-2"] | None = None
    """How the model writes a box. Default: as its family was trained."""
    post: Literal["raw", "first-line"] | None = None
    """What becomes of a generated text: `raw` keeps it, `first-line` keeps its first line. Blanks at the ends go."""
    beams: int | None = None
    """Beams of the search; 1 is greedy."""
    length_penalty: float | None = None
    """Exponent of the length by which beams are compared."""
    max_new_tokens: int | None = None
    """Tokens after which a generated text is cut."""
    strict_length: bool = False
    """Refuse an example whose text is longer than the model can read, which otherwise is cut and counted."""

    def __post_init__(self) -> None:
        if self.prompt is not None and self.prompt.count("{}") > 1:
            raise ConfigError(f"prompt is {brief(self.prompt)}: it must hold {{}} once, in the place of the question")
        check_values(self)
        check_range(self, 1, None, "beams", "max_new_tokens")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """One model × task × split over features or images → run folder. See `commands.evaluate`."""

    task: str
    """The benchmark: a name of this package (a wrong name lists them all), or module:Class for a task of your own."""
    split: str
    """val, dev, test1, …"""
    annotations: Path
    """Folder of the official annotation files."""
    model: Path
    """Checkpoint folder, or an id on the Hugging Face Hub such as uclanlp/visualbert-nlvr2."""
    out: Path
    """Folder of all runs. The folder of this run is OUT/MODEL__TASK__SPLIT."""
    features: Locations | None = None
    """Feature store, for a model that reads regions, or reads pixels and chooses among regions: a folder with a
    manifest.json, or its s3:// address. Several stores of one feature space are read as one."""
    images: Location | None = None
    """Corpus, for a model that reads pixels: a folder, a pattern, a list of files, a .tar, tables, an s3:// address."""
    visual: Literal["own", "wrong-image", "none"] = "own"
    """`wrong-image`: ask every example about another image. `none`: show a grey image of the same size, to a model that
    reads pixels. The scores show what the text alone answers."""
    allow_feature_space_mismatch: bool = False
    """Evaluate although the features are of another space than the checkpoint. Every score then says so."""
    feature_space: str | None = None
    """The feature space of a checkpoint that does not name it. A name that contradicts the checkpoint is an error."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """bfloat16 is for GPUs, and for CPUs with AVX512_BF16 or AMX. On other CPUs bfloat16 is slower than float32.
    float16 is for models that transformers runs."""
    batch_size: int = 64
    """Examples that the model answers at once."""
    shard_size: int = 256
    """Images per shard, approximately."""
    limit: int | None = None
    """Predict only N examples whose images are there, drawn by a hash of their ids. Then there is no score."""
    answering: AnsweringConfig = field(default_factory=AnsweringConfig)

    def __post_init__(self) -> None:
        check_values(self)
        if self.features is None and self.images is None:
            raise ConfigError("give either features (a store) or images (a corpus), whichever the model reads")
        check_range(self, 1, None, "batch_size", "shard_size", "limit")


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """One corpus of a matrix, and the detector that extracts its features."""

    images: Location
    """Relative to `data` of the matrix."""
    detector: Path | None = None
    """Detector folder, relative to the folder of the YAML file. Without a detector, the models read pixels."""
    boxes: Literal["none", "beside"] = "none"
    precision: Literal["float32", "bfloat16"] = "float32"
    batch_size: int = 8
    shard_size: int = 1024

    def __post_init__(self) -> None:
        check_values(self)
        check_range(self, 1, None, "batch_size", "shard_size")
        for name in ("boxes", "precision", "batch_size", "shard_size"):
            value, default = getattr(self, name), getattr(CorpusConfig, name)
            if self.detector is None and value != default:
                raise ConfigError(
                    f"{name}: {value} has no effect without a detector, and this corpus has none: add detector, or "
                    f"leave {name} out (a cell has its own batch_size, shard_size and precision)"
                )


@dataclass(frozen=True, kw_only=True)
class CellConfig:
    """One row of a matrix: model × task × split over a corpus."""

    task: str
    """This field, and each below without a docstring, means what it means in EvaluateConfig."""
    split: str
    annotations: Path
    """Relative to `data` of the matrix."""
    corpus: str
    """Name of one of the matrix's corpora."""
    features: str | None = None
    """Name of a corpus of the same images with a detector, for a model that chooses among its regions."""
    model: Path
    """Checkpoint folder, relative to the folder of the YAML file."""
    allow_feature_space_mismatch: bool = False
    feature_space: str | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    answering: AnsweringConfig = field(default_factory=AnsweringConfig)
    batch_size: int = 64
    shard_size: int = 256
    floors: dict[str, float] = field(default_factory=dict)
    """metric → percent that it must reach (CIDEr: up to 1,000). With a lower score the job exits with code 4."""
    wrong_image: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """metric → [low, high] percent for the wrong-image baseline. A higher score means that the text alone answers."""
    no_image: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """metric → [low, high] percent for the baseline without an image, for a model that reads pixels."""
    drops: dict[str, float] = field(default_factory=dict)
    """metric to watch → drop in points that the gate must find. Default: the headline metric, and the gate's `drop`."""
    unparsed_rise: float | None = None
    """Also watch the share of texts that hold no answer: its rise in points that the gate must find."""

    def __post_init__(self) -> None:
        check_values(self)
        check_range(self, 1, None, "batch_size", "shard_size")
        check_range(self, 0, 1000, "floors", "wrong_image", "no_image", "drops")  # CIDEr reaches 1,000, others 100
        check_range(self, 0, 100, "unparsed_rise")
        for name in ("wrong_image", "no_image"):
            for metric, bounds in getattr(self, name).items():
                if len(bounds) != 2 or bounds[0] > bounds[1]:
                    raise ConfigError(f"{name}.{metric}: expected [low, high], found {list(bounds)}")
        for key, points in (*_parts(self, "drops"), *_parts(self, "unparsed_rise")):
            if points == 0:
                raise ConfigError(f"{key} is 0: it must be above 0 points")


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """The synthetic data, which a job makes under OUT/synthetic where they are missing. See `synthetic.files`."""

    seed: int = 2026
    vqa_images: int = 150
    """Images of VQA, with four questions each."""
    vcr_images: int = 140
    """Images of VCR, with two items each."""
    nlvr2_sets: int = 64
    """Sets of NLVR2, with four pairs of images and two sentences each."""
    flickr_images: int = 120
    """Images of Flickr30K Entities, with five captions each."""

    def __post_init__(self) -> None:
        check_values(self)
        check_range(self, 0, None, "seed")
        check_range(self, 1, None, "vqa_images", "vcr_images", "nlvr2_sets", "flickr_images")


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """The rules that say whether a night got worse. See `comparison.gate`."""

    false_alarms: float = 0.01
    """Probability that a night on which nothing changed fails, over all cells together."""
    power: float = 0.8
    """Probability with which the gate must find a drop that matters."""
    drop: float = 1.0
    """The drop that matters, in points. A cell that is too small to find it with that power "cannot tell"."""
    baseline: str | None = None
    """Night to compare with. Default: the last night on which the cell did not fail. A fixed night shows slow drift."""

    def __post_init__(self) -> None:
        for name in ("false_alarms", "power"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be between 0 and 1")
        if not 0 < self.drop <= 100:
            raise ConfigError(f"drop is {self.drop}: it must be above 0 points and at most 100")
        check_values(self)


@dataclass(frozen=True, kw_only=True)
class NightlyConfig:
    """A matrix: corpora, then models × tasks × splits over them. See `commands.nightly` and jobs/nightly.yaml."""

    name: str
    out: Path
    """Folder for all results: features/, runs/, report.html."""
    corpora: dict[str, CorpusConfig]
    cells: tuple[CellConfig, ...]
    data: Path = Path()
    """Folder to which relative paths of images and annotations are relative."""
    synthetic: SyntheticConfig | None = None
    """Make the synthetic data and use them as `data`."""
    wrong_image_baseline: bool = False
    """Also evaluate every cell with wrong images."""
    no_image_baseline: bool = False
    """Also evaluate every cell over a corpus without a detector with a grey image in place of each image."""
    examples: int = 10
    """Number of drawn examples per cell in the report."""
    gate: GateConfig | None = None
    """Compare each night with an earlier one. Runs then lie in runs/NAME/NIGHT/, and every night enters history/NAME/.
    Without a gate the matrix is a single evaluation."""
    night: str | None = None
    """Name of this night. The names give the order of the nights. Default: the date, UTC."""
    limit: int | None = None
    """A smoke night: N images per corpus and N examples per cell, under OUT/smoke; no scores, no gate, no history."""
    gpu_hour: float | None = None
    """Price of one GPU for an hour, in any currency. The page of a night then shows the cost of each cell."""
    trackers: tuple[str, ...] = ()
    """Trackers that also receive each finished night: mlflow, wandb, tensorboard. See `report.trackers`."""
    pool: PoolConfig = field(default_factory=PoolConfig)

    def __post_init__(self) -> None:
        check_values(self)
        for name in (self.name, *self.corpora):
            folder_name(name)
        check_range(self, 1, None, "limit")
        check_range(self, 0, None, "examples", "gpu_hour")


def folder_name(name: str) -> str:
    """Return `name`. Raise ConfigError where it cannot be the name of a folder."""
    if not re.fullmatch(r"\w[^/]*", name) or printable(name) != name:
        raise ConfigError(
            f"{brief(name)} cannot name a folder: begin with a letter or digit, use no slash and no control character"
        )
    return name


def run_name(model: Path, task: str, split: str) -> str:
    """Return the name of an evaluation on every night. Some file systems allow no colon, so it has no module."""
    return f"{checkpoint_name(model)}__{task.rpartition(':')[2]}__{split}"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` or `; known: a, b`, for the end of an error message."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
