"""Images in Parquet files and saved datasets: which rows are images, which ids they get, and which bytes are read."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from PIL import Image as Pillow
from test_extract import World, tree

from visualbert_core.corpus import images as images_module
from visualbert_core.corpus.images import DecodeError, fetch, image_shape, read_image
from visualbert_core.corpus.listing import corpus_name, list_images
from visualbert_core.corpus.parquet_images import Cell, read_rows
from visualbert_core.errors import CoverageError, InputError
from visualbert_core.schema import Image

NAMES = ["b", "a", "d.1", "c"]
HUGGING_FACE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Pillow.new("RGB", (4, 6), (value, 0, 9)).save(buffer, "PNG")
    return buffer.getvalue()


FILES = [png(10 * number) for number in range(4)]


def structs(paths: Sequence[str | None] = tuple(f"{name}.png" for name in NAMES)) -> pa.Array:
    return pa.array([{"bytes": data, "path": path} for data, path in zip(FILES, paths, strict=True)], HUGGING_FACE)


def written(path: Path, row_group_size: int = 3, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


@pytest.mark.parametrize(
    ("columns", "ids"),
    [
        ({"image": structs()}, NAMES),
        ({"image": structs(), "image_id": [42, 7, 391895, 5]}, ["42", "7", "391895", "5"]),
        ({"image": structs(), "id": ["n", "o", "p", "q"], "caption": ["x"] * 4}, ["n", "o", "p", "q"]),
        ({"image": FILES, "__key__": NAMES}, NAMES),
        ({"jpg": pa.array(FILES, pa.large_binary()), "id": pa.array(NAMES, pa.large_string())}, NAMES),
        ({"image": structs(), "mask": FILES}, NAMES),
    ],
)
def test_string_column(columns: dict[str, Any], ids: list[str], tmp_path: Path) -> None:
    """The id comes from a column of ids or from the stem of the path. The image column is `image` or the only column of
    bytes, as binary or as struct."""
    path = written(tmp_path / "val.parquet", **columns)
    images = list(list_images(path).values())
    assert images == [Image(name, str(path), row=row) for name, row in sorted(zip(ids, range(4), strict=True))]
    for image in (*images, *fetch(images)):
        pixels, _ = read_image(image)
        assert (pixels == [10 * ids.index(image.image_id), 0, 9]).all()
        assert image_shape(image) == (6, 4)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"image": ["a.png"], "id": ["1"]}, r"val\.parquet: no column 'image' of bytes, there are 'image', 'id'"),
        (
            {"left": [b""], "right": [b""], "id": ["1"]},
            r"any of 'left', 'right' could hold the images: give one column that name",
        ),
        (
            {"left_image": [b""], "right_image": [b""], "id": ["1"]},
            r"any of 'left_image', 'right_image' could hold the images: give one column that name "
            r"\(a pair needs the columns left_image, right_image and identifier\)",
        ),
        (
            {"left_image": [b""], "right_image": [b""], "identifier": ["dev-1-0"]},
            r"val\.parquet row 0: identifier 'dev-1-0' is not split-set-pair-sentence",
        ),
        ({"image": [b""]}, r"no column image_id, id, __key__ and no paths in 'image'"),
        ({"image": [b""], "id": [1.5]}, r"ids must be text or integers, but column 'id' is double"),
        ({"image": [b"", b""], "id": ["1", None]}, r"val\.parquet row 1: the image has no id"),
        ({"image": structs([None, "a", "b", "c"])}, r"val\.parquet row 0: the image has no id"),
        ({"image": [None], "id": [None]}, r"no column 'image' of bytes"),
        (
            {"image": [b"a", b"b"], "id": [1, 1]},
            r"two images have the id '1': .*val\.parquet row 0 and .* row 1; rename",
        ),
    ],
)
def test_tables_that_are_refused(columns: dict[str, Any], says: str, tmp_path: Path) -> None:
    """An ambiguous table is an error that names the file, and the row where one row is at fault."""
    with pytest.raises(InputError, match=says):
        list_images(written(tmp_path / "val.parquet", **columns))


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    """A table with two columns of the name `image` is refused, because the reader cannot know which one is meant."""
    pq.write_table(pa.table([[b"a"], [b"b"], ["1"]], names=["image", "image", "id"]), tmp_path / "val.parquet")
    with pytest.raises(InputError, match=r"val\.parquet: two columns have the name 'image'; rename one"):
        list_images(tmp_path / "val.parquet")


def test_a_table_with_a_damaged_part_is_named(tmp_path: Path) -> None:
    """Damaged bytes in the column of ids are an input error before anything is computed."""
    path = written(tmp_path / "val.parquet", image=FILES, id=NAMES)
    column = pq.read_metadata(path).row_group(0).column(1)
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + 20] = b"\xff" * 20
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"val\.parquet: is damaged \(.*\); download it again"):
        list_images(path)


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    """A file that is Parquet only by name, and boxes beside rows of a table, are errors before anything is computed."""
    (tmp_path / "val.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InputError, match=r"val\.parquet: cannot be read as Parquet"):
        list_images(tmp_path)
    with pytest.raises(InputError, match="boxes beside images are read only from a folder on a disk"):
        list_images(written(tmp_path / "val.parquet", image=structs()), "beside")


def test_folders_and_patterns(tmp_path: Path) -> None:
    """Parquet files are a folder's corpus, unless the folder holds images: then they are metadata."""
    (tmp_path / "data").mkdir()
    written(tmp_path / "data" / "train-0.parquet", image=structs())
    written(tmp_path / "data" / "val-0.parquet", image=FILES[:1], id=["x"])
    assert list(list_images(tmp_path)) == [*sorted(NAMES), "x"]
    assert list(list_images(tmp_path / "data" / "val-*.parquet")) == ["x"]
    assert [corpus_name(tmp_path / name) for name in ("data", "data/val-0.parquet")] == ["data", "val-0"]
    (tmp_path / "1.png").write_bytes(FILES[0])
    assert list_images(tmp_path) == {"1": Image("1", str(tmp_path / "1.png"))}


def test_only_the_row_groups_that_are_asked_for_are_read(tmp_path: Path) -> None:
    """Only the requested row groups are read, and each is read once: the other groups here are destroyed."""
    path = written(tmp_path / "val.parquet", 2, image=[bytes([n]) * 1000 for n in range(40)], id=range(40))
    metadata = pq.read_metadata(path)
    data = bytearray(path.read_bytes())
    for group in set(range(20)) - {3, 17}:
        column = metadata.row_group(group).column(0)
        start = column.dictionary_page_offset or column.data_page_offset
        data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(data)
    assert dict(read_rows(str(path), {6, 34, 35})) == {n: bytes([n]) * 1000 for n in (6, 34, 35)}
    with pytest.raises(OSError, match=r".+"):
        dict(read_rows(str(path), {8}))


REPORTS = ROOT / "tests" / "reports" / "parquet"


def read(source: str | Path) -> dict[str, str | tuple[int, ...]]:
    """Return the shape of each image of a corpus, or the reason of its failure."""
    found: dict[str, str | tuple[int, ...]] = {}
    for image in fetch(list(list_images(source).values())):
        try:
            found[image.image_id] = read_image(image)[0].shape
        except DecodeError as error:
            found[image.image_id] = str(error)
    return found


SHAPE = (40, 50, 3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ok", {"42": SHAPE, "73": SHAPE, "99": SHAPE}),
        ("byquestion", {"42": SHAPE, "73": SHAPE}),
        ("twoimages", {f"dev-{pair}-img{side}": SHAPE for pair in ("0-0", "0-1", "1-0") for side in (0, 1)}),
        (
            "onenull",
            {
                "42": SHAPE,
                "73": "onenull.parquet row 1 has neither bytes nor a path",
                "99": "onenull.parquet row 2 has no bytes, and its path 'COCO_val2014_000000000099.jpg' is not there "
                "in the table's folder",
            },
        ),
        (
            "pathonly",
            {
                str(image): f"pathonly.parquet row {row} has no bytes, and its path "
                f"'/nowhere/COCO_val2014_{image:012d}.jpg' is not there"
                for row, image in enumerate((42, 73, 99))
            },
        ),
    ],
)
def test_tables_with_reported_troubles(name: str, expected: dict[str, str | tuple[int, ...]]) -> None:
    """A table with one row per question lists each image once, a row of a pair is two images, and a row without bytes
    is a failure with its reason."""
    assert read(REPORTS / f"{name}.parquet") == expected


def test_rows_of_one_id_with_other_images_are_refused() -> None:
    """Two rows of one id with different images are refused with the id and both rows."""
    with pytest.raises(
        InputError, match=r"two images have the id '42': .*diff\.parquet row 0 and .*diff\.parquet row 1;"
    ):
        list_images(REPORTS / "byquestion-diff.parquet")


def as_parquet(folder: Path, tables: Sequence[dict[str, list[Any]]]) -> Path:
    for number, columns in enumerate(tables):
        kinds = {name: HUGGING_FACE for name in columns if name.endswith("image")}
        arrays = {name: pa.array(values, kinds.get(name)) for name, values in columns.items()}
        written(folder / f"{number}.parquet", 2, **arrays)
    return folder


def as_saved(folder: Path, tables: Sequence[dict[str, list[Any]]]) -> Path:
    """Write a table as `save_to_disk` does, but keep null rows null, where `datasets` writes structs of nulls."""
    names = [{"filename": f"{number}.arrow"} for number in range(len(tables))]
    (folder / "state.json").write_text(json.dumps({"_data_files": names}))
    (folder / "dataset_info.json").write_text("{}")
    for number, columns in enumerate(tables):
        kinds = {name: HUGGING_FACE for name in columns if name.endswith("image")}
        table = pa.table({name: pa.array(values, kinds.get(name)) for name, values in columns.items()})
        with pa.ipc.new_stream(folder / f"{number}.arrow", table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return folder


def cell(data: bytes | None, path: str | None = None) -> dict[str, bytes | str | None]:
    return {"bytes": data, "path": path}


KINDS = pytest.mark.parametrize("make", [as_parquet, as_saved])


@KINDS
def test_rows_of_one_id_in_several_tables_are_one_image(make: Callable[..., Path], tmp_path: Path) -> None:
    """Rows of one id are one image, in one table or in several. Rows without an image give way to a row that has one,
    and rows with the same path are one image too. Each id finds its own bytes."""
    first = {"image_id": [3, 1, 3, 2, 3], "image": [cell(FILES[n]) for n in (3, 1, 3, 2, 3)]}
    second = {"image_id": [1, 7, 3, 7, 9, 9], "image": [None, cell(None, "7.png"), cell(FILES[3])]}
    second["image"] += [cell(None, "7.png"), cell(None), None]
    (tmp_path / "tables").mkdir()
    source = make(tmp_path / "tables", [second, first])
    Path(source / "7.png").write_bytes(png(7))
    corpus = list_images(f"{source}/*.parquet" if make is as_parquet else source)
    assert list(corpus) == ["1", "2", "3", "7", "9"]
    for image in fetch(list(corpus.values()))[:4]:
        value = {"1": 10, "2": 20, "3": 30, "7": 7}[image.image_id]
        assert (read_image(image)[0] == [value, 0, 9]).all()
    second["image"][2] = cell(FILES[2])
    source = make(tmp_path / "tables", [second, first])
    with pytest.raises(
        InputError, match=r"two images have the id '3': .*0\.(parquet row 2|arrow at byte \d+) and .*1\."
    ):
        list_images(f"{source}/*.parquet" if make is as_parquet else source)


@KINDS
def test_pairs(make: Callable[..., Path], tmp_path: Path) -> None:
    """Both images of a row get the ids that NLVR2 uses, and several rows may name one pair."""
    columns = {
        "identifier": ["dev-1-0-0", "dev-1-0-1", "dev-2-3-0", "test1-12-0-0"],
        "left_image": [cell(FILES[0], "a"), cell(FILES[0], "b"), cell(FILES[1]), None],
        "right_image": [cell(FILES[2]), cell(FILES[2]), cell(FILES[0]), cell(None, "right.png")],
    }
    corpus = list_images(make(tmp_path, [columns]))
    names = ["dev-1-0-img0", "dev-1-0-img1", "dev-2-3-img0", "dev-2-3-img1", "test1-12-0-img0", "test1-12-0-img1"]
    assert list(corpus) == names
    found = fetch(list(corpus.values()))
    assert [read_image(image)[0][0, 0, 0] for image in found[:4]] == [0, 20, 10, 0]
    for image, says in zip(found[4:], ("neither bytes nor a path", "its path 'right.png' is not there"), strict=True):
        with pytest.raises(DecodeError, match=says):
            read_image(image)


@KINDS
def test_a_path_in_place_of_bytes_is_read(make: Callable[..., Path], tmp_path: Path) -> None:
    """A row may have a path instead of bytes, absolute or relative to the table's folder. A path without a file is a
    failure that gives the paths tried."""
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "deep").mkdir()
    (tmp_path / "tables" / "deep" / "a.png").write_bytes(FILES[1])
    (tmp_path / "b.png").write_bytes(FILES[2])
    (tmp_path / "tables" / "link.png").symlink_to("/dev/zero")
    paths = ["deep/a.png", str(tmp_path / "b.png"), "../b.png", "https://nobody/c.png", "link.png", "nul\0.png", ""]
    columns = {"id": list(range(7)), "image": [cell(None, path) for path in paths]}
    source = make(tmp_path / "tables", [columns])
    found = read(f"{source}/*.parquet" if make is as_parquet else source)
    table = "0.parquet" if make is as_parquet else "0.arrow"
    assert found == {
        "0": (6, 4, 3),
        "1": (6, 4, 3),
        "2": (6, 4, 3),
        "3": f"{table} row 3 has no bytes, and its path 'https://nobody/c.png' is an address of an unsupported kind",
        "4": f"{table} row 4 has no bytes, and its path 'link.png' is a device",
        "5": f"{table} row 5 has no bytes, and its path 'nul\\x00.png' is not there in the table's folder",
        "6": f"{table} row 6 has neither bytes nor a path",
    }


@KINDS
def test_a_row_that_holds_nothing_needs_no_id(make: Callable[..., Path], tmp_path: Path) -> None:
    """A null row without an id is a failure that is named by the row's number. A row with an image and without an id is
    refused."""
    columns: dict[str, list[Any]] = {"image": [cell(FILES[0], "a.png"), None, cell(None), cell(FILES[1], "b.png")]}
    (tmp_path / "1").mkdir()
    assert list(read(make(tmp_path / "1", [columns]))) == ["0 row 1", "0 row 2", "a", "b"]
    columns["id"] = ["x", None, "y", "z"]
    (tmp_path / "2").mkdir()
    assert read(make(tmp_path / "2", [columns]))["0 row 1"] == (
        f"0.{'parquet' if make is as_parquet else 'arrow'} row 1 has neither bytes nor a path"
    )
    columns["id"][3] = None
    (tmp_path / "3").mkdir()
    with pytest.raises(InputError, match=r"row 3: the image has no id"):
        list_images(make(tmp_path / "3", [columns]))


def test_rows_without_bytes_are_failures_of_a_store(tmp_path: Path) -> None:
    """Rows without bytes are failures and the other rows are extracted. Where no row is left, the job says why and what
    to do."""
    world = World(tmp_path)
    world.pictures = REPORTS / "onenull.parquet"
    store = world.extract()
    assert list(store.image_ids) == ["42"]
    assert sorted(failure.item_id for failure in store.failures()) == ["73", "99"]
    world.pictures = REPORTS / "pathonly.parquet"
    says = r"none of 3 images has features; \d+: pathonly\.parquet row . has no bytes, .* delete that folder"
    with pytest.raises(CoverageError, match=says):
        world.extract("none")


def test_telling_rows_apart_holds_no_images(tmp_path: Path) -> None:
    """A thousand rows of ten images are hashed while they are read, and are not kept in memory."""
    data = [bytes([number]) * 100_000 for number in range(10)]
    path = tmp_path / "val.parquet"
    with pq.ParquetWriter(path, pa.schema({"id": pa.int64(), "image": pa.binary()})) as writer:
        for _ in range(100):
            writer.write_table(pa.table({"id": range(10), "image": data}))
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    assert len(list_images(path)) == 10
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    assert pa.total_allocated_bytes() - before < 20_000_000
    tracemalloc.stop()


def saved(folder: Path, rows: int = 4, **columns: Any) -> Path:
    datasets = pytest.importorskip("datasets")
    table = {"image": [{"bytes": FILES[n % 4], "path": f"{NAMES[n % 4]}{n // 4 or ''}.png"} for n in range(rows)]}
    features = datasets.Features({"image": datasets.Image(decode=False)})
    datasets.Dataset.from_dict(table, features=features).save_to_disk(folder, **columns)
    return folder


def test_a_saved_dataset_is_ranges_of_bytes(tmp_path: Path) -> None:
    """Images of a dataset saved by `save_to_disk` are read in place, over any number of files and batches. Its splits
    are named."""
    images = list(list_images(saved(tmp_path / "val", 2500, num_shards=2)).values())
    assert len(images) == 2500
    assert {Path(image.path).name for image in images} == {f"data-0000{n}-of-00002.arrow" for n in (0, 1)}
    for image in images[::97]:
        with Path(image.path).open("rb") as file:
            file.seek(image.start)
            assert file.read(image.size or 0) == FILES[[name[0] for name in NAMES].index(image.image_id[0])]
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["val"]}')
    with pytest.raises(InputError, match="holds several splits of a dataset"):
        list_images(tmp_path)


def test_a_saved_dataset_that_is_damaged(tmp_path: Path) -> None:
    """A saved dataset that is cut short, compressed or without its description is refused by name."""
    folder = saved(tmp_path / "val")
    (path,) = folder.glob("*.arrow")
    data = path.read_bytes()
    path.write_bytes(data[:-200])
    with pytest.raises(InputError, match=r"arrow: cannot be read as an Arrow stream"):
        list_images(folder)
    table = pa.ipc.open_stream(data).read_all()
    with pa.ipc.new_stream(path, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    with pytest.raises(InputError, match=r"the buffers are compressed"):
        list_images(folder)
    for text in ("{}", "[" * 100_000, '{"_data_files": [{"filename": 3}]}'):
        (folder / "state.json").write_text(text)
        with pytest.raises(InputError, match=r"state\.json is not what datasets writes"):
            list_images(folder)


def as_structs(world: World, names: Sequence[str], files: Sequence[bytes]) -> Path:
    rows = [{"bytes": data, "path": f"pictures/{name}.png"} for name, data in zip(names, files, strict=True)]
    return written(world.root / "table.parquet", 7, image=pa.array(rows, HUGGING_FACE))


def as_binary(world: World, names: Sequence[str], files: Sequence[bytes]) -> Path:
    (world.root / "tables").mkdir()
    for number in range(3):
        written(world.root / "tables" / f"{number}.parquet", 5, png=files[number::3], image_id=names[number::3])
    return world.root / "tables"


def as_dataset(world: World, names: Sequence[str], files: Sequence[bytes]) -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"image": list(files), "id": list(names)}).save_to_disk(world.root / "saved")
    return world.root / "saved"


@pytest.mark.parametrize("make", [as_structs, as_binary, as_dataset])
def test_the_store_is_that_of_the_same_images_in_a_folder(make: Callable[..., Path], tmp_path: Path) -> None:
    """The store has the same bytes as a store of the same images in a folder, with shards over several row groups and
    files."""
    world = World(tmp_path)
    reference = tree(world.extract("folder").folder)
    paths = sorted(world.pictures.iterdir(), reverse=True)
    world.pictures = make(world, [path.stem for path in paths], [path.read_bytes() for path in paths])
    assert tree(world.extract("table").folder) == reference


def test_a_row_that_does_not_decode_is_a_failure(tmp_path: Path) -> None:
    """Rows with broken, cut or no bytes are failures, and their neighbours are extracted."""
    world = World(tmp_path)
    files = [FILES[0], b"<html>", FILES[1][:50], None, FILES[2]]
    rows = [{"bytes": data, "path": f"{number}.png"} for number, data in enumerate(files)]
    world.pictures = written(tmp_path / "table.parquet", image=pa.array([*rows, None], HUGGING_FACE), id=range(6))
    store = world.extract()
    assert sorted(store.image_ids) == ["0", "4"]
    assert sorted(failure.item_id for failure in store.failures()) == ["1", "2", "3", "5"]


def test_a_shard_reads_its_tables_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard reads its tables in a few passes, not once per image: 40 images are in shards of about ten."""
    world, passes = World(tmp_path), []
    paths = sorted(world.pictures.iterdir())
    world.pictures = as_structs(world, [path.stem for path in paths], [path.read_bytes() for path in paths])

    def counted(path: str, rows: set[int], column: str | None) -> Iterator[tuple[int, Cell]]:
        passes.append(len(rows))
        return read_rows(path, rows, column)

    monkeypatch.setattr(images_module, "read_rows", counted)
    store = world.extract()
    assert sum(passes) == 40
    assert len(passes) == len(store.part_paths)
    assert np.mean(passes) > 3
