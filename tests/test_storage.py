"""A store in an object store is written, opened, scanned and fetched like one on a disk, over a real S3 protocol."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tyro
from conftest import ROOT, SmallNight
from pixel_model import BrightnessModel
from test_corpus import png
from test_extract import World, tree
from test_store import BAD, FINGERPRINT, ROWS, D, same, write
from upath import UPath

from visualbert_core.commands.declarations import REGISTRY
from visualbert_core.commands.extract import Command
from visualbert_core.config import EvaluateConfig, ExtractConfig, PoolConfig
from visualbert_core.corpus import sources
from visualbert_core.corpus.images import DecodeError, fetch, read_image
from visualbert_core.corpus.listing import corpus_name, list_images
from visualbert_core.engine.pool import Pool
from visualbert_core.engine.shards import Part, Shard, ShardFolder
from visualbert_core.errors import ConfigError, InputError, StoreError
from visualbert_core.evaluation.run import evaluate
from visualbert_core.features import label_names as store_names
from visualbert_core.features.extract import extract
from visualbert_core.features.store import FeatureStore
from visualbert_core.io import lfs, locations, storage
from visualbert_core.io.locations import Location, ObjectPath, absolute, location
from visualbert_core.schema import LabelNames

BUCKET = "features"


@pytest.fixture(scope="module")
def bucket() -> Iterator[Location]:
    """Return the location of an empty bucket on an S3 server in this process."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        address = "http://{}:{}".format(*server.get_host_and_port())
        patch.setenv("AWS_ENDPOINT_URL", address)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        locations._system.cache_clear()
        locations._system("s3").mkdir(BUCKET)
        yield location(f"s3://{BUCKET}")
        locations._system.cache_clear()  # a test may have listed the bucket before others wrote to it
        locations._system("s3").rm(BUCKET, recursive=True)  # every server of this process has the same buckets
        locations._system.cache_clear()
    server.stop()


@pytest.fixture(scope="module")
def remote(bucket: Location) -> FeatureStore:
    """Write 300 images with 0 to 10 regions in several parts, and one failure, directly to the bucket."""
    return write(bucket / "store", list(ROWS.values()), 50, [BAD])


def test_an_address_is_no_path_of_a_disk() -> None:
    """An address keeps both slashes below it and after pickling, and a name on a disk becomes a plain Path."""
    place = location("s3://bucket/a/")
    assert [str(place / "b.json"), str(place.parent), place.name] == ["s3://bucket/a/b.json", "s3://bucket/", "a"]
    assert not isinstance(place, Path)
    assert pickle.loads(pickle.dumps(place)) == place == location(UPath("s3://bucket/a"))
    assert type(pickle.loads(pickle.dumps(place))) is ObjectPath
    assert [location(name) for name in ("a/b", "/a/b", "C:/a", "a:b", "s3")] == [
        Path(name) for name in ("a/b", "/a/b", "C:/a", "a:b", "s3")
    ]


def test_an_address_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative folder becomes absolute, for workers with another working folder, and an address stays the same."""
    monkeypatch.chdir(tmp_path)
    assert absolute("a/b") == tmp_path / "a" / "b"
    assert absolute("s3://bucket/a") == location("s3://bucket/a")


def test_an_address_that_has_been_a_path_is_refused() -> None:
    """A pathlib.Path drops a slash of an address, so a store would go to a local folder `s3:`; such a path is
    refused."""
    for question in (location, list_images, FeatureStore.open, ShardFolder):
        with pytest.raises(ConfigError, match=r"^s3:/bucket/a lacks a slash of s3://, which a pathlib\.Path drops"):
            question(Path("s3://bucket/a"))


def test_flags_take_addresses_where_a_bucket_will_do() -> None:
    """A flag for images or a store gives a location, an absent flag stays None, and a detector in a bucket is
    refused."""
    flags = ["--images", "s3://bucket/a", "--out", "s3://bucket/b", "--detector", "folder"]
    command = tyro.cli(Command, args=[*flags, "--canary", "3", "--canary-store", "s3://bucket/c"], registry=REGISTRY)
    places = command.extraction.images, command.extraction.out, command.drift.canary_store
    assert [str(place) for place in places] == ["s3://bucket/a", "s3://bucket/b", "s3://bucket/c"]
    plain = tyro.cli(Command, args=["--images", "a", *flags[2:]], registry=REGISTRY)
    assert (plain.extraction.images, plain.drift.canary_store) == (Path("a"), None)
    with pytest.raises(ConfigError, match=r"^detector is an address \(s3://\)"):
        tyro.cli(Command, args=[*flags[:5], "s3://bucket/d"], registry=REGISTRY)


def test_only_object_stores_are_taken() -> None:
    """A file system whose readers can see half a file is refused by name."""
    with pytest.raises(ConfigError, match=r"^sftp:// is not one of s3"):
        location("sftp://host/file")


def test_options_of_an_address_are_refused() -> None:
    """The options of a UPath are refused, because an image's address is a text and would lose them."""
    with pytest.raises(ConfigError, match=r"^s3://bucket/a: storage options \(anon\) have no effect"):
        location(UPath("s3://bucket/a", anon=True))


def test_a_store_that_lets_nobody_in_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore's errors are not OSErrors. Without credentials or without a server, every access raises one line of
    ours."""
    pytest.importorskip("s3fs")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # no server listens on port 9
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # else botocore waits for EC2's metadata server
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    locations._system.cache_clear()
    try:
        place = location("s3://bucket/a")
        for question in (place.read_bytes, place.stat, place.exists, place.is_dir, partial(list_images, place)):
            with pytest.raises(OSError, match=r"^s3://bucket/a: Unable to locate credentials$"):
                question()
    finally:
        locations._system.cache_clear()


def test_a_store_that_goes_away_is_one_line(bucket: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is read in pieces after it was opened, and there too an error of botocore's becomes an OSError."""
    exceptions = pytest.importorskip("botocore.exceptions")

    def fail(*_: object) -> NoReturn:
        raise exceptions.EndpointConnectionError(endpoint_url="http://127.0.0.1:9")

    (bucket / "gone" / "file").write_bytes(b"here")
    monkeypatch.setattr("s3fs.core.S3File._fetch_range", fail)
    with (
        (bucket / "gone" / "file").open("rb") as file,
        pytest.raises(OSError, match=rf"^s3://{BUCKET}/gone/file: Could not connect to the endpoint"),
    ):
        file.read()


def test_a_remote_store_is_a_store(remote: FeatureStore) -> None:
    """Scan, fetch and failures over ranged reads equal those of the local store."""
    assert len(remote.part_paths) > 3
    assert all(same(regions, ROWS[regions.image_id]) for regions in remote.scan())
    assert [regions.image_id for regions in remote.scan(7, 30)] == remote.image_ids[7:30]
    ids = np.random.default_rng(0).permutation(remote.image_ids)[:40].tolist()
    assert all(same(regions, ROWS[image_id]) for image_id, regions in zip(ids, remote.fetch_many(ids), strict=True))
    assert remote.fetch_many(["image003", "image003"])[1].num_regions == ROWS["image003"].num_regions
    assert remote.failures() == [BAD]


def test_only_what_is_asked_for_is_read(remote: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening reads the manifest, the index and no part, and a fetch reads only the bytes of its features."""
    system, read = locations._system("s3"), []
    cat_file, cat_ranges = system.cat_file, system.cat_ranges
    monkeypatch.setattr(system, "cat_file", lambda key, *a, **k: read.append(key) or cat_file(key, *a, **k))
    monkeypatch.setattr(
        system,
        "cat_ranges",
        lambda keys, starts, stops, **k: read.append(stops[0] - starts[0]) or cat_ranges(keys, starts, stops, **k),
    )
    store = FeatureStore.open(remote.folder)
    assert {Path(key).name for key in read} == {"manifest.json", "index.arrow"}
    read.clear()
    store.fetch("image005")
    assert read == [ROWS["image005"].num_regions * D * 2]


def test_a_remote_store_has_a_local_ones_bytes(remote: FeatureStore, tmp_path: Path) -> None:
    """Every file equals the local store's, with index and manifest, and there are no other files."""
    local = write(tmp_path, list(ROWS.values()), 50, [BAD])
    files = {path.relative_to(local.folder).as_posix() for path in local.folder.rglob("*") if path.is_file()}
    keys = locations._system("s3").find(str(remote.folder).removeprefix("s3://"))
    assert {key.split(f"{remote.folder.name}/", 1)[1] for key in keys} == files
    assert all((remote.folder / name).read_bytes() == (local.folder / name).read_bytes() for name in files)


def test_a_remote_store_has_names(bucket: Location) -> None:
    """Names are written to the bucket and read when they are asked for, and damaged names are found there."""
    store = write(bucket / "names", [ROWS["image005"]], 10)
    assert store.label_names == ()
    store_names.write(store.folder, FINGERPRINT, LabelNames(("background", "cat"), ("red",)))
    found = FeatureStore.open(store.folder, verify=True)
    assert (found.label_names, found.attribute_names) == (("background", "cat"), ("red",))
    path = store.folder / "names.json"
    path.write_bytes(path.read_bytes().replace(b"cat", b"dog"))
    with pytest.raises(StoreError, match=r"names\.json is damaged"):
        FeatureStore.open(store.folder, verify=True)


def test_a_damaged_remote_part_is_named(bucket: Location) -> None:
    """A truncated part is refused when the store opens; a changed bit is found when the image is read or the store
    verified."""
    store = write(bucket / "damaged", [ROWS["image005"]], 10)
    (path,) = store.part_paths
    data = path.read_bytes()
    changed = bytearray(data)
    changed[data.index(ROWS["image005"].features.tobytes())] ^= 1
    path.write_bytes(bytes(changed))
    with pytest.raises(StoreError, match=rf"{path.name} is damaged at 'image005'"):
        FeatureStore.open(store.folder).fetch("image005")
    with pytest.raises(StoreError, match=rf"{path.name} is damaged \(its hash"):
        FeatureStore.open(store.folder, verify=True)
    path.write_bytes(data[:-1])
    with pytest.raises(StoreError, match=rf"{path.name} has \d+ bytes instead of"):
        FeatureStore.open(store.folder)


def test_a_resumed_remote_run_redoes_only_what_is_missing(bucket: Location) -> None:
    """A shard without its marker is pending and with its marker it is not, and a second writer changes nothing."""
    folder = ShardFolder(bucket / "shards")
    shards = [Shard("a", ("1",)), Shard("b", ("2",))]
    folder.commit(shards[0], Part(b"first", 1, None, 0))
    assert folder.pending(shards) == shards[1:]
    folder.commit(shards[0], Part(b"first", 1, None, 0))
    folder.commit(shards[1], Part(b"second", 1, None, 0))
    assert folder.pending(shards) == []
    manifest = folder.finish(shards, {"of": "two"})
    assert folder.read_manifest(verify=True) == manifest


def test_a_store_that_is_not_there(bucket: Location) -> None:
    """An address without any object below it is an error, like a missing folder."""
    with pytest.raises(StoreError, match="nowhere is not there: correct its name"):
        FeatureStore.open(bucket / "nowhere")


def test_fingerprint_of_a_remote_store(remote: FeatureStore) -> None:
    """The manifest holds the store's fingerprint."""
    assert remote.fingerprint == FINGERPRINT
    assert json.loads((remote.folder / "manifest.json").read_bytes())["rows"] == len(ROWS)


def names(folder: Location) -> set[str]:
    """List every key below an address, relative to it."""
    root = str(folder).removeprefix("s3://")
    return {key.removeprefix(f"{root}/") for key in locations._system("s3").find(root)}


def test_an_extraction_to_an_address_is_the_one_to_a_folder(bucket: Location, tmp_path: Path) -> None:
    """An extraction to an address writes the bytes of the local store, and a rerun restores the files that were
    lost."""
    world = World(tmp_path)
    (world.pictures / "bad.png").write_bytes(b"no image")
    local = world.extract("local")
    reference = {path.relative_to(local.folder).as_posix() for path in local.folder.rglob("*") if path.is_file()}
    remote = world.extract(out=str(bucket / "extracted"))

    def same_files() -> bool:
        there = {name: (remote.folder / name).read_bytes() for name in names(remote.folder)}
        return there == {name: (local.folder / name).read_bytes() for name in reference}

    assert same_files()
    for name in sorted(reference)[::3]:
        locations._system("s3").rm(f"{remote.folder}/{name}")
    before = world.batches()
    world.extract(out=str(bucket / "extracted"))
    assert same_files()
    assert 0 < world.batches() - before < before
    assert str(remote.folder) == f"s3://{BUCKET}/extracted/toy/{local.folder.name}"
    assert len(world.extract(out=str(bucket / "extracted"), canary=5)) == 40


def test_images_in_a_bucket(bucket: Location, tmp_path: Path) -> None:
    """A prefix is a folder of images and a Parquet file is a table; both give the same store as the files on the
    disk."""
    world = World(tmp_path)
    reference = tree(world.extract("local").folder)
    files = {path.stem: path.read_bytes() for path in sorted(world.pictures.iterdir())}
    for name, data in files.items():
        (bucket / "pictures" / "deep" / f"{name}.png").write_bytes(data)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": list(files.values()), "id": list(files)}), sink, row_group_size=8)
    (bucket / "tables" / "val.parquet").write_bytes(sink.getvalue().to_pybytes())
    for number, source in enumerate(("pictures", "tables", "tables/val.parquet")):
        world.pictures = bucket / source
        assert tree(world.extract(f"out{number}").folder) == reference
    assert corpus_name(bucket / "pictures") == "pictures"
    assert corpus_name(bucket / "tables/val.parquet") == "val"
    with pytest.raises(InputError, match="has no images"):
        list_images(bucket / "nothing")


def test_what_is_no_image_in_a_bucket(bucket: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object that is too large by the listing is never fetched. Rows with a path find it beside their table. An
    incomplete set of tables and a Git LFS pointer are refused by name."""
    world = bucket / "odd"
    for name, data in {"large.png": bytes(2000), "small.png": png(3), "pictures/row.png": png(4)}.items():
        (world / name).write_bytes(data)
    monkeypatch.setattr(sources, "LARGEST_IMAGE", 1000)
    corpus = list_images(world)
    large, small = fetch([corpus["large"], corpus["small"]])
    assert (read_image(small)[0] == [3, 0, 9]).all()
    with pytest.raises(DecodeError, match=r"^large\.png is larger than the 1,000 bytes that are read$"):
        read_image(large)
    cells = [{"bytes": None, "path": path} for path in ("row.png", f"{world}/small.png", "none.png")]
    sink = pa.BufferOutputStream()
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array(cells, kind), "id": [0, 1, 2]}), sink)
    table = world / "pictures" / "val-00000-of-00001.parquet"
    table.write_bytes(sink.getvalue().to_pybytes())
    row, other, none = fetch(list(list_images(table).values()))
    assert [(read_image(image)[0][0, 0, 0]) for image in (row, other)] == [4, 3]
    with pytest.raises(DecodeError, match=r"parquet row 2 has no bytes, and its path 'none\.png' is not there in the"):
        read_image(none)
    (bucket / "half" / "val-00000-of-00002.parquet").write_bytes(sink.getvalue().to_pybytes())
    for source in ("half", "half/val-00000-of-00002.parquet"):
        with pytest.raises(InputError, match=r"s3://.*: val-00001-of-00002\.parquet of the same set is not beside it"):
            list_images(bucket / source)
    (bucket / "pointers" / "val.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match=rf"^s3://.*/val\.parquet is {lfs.REASON}$"):
        list_images(bucket / "pointers")


def test_an_image_that_the_store_does_not_hand_out_stops_the_job(bucket: Location, tmp_path: Path) -> None:
    """An image that was listed and then cannot be read stops the job, as on a disk, and is not counted as a bad
    image."""
    world = World(tmp_path)
    for path in sorted(world.pictures.iterdir())[:3]:
        (bucket / "vanishing" / path.name).write_bytes(path.read_bytes())
    images = list(list_images(bucket / "vanishing").values())
    locations._system("s3").rm(images[1].path)
    with pytest.raises(FileNotFoundError):
        fetch(images)
    assert [len(image.data or b"") for image in fetch(images[::2])] == [
        storage.size(location(image.path)) for image in images[::2]
    ]


def test_evaluation_over_an_address_gives_the_same_scores(
    bucket: Location, small_night: SmallNight, tmp_path: Path
) -> None:
    """An extraction to a bucket and an evaluation from it give the run folder of the small night, byte for byte."""
    world, weights = small_night.out / "synthetic" / "vqa", ROOT / "visualbert_core" / "synthetic" / "weights"
    with Pool(PoolConfig(inline=True)) as pool:
        store = extract(
            ExtractConfig(
                images=world / "val2014",
                corpus="vqa-val2014",
                detector=weights / "detector",
                out=bucket / "night",
                shard_size=5,
            ),
            pool,
        )
        run = evaluate(
            EvaluateConfig(
                task="vqa",
                split="val",
                annotations=world,
                features=store.folder,
                model=weights / "visualbert-vqa",
                out=tmp_path,
                shard_size=5,
            ),
            pool,
        )
    (reference,) = (small_night.out / "runs" / "demo").glob("*__vqa__val")
    assert tree(run.folder) == tree(reference)


def test_pixels_of_a_bucket_give_the_same_answers(bucket: Location, small_night: SmallNight, tmp_path: Path) -> None:
    """A model that reads pixels gives the same run folder for images in a folder and for the same images in a
    bucket."""
    world = small_night.out / "synthetic" / "vqa"
    for path in (world / "val2014").iterdir():
        (bucket / "pixels" / path.name).write_bytes(path.read_bytes())
    common: dict[str, Any] = {
        "task": "vqa",
        "split": "val",
        "annotations": world,
        "shard_size": 5,
    }

    def load(*opening: Any) -> BrightnessModel:
        return BrightnessModel(3)

    with Pool(PoolConfig(inline=True)) as pool:
        runs = [
            evaluate(EvaluateConfig(**common, model=Path("b"), images=images, out=tmp_path / name), pool, load)
            for name, images in (("disk", world / "val2014"), ("bucket", bucket / "pixels"))
        ]
    assert tree(runs[0].folder) == tree(runs[1].folder)
    assert runs[0].scores is not None
