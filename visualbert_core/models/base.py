"""The contract that every model keeps: what it reads of an image, which examples it answers, and its answers.

A model reads either the regions of a feature store or the pixels of an image corpus, and says which. Evaluation opens
what the model names. Nothing outside `models/` asks for the type of a model. `Family` has what the models of this
package share: how a checkpoint folder is opened.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, TypeVar, runtime_checkable

import numpy as np

from visualbert_core.config import AnsweringConfig
from visualbert_core.errors import CheckpointError, ConfigError
from visualbert_core.schema import Example, Failure, Pixels, Prediction, RankedAnswer, Regions

if TYPE_CHECKING:
    import torch

NOT_FINITE = "the model's scores hold NaN or infinity"
"""The message of the `Failure` that stands for an example whose scores are not finite."""


def refuse_answering(folder: str | Path, answering: AnsweringConfig, *known: str) -> None:
    """Raise ConfigError where `answering` sets a field that is not in `known`, as a model that writes no text does."""
    for each in fields(answering):
        if each.name not in known and getattr(answering, each.name) != each.default:
            raise ConfigError(f"{folder}: {each.name}: this model has no such setting; leave it out")


METADATA_FILE = "visualbert_core.json"
"""The file beside a checkpoint's weights that says what the other files cannot, such as the feature space."""


@dataclass(frozen=True)
class ReadsRegions:
    """A model that reads the rows of a feature store (`schema.Regions`)."""

    size: int
    """The length D of one feature vector. The store must hold the same D."""
    space: str | None
    """The name of the feature space that the model was trained in. None if the checkpoint does not say."""
    likely_space: str | None = None
    """The feature space of the published checkpoint that this one looks like. Used in a warning if `space` is None."""


@dataclass(frozen=True)
class ReadsPixels:
    """A model that reads the images themselves (`schema.Pixels`)."""

    boxes: Literal["none", "beside", "store"] = "none"
    """The boxes that the model needs with each image. `beside`: those in NAME.json beside NAME.jpg, as VCR ships them;
    row 0 is the whole image; images of a baseline come without them. `store`: the regions that a feature store has of
    the image that is shown."""


Visual_contra = TypeVar("Visual_contra", bound=Regions | Pixels, contravariant=True)


class Model(Protocol[Visual_contra]):
    """What evaluation needs from a model, as `Model[Regions]` or `Model[Pixels]`."""

    reads: ReadsRegions | ReadsPixels
    forms: frozenset[type[Example]]
    """The forms of example that the model answers, such as `schema.Question`."""
    name: str
    """The name of the network as papers write it, such as "BLIP-2 ViT-g OPT-2.7B". Reports look for the published
    numbers of this name."""
    protocol: str
    """How the model is asked and how its text becomes an answer, in one line: prompt, decoding, what is done to the
    text. Reports print it under every score. Empty for a network whose head gives the answers."""

    def fingerprint(self) -> dict[str, Any]:
        """Return everything that changes a prediction, as JSON values: weights digest, class, recipe, precision.

        A run adds the code of the files that define the class. Modules that these files import are not seen: name what
        matters of them here.
        """

    def predict(self, batch: Sequence[tuple[Example, tuple[Visual_contra, ...]]]) -> Sequence[Prediction | Failure]:
        """Answer every example, in order. Each example comes with the regions or pixels of its images, in order.

        NaN or infinity in the weights or the input can make the scores of an example NaN or infinite. Such an example
        gets a `Failure` in place of a prediction. The other answers of the batch stay the same. Threads may share a
        model.
        """


@runtime_checkable
class GivesLogits(Protocol[Visual_contra]):
    """A model that can also return the logits behind its answers. The invariance check compares logits if it can."""

    def examine(
        self, batch: Sequence[tuple[Example, tuple[Visual_contra, ...]]]
    ) -> Sequence[tuple[Prediction, np.ndarray] | Failure]:
        """Answer as `predict` does, and return the logits with each answer.

        The answer is the largest logit over the last axis.
        """


@runtime_checkable
class RanksAnswers(GivesLogits[Visual_contra], Protocol[Visual_contra]):
    """A model that can also name the answers to a question that come after its best one. `ask` shows them."""

    def rank(self, logits: np.ndarray, count: int) -> tuple[RankedAnswer, ...]:
        """Return the `count` best answers to one `Question`, best first; fewer where the model has fewer.

        `logits` come from `examine`. The first answer is the one that `predict` gives.
        """


@runtime_checkable
class GivesAttentions(Protocol[Visual_contra]):
    """A model that can also return what its heads attend to."""

    def attend(self, batch: Sequence[tuple[Example, tuple[Visual_contra, ...]]]) -> Sequence[tuple[np.ndarray, ...]]:
        """Return the attention weights of every example: float32 [layers, heads, L, L] for each of its sequences.

        A row is a position that attends, a column a position that it attends to. A row sums to 1.
        """


class Family:
    """A model of this package. Its folders are opened with the arguments of `load_model`."""

    called: ClassVar[str]
    """The family, as errors name it."""
    answered: ClassVar[Collection[type[Example]]]
    """The forms of example that the networks of the family answer."""
    precisions: ClassVar[Collection[str]] = ("float32", "bfloat16", "float16")
    settings: ClassVar[Collection[str]] = ()
    """The fields of AnsweringConfig that the family has."""
    reads: ReadsPixels | ReadsRegions
    _fingerprint: dict[str, Any]

    def __init__(
        self, folder: Path, form: type[Example], device: torch.device, precision: str, answering: AnsweringConfig
    ) -> None:
        """Open a folder. Callers use `from_pretrained`, which checks the arguments first."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        form: type[Example],
        device: str | None = None,
        precision: str = "float32",
        answering: AnsweringConfig = AnsweringConfig(),  # noqa: B008, frozen
    ) -> Self:
        """Open a checkpoint folder for one form of example on `device` (default: CUDA if a GPU is present).

        Weights of another number format are converted to `precision`. Raise ConfigError for a precision or a setting of
        `answering` that the family does not have. Raise CheckpointError naming file and key if the folder is incomplete
        or damaged, or answers another form.
        """
        import torch  # the contract itself needs none

        cls._refuse(folder, form, precision, answering)
        on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(Path(folder), form, on, precision, answering)

    @classmethod
    def without_weights(
        cls, folder: str | Path, form: type[Example], precision: str, answering: AnsweringConfig
    ) -> ReadsPixels | None:
        """Return the pixels that the model would read; None where the family reads regions.

        Raise what `from_pretrained` raises, as far as that needs no weights.
        """
        cls._refuse(folder, form, precision, answering)
        reads = getattr(cls, "reads", None)
        return reads if isinstance(reads, ReadsPixels) else None

    @classmethod
    def _refuse(cls, folder: str | Path, form: type[Example], precision: str, answering: AnsweringConfig) -> None:
        if form not in cls.answered:
            known = ", ".join(each.__name__ for each in cls.answered)
            asked = f"{cls.called} answers {known} and not {form.__name__}"
            raise CheckpointError(f"{folder}: {asked}: name a checkpoint for this benchmark")
        if precision not in cls.precisions:
            raise ConfigError(
                f"unknown precision {precision!r}: {cls.called} computes in {' or '.join(cls.precisions)}"
            )
        refuse_answering(folder, answering, *cls.settings)
        if not Path(folder).is_dir():
            raise CheckpointError(f"{folder}: no such checkpoint folder")

    def fingerprint(self) -> dict[str, Any]:
        """Return what changes a prediction: network, settings, precision, and the digest of every file that is read."""
        return dict(self._fingerprint)
