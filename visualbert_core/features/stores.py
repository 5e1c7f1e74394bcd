"""Several feature stores that are read as one, such as train2014 and val2014 of COCO, or COCO and Visual Genome.

The stores have the same feature space and size. An image may be in two stores only with equal rows, since otherwise the
order of the stores would decide what a model reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from visualbert_core.errors import StoreError
from visualbert_core.features.store import FeatureStore
from visualbert_core.io.locations import Location, Locations, place_names
from visualbert_core.printable import logger
from visualbert_core.provenance import differences
from visualbert_core.schema import Regions

_LOG = logger(__name__)


class JoinedStores:
    """Finished stores, opened for reading as one. Raise StoreError where they do not belong together."""

    def __init__(self, stores: Sequence[FeatureStore]) -> None:
        self.stores = tuple(stores)
        self.folder: tuple[Location, ...] = tuple(store.folder for store in stores)
        self.space, self.feature_size = stores[0].space, stores[0].feature_size
        for store in stores[1:]:
            _check_space(stores[0], store)
        self._shared = sum(_shared(store, stores[:number]) for number, store in enumerate(stores))

    def __len__(self) -> int:
        return sum(map(len, self.stores)) - self._shared

    def __contains__(self, image_id: object) -> bool:
        return any(image_id in store for store in self.stores)

    def sizes(self) -> Iterator[tuple[str, int, int, int]]:
        """Yield (image id, width, height, number of regions) of every image once. Read no features."""
        for number, store in enumerate(self.stores):
            for row in store.sizes():
                if not any(row[0] in earlier for earlier in self.stores[:number]):
                    yield row

    def fetch_many(self, image_ids: Iterable[str]) -> list[Regions]:
        """Return the rows of several images, in the order of `image_ids`. Ask each store once.

        Raise StoreError where no store has an image.
        """
        wanted = list(image_ids)
        owners = [self._owner(image_id) for image_id in wanted]
        found: dict[str, Regions] = {}
        for number in sorted(set(owners)):
            own = [image_id for image_id, owner in zip(wanted, owners, strict=True) if owner == number]
            found |= zip(own, self.stores[number].fetch_many(own), strict=True)
        return [found[image_id] for image_id in wanted]

    def boxes(self, image_id: str) -> np.ndarray:
        """Return the boxes of one image, float32 [R, 4], without reading its features."""
        return self.stores[self._owner(image_id)].boxes(image_id)

    def row_groups(self, image_ids: Sequence[str]) -> np.ndarray:
        """Return the number of the row group in which each image lies: int64 [N]. Stores share no number."""
        owners = np.array([self._owner(image_id) for image_id in image_ids])
        found, first = np.empty(len(image_ids), np.int64), 0
        for number, store in enumerate(self.stores):
            own = np.flatnonzero(owners == number)
            found[own] = first + store.row_groups([image_ids[at] for at in own.tolist()])
            first += len(store)  # more than the store has row groups
        return found

    def _owner(self, image_id: str) -> int:
        """Return the number of the first store that has an image. Raise StoreError where no store has it."""
        for number, store in enumerate(self.stores):
            if image_id in store:
                return number
        raise StoreError(f"image {image_id!r} is not in {place_names(self.folder)}: extract the features of its corpus")


AnyStore: TypeAlias = FeatureStore | JoinedStores
"""One store, or several that are read as one."""


def open_stores(folders: Locations) -> AnyStore:
    """Open one store or several. Raise StoreError where one is damaged, or where they do not belong together."""
    stores = [FeatureStore.open(folder) for folder in (folders if isinstance(folders, tuple) else (folders,))]
    return stores[0] if len(stores) == 1 else JoinedStores(stores)


def identity(store: AnyStore) -> dict[str, Any]:
    """Return what identifies a store in a provenance: its fingerprint and the digest of its manifest.

    Several stores have one entry each, by their number in the list.
    """
    if isinstance(store, FeatureStore):
        return {"detector": store.fingerprint, "manifest": store.manifest_digest()}
    return {
        str(number): {"corpus": each.manifest.about.get("corpus")} | identity(each)
        for number, each in enumerate(store.stores, start=1)
    }


def each_store(store: AnyStore) -> tuple[FeatureStore, ...]:
    """Return the single stores."""
    return store.stores if isinstance(store, JoinedStores) else (store,)


def _check_space(first: FeatureStore, other: FeatureStore) -> None:
    """Raise StoreError for another space or size. Log where the detectors differ in something else."""
    mine, theirs = (f"{store.feature_size}-d features of {store.space!r}" for store in (first, other))
    if mine != theirs:
        raise StoreError(
            f"{first.folder} has {mine}, but {other.folder} has {theirs}: stores that are read together need one "
            "feature space; extract both with the same detector"
        )
    if found := differences(first.fingerprint, other.fingerprint):
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        _LOG.warning("%s and %s differ: %s%s", first.folder, other.folder, "; ".join(found[:3]), more)


def _shared(store: FeatureStore, earlier: Sequence[FeatureStore]) -> int:
    """Return how many images of a store are in earlier ones. Raise StoreError where their rows differ."""
    count = 0
    for image_id in store.image_ids if earlier else ():
        others = [other for other in earlier if image_id in other]
        for other in others:
            if not store.same(image_id, other):
                raise StoreError(
                    f"image {image_id!r} is in {other.folder} and in {store.folder} with different regions: name only "
                    "one of these stores"
                )
        count += bool(others)
    return count
