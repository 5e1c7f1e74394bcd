"""Asks a model one question about one image, in this process and without Ray.

This is what transformers' pipeline `visual-question-answering` did before version 5 removed it. Here it is for every
model: a model that reads regions gets those of a store, or those that a detector finds in the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from PIL import Image as Pillow

from visualbert_core.config import AnsweringConfig
from visualbert_core.corpus.images import DecodeError, read_image, to_pixels
from visualbert_core.detector import Detector, load_detector
from visualbert_core.errors import CheckpointError, ConfigError, InputError
from visualbert_core.evaluation.checks import check_regions
from visualbert_core.features.store import FeatureStore
from visualbert_core.features.worker import to_regions
from visualbert_core.io.locations import Location
from visualbert_core.models import Model, RanksAnswers, ReadsPixels, load_model
from visualbert_core.printable import logger
from visualbert_core.provenance import digest_bytes
from visualbert_core.schema import (
    Example,
    Failure,
    Image,
    Pixels,
    Prediction,
    Question,
    RankedAnswer,
    Regions,
    Statement,
)
from visualbert_core.tasks.base import TRUTH_VALUES

INGREDIENT = None

_LOG = logger(__name__)

Picture = str | Path | Pillow.Image
"""The file of an image, its id in a store, or an image that Pillow has opened."""


def ask(
    model: str | Path | Model[Any],
    image: Picture | Sequence[Picture],
    question: str,
    top_k: int = 3,
    *,
    detector: str | Path | Detector | None = None,
    features: str | Location | FeatureStore | None = None,
    precision: str = "float32",
    answering: AnsweringConfig = AnsweringConfig(),  # noqa: B008, frozen
) -> tuple[RankedAnswer, ...]:
    """Return the `top_k` best answers of a model to a question about an image, best first.

    Two images are the left and the right image of a statement, as in NLVR2; the answers are then True and False.
    `model` is a checkpoint folder, or an open model, for many questions. An image is a file, an s3:// address, or an
    image that Pillow has opened. A model that reads regions also needs a `detector`, or a feature store in which
    `image` is an id. There may be fewer answers than `top_k`: a model that writes text gives what it has written.

    `precision` and `answering` are as in `EvaluateConfig`, for a model that is opened here. Raises InputError for an
    image that cannot be read, and where model, detector and store do not fit together.
    """
    pictures = (image,) if isinstance(image, Picture) else tuple(image)
    if not question.strip():
        raise ConfigError("the question is empty: write it in quotes")
    if top_k < 1:
        raise ConfigError(f"top_k is {top_k}: it must be at least 1")
    if len(pictures) not in (1, 2):
        raise ConfigError(
            f"{len(pictures) or 'no'} images: give one for a question, or a left and a right one for a statement"
        )
    ids = tuple(f"image {number}" for number in range(1, len(pictures) + 1))
    example = Question("1", ids, question) if len(pictures) == 1 else Statement("1", ids, question)  # type: ignore[arg-type]
    form = type(example)
    # Images are decoded before the model is opened, which may take minutes.
    shown = pictures if features is not None else tuple(_pixels(picture) for picture in pictures)
    folder = Path(model) if isinstance(model, str | Path) else None
    called = folder or Path(type(model).__name__)
    if folder is None and (precision, answering) != ("float32", AnsweringConfig()):
        raise ConfigError(f"{called} is open: give precision and answering to load_model instead")
    opened = load_model(folder, form, None, precision, answering) if folder else cast(Model[Any], model)
    if form not in opened.forms:
        raise CheckpointError(f"{called} does not answer a {form.__name__}: one image asks a Question, two a Statement")
    visual = _visual(opened, called, shown, detector, features)
    return _answers(opened, example, visual, top_k)


def _visual(
    model: Model[Any],
    called: Path,
    shown: tuple[Any, ...],
    detector: str | Path | Detector | None,
    features: str | Location | FeatureStore | None,
) -> tuple[Any, ...]:
    """Return what the model reads of the images: their pixels, or their regions.

    `shown` holds the pixels, or the ids of the images in the store.
    """
    if isinstance(model.reads, ReadsPixels):
        if detector is not None or features is not None:
            raise CheckpointError(f"{called} reads the image itself: leave out the detector and the store")
        return shown
    if (detector is None) == (features is None):
        raise CheckpointError(
            f"{called} reads region features: name either the detector that finds them (--detector), or a store that "
            "has them (--features)"
        )
    finder: FeatureStore | Detector
    if features is not None:
        finder = features if isinstance(features, FeatureStore) else FeatureStore.open(features)
        where = str(finder.folder)
    elif isinstance(detector, str | Path):
        finder, where = load_detector(detector), str(detector)
    else:
        finder, where = cast(Detector, detector), f"the detector {type(detector).__name__}"
    for warning in check_regions(model.reads, called, finder, where):
        _LOG.warning("%s: %s", called.name, warning)
    if isinstance(finder, FeatureStore):
        return tuple(finder.fetch_many(map(str, shown)))
    return tuple(_regions(finder, pixels) for pixels in shown)


def _pixels(picture: Picture) -> Pixels:
    try:
        if isinstance(picture, Pillow.Image):
            rgb = to_pixels(picture)
            return Pixels("image", rgb, digest_bytes(rgb.tobytes()))
        return Pixels(Path(picture).stem, *read_image(Image(Path(picture).stem, str(picture))))
    except FileNotFoundError:
        raise InputError(f"{picture}: no such image") from None
    except DecodeError as error:
        raise InputError(f"the image cannot be read: {error}") from None


def _regions(detector: Detector, pixels: Pixels) -> Regions:
    (detection,) = detector.detect([pixels.rgb])
    found = to_regions(pixels.image_id, pixels.rgb.shape[:2], pixels.image_digest, detection)
    if isinstance(found, Failure):
        raise InputError(f"image {pixels.image_id!r}: {found.message}")
    return found


def _answers(model: Model[Any], example: Example, visual: tuple[Any, ...], top_k: int) -> tuple[RankedAnswer, ...]:
    ranked: tuple[RankedAnswer, ...] = ()
    if isinstance(model, RanksAnswers) and isinstance(example, Question):
        (examined,) = model.examine([(example, visual)])
        found = examined if isinstance(examined, Failure) else examined[0]
        ranked = () if isinstance(examined, Failure) else model.rank(examined[1], top_k)
    else:
        (found,) = model.predict([(example, visual)])
    if isinstance(found, Failure):
        raise InputError(f"no answer: {found.message}")
    if found.input_cut:
        _LOG.warning("the text is longer than the model can read: its end was cut off")
    return ranked or _said(example, found)[:top_k]


def _said(example: Example, prediction: Prediction) -> tuple[RankedAnswer, ...]:
    """Return the answers that a prediction names: both truth values with their scores, or one answer."""
    if prediction.generated and not prediction.generated[0].parsed:
        return (RankedAnswer(prediction.generated[0].text, None),)  # without an answer in it, the text itself
    if isinstance(example, Statement) and prediction.scores:
        both = (RankedAnswer(*pair) for pair in zip(TRUTH_VALUES, prediction.scores, strict=True))
        return tuple(sorted(both, key=lambda each: each.answer != prediction.answer))
    return (RankedAnswer(str(prediction.answer), prediction.scores[0] if prediction.scores else None),)
