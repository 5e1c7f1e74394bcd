"""What a model sees of the images of a training: decoded pixels, or regions by whole row groups of a large store.

Threads make the batches. Each thread holds the bytes of the images of one batch and one decoded image. Where the store
does not fit into memory, `order.RowGroups` composes the epochs so that few row groups are needed at a time. So each row
group is read once in an epoch, with one request, and stays in memory while its examples come. WebDataset and MosaicML
Streaming (github.com/mosaicml/streaming, the shuffle `py1e`) spread the samples of a shard in the same manner.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from threading import Lock

import numpy as np

from visualbert_core.corpus.images import DecodeError, fetch, read_image
from visualbert_core.errors import InputError
from visualbert_core.evaluation.inputs import ImageSource
from visualbert_core.features.stores import AnyStore
from visualbert_core.io.locations import Location
from visualbert_core.schema import CaptionPair, Example, Pixels, Regions
from visualbert_core.training.order import RowGroups


class TrainingImages:
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
        return dict(self._identity)

    def boxes(self, image_id: str) -> np.ndarray:
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


class _Group:
    """The regions of the images of one row group, read at the first request."""

    def __init__(self, image_ids: list[str]) -> None:
        self._image_ids = image_ids
        self._lock = Lock()  # a thread that needs the group waits for the thread that reads it
        self._regions: dict[str, Regions] | None = None

    def regions(self, store: AnyStore) -> dict[str, Regions]:
        with self._lock:
            if self._regions is None:
                self._regions = dict(zip(self._image_ids, store.fetch_many(self._image_ids), strict=True))
            return self._regions


class GroupReader:
    """Reads the first image of each example with the row group around it. Threads may read at once.

    Images behind the first one lie in other row groups, as the second image of a pair. They are read alone.
    """

    def __init__(self, store: AnyStore, examples: Sequence[Example | CaptionPair], buffer: int) -> None:
        self._store = store
        first = [example.image_ids[0] for example in examples]
        _, of_example = np.unique(store.row_groups(first), return_inverse=True)
        self.groups = RowGroups(of_example, buffer)
        self._group_of = dict(zip(first, of_example.tolist(), strict=True))
        self._images: dict[int, list[str]] = {}
        for image_id in sorted(self._group_of):  # the order in the file, so that neighbours are read together
            self._images.setdefault(self._group_of[image_id], []).append(image_id)
        self._kept = buffer + buffer // 4 + 8
        """Groups in memory: those that are mixed, and some whose last examples have just been read."""
        self._held: OrderedDict[int, _Group] = OrderedDict()
        self._lock = Lock()

    def regions(self, examples: Sequence[Example | CaptionPair]) -> dict[str, Regions]:
        """Return image id → regions of all images of some examples."""
        found: dict[str, Regions] = {}
        for example in examples:
            image_id = example.image_ids[0]
            if image_id not in found and image_id in self._group_of:  # a drawn example may show another image
                found[image_id] = self._group(self._group_of[image_id]).regions(self._store)[image_id]
        others = [i for i in dict.fromkeys(i for example in examples for i in example.image_ids) if i not in found]
        return found | dict(zip(others, self._store.fetch_many(others), strict=True)) if others else found

    def _group(self, number: int) -> _Group:
        """Return a group, and forget those that were not asked for the longest."""
        with self._lock:
            group = self._held.setdefault(number, _Group(self._images[number]))
            self._held.move_to_end(number)
            while len(self._held) > self._kept:
                self._held.popitem(last=False)
            return group
