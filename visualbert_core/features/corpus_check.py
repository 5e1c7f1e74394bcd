"""Is the store that a run would go on with one of the same images?

Its folder names the recipe and what the corpus is called, not the pictures. So a few images of what is done are read
and held against the digests that were written with their features: no detector is needed, and it takes milliseconds.
Another corpus under the same name is found; one edited image among many is found by `--canary N` with a large N only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from visualbert_core.corpus.images import DecodeError, fetch, image_digest
from visualbert_core.engine.shards import Marker, ShardFolder
from visualbert_core.errors import InputError, StoreError
from visualbert_core.features.canary import spread
from visualbert_core.io import storage
from visualbert_core.io.locations import Location
from visualbert_core.schema import Image

PARTS, IMAGES = 4, 8  # that are looked into; of each part, that are read

_OTHERWISE = "give these images a corpus name of their own (--corpus), or delete that folder"


def check_images(folder: ShardFolder, done: Sequence[Marker], corpus: Mapping[str, Image]) -> None:
    """Compare images of committed shards with those of the same ids in `corpus`.

    Raises InputError where they differ or there are none of the same ids, StoreError for a damaged part.
    """
    digests: dict[str, str] = {}
    for marker in spread([marker for marker in done if marker.rows], PARTS):
        digests |= _digests(folder.part_path(marker.shard_id))
    common = [image_id for image_id in digests if image_id in corpus]
    if digests and not common:
        stranger = next(iter(digests))
        raise InputError(f"{folder.root} holds the features of other images, e.g. {stranger!r}: {_OTHERWISE}")
    for image in fetch([corpus[image_id] for image_id in spread(common, IMAGES)]):
        if digests[image.image_id] not in ("", _digest(image)):
            raise InputError(
                f"{folder.root} holds the features of other images: the file of {image.image_id!r} is not the one that "
                f"they were made of ({image.path}, its digest differs); bring it back, or else {_OTHERWISE}"
            )


def _digest(image: Image) -> str | None:
    """None for what was an image once and cannot be read any more, such as a link that leads to a device now."""
    try:
        return image_digest(image)
    except DecodeError:
        return None


def _digests(path: Location) -> dict[str, str]:
    """Image id → digest of a part."""
    try:
        with pq.ParquetFile(storage.opened(path), page_checksum_verification=True) as file:
            table = file.read(["image_id", "image_digest"], use_threads=False)
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(f"{path} is damaged ({error}): delete it and run the line again that wrote it") from None
    return dict(zip(table["image_id"].to_pylist(), table["image_digest"].to_pylist(), strict=True))
