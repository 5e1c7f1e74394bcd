"""The store returns exactly what was written, by scan, by offset and through other Parquet readers, or says why it
cannot.
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from visualbert_core.engine.shards import Part, ShardFolder, plan
from visualbert_core.errors import StoreError
from visualbert_core.features import label_names as names
from visualbert_core.features.export import to_arrow, to_datasets, to_ray
from visualbert_core.features.parts import encode, encode_failures
from visualbert_core.features.store import FeatureStore, store_folder
from visualbert_core.schema import REGIONS_SCHEMA, Failure, LabelNames, Regions

D = 5  # odd, so that rows of features also start at odd offsets
FINGERPRINT = {"space": "toy", "feature_size": D, "weights": "1f"}
BAD = Failure("bad", "decode", "OSError", "bad.jpg: truncated")


def row(image_id: str, regions: int) -> Regions:
    random = np.random.default_rng(sum(map(ord, image_id)))
    named = regions % 3 > 0  # two of three rows have attributes
    return Regions(
        image_id=image_id,
        width=640,
        height=480,
        boxes=random.random((regions, 4), np.float32),
        labels=random.integers(-1, 1600, regions).astype(np.int16),
        scores=random.random(regions, np.float32),
        features=random.random((regions, D), np.float32).astype(np.float16),
        image_digest=f"digest of {image_id}",
        attributes=random.integers(0, 400, regions).astype(np.int16) if named else None,
        attribute_scores=random.random(regions, np.float32) if named else None,
    )


ROWS = {f"image{number:03d}": row(f"image{number:03d}", number * 7 % 11) for number in range(300)}


def write(root: Path, rows: Sequence[Regions], target: int, failures: Sequence[Failure] = ()) -> FeatureStore:
    """Write a store of these rows in shards of about `target` rows; each failure goes to the shard of its id."""
    folder = ShardFolder(store_folder(root, "toy", FINGERPRINT))
    by_id, failed = {row.image_id: row for row in rows}, {failure.item_id: failure for failure in failures}
    shards = plan([*by_id, *failed], "test", target)
    for shard in shards:
        good = [by_id[item] for item in shard.items if item in by_id]
        bad = [failed[item] for item in shard.items if item in failed]
        folder.commit(shard, Part(encode(good, FINGERPRINT), len(good), encode_failures(bad), len(bad)))
    folder.finish(shards, {"fingerprint": FINGERPRINT})
    return FeatureStore.open(folder.root, verify=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Write 300 images of 0 to 10 regions in 2 parts of several row groups, and one failure."""
    return write(tmp_path_factory.mktemp("store"), list(ROWS.values()), 200, [BAD])


def same(a: Regions, b: Regions) -> bool:
    def equal(mine: Any, yours: Any) -> bool:
        if not isinstance(mine, np.ndarray) or not isinstance(yours, np.ndarray):
            return bool(mine == yours)
        return mine.dtype == yours.dtype and np.array_equal(mine, yours)

    return vars(a).keys() == vars(b).keys() and all(equal(value, vars(b)[name]) for name, value in vars(a).items())


def test_what_goes_in_comes_out(store: FeatureStore) -> None:
    """Scanning gives every row once, with equal dtype and values, whatever its number of regions."""
    scanned = list(store.scan())
    assert [regions.image_id for regions in scanned] == store.image_ids
    assert sorted(store.image_ids) == sorted(ROWS)
    assert all(same(regions, ROWS[regions.image_id]) for regions in scanned)


def test_fetch_equals_scan_in_any_order(store: FeatureStore) -> None:
    """A fetch by offset, in random order and across row groups, equals the scan, and fetch_many keeps the order."""
    ids = list(np.random.default_rng(0).permutation(list(ROWS)))
    assert all(same(store.fetch(image_id), ROWS[image_id]) for image_id in ids)
    assert [regions.image_id for regions in store.fetch_many(ids[:9])] == ids[:9]


def test_the_store_says_what_it_holds(store: FeatureStore) -> None:
    """Size, space, membership and failures are known without reading any features."""
    assert (len(store), store.space, store.feature_size) == (300, "toy", D)
    assert store.fingerprint == FINGERPRINT
    assert "image007" in store
    assert "bad" not in store
    assert store.failures() == [BAD]


def test_anybody_can_read_a_part(store: FeatureStore) -> None:
    """pyarrow and pandas read a part as ordinary Parquet: one table of the published schema, with little-endian
    binary."""
    (path, *_) = sorted((store.folder / "parts").iterdir())
    table = pq.read_table(path, page_checksum_verification=True)
    assert table.schema.equals(REGIONS_SCHEMA)
    frame = pq.read_table(path).to_pandas()
    for record in frame.to_dict("records"):
        features = np.frombuffer(record["features"], "<f2").reshape(record["num_regions"], D)
        np.testing.assert_array_equal(features, ROWS[record["image_id"]].features)
    metadata = pq.read_metadata(path).metadata
    assert {b"schema_version", b"feature_dtype", b"feature_size", b"fingerprint"} <= set(metadata)


def test_the_layout_that_offsets_rely_on() -> None:
    """Features are uncompressed and PLAIN, in row groups of 64, and the same rows give the same bytes."""
    rows = list(ROWS.values())
    data = encode(rows, FINGERPRINT)
    assert data == encode(rows, FINGERPRINT)
    metadata = pq.read_metadata(pa.BufferReader(data))
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [64, 64, 64, 64, 44]
    column = metadata.row_group(0).column(metadata.num_columns - 1)
    assert (column.path_in_schema, column.compression, column.has_dictionary_page) == (
        "features",
        "UNCOMPRESSED",
        False,
    )
    assert set(column.encodings) <= {"PLAIN", "RLE"}


def test_realistic_rows_stay_on_one_page(tmp_path: Path) -> None:
    """A row group far above Parquet's default page size of 1 MB is still read by offset."""
    fingerprint = {"space": "toy", "feature_size": 2048}
    rows = [
        Regions(f"{n}", 9, 9, np.zeros((20, 4)), np.zeros(20), np.zeros(20), np.full((20, 2048), n, np.float16), "")
        for n in range(70)
    ]
    folder = ShardFolder(tmp_path)
    shards = plan([row.image_id for row in rows], "", 100)
    by_id = {row.image_id: row for row in rows}
    folder.commit(shards[0], Part(encode([by_id[item] for item in shards[0].items], fingerprint), 70, None, 0))
    folder.finish(shards, {"fingerprint": fingerprint})
    store = FeatureStore.open(tmp_path)
    assert all((store.fetch(str(n)).features == n).all() for n in range(70))


def test_arrays_are_the_callers_own(store: FeatureStore) -> None:
    """A fetched array may be changed, and the store stays unchanged."""
    store.fetch("image005").features[:] = 0
    assert same(store.fetch("image005"), ROWS["image005"])


@pytest.mark.parametrize("failures", [[], [BAD]])
def test_a_store_without_rows_opens(tmp_path: Path, failures: list[Failure]) -> None:
    """A corpus without images, or with only bad ones, is an empty store that opens."""
    store = write(tmp_path, [], 10, failures)
    assert (len(store), list(store.scan()), store.failures()) == (0, [], failures)


def test_a_process_that_read_failures_ends_well(store: FeatureStore) -> None:
    """A reader of failures ends well. An Arrow thread that still holds Python's bytes at exit aborted one process in
    ten."""
    code = "import sys; from visualbert_core.features.store import FeatureStore as S; S.open(sys.argv[1]).failures()"
    line = [sys.executable, "-c", code, str(store.folder)]
    # The abort came in one process of ten, so twelve of them would show it more often than not.
    processes = [subprocess.Popen(line, stderr=subprocess.PIPE) for _ in range(12)]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [(b"", 0)] * 12


def test_ids_of_one_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is found by a hash of its id, and returned only if the id is equal."""
    # Ids of similar length get one hash, because real collisions are too rare to test.
    for module in ("parts", "store"):
        monkeypatch.setattr(f"visualbert_core.features.{module}.id_hash", lambda image_id: len(image_id) // 9)
    rows = {name: row(name, 2) for name in ("a", "b", "c", "long enough", "long also")}
    found = write(tmp_path, list(rows.values()), 10)
    assert all(same(found.fetch(name), rows[name]) for name in rows)
    assert not any(name in found for name in ("", "d", "long", "long too...", "\udcff"))


def test_an_open_store_takes_little_memory(tmp_path: Path) -> None:
    """A process keeps only some numbers per image; ids and small columns stay in the memory map that all processes
    share."""
    rows = [dataclasses.replace(row("a", 1), image_id=f"COCO_train2017_{number:012d}") for number in range(2000)]
    folder = write(tmp_path, rows, 1000).folder
    tracemalloc.start()
    found = FeatureStore.open(folder)
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(found) == 2000
    assert used < 2000 * 80


def test_an_unknown_image_and_a_quarantined_one_are_told_apart(store: FeatureStore) -> None:
    """The one-line error of a quarantined image gives its reason, and the one of an unknown image says what to do."""
    with pytest.raises(StoreError, match=r"^image 'bad' is quarantined in .*: decode: bad\.jpg: truncated$"):
        store.fetch("bad")
    with pytest.raises(StoreError, match=r"^image 'stranger' is not in .*: extract the features of its corpus$"):
        store.fetch_many(["image001", "stranger"])


def test_an_unfinished_store_does_not_open(tmp_path: Path) -> None:
    """Parts without a manifest do not open as a store."""
    store = write(tmp_path, [ROWS["image001"]], 10)
    (store.folder / "manifest.json").unlink()
    with pytest.raises(StoreError, match="is unfinished"):
        FeatureStore.open(store.folder)


def test_another_stages_folder_is_no_store(tmp_path: Path) -> None:
    """A finished folder that holds something else, such as predictions, is refused by name."""
    ShardFolder(tmp_path).finish([], {"task": "vqa"})
    with pytest.raises(StoreError, match="is not a feature store"):
        FeatureStore.open(tmp_path)


def test_a_truncated_part_is_refused_by_name(tmp_path: Path) -> None:
    """A truncated part is refused when the store opens, before a memory map of it could crash the process."""
    store = write(tmp_path, [ROWS["image005"]], 10)
    (path,) = (store.folder / "parts").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match=rf"{path.name} has \d+ bytes instead of"):
        FeatureStore.open(store.folder)


def flip(path: Path, at: int, bit: int = 2) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def test_a_flipped_feature_is_found_when_it_is_read(tmp_path: Path) -> None:
    """A store that was opened before the damage finds it in fetch and in scan, in one line with part and image."""
    store = write(tmp_path, [ROWS["image005"]], 10)
    (path,) = (store.folder / "parts").iterdir()
    flip(path, path.read_bytes().index(ROWS["image005"].features.tobytes()) + 1)
    for read in (lambda opened: opened.fetch("image005"), lambda opened: list(opened.scan(copy=False))):
        with pytest.raises(StoreError, match=rf"{path.name} is damaged at 'image005'"):
            read(FeatureStore.open(store.folder))
    with pytest.raises(StoreError, match=rf"{path.name} is damaged \(its hash"):
        FeatureStore.open(store.folder, verify=True)


def test_one_flipped_bit_anywhere_is_found(memory: Path) -> None:
    """For bits changed at many places, verification names the damaged file. The first opening finds the damage too,
    except in the index, which is made again."""
    store = write(memory, [ROWS["image001"], ROWS["image005"]], 10, [BAD])
    names.write(store.folder, FINGERPRINT, LabelNames(("background", "cat"), ("red",)))
    random, undamaged = np.random.default_rng(0), list(store.scan())
    attached = store.folder / "index.arrow"
    derived = attached.read_bytes()
    for path in sorted(path for path in store.folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        for at in random.permutation(len(data))[:80].tolist():
            flip(path, at, int(random.integers(8)))
            with pytest.raises(StoreError, match=path.name):
                FeatureStore.open(store.folder, verify=True)
            if path == attached:
                assert all(map(same, FeatureStore.open(store.folder).scan(), undamaged))
            else:
                # The index is made again from the parts, so this opening reads them all.
                attached.unlink()
                with pytest.raises(StoreError, match=path.name):
                    FeatureStore.open(store.folder)
            path.write_bytes(data)
            attached.write_bytes(derived)


def test_the_index_is_derived(tmp_path: Path) -> None:
    """Deleting the index, or finishing the folder over other shards, costs one pass over the parts and changes no
    row."""
    store = write(tmp_path, list(ROWS.values()), 50)
    path = store.folder / "index.arrow"
    data = path.read_bytes()
    path.unlink()
    assert all(map(same, FeatureStore.open(store.folder).scan(), store.scan()))
    assert path.read_bytes() == data
    folder = ShardFolder(store.folder)
    folder.finish([], {"fingerprint": FINGERPRINT})
    assert len(FeatureStore.open(store.folder)) == 0


def test_a_store_that_may_not_be_written_opens(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store without an index in a folder without write permission is still read."""
    copy = store.folder.parent / "read-only"
    shutil.copytree(store.folder, copy)
    (copy / "index.arrow").unlink()

    def refuse(path: Path, data: bytes) -> None:
        raise PermissionError(path)

    monkeypatch.setattr("visualbert_core.features.parts.publish", refuse)
    assert all(map(same, FeatureStore.open(copy).scan(), store.scan()))
    assert not (copy / "index.arrow").exists()


def test_views_are_scanned_where_they_can_be(store: FeatureStore) -> None:
    """With copy=False every row is equal and aligned; some rows cannot be changed, because they are the file's
    memory."""
    views = list(store.scan(copy=False))
    assert all(map(same, views, store.scan()))
    assert all(view.features.flags.aligned for view in views)
    assert {view.features.flags.writeable for view in views} == {True, False}
    assert [regions.image_id for regions in store.scan(10, 20)] == store.image_ids[10:20]


def test_torch_shares_what_is_scanned(store: FeatureStore) -> None:
    """A tensor over a scanned row shares the row's memory."""
    regions = store.fetch("image005")
    torch.from_numpy(regions.features)[0, 0] = 7
    assert regions.features[0, 0] == 7


def listed(array: Sequence[Any] | np.ndarray | None) -> list[Any] | None:
    """Return the values as a list, because Ray returns lists where only some rows have the column."""
    return None if array is None else list(array)


def test_arrow_has_typed_columns(store: FeatureStore) -> None:
    """`to_arrow` streams every row in order, nested by region, with float16 kept."""
    table = to_arrow(store).read_all()
    assert table["image_id"].to_pylist() == store.image_ids
    assert table.schema.field("features").type == pa.list_(pa.list_(pa.float16(), D))
    for record in table.to_pylist():
        expected = ROWS[record["image_id"]]
        assert np.array(record["features"], np.float16).tobytes() == expected.features.tobytes()
        assert record["labels"] == expected.labels.tolist()
        assert record["attributes"] == listed(expected.attributes)
        assert record["attribute_scores"] == listed(expected.attribute_scores)
        np.testing.assert_array_equal(np.array(record["boxes"], np.float32).reshape(-1, 4), expected.boxes)


def test_datasets_has_typed_columns(store: FeatureStore) -> None:
    """`to_datasets` streams every row in order with Hugging Face's own array types, and can be split by parts."""
    dataset = to_datasets(store)
    assert dataset.num_shards == len(store.part_paths)
    assert dataset.features["features"].dtype == "float16"
    examples = list(dataset)
    assert {example["features"].dtype for example in examples} == {np.dtype(np.float16)}
    assert [example["image_id"] for example in examples] == store.image_ids
    for example in examples:
        np.testing.assert_array_equal(example["features"], ROWS[example["image_id"]].features)
        np.testing.assert_array_equal(example["labels"], ROWS[example["image_id"]].labels)
        assert example["attributes"] == listed(ROWS[example["image_id"]].attributes)


@pytest.mark.usefixtures("ray_session")
def test_ray_reads_arrays(store: FeatureStore) -> None:
    """`to_ray` gives every row once, with its bytes as arrays."""
    records = to_ray(store).take_all()
    assert sorted(record["image_id"] for record in records) == store.image_ids
    for record in records:
        expected = ROWS[record["image_id"]]
        np.testing.assert_array_equal(record["features"], expected.features)
        np.testing.assert_array_equal(record["boxes"], expected.boxes)
        assert listed(record["attributes"]) == listed(expected.attributes)


def test_duckdb_and_pandas_read_a_part(store: FeatureStore) -> None:
    """DuckDB and pandas read a part as an ordinary table."""
    duckdb = pytest.importorskip("duckdb")
    paths = [str(path) for path in store.part_paths]
    query = "select image_id, num_regions, octet_length(features), features from read_parquet($paths) order by 1"
    found = duckdb.execute(query, {"paths": paths}).fetchall()
    assert [image_id for image_id, *_ in found] == store.image_ids
    for image_id, regions, length, features in found:
        assert (length, bytes(features)) == (regions * D * 2, ROWS[image_id].features.tobytes())
    frames = pandas.concat([pandas.read_parquet(path) for path in paths]).set_index("image_id").sort_index()
    assert list(frames.index) == store.image_ids
    assert frames.loc["image005", "features"] == ROWS["image005"].features.tobytes()


def test_a_part_of_another_recipe_is_refused(tmp_path: Path) -> None:
    """The footer of a part names the detector it was made with, so a part from another folder is refused by name."""
    folder = ShardFolder(tmp_path)
    shards = plan(["image005"], "test", 10)
    other = encode([ROWS["image005"]], FINGERPRINT | {"weights": "2e"})
    folder.commit(shards[0], Part(other, 1, None, 0))
    folder.finish(shards, {"fingerprint": FINGERPRINT})
    with pytest.raises(StoreError, match="is not of this store"):
        FeatureStore.open(tmp_path)


def test_a_store_without_attributes(tmp_path: Path) -> None:
    """A detector without attributes writes null in both columns, also for Arrow, and rows hold None."""
    plain = [dataclasses.replace(row, attributes=None, attribute_scores=None) for row in ROWS.values()]
    store = write(tmp_path, plain, 200)
    assert all(map(same, store.scan(), sorted(plain, key=lambda row: row.image_id)))
    table = to_arrow(store).read_all()
    assert table["attributes"].null_count == table["attribute_scores"].null_count == 300
    assert pq.read_table(store.part_paths[0])["attributes"].null_count == store.manifest.shards[0].rows


def test_rows_of_another_shape_are_not_written() -> None:
    """An array that does not fit the number of regions or D is refused when it is written, with the image's name."""
    wrong = Regions("x", 1, 1, np.zeros((2, 4)), np.zeros(2), np.zeros(2), np.zeros((2, D + 1)), "")
    with pytest.raises(ValueError, match=r"image x: features have shape \(2, 6\), not \(2, 5\)"):
        encode([wrong], FINGERPRINT)


def test_folders_are_named_by_fingerprint() -> None:
    """Another ingredient gives another folder, and the order of keys does not."""
    folder = store_folder("root", "coco", FINGERPRINT)
    assert folder.parent == Path("root", "coco")
    assert len(folder.name) == 12
    assert store_folder("root", "coco", dict(reversed(FINGERPRINT.items()))) == folder
    assert store_folder("root", "coco", FINGERPRINT | {"weights": "2e"}) != folder
