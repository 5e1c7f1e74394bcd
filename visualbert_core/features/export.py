"""Export a feature store as typed tables: Apache Arrow, Hugging Face datasets and Ray Data.

Owns the columns of `Regions` in these libraries. The parts are ordinary Parquet, but they hold arrays as bytes; the
tables here have typed arrays. The number of regions R differs between images, and the feature size D does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from visualbert_core.features.parts import ARRAYS
from visualbert_core.features.store import FeatureStore
from visualbert_core.schema import Regions

if TYPE_CHECKING:
    import datasets

_BATCH = 64  # images


def arrow_schema(feature_size: int) -> pa.Schema:
    """Return the typed columns of a store: float32, int16 and float16 as stored. Missing attributes are null."""
    return pa.schema(
        {
            "image_id": pa.string(),
            "width": pa.int32(),
            "height": pa.int32(),
            "boxes": pa.list_(pa.list_(pa.float32(), 4)),
            "labels": pa.list_(pa.int16()),
            "scores": pa.list_(pa.float32()),
            "attributes": pa.list_(pa.int16()),
            "attribute_scores": pa.list_(pa.float32()),
            "features": pa.list_(pa.list_(pa.float16(), feature_size)),
            "image_digest": pa.string(),
        }
    )


def to_arrow(store: FeatureStore) -> pa.RecordBatchReader:
    """Stream a store as Arrow with typed nested columns: boxes list<float[4]>, features list<half_float[D]>.

    A batch has 64 images, and the images are in the order of `FeatureStore.scan`.
    """
    schema = arrow_schema(store.feature_size)
    return pa.RecordBatchReader.from_batches(schema, _batches(store.scan(copy=False), schema))


def _batches(rows: Iterator[Regions], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    while batch := list(islice(rows, _BATCH)):
        columns = [_column(batch, field) for field in schema]
        yield pa.record_batch(columns, schema=schema)


def _column(batch: Sequence[Regions], field: pa.Field) -> pa.Array:
    """Return one column of a batch; an array of an image becomes a list in its row."""
    values = [getattr(row, field.name) for row in batch]
    if field.name not in ARRAYS:
        return pa.array(values, field.type)
    missing = np.array([array is None for array in values])
    if missing.all():
        return pa.nulls(len(batch), field.type)
    offsets = np.cumsum([0, *(0 if array is None else len(array) for array in values)], dtype=np.int32)
    flat = pa.array(np.concatenate([array.reshape(-1) for array in values if array is not None]))
    inner = field.type.value_type
    if pa.types.is_fixed_size_list(inner):
        flat = pa.FixedSizeListArray.from_arrays(flat, type=inner)
    return pa.ListArray.from_arrays(pa.array(offsets), flat, type=field.type, mask=pa.array(missing))


def to_datasets(store: FeatureStore) -> datasets.IterableDataset:
    """Stream a store as a Hugging Face dataset with typed columns, in the order of `FeatureStore.scan`.

    One example is one image. The dataset has as many shards as the store has parts, and the processes that read it
    share them. Features are float16 arrays, as stored; `with_format("torch")` makes them float32, at 30 times the cost.
    """
    import datasets

    features = datasets.Features.from_arrow_schema(arrow_schema(store.feature_size))
    features["boxes"] = datasets.Array2D((None, 4), "float32")
    features["features"] = datasets.Array2D((None, store.feature_size), "float16")
    # A shard is a range of ids, not a part, so that the order of all shards together is the order of `scan`.
    count = max(1, len(store.part_paths))
    cuts = [len(store) * number // count for number in range(count + 1)]
    places = {"folder": str(store.folder), "ranges": list(pairwise(cuts))}
    return datasets.IterableDataset.from_generator(_examples, features=features, gen_kwargs=places)


def _examples(folder: str, ranges: Sequence[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """Yield the examples of these ranges of rows; `datasets` gives each reading process some of the ranges."""
    store = FeatureStore.open(folder)
    for start, stop in ranges:
        yield from map(vars, store.scan(start, stop))


def to_ray(store: FeatureStore) -> Any:
    """Read a store as a Ray dataset with typed columns, one row per image, in no particular order.

    Ray reads the parts as Parquet in parallel, and `decode` turns the bytes into arrays.
    """
    from visualbert_core.engine.ray_session import read_parquet

    return read_parquet(list(map(str, store.part_paths)), partial(decode, D=store.feature_size))


def decode(batch: Mapping[str, np.ndarray], D: int) -> dict[str, np.ndarray]:
    """Turn the bytes in a batch of a part's columns into arrays: [R, 4], [R] and [R, D] per image. None stays None."""
    typed = {name: column for name, column in batch.items() if name != "num_regions"}
    for name, dtype in ARRAYS.items():
        width = {"boxes": 4, "features": D}.get(name)
        typed[name] = np.empty(len(batch[name]), object)
        for row, data in enumerate(batch[name]):
            if data is None:
                continue
            array = np.frombuffer(data, dtype)
            typed[name][row] = array if width is None else array.reshape(len(array) // width, width)
    return typed
