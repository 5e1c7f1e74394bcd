"""`visualbert store …`: list, describe and verify a feature store, and check that a detector still gives it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import tyro

from visualbert_core.config import PoolConfig
from visualbert_core.errors import ConfigError, InputError
from visualbert_core.features import label_names as names
from visualbert_core.features.label_names import label_name
from visualbert_core.features.store import FeatureStore
from visualbert_core.io.locations import Location
from visualbert_core.printable import say, say_json
from visualbert_core.schema import LabelNames, Regions

Store = Annotated[tyro.conf.Positional[Location], tyro.conf.arg(metavar="STORE")]


@dataclass(frozen=True)
class Ls:
    """List the images of a store with their sizes and numbers of regions, or the regions of some images.

    Tabs separate the columns of a line.

        visualbert store ls STORE
        visualbert store ls STORE IMAGE …      (their regions: box, label, score, attribute, its score)
    """

    store: Store
    """Folder or s3://… address of the store."""
    images: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGE …")] = ()
    """List the regions of these images."""
    limit: int | None = None
    """List only the first N images."""

    def run(self) -> int:
        store = FeatureStore.open(self.store)
        if self.limit is not None and self.limit < 0:
            raise ConfigError(f"--limit is {self.limit}: it must be at least 0")
        if self.images:
            for row in store.fetch_many(self.images[: self.limit]):
                for region in range(row.num_regions):
                    say(row.image_id, *_region(store, row, region), sep="\t")
            return 0
        for image_id, width, height, regions in islice(store.sizes(), self.limit):
            say(image_id, width, height, regions, sep="\t")
        return 0


def _region(store: FeatureStore, row: Regions, region: int) -> Iterator[str]:
    yield " ".join(f"{corner:.1f}" for corner in row.boxes[region])
    yield from (label_name(row.labels[region], store.label_names), f"{row.scores[region]:.3f}")
    if row.attributes is not None and row.attribute_scores is not None:
        yield from (label_name(row.attributes[region], store.attribute_names), f"{row.attribute_scores[region]:.3f}")


@dataclass(frozen=True)
class Info:
    """Print what a store holds and what made it, as JSON."""

    store: Store
    """Folder or s3://… address of the store."""

    def run(self) -> int:
        say_json(FeatureStore.open(self.store).info(), indent=1)
        return 0


@dataclass(frozen=True)
class Name:
    """Give names to the labels and attributes of an imported store.

    A file of names has one name a line, and the first line names number 0. A line may hold synonyms, separated by
    commas, as objects_vocab.txt of bottom-up attention does. Then the first synonym is the name.
    """

    store: Store
    """Folder of the store."""
    labels: Path
    """Text file with the names of the labels."""
    attributes: Path | None = None
    """Text file with the names of the attributes."""

    def run(self) -> int:
        store = FeatureStore.open(self.store)
        found = LabelNames(_vocabulary(self.labels), _vocabulary(self.attributes) if self.attributes else ())
        names.write(store.folder, store.fingerprint, found)
        say(f"{self.store}: {len(found.labels)} labels and {len(found.attributes)} attributes have names")
        return 0


def _vocabulary(path: Path) -> tuple[str, ...]:
    try:
        return tuple(line.partition(",")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}: give a text file in UTF-8") from error


@dataclass(frozen=True)
class Verify:
    """Read a whole store and check that every file is as it was written."""

    store: Store
    """Folder or s3://… address of the store."""

    def run(self) -> int:
        """Verify every file. Raise StoreError naming the first file that is not as it was written."""
        store = FeatureStore.open(self.store, verify=True)
        say(f"{self.store}: {len(store)} images in {len(store.part_paths)} parts are as they were written")
        return 0


@dataclass(frozen=True)
class Canary:
    """Extract some images of a store again, and compare: does this detector still give these features?

    Exit code 2: it gives other features.

        visualbert store canary STORE --images DIR --detector FOLDER
    """

    store: Store
    """Folder or s3://… address of the store."""
    images: Location
    """The corpus of the store: a folder, pattern, list, table or tar."""
    detector: Path
    """Detector folder."""
    number: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 16
    """How many images to extract again."""

    def run(self) -> int:
        """Print how the features compare. Raise DriftError where they differ by more than rounding."""
        from visualbert_core.engine.pool import Pool
        from visualbert_core.features.drift import check_store  # here, because it imports torch

        with Pool(PoolConfig(inline=True)) as workers:
            check_store(self.store, self.images, self.detector, self.number, workers)
        say(f"{self.detector} gives the features of {self.store}")
        return 0


Command = Ls | Info | Name | Verify | Canary
