"""The images of a corpus, for models that learn from pixels: what is there, what identifies it, and the decoded pixels.

Threads make the batches, and each thread holds the bytes of the images of one batch and one decoded image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from visualbert_core.corpus.images import DecodeError, fetch, read_image
from visualbert_core.errors import CheckpointError, ConfigError, InputError
from visualbert_core.evaluation.inputs import ImageSource
from visualbert_core.io.locations import Location
from visualbert_core.models.base import ReadsPixels, ReadsRegions
from visualbert_core.schema import CaptionPair, Example, Pixels
from visualbert_core.training.recipe import TrainConfig


class TrainingImages:
    """The images of the examples of a training."""

    space = None
    """A corpus of images has no feature space."""

    def __init__(self, corpus: Location, examples: Sequence[Example]) -> None:
        """List a corpus, and read the bytes of the images of these examples once, which identifies them.

        Raise InputError where the corpus has no image, OSError where an image cannot be reached.
        """
        source = ImageSource(corpus)
        self.address = source.address
        self._identity = source.identify(examples)
        wanted = {image_id for example in examples for image_id in example.image_ids}
        # An image without a size has no header that can be read.
        self._files = {file.image.image_id: file for file in source.files(wanted) if file.size is not None}

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._files

    def identity(self) -> dict[str, object]:
        """Return the number and the digest of the images."""
        return dict(self._identity)

    def boxes(self, image_id: str) -> np.ndarray:
        """Return no boxes: an image has no regions."""
        return np.zeros((0, 4), np.float32)

    def pixels(self, examples: Sequence[Example | CaptionPair]) -> Iterator[tuple[Pixels, ...]]:
        """Yield the decoded images of each example. Raise InputError for an image that does not decode or has changed.

        Images in tables and object stores are read together. One image is decoded at a time, when it is asked for: a
        batch of large photographs may not fit into memory.
        """
        wanted = list(dict.fromkeys(image_id for example in examples for image_id in example.image_ids))
        images = dict(zip(wanted, fetch([self._files[image_id].image for image_id in wanted]), strict=True))
        for example in examples:
            decoded = []
            for image_id in example.image_ids:
                try:
                    rgb, digest = read_image(images[image_id])
                except DecodeError as error:
                    raise InputError(
                        f"image {image_id!r}: {error}: remove it from {self.address}, and leave out its examples with "
                        "--allow-missing"
                    ) from None
                if digest != self._files[image_id].digest:
                    raise InputError(f"image {image_id!r} has changed since the training began: put it back")
                decoded.append(Pixels(image_id, rgb, digest))
            yield tuple(decoded)


def check_reads(config: TrainConfig, reads: ReadsRegions | ReadsPixels) -> None:
    """Raise CheckpointError where the recipe does not name exactly what the model reads, a store or a corpus.

    Raise ConfigError where it names neither. The recipe itself cannot say so: a flag may still add one to its file.
    """
    if config.features is None and config.images is None:
        raise ConfigError("give either features (a store) or images (a corpus), whichever the model reads")
    if isinstance(reads, ReadsPixels) and config.images is None:
        raise CheckpointError(
            f"{config.model} reads pixels, but {config.features} is a feature store: name the corpus of images instead "
            "(--images)"
        )
    if isinstance(reads, ReadsRegions) and config.features is None:
        raise CheckpointError(
            f"{config.model} reads region features, but {config.images} is a corpus of images: name a feature store "
            "instead (--features)"
        )
    if config.features is not None and config.images is not None:
        read, other = ("pixels", "features") if isinstance(reads, ReadsPixels) else ("region features", "images")
        raise CheckpointError(f"{config.model} reads {read} only: leave out {other}")
