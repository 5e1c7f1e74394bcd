"""Finds the family of a checkpoint by the `model_type` in its `config.json`.

Hugging Face transformers writes this key, so its checkpoint folders are recognised as they are.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from visualbert_core.config import AnsweringConfig, nearest
from visualbert_core.errors import CheckpointError
from visualbert_core.io.documents import brief, read_json
from visualbert_core.models.base import Model, ReadsPixels
from visualbert_core.schema import CaptionPair, Example

if TYPE_CHECKING:
    from visualbert_core.models.trainable import Start, Trainable

CONFIG_FILE = "config.json"

FAMILIES = {
    "vision-encoder-decoder": "visualbert_core.models.captioner.predictor:Captioner",
    "vilt": "visualbert_core.models.vilt.predictor:ViltPredictor",
    "visual_bert": "visualbert_core.models.visualbert.predictor:VisualBertPredictor",
}
"""`model_type` → module:class. The class opens a folder with the arguments of `load_model`, as its classmethod
`from_pretrained`. Its class attribute `visual_source` says what its checkpoints read, "regions" or "pixels". A class
that can be trained has `to_train(folder, form, start)`, too. A family is imported on first use."""

STARTS = {"bert": FAMILIES["visual_bert"]}
"""`model_type` of a checkpoint that answers nothing, but from which a family starts a training → module:class."""

VisualSource = Literal["regions", "pixels"]
"""What all checkpoints of a family read."""

GENERATIVE = "visualbert_core.models.generative.model:GenerativeModel"
"""The family of every other model type of transformers' AutoModelForImageTextToText."""

ENTRY_POINTS = "visualbert_core.models"
"""The entry-point group with which an installed package adds a family: `model_type = "module:class"`. Entry points
reach every process of a job, including workers on other machines. A call in the main process would not."""


def load_model(
    folder: str | Path,
    form: type[Example],
    device: str | None = None,
    precision: str = "float32",
    answering: AnsweringConfig = AnsweringConfig(),  # noqa: B008, frozen
) -> Model[Any]:
    """Open a checkpoint folder to answer examples of one form, such as `schema.Question`.

    `device` defaults to CUDA if a GPU is present. `precision` is float32, bfloat16 or float16. `answering` is for
    models that write text. Raises CheckpointError if the folder is incomplete or its network does not answer this form.
    Raises ConfigError for a precision or an answering that the model does not know.
    """
    model: Model[Any] = _imported(Path(folder)).from_pretrained(folder, form, device, precision, answering)
    return model


def load_trainable(folder: str | Path, form: type[Example] | type[CaptionPair], start: Start) -> Trainable[Any]:
    """Open a checkpoint folder to train it on examples of one form.

    Raises CheckpointError if the folder is incomplete, does not fit this form, or is of a family that cannot be
    trained here. Raises ConfigError where `start` does not fit the folder.
    """
    found = _imported(Path(folder), STARTS)
    if not hasattr(found, "to_train"):
        raise CheckpointError(f"{folder}: a {found.__name__} cannot be trained here: it has no `to_train`")
    model: Trainable[Any] = found.to_train(Path(folder), form, start)
    return model


def visual_source(folder: str | Path) -> VisualSource | None:
    """Return what the models of a folder's family read, or None where its class does not say. Open no weights.

    Raises CheckpointError where the family is not known or cannot be imported.
    """
    found: VisualSource | None = getattr(_imported(Path(folder)), "visual_source", None)
    return found


def reads_without_weights(
    folder: str | Path, form: type[Example], precision: str, answering: AnsweringConfig
) -> ReadsPixels | None:
    """Return the pixels that the model of a folder would read. Open no weights.

    Return None for a model that reads regions, and for one from outside this package. Raise what `load_model` raises,
    as far as that needs no weights.
    """
    found = _imported(Path(folder))
    if not hasattr(found, "without_weights"):
        return None
    reads: ReadsPixels | None = found.without_weights(folder, form, precision, answering)
    return reads


def _imported(folder: Path, more: dict[str, str] | None = None) -> Any:
    """Return the class of a folder's family. `more` are families beside FAMILIES."""
    family = _family(folder, more or {})
    module, _, name = family.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:  # ValueError: an empty name of a module
        raise CheckpointError(f"{folder}: its model is {family}, which cannot be imported: {error}") from None


def _family(folder: Path, more: dict[str, str]) -> str:
    """Return the module:class for the `model_type` of a folder. Raise CheckpointError if no family has that type."""
    if folder.is_file():
        raise CheckpointError(f"{folder}: a checkpoint is a folder, and this is a file: name the folder")
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint folder")
    path = folder / CONFIG_FILE
    if not path.exists():
        raise CheckpointError(f"{folder}: no checkpoint folder, because it has no {CONFIG_FILE}: name another folder")
    config = read_json(path, CheckpointError)
    found = config.get("model_type") if isinstance(config, dict) else None
    families = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)} | FAMILIES | more
    if isinstance(found, str) and found in families:
        return families[found]
    writers = _writers()
    if writers is None:
        raise CheckpointError(
            f"{path}: model_type: no model of type {brief(found)} is known without Hugging Face transformers, which is "
            "not installed: pip install 'visualbert-core[transformers]'"
        )
    if found in writers:
        return GENERATIVE
    close = nearest(found, [*families, *sorted(writers)]) if isinstance(found, str) else ""
    hint = close if "did you mean" in close else f"; known beside those of transformers: {', '.join(families)}"
    raise CheckpointError(
        f"{path}: model_type: no model of type {brief(found)}, here, in AutoModelForImageTextToText of transformers "
        f"or in an entry point {ENTRY_POINTS!r}{hint}"
    )


def _writers() -> frozenset[str] | None:
    """Return the model types that read images and write text, as the installed transformers knows them.

    None where transformers is not installed.
    """
    try:
        from transformers.models.auto import modeling_auto
    except ImportError:
        return None
    return frozenset(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
