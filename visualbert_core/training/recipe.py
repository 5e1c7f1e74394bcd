"""What a training may set, and every default. One declaration serves YAML files, flags, help and Python.

The defaults are the fine-tuning of VisualBERT's authors, for every number that they give: rate 2e-5, batch 64, ten
epochs, 10 % warm-up, decay 0.01, ε 1e-6 (arXiv:1908.03557, github.com/uclanlp/visualbert at 2a9e8bd58a20). The
optimiser is AdamW, which clips all gradients together; `optimizer: bertadam` with `clip: each` and
`frozen: [pooler]` is theirs. Several tasks at once follow 12-in-1 (Lu et al. 2020, arXiv:1912.02315): a step takes a
batch of one task, and all share one trunk.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import tyro

from visualbert_core.config import check_range, check_values
from visualbert_core.errors import ConfigError
from visualbert_core.io.locations import Location, Locations

PATHS = (
    *("annotations", "features", "images", "model", "out", "answers"),
    *("validate_annotations", "validate_features", "validate_images"),
)
"""The keys that say where something lies. A run records digests of what lies there, not the places."""
FREE = (
    *("max_hours", "read_ahead", "readers", "device", "log_seconds", "skip_bad_batches"),
    "gradient_checkpointing",
    *("save_every", "validate_split", "validate_batch_size", "own_image_only", "patience"),
    *("keep_last", "keep_best", "keep_every", "workers", "min_workers", "restarts", "trackers"),
)
"""The keys that do not decide what a step computes. They may differ when a run is resumed."""
EPOCHS = 10
"""The number of epochs where neither `epochs` nor `steps` is set, as in most of the authors' recipes."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class AlsoTask:
    """A further task of a training. Keys that are not here are those of the recipe."""

    task: str | None = None
    """The benchmark, as the key `task` of the recipe. Default: the name of this entry."""
    checkpoint_task: str | None = None
    """The benchmark that its checkpoints answer, where the data to learn from are another class. Default: TASK."""
    split: str
    """The split to learn."""
    annotations: Path
    """Folder of its files."""
    part: str | None = None
    """The part of the benchmark to learn, as in the recipe."""
    features: Locations
    """Feature store, or several, with the regions of its images."""
    weight: float = 1.0
    """How many steps it gets for each step of the first task."""
    batch_size: int | None = None
    """Examples of one of its steps. Default: as in the recipe."""
    model: Path | None = None
    """Checkpoint folder whose head it starts from. Default: a new head."""
    answers: Path | None = None
    """List of the answers of a new head for questions."""
    grounding: float = 0.0
    """Weight of its term `grounding`."""

    def __post_init__(self) -> None:
        check_values(self)
        check_range(self, 1, None, "batch_size")
        check_range(self, 0, None, "grounding")
        if self.weight <= 0:
            raise ConfigError(f"weight is {self.weight:g}: it must be above 0")

    def ingredients(self) -> dict[str, Any]:
        """Return the keys that change a result, as JSON values."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in PATHS}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training: a model learns the examples of a split, over features or images. See `commands.train`."""

    task: str
    """The benchmark: a name of this package, module:Class for a task of your own, or `caption-pairs`."""
    split: str
    """The split to learn: train, … With a plus, the examples of several: train+val."""
    part: str | None = None
    """The part of the benchmark to learn, where it has parts: `answer` or `rationale` of vcr. Its own metric then
    chooses the best checkpoint. Default: all parts."""
    annotations: Path
    """Folder of the official annotation files."""
    features: Locations | None = None
    """Feature store with the regions of the split's images: a folder with a manifest.json, or its s3:// address.
    Several stores of one feature space are read as one."""
    images: Location | None = None
    """Corpus of the split's images, in place of FEATURES, for a model that reads pixels. See `visualbert extract`."""
    model: Path
    """Checkpoint folder to start from, or an id on the Hugging Face Hub. Pre-training may start from a BERT, such as
    bert-base-uncased. With `weights: random` it needs no weights."""
    out: Location
    """Folder of this training, or its s3:// address. It receives checkpoints/, steps.jsonl, validation/ and run.json.
    """

    weights: Literal["checkpoint", "new-head", "random"] = "checkpoint"
    """`checkpoint` takes all weights of MODEL. `new-head` takes its trunk, and a random head. `random` takes none."""
    answers: Path | None = None
    """List of the answers of a new head for questions, one a line; the first <unk>, which a ViLT leaves out. Default:
    the list of MODEL."""
    objective: Literal["task", "masked-words"] = "task"
    """`masked-words`: pre-train on the texts of the task instead of answering: masked words, and where it has truth
    values or choices, whether the text is true or the choice is right."""
    own_caption_label: int = 1
    """Label of a pair whose second caption is of the image too. The authors write 1, the transformers docs say 0."""
    answer_letters: bool = False
    """Pre-train on the answers of questions letter by letter ("r e d"), as the authors' code does by a slip."""
    grounding: float = 0.0
    """Weight of a further term of questions and statements: attention from their words to the regions that the words
    name, where the task says it (`named_regions`). 0: no such term."""
    pair_cut: Literal["longer-first", "authors"] = "longer-first"
    """How a pair of captions that is too long is cut. `authors` cuts more than it must, as their code does."""
    without_target: Literal["keep", "drop"] = "keep"
    """Examples from which nothing can be learnt: their answers are not in the list, or no region shows a phrase. The
    authors keep them: such an example adds no loss, but counts in the mean."""
    allow_missing: bool = False
    """Leave out examples whose image has no features, or is not there. Without it such an image is an error."""
    allow_feature_space_mismatch: bool = False
    """Train although the features are of another space than the checkpoint."""
    feature_space: str | None = None
    """The feature space of a checkpoint that does not name it."""

    shuffle: Literal["whole", "row-groups"] = "whole"
    """How an epoch is shuffled. `whole`: every order of the examples is as likely. `row-groups`: the store is read in
    shuffled row groups of 64 images, for a store that is larger than memory."""
    shuffle_buffer: int = 64
    """Row groups whose examples are mixed by `shuffle: row-groups`, and that are in memory at once."""
    seed: int = 0
    """Decides the order of the examples, the masks, dropout and random weights."""
    epochs: int | None = None
    """How often every example is seen. Default: 10, unless `steps` is set."""
    steps: int | None = None
    """Number of steps, in place of `epochs`."""
    batch_size: int = 64
    """Examples of one step."""
    tokens_per_pass: int = 16384
    """Largest number of tokens, words and regions, that are computed at once. A batch with more takes several passes,
    with the same result. Lower it if memory is short."""
    gradient_checkpointing: bool = False
    """Keep only the inputs of the layers, and compute each layer again for its gradient: less memory, the same result,
    about a third more time."""
    dropout: float | None = None
    """Dropout of states and of attention. Default: as in the config.json of MODEL."""
    label_smoothing: float = 0.0
    """Share of a class target that all classes get alike. It is for choices, statements and masked words."""

    optimizer: Literal["adamw", "bertadam"] = "adamw"
    """`bertadam` is the optimiser of the authors, without correction of the moments."""
    learning_rate: float = 2e-5
    """The highest rate of the schedule."""
    beta1: float = 0.9
    """Decay of the mean of the gradients."""
    beta2: float = 0.999
    """Decay of the mean of their squares."""
    epsilon: float = 1e-6
    """Added to the root of the mean square."""
    weight_decay: float = 0.01
    """Decay of the weights, times the rate of the step."""
    no_decay: tuple[str, ...] = ("bias", "LayerNorm.bias", "LayerNorm.weight")
    """Parts of the names of tensors without weight decay."""
    frozen: tuple[str, ...] = ()
    """Parts of the names of tensors that are not trained, such as `embeddings` or `encoder.layer.0.`."""
    clip: Literal["all", "each", "none"] = "all"
    """Shorten gradients: `all` tensors by one factor, or `each` tensor alone, as the authors do."""
    clip_norm: float = 1.0
    """The length above which gradients are shortened."""
    schedule: Literal["linear", "cosine", "constant", "none", "cosine-hard-restarts", "cosine-warm-restarts"] = "linear"
    """How the rate falls after the warm-up."""
    warmup: float = 0.1
    """Share of the steps in which the rate rises from 0; with cosine-warm-restarts, the share of each cycle."""
    cycles: float = 1.0
    """Number of cycles of a schedule with restarts."""
    planned_steps: Literal["taken", "authors"] = "taken"
    """For how many steps the schedule is made. `authors` does not count the short batch at the end of an epoch."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 computes products in bfloat16. Weights, sums and losses stay float32."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, such as 0.999. Checkpoints and validations then have the
    averages; the training goes on from the weights. Default: no average."""
    skip_bad_batches: int = 0
    """Number of batches with a loss or gradient that is not finite that may be left out before the run stops."""

    save_every: int | None = None
    """Steps between two checkpoints. Default: one epoch."""
    validate_split: str | None = None
    """Split to evaluate at every checkpoint, by the official metric. Default: no validation."""
    validate_task: str | None = None
    """The benchmark of that split, which the checkpoints answer. Default: TASK."""
    validate_annotations: Path | None = None
    """Folder of the annotations of that split. Default: ANNOTATIONS."""
    validate_features: Locations | None = None
    """Feature store of that split, or several. Default: FEATURES."""
    validate_images: Location | None = None
    """Images of that split. A model that reads pixels is asked about them; default: IMAGES. For other models they are
    the pictures of training.html, which without them shows the regions alone."""
    validate_batch_size: int = 64
    """Examples that are answered at once in a validation."""
    own_image_only: bool = False
    """Do not also evaluate with wrong images, which shows what the text alone answers."""
    patience: int | None = None
    """Stop after this many validations without a better score. Default: never."""
    keep_last: int = 2
    """How many of the newest checkpoints are kept. If the newest is damaged, a run goes on from the one before it."""
    keep_best: int = 1
    """How many of the checkpoints with the best scores are kept."""
    keep_every: int | None = None
    """Also keep every checkpoint whose step is a multiple of this number."""

    max_hours: float | None = None
    """Hours after which the training is saved and stops with exit code 6."""
    workers: int = 1
    """Workers that share each batch, each with a copy of the network. More than one run on Ray: on the cluster of
    RAY_ADDRESS, or on this machine. Without dropout the losses are those of one worker within rounding."""
    min_workers: int | None = None
    """With how many workers to go on where nodes are lost and there is no room for all. Default: WORKERS."""
    restarts: int = 3
    """How often workers that ended are started again without a new checkpoint in between."""
    device: str | None = None
    """Device of torch, such as cuda or cpu. Default: a GPU if there is one."""
    threads: int = 1
    """CPU threads of the network. Another number may change the last bits of every result."""
    readers: int = 2
    """Threads that read features and make batches ahead."""
    read_ahead: int = 4
    """Batches that are made ahead."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers that receive losses and scores at every checkpoint: mlflow, wandb, tensorboard."""
    log_seconds: float = 60.0
    """Seconds between two lines of progress where there is no terminal."""
    also: tyro.conf.Suppress[tyro.conf.Fixed[dict[str, AlsoTask]]] = field(default_factory=dict)
    """Further tasks that are learnt over the same trunk, by name: in a recipe and in Python only, without flags."""

    def __post_init__(self) -> None:
        check_values(self)
        counts = ("epochs", "steps", "batch_size", "tokens_per_pass", "save_every", "validate_batch_size", "patience")
        check_range(self, 1, None, *counts, "keep_last", "keep_every", "threads", "readers")
        check_range(self, 1, None, "read_ahead", "workers", "min_workers")
        check_range(self, 0, None, "seed", "skip_bad_batches", "keep_best", "max_hours", "log_seconds", "restarts")
        check_range(self, 1, 1 << 20, "shuffle_buffer")
        check_range(self, 0, None, "learning_rate", "weight_decay", "clip_norm", "epsilon", "warmup", "cycles")
        check_range(self, 0, None, "grounding")
        check_range(self, 0, 1, "beta1", "beta2", "own_caption_label", "dropout", "label_smoothing", "ema")
        if self.epochs is not None and self.steps is not None:
            raise ConfigError("epochs and steps exclude each other: set one of them")
        if self.validate_split is None and self.patience is not None:
            raise ConfigError("patience needs a validation: set validate_split")
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ConfigError(f"min_workers {self.min_workers} is more than workers {self.workers}")
        check_names(self.also, self.validate_task or self.task)
        if self.warmup >= 1:
            raise ConfigError(f"warmup is {self.warmup:g} of the steps: it is a share below 1, such as 0.1")

    @property
    def folder(self) -> Path:
        """Return OUT as a folder of this machine, which `folder.workplace` makes of an address."""
        assert isinstance(self.out, Path)
        return self.out

    def ingredients(self) -> dict[str, Any]:
        """Return the keys that change a result, as JSON values."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        kept = {name: value for name, value in values.items() if name not in (*PATHS, *FREE)}
        kept["also"] = {name: entry.ingredients() for name, entry in self.also.items()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}


def shipped() -> dict[str, Path]:
    """Return the recipes that this package ships: name → file. `visualbert train NAME` takes one by its name.

    They are those of VisualBERT's authors, with the source of each number beside it. The paper and the code differ in
    places; the comments say which a recipe takes, and where it leaves out a slip of the code.
    """
    return {path.stem: path for path in sorted(Path(__file__).with_name("recipes").glob("*.yaml"))}


def first_name(task: str) -> str:
    """Return the name of the first task among the others: that of its benchmark or class."""
    return task.rpartition(":")[2].rpartition(".")[2].lower()


def check_names(names: Iterable[str], task: str) -> None:
    """Raise ConfigError for a name that cannot be a folder of a checkpoint, or that the first task has."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"also: {name!r} becomes a folder: use small letters, digits, - and _")
        if name == first_name(task):
            raise ConfigError(f"also: {name!r} is the first task: give this entry another name, with the key task")
