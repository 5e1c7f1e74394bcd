"""Cuts examples into shards and batches, and chooses the images that each example is asked about.

An example is asked about its own images, or about other images for the wrong-image baseline. Examples of one image
share a shard and are neighbours in its batches, so that the image is read and embedded once.
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
"""The image ids of an example → the ids of the images that replace them."""


@dataclass(frozen=True)
class ImageFile:
    """Holds where an image lies, the digest of its bytes when the run began, and its (width, height) in pixels.

    The size comes from the header of the file. None means that a value is not known.
    """

    image: Image
    digest: str | None
    size: tuple[int, int] | None


@dataclass(frozen=True)
class ExampleShard(Shard):
    """Holds a range of images with all their examples.

    `examples` and `image_ids` follow the order of `items`; `image_ids` holds the images that each example is asked
    about. `files` says where these images lie; it is empty for a model that reads regions.
    """

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
    """Cut examples into shards of about `target` images.

    All examples of an image share a shard; an example with a pair of images belongs to the first image. `files` says
    where images lie (`Source.files`).
    """
    by_id = {example.example_id: example for example in examples}
    found = []
    for shard in plan({example_id: example.image_ids[0] for example_id, example in by_id.items()}, salt, target):
        asked = tuple(by_id[item] for item in shard.items)
        ids = tuple(e.image_ids if donors is None else donors.get(e.image_ids, e.image_ids) for e in asked)
        carried = files(dict.fromkeys(image_id for each in ids for image_id in each))
        found.append(ExampleShard(shard.shard_id, shard.items, asked, ids, carried))
    return found


def wrong_images(examples: Iterable[Example], there: Container[str]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Choose other images for the images of every example.

    A hash fixes the order of the images, and every image gets the next one, so no image gets itself. An NLVR2 pair gets
    another pair. Images that are not `there` are left out: their examples fail in any case. Raises InputError where
    there is only one image.
    """
    units = {example.image_ids for example in examples if all(i in there for i in example.image_ids)}
    order = sorted(units, key=digest_json)
    if len(order) == 1:
        raise InputError(
            "the wrong-image baseline needs a second image, but this split has one: use the example's own images"
        )
    return dict(zip(order, [*order[1:], *order[:1]], strict=True))


def sample(examples: Iterable[Example], source: Source, count: int) -> list[Example]:
    """Choose `count` of the examples whose images the source has. Raises InputError where there is none.

    The hash of the ids decides, so the sample is spread over the split and is always the same.
    """
    able = [example for example in examples if all(i in source for i in example.image_ids)]
    if not able:
        raise InputError(
            f"no example has all its images among the {len(source):,} of {source.address}: name those of this split"
        )
    return sorted(able, key=lambda example: digest_json(example.example_id))[:count]


def batches(asked: Sequence[Asked], size: int) -> Iterator[list[Asked]]:
    """Cut examples into batches where the examples of an image are neighbours.

    A shard always gives the same batches.
    """
    by_image = sorted(asked, key=lambda pair: (pair[0].image_ids, pair[0].example_id))
    for start in range(0, len(by_image), size):
        yield by_image[start : start + size]
