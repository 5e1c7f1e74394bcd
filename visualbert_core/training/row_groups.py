"""Reads the regions of a training by whole row groups, for a store that does not fit into memory.

`order.RowGroups` composes the epochs so that few row groups are needed at a time. So each row group is read once in an
epoch, with one request, and stays in memory while its examples come. WebDataset and MosaicML Streaming
(github.com/mosaicml/streaming, the shuffle `py1e`) spread the samples of a shard in the same manner.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

import numpy as np

from visualbert_core.features.stores import AnyStore
from visualbert_core.schema import CaptionPair, Example, Regions
from visualbert_core.training.order import RowGroups


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
