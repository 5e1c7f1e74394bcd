"""Owns what a model reads of the images: the regions of a feature store, or the pixels of an image corpus.

The driver opens a source once. The source knows which images exist, their sizes, and what identifies them in a run's
provenance. Every worker opens a reader. The reader joins the examples of a shard with the regions or pixels of their
images. An example whose image is missing or does not decode becomes a failure row, never a wrong answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from visualbert_core.config import EvaluateConfig
from visualbert_core.corpus.images import DecodeError, fetch, identify, read_boxes, read_image
from visualbert_core.corpus.listing import Corpus, list_images
from visualbert_core.errors import InputError
from visualbert_core.evaluation.worker import Asked, ExampleShard, ImageFile, Joined, Reader, batches
from visualbert_core.features.importers.hdf5 import NO_SIZES
from visualbert_core.features.stores import AnyStore, each_store, identity, open_stores
from visualbert_core.io.locations import Location, Locations, place_names
from visualbert_core.models import Model, ReadsPixels
from visualbert_core.provenance import digest_file, digest_json
from visualbert_core.schema import Example, Failure, Image, Pixels

GREY = 128  # the level of every pixel of the baseline without an image
DECODERS = 4  # threads per shard
BATCH_PIXELS = 1 << 26  # limit of one batch; a worker holds at most four such batches (800 MB), or four larger images
_NOT_COMPARED = "features imported without the sizes of the images: not compared with the sizes in the annotations"
_CHUNK = 256  # images whose bytes are in memory at a time, while they are identified


def open_source(config: EvaluateConfig, model: Model[Any], opened: Source | None = None) -> Source:
    """Open the store or the corpus that the configuration names, unless it is `opened`, with the boxes that the model
    asks for. `checks.open_checked` has checked that the model reads it."""
    if config.images is None:
        assert config.features is not None  # the configuration names one of them
        return opened or RegionSource(config.features)
    source = opened or ImageSource(config.images)
    if not isinstance(source, ImageSource) or not isinstance(model.reads, ReadsPixels):
        return source
    if model.reads.boxes == "store" and config.features is not None:
        return source.with_boxes(open_stores(config.features))
    # Boxes beside an image are those of its example. They are not true of a replacement, and would tell where things
    # are, so a baseline has none.
    return source.with_boxes() if model.reads.boxes == "beside" and config.visual == "own" else source


def sample(examples: Iterable[Example], source: Source, count: int) -> list[Example]:
    """Choose `count` of the examples whose images the source has, by a hash of their ids: spread over the split, and
    always the same. Raises InputError where there is none."""
    able = [example for example in examples if all(i in source for i in example.image_ids)]
    if not able:
        raise InputError(
            f"no example has all its images among the {len(source):,} of {source.address}: name those of this split"
        )
    return sorted(able, key=lambda example: digest_json(example.example_id))[:count]


class RegionSource:
    """Gives the regions of a feature store, or of several."""

    def __init__(self, folders: Locations) -> None:
        """Open the stores. Raises StoreError where one is unfinished or damaged, or they do not belong together."""
        self.store = open_stores(folders)
        self.address = place_names(self.store.folder)
        """Where the source lies, for messages."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Return the warnings for scores whose annotations give the sizes of images."""
        return (_NOT_COMPARED,) if _lacks_sizes(self.store) else ()

    def reader(self, visual: str) -> Callable[[], Reader]:
        """Return the function that opens a reader, which can be sent to a worker. `visual` is as in EvaluateConfig."""
        return partial(RegionReader, self.store.folder)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.store

    def __len__(self) -> int:
        return len(self.store)

    def identify(self, examples: Iterable[Example]) -> dict[str, Any]:
        """Return the part of a run's provenance that identifies what the model reads for these examples.

        It is the fingerprint of each store and the digest of its manifest.
        """
        return {"features": identity(self.store)}

    def sizes(self, image_ids: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
        """Return image id → (width, height) in pixels of the images whose size the store knows."""
        rows = () if self.notes else self.store.sizes()
        return {image_id: (width, height) for image_id, width, height, _ in rows if image_id in image_ids}

    def files(self, image_ids: Iterable[str]) -> tuple[ImageFile, ...]:
        """Return the image files that a shard carries for its reader: none, because a worker opens the store."""
        return ()


class RegionReader:
    """Reads one feature store or several, all images of a shard in one call."""

    def __init__(self, folders: Locations) -> None:
        self.store = open_stores(folders)

    def read(self, shard: ExampleShard, batch_size: int) -> Iterator[tuple[list[Joined], list[Failure]]]:
        """Yield batches as `Reader.read` declares. A batch holds only examples with the regions of all their images."""
        wanted = [i for i in dict.fromkeys(i for _, ids in shard.asked() for i in ids) if i in self.store]
        regions = dict(zip(wanted, self.store.fetch_many(wanted), strict=True))
        able, failures = [], []
        for example, image_ids in shard.asked():
            lacking = [i for i in image_ids if i not in regions]
            if lacking:
                message = f"image {lacking[0]!r} has no features"
                failures.append(Failure(example.example_id, "features", "NoFeatures", message))
            else:
                able.append((example, image_ids))
        yield [], failures
        for batch in batches(able, batch_size):
            yield [(example, tuple(regions[i] for i in ids)) for example, ids in batch], []


class ImageSource:
    """Gives the pixels of a corpus of images. The corpus has any form that an extraction takes."""

    notes: tuple[str, ...] = ()

    def __init__(self, corpus: Location) -> None:
        """List the images of the corpus. Raises InputError where there is none."""
        self.images: Corpus = list_images(corpus)
        self.address = str(corpus)
        self._known: dict[str, tuple[str, tuple[int, int] | None]] = {}
        self._boxed = False
        self._store: AnyStore | None = None

    def with_boxes(self, store: AnyStore | None = None) -> ImageSource:
        """Return the images that the store has too, with the boxes of its regions; without a store, all images with the
        boxes in the JSON files beside them. Raises InputError where such an image is not a file on a disk."""
        boxed = copy(self)
        boxed._store, boxed._boxed = store, store is None
        if store is None:
            boxed.images = self.images.with_boxes()
        return boxed

    def reader(self, visual: str) -> Callable[[], Reader]:
        """Return the function that opens a reader of the images, or of grey images where `visual` is "none"."""
        return partial(PixelReader, visual == "none", None if self._store is None else self._store.folder)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.images and (self._store is None or image_id in self._store)

    def __len__(self) -> int:
        return len(self.images)

    def identify(self, examples: Iterable[Example]) -> dict[str, Any]:
        """Return, as `RegionSource` does, the number and digest of the images, and of their boxes where they are read.

        This reads the bytes of every image once, before the first answer. The content of the images, not their names,
        decides whether a run is finished, resumed or refused. Raises OSError for an unreachable image.
        """
        wanted = sorted({i for example in examples for i in example.image_ids if i in self.images})
        unknown = [image_id for image_id in wanted if image_id not in self._known]
        with ThreadPoolExecutor(DECODERS) as threads:
            for start in range(0, len(unknown), _CHUNK):
                chunk = fetch([self.images[image_id] for image_id in unknown[start : start + _CHUNK]])
                self._known |= zip((i.image_id for i in chunk), threads.map(_identified, chunk), strict=True)
        digests = [[image_id, self._known[image_id][0]] for image_id in wanted]
        boxes = {"boxes": digest_json([_boxes_digest(self.images[i]) for i in wanted])} if self._boxed else {}
        found = {"images": {"count": len(wanted), "digest": digest_json(digests), **boxes}}
        return found if self._store is None else found | {"features": identity(self._store)}

    def sizes(self, image_ids: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
        """Return image id → (width, height), from the headers of the images that have been identified."""
        found = ((image_id, self._known[image_id][1]) for image_id in image_ids if image_id in self._known)
        return {image_id: size for image_id, size in found if size is not None}

    def files(self, image_ids: Iterable[str]) -> tuple[ImageFile, ...]:
        """Return where the images lie, with the digests of the identified ones."""
        there = (image_id for image_id in image_ids if image_id in self.images)
        return tuple(ImageFile(self.images[i], *self._known.get(i, (None, None))) for i in there)


Source = RegionSource | ImageSource
"""What tells the driver about the images. `image_id in source` says whether the source has that image."""


class PixelReader:
    """Decodes the images of a shard. All examples of an image in neighbouring batches share one decoded image.

    Threads decode the images of the next batch while the model computes the current batch. With `grey`, every image
    that decodes becomes a grey image of its size. With `regions`, a feature store, every image has the boxes of its
    regions.
    """

    def __init__(self, grey: bool = False, regions: Locations | None = None) -> None:
        self.grey = grey
        self.store = None if regions is None else open_stores(regions)

    def read(self, shard: ExampleShard, batch_size: int) -> Iterator[tuple[list[Joined], list[Failure]]]:
        """Yield batches as `Reader.read` declares. Memory holds the decoded images of at most two batches."""
        wanted = {image_id for _, image_ids in shard.asked() for image_id in image_ids}
        # Images of quarantined examples are not read: reading one of them may have ended the worker.
        files = [file for file in shard.files if file.image.image_id in wanted]
        digests = {file.image.image_id: file.digest for file in files}
        images = {image.image_id: image for image in fetch([file.image for file in files])}
        pixels = {file.image.image_id: math.prod(file.size or (0,)) for file in files}
        cut = [part for batch in batches(shard.asked(), batch_size) for part in _bounded(batch, pixels)]
        decoding: dict[str, Future[Pixels | Failure]] = {}
        with ThreadPoolExecutor(DECODERS) as threads:
            for number, batch in enumerate(cut):
                near = dict.fromkeys(i for each in cut[number : number + 2] for _, ids in each for i in ids)
                decoding = {
                    i: decoding.get(i) or threads.submit(_decode, images[i], digests[i], self.grey)
                    for i in near
                    if i in images
                }
                found = {i: decoding[i].result() for _, ids in batch for i in ids if i in decoding}
                yield _join(batch, found if self.store is None else _with_regions(found, self.store))


def _bounded(batch: Sequence[Asked], pixels: Mapping[str, int]) -> Iterator[list[Asked]]:
    """Cut a batch into parts whose images have at most `BATCH_PIXELS` pixels together, or that are one example."""
    part: list[Asked] = []
    seen: dict[str, int] = {}
    for asked in batch:
        more = {image_id: pixels.get(image_id, 0) for image_id in asked[1]}
        if part and sum((seen | more).values()) > BATCH_PIXELS:
            yield part
            part, seen = [], {}
        part.append(asked)
        seen |= more
    yield part


def _join(batch: Sequence[Asked], found: Mapping[str, Pixels | Failure]) -> tuple[list[Joined], list[Failure]]:
    joined: list[Joined] = []
    failures: list[Failure] = []
    for example, image_ids in batch:
        bad = next((i for i in image_ids if not isinstance(found.get(i), Pixels)), None)
        if bad is None:
            joined.append((example, tuple(found[i] for i in image_ids)))
        elif isinstance(failure := found.get(bad), Failure):
            message = f"image {bad!r}: {failure.message}"
            failures.append(Failure(example.example_id, "images", failure.error, message))
        else:
            message = f"image {bad!r} is not in the corpus"
            failures.append(Failure(example.example_id, "images", "NoImage", message))
    return joined, failures


def _decode(image: Image, digest: str | None, grey: bool) -> Pixels | Failure:
    try:
        rgb, found = read_image(image)
        boxes = None if image.boxes_path is None else read_boxes(image.boxes_path)
    except DecodeError as error:
        return Failure(image.image_id, "decode", type(error.__cause__ or error).__name__, str(error))
    if digest not in (None, found):
        raise InputError(f"image {image.image_id!r} has changed since the run began: run the same line again")
    rgb = np.full_like(rgb, GREY) if grey else rgb
    rgb.setflags(write=False)  # all examples of an image share it
    return Pixels(image.image_id, rgb, found, boxes)


def _with_regions(found: Mapping[str, Pixels | Failure], store: AnyStore) -> dict[str, Pixels | Failure]:
    """Give the images the boxes of their regions. An image that the store lacks becomes a failure. Raises InputError
    where the store has an image of another size, whose boxes would be wrong."""
    held = [image_id for image_id in found if image_id in store]
    joined = dict(found)
    for image_id, regions in zip(held, store.fetch_many(held), strict=True):
        if isinstance(pixels := found[image_id], Failure):
            continue
        if (pixels.width, pixels.height) != (regions.width, regions.height) and not _lacks_sizes(store):
            here, there = (f"{each.width} × {each.height}" for each in (pixels, regions))
            where = place_names(store.folder)
            remedy = "name the images that its features were extracted from"
            raise InputError(f"image {image_id!r} has {here} pixels, but {there} in {where}: {remedy}")
        joined[image_id] = replace(pixels, boxes=regions.boxes)
    for image_id in joined.keys() - held:
        if isinstance(joined[image_id], Pixels):
            joined[image_id] = Failure(image_id, "features", "NoFeatures", "the store has no regions of it")
    return joined


def _lacks_sizes(store: AnyStore) -> bool:
    return any(NO_SIZES in each.fingerprint.get("notes", ()) for each in each_store(store))


def _boxes_digest(image: Image) -> str | None:
    path = Path(str(image.boxes_path))
    return digest_file(path) if path.is_file() else None  # `_decode` says later that there is none


def _identified(image: Image) -> tuple[str, tuple[int, int] | None]:
    try:
        return identify(image)
    except DecodeError as error:
        return str(error), None
