"""Check that the store that a run would continue was made from the same images.

Owns which images are compared. The folder of a store names the recipe and the corpus, not the pictures. So this check
reads a few images of finished shards and compares their digests with those in the store. It needs no detector and takes
milliseconds. It finds a different corpus of the same name. To find one edited image among many, use `--canary N` with a
large N.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq

from visualbert_core.corpus.images import DecodeError, fetch, identify
from visualbert_core.engine.shards import Marker, ShardFolder
from visualbert_core.errors import InputError, StoreError
from visualbert_core.features.canary import spread
from visualbert_core.io import storage
from visualbert_core.io.locations import Location
from visualbert_core.schema import Image

PARTS, IMAGES = 4, 8  # the parts whose digests are read; the images of these parts, all together, that are hashed

_OTHERWISE = "give these images a different corpus name (--corpus), or delete that folder"


def check_images(folder: ShardFolder, done: Sequence[Marker], corpus: Mapping[str, Image]) -> None:
    """Compare images of committed shards with the images of the same ids in `corpus`.

    Raise InputError where an image differs or no id is in both, StoreError where a part is damaged.
    """
    digests: dict[str, str] = {}
    for marker in spread([marker for marker in done if marker.rows], PARTS):
        digests |= _digests(folder.part_path(marker.shard_id))
    common = [image_id for image_id in digests if image_id in corpus]
    if digests and not common:
        stranger = next(iter(digests))
        raise InputError(f"{folder.root} holds the features of other images, e.g. {stranger!r}: {_OTHERWISE}")
    for image in fetch([corpus[image_id] for image_id in spread(common, IMAGES)]):
        digest = None
        with suppress(DecodeError):  # it has no bytes now, such as a link to a device
            digest, _ = identify(image)
        if digests[image.image_id] not in ("", digest):
            raise InputError(
                f"{folder.root} holds the features of other images: the file of {image.image_id!r} is not the file "
                f"that they were made from ({image.path}, its digest differs); restore it, or else {_OTHERWISE}"
            )


def _digests(path: Location) -> dict[str, str]:
    """Return the digest of every image in a part, by image id. Raise StoreError where the part is damaged."""
    try:
        with pq.ParquetFile(storage.opened(path), page_checksum_verification=True) as file:
            table = file.read(["image_id", "image_digest"], use_threads=False)
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(f"{path} is damaged ({error}): delete it and run the line again that wrote it") from None
    return dict(zip(table["image_id"].to_pylist(), table["image_digest"].to_pylist(), strict=True))
