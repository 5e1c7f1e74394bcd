"""The worker of an evaluation: it turns a shard of examples into a part of the predictions.

Owns which examples share a shard and a batch, which images each example is asked about, and how predictions are kept.
An example is asked about its own images, or about other images for the wrong-image baseline. Examples of one image
share a shard and are neighbours in its batches, so that the image is read and embedded once. A part depends only on its
shard. The reader of `inputs.py` gives regions or pixels, and the model owns everything about tokens and answers.

This file imports neither torch nor Ray, so that predictions can be read where they are not installed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from visualbert_core.config import AnsweringConfig, EvaluateConfig
from visualbert_core.engine.hardware import halving_on_memory_error
from visualbert_core.engine.shards import Marker, Part, Shard, ShardFolder, plan
from visualbert_core.errors import CheckpointError, InputError
from visualbert_core.features.parts import encode_failures
from visualbert_core.io.locations import Location
from visualbert_core.models import NOT_FINITE, Model
from visualbert_core.provenance import digest_json
from visualbert_core.schema import (
    PREDICTION_SCHEMA,
    PREDICTION_VERSION,
    Example,
    Failure,
    Generated,
    Grounding,
    Image,
    MultipleChoice,
    Prediction,
    Statement,
)

Asked = tuple[Example, tuple[str, ...]]
"""An example and the ids of the images that it is asked about."""
Joined = tuple[Example, tuple[Any, ...]]
"""An example, and the regions or the pixels of its images in order."""
Donors = Mapping[tuple[str, ...], tuple[str, ...]]
"""The image ids of an example → the ids of the images that replace them."""
LoadModel = Callable[[Path, type[Example], str | None, str, AnsweringConfig], Model[Any]]
"""A function of (folder, form of the examples, device, precision, answering) that returns a model."""


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


def batches(asked: Sequence[Asked], size: int) -> Iterator[list[Asked]]:
    """Cut examples into batches, always the same, where the examples of an image are neighbours."""
    by_image = sorted(asked, key=lambda pair: (pair[0].image_ids, pair[0].example_id))
    for start in range(0, len(by_image), size):
        yield by_image[start : start + size]


class Reader(Protocol):
    """Reads images for a worker. Threads may share a reader."""

    def read(self, shard: ExampleShard, batch_size: int) -> Iterator[tuple[list[Joined], list[Failure]]]:
        """Yield the shard's examples in batches, always the same, and failures of the examples that lack an image."""


class EvaluationWorker:
    """Predicts shards of examples with one model and commits the parts. Each worker process has one worker."""

    def __init__(
        self, config: EvaluateConfig, form: type[Example], reader: Callable[[], Reader], out: Location, load: LoadModel
    ) -> None:
        self.model = load(config.model, form, None, config.precision, config.answering)
        self.reader = reader()
        self.folder = ShardFolder(out)
        self.batch_size = config.batch_size

    def run(self, shard: ExampleShard) -> Marker:
        """Predict the examples of one shard, commit the part, and return its marker."""
        failures = list(shard.lost().values())
        answered: dict[str, Prediction] = {}
        for batch, lacking in self.reader.read(shard, self.batch_size):
            failures += lacking
            for found in halving_on_memory_error(self.predict, batch) if batch else ():
                if isinstance(found, Failure):
                    failures.append(found)
                elif all(map(math.isfinite, found.scores)):
                    answered[found.example_id] = found
                else:  # as a model from outside this package may give them: a failure, not a wrong answer
                    failures.append(Failure(found.example_id, "predict", "NotFinite", NOT_FINITE))
        rows = [answered[item] for item in shard.items if item in answered]
        return self.folder.commit(shard, Part(encode(rows), len(rows), encode_failures(failures), len(failures)))

    def predict(self, batch: Sequence[Joined]) -> list[Prediction | Failure]:
        """Answer a batch. Raise CheckpointError where a model from outside this package does not keep the contract."""
        found = list(self.model.predict(batch))
        asked, called = {example.example_id: example for example, _ in batch}, f"the model {type(self.model).__name__}"
        for each in found:
            name = each.item_id if isinstance(each, Failure) else each.example_id
            if name not in asked:
                raise CheckpointError(f"{called} answered {name!r}, which is not an example of its batch")
            if isinstance(each, Prediction) and len(each.scores) not in (0, _confidences(asked[name])):
                raise CheckpointError(
                    f"{called} gave {len(each.scores)} scores for {name!r}; a {type(asked[name]).__name__} has "
                    f"{_confidences(asked[name])}"
                )
        return found


def _confidences(example: Example) -> int:
    """Return how many `scores` a prediction for this example has, if it has any; see `schema.Prediction`."""
    if isinstance(example, MultipleChoice):
        return len(example.choices)
    if isinstance(example, Grounding):
        return len(example.phrases)
    return 2 if isinstance(example, Statement) else 1


def encode(predictions: Sequence[Prediction]) -> bytes:
    """Return the bytes of a part with one row per prediction. Equal predictions give equal bytes."""
    columns = {
        "example_id": [p.example_id for p in predictions],
        "image_id": [p.image_id for p in predictions],
        "answer": [json.dumps(p.answer, separators=(",", ":")) for p in predictions],
        "scores": [list(p.scores) for p in predictions],
        "generated": [[asdict(text) for text in p.generated] for p in predictions],
        "input_cut": [p.input_cut for p in predictions],
    }
    schema = PREDICTION_SCHEMA.with_metadata({"schema_version": str(PREDICTION_VERSION)})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema), sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue())


def read_predictions(folder: str | Path) -> tuple[list[Prediction], list[Failure]]:
    """Return the predictions and the failures of a finished `predictions/` folder, both sorted by example id.

    Raises StoreError where the folder is unfinished or damaged.
    """
    shards = ShardFolder(folder)
    predictions: list[Prediction] = []
    failures: list[Failure] = []
    for marker in shards.read_manifest(verify=True).shards:
        for row in pq.read_table(shards.part_path(marker.shard_id)).to_pylist():
            # Version 2 of the rows had no texts. A night after an upgrade is compared with rows of that version.
            generated = tuple(Generated(**text) for text in row.get("generated", ()))
            answer, scores, cut = json.loads(row["answer"]), tuple(row["scores"]), row.get("input_cut", False)
            predictions.append(Prediction(row["example_id"], row["image_id"], answer, scores, generated, cut))
        if marker.failures is not None:
            rows = pq.read_table(shards.failures_path(marker.shard_id)).to_pylist()
            failures += [Failure(**row) for row in rows]
    return sorted(predictions, key=attrgetter("example_id")), sorted(failures, key=attrgetter("item_id"))
