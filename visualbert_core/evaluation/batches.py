"""Examples joined with the features of their images: the only place where tasks and models meet.

Owns which regions an example gets (its own, or another image's for the baseline), what becomes of an example whose
image has no features, and which examples share a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from visualbert_core.errors import InputError
from visualbert_core.features.store import FeatureStore
from visualbert_core.provenance import digest_json
from visualbert_core.schema import Example, Failure, Regions
from visualbert_core.shards import Shard, plan

Joined = tuple[Example, tuple[Regions, ...]]
Donors = Mapping[tuple[str, ...], tuple[str, ...]]
"""image ids of an example → ids of the images whose regions it gets."""


@dataclass(frozen=True)
class ExampleShard(Shard):
    """A range of images with all their examples, in the order of `items`, and the images to take regions from."""

    examples: tuple[Example, ...]
    sources: tuple[tuple[str, ...], ...]


def plan_examples(examples: Iterable[Example], donors: Donors | None, salt: str, target: int) -> list[ExampleShard]:
    """Shards of about `target` images; all examples of an image (of a pair: of its first image) share one."""
    by_id = {example.example_id: example for example in examples}
    shards = plan({example_id: example.image_ids[0] for example_id, example in by_id.items()}, salt, target)
    return [_with_examples(shard, [by_id[item] for item in shard.items], donors) for shard in shards]


def _with_examples(shard: Shard, examples: Sequence[Example], donors: Donors | None) -> ExampleShard:
    sources = (e.image_ids if donors is None else donors.get(e.image_ids, e.image_ids) for e in examples)
    return ExampleShard(shard.shard_id, shard.items, tuple(examples), tuple(sources))


def wrong_images(examples: Iterable[Example], store: FeatureStore) -> dict[tuple[str, ...], tuple[str, ...]]:
    """A donor for the images of every example: the next ones in an order fixed by a hash, so never its own.

    An NLVR2 pair gets another pair. Images without features take no part: their examples fail as they would anyway.
    Raises InputError where there is no other image.
    """
    units = {example.image_ids for example in examples if all(i in store for i in example.image_ids)}
    order = sorted(units, key=digest_json)
    if len(order) == 1:
        raise InputError("the wrong-image baseline needs a second image with features, this split has one")
    return dict(zip(order, [*order[1:], *order[:1]], strict=True))


def sample(examples: Iterable[Example], store: FeatureStore, count: int) -> list[Example]:
    """`count` of the examples whose images have features, by the hash of their ids, so spread over the split.

    Raises InputError where there is none.
    """
    able = [example for example in examples if all(i in store for i in example.image_ids)]
    if not able:
        raise InputError(f"no example has the features of all its images among the {len(store):,} of {store.folder}")
    return sorted(able, key=lambda example: digest_json(example.example_id))[:count]


def join(shard: ExampleShard, store: FeatureStore) -> tuple[list[Joined], list[Failure]]:
    """Examples with their regions, each image read once; and a failure for each example that lacks an image or is
    quarantined."""
    lost = shard.lost()
    pairs = [pair for pair in zip(shard.examples, shard.sources, strict=True) if pair[0].example_id not in lost]
    wanted = list(dict.fromkeys(i for _, ids in pairs for i in ids if i in store))
    regions = dict(zip(wanted, store.fetch_many(wanted), strict=True))
    joined: list[Joined] = []
    failures = list(lost.values())
    for example, sources in pairs:
        lacking = [i for i in sources if i not in regions]
        if lacking:
            message = f"image {lacking[0]!r} has no features"
            failures.append(Failure(example.example_id, "features", "NoFeatures", message))
        else:
            joined.append((example, tuple(regions[i] for i in sources)))
    return joined, failures


def batches(joined: Sequence[Joined], size: int) -> Iterator[list[Joined]]:
    """Batches in which the examples of an image stand together, so that the model needs its regions once; the same
    batches for the same shard."""
    by_image = sorted(joined, key=lambda pair: (pair[0].image_ids, pair[0].example_id))
    for start in range(0, len(by_image), size):
        yield by_image[start : start + size]
