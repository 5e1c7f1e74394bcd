"""Shards and batches of examples, and which images each example is asked about: its own, or others for the baseline.

Examples of one image share a shard and stand together in its batches, so that the image is read, and embedded, once.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from visualbert_core.engine.shards import Shard, plan
from visualbert_core.errors import InputError
from visualbert_core.provenance import digest_json
from visualbert_core.schema import Example, Image

if TYPE_CHECKING:
    from visualbert_core.evaluation.inputs import Source

Asked = tuple[Example, tuple[str, ...]]
"""An example and the ids of the images that it is asked about."""
Donors = Mapping[tuple[str, ...], tuple[str, ...]]
"""image ids of an example → ids of the images that it is asked about in their place."""


@dataclass(frozen=True)
class ImageFile:
    """Where an image lies; the digest of its bytes when the run began, and (width, height) by its header. None: not
    known."""

    image: Image
    digest: str | None
    size: tuple[int, int] | None


@dataclass(frozen=True)
class ExampleShard(Shard):
    """A range of images with all their examples, in the order of `items`; for each the images that it is asked about,
    and for models that read pixels where these images lie."""

    examples: tuple[Example, ...]
    image_ids: tuple[tuple[str, ...], ...]
    files: tuple[ImageFile, ...]

    def asked(self) -> list[Asked]:
        """Return the examples that are not quarantined, with the images that they are asked about."""
        lost = self.lost()
        pairs = zip(self.examples, self.image_ids, strict=True)
        return [pair for pair in pairs if pair[0].example_id not in lost]


def plan_examples(
    examples: Iterable[Example],
    donors: Donors | None,
    files: Callable[[Iterable[str]], tuple[ImageFile, ...]],
    salt: str,
    target: int,
) -> list[ExampleShard]:
    """Cut examples into shards of about `target` images; all examples of an image (of a pair: of its first image)
    share one. `files` tells where images lie (`Source.files`)."""
    by_id = {example.example_id: example for example in examples}
    found = []
    for shard in plan({example_id: example.image_ids[0] for example_id, example in by_id.items()}, salt, target):
        asked = tuple(by_id[item] for item in shard.items)
        ids = tuple(e.image_ids if donors is None else donors.get(e.image_ids, e.image_ids) for e in asked)
        carried = files(dict.fromkeys(image_id for each in ids for image_id in each))
        found.append(ExampleShard(shard.shard_id, shard.items, asked, ids, carried))
    return found


def wrong_images(examples: Iterable[Example], there: Container[str]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Choose a donor for the images of every example: the next ones in an order fixed by a hash, so never its own.

    An NLVR2 pair gets another pair. Images that are not `there` take no part: their examples fail as they would
    anyway. Raises InputError where there is no other image.
    """
    units = {example.image_ids for example in examples if all(i in there for i in example.image_ids)}
    order = sorted(units, key=digest_json)
    if len(order) == 1:
        raise InputError("the wrong-image baseline needs a second image, this split has one")
    return dict(zip(order, [*order[1:], *order[:1]], strict=True))


def sample(examples: Iterable[Example], source: Source, count: int) -> list[Example]:
    """Choose `count` of the examples whose images the source has, by the hash of their ids, so spread over the split.

    Raises InputError where there is none.
    """
    able = [example for example in examples if all(i in source for i in example.image_ids)]
    if not able:
        raise InputError(f"no example has all its images among the {len(source):,} of {source.address}")
    return sorted(able, key=lambda example: digest_json(example.example_id))[:count]


def batches(asked: Sequence[Asked], size: int) -> Iterator[list[Asked]]:
    """Cut examples into batches in which those of an image stand together; the same batches for the same shard."""
    by_image = sorted(asked, key=lambda pair: (pair[0].image_ids, pair[0].example_id))
    for start in range(0, len(by_image), size):
        yield by_image[start : start + size]
