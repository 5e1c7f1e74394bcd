"""Features in other projects' layouts become a store with the same numbers, bad records become failures, and no pickle
runs code."""

from __future__ import annotations

import base64
import codecs
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import feature_sources
import numpy as np
import pytest
from conftest import ROOT, run_here
from feature_sources import BUA, LXMERT

from visualbert_core.errors import ConfigError, CoverageError, InputError
from visualbert_core.features.store import FeatureStore

D = 6
COUNTS = {"8": 3, "31": 1, "42": 5, "139": 2}


def record(image_id: str) -> dict[str, Any]:
    """Return what an extractor knows of one image."""
    random, count = np.random.default_rng(int(image_id)), COUNTS[image_id]
    return {
        "image_w": 640,
        "image_h": 400 + count,
        "num_boxes": count,
        "boxes": np.sort(random.random((count, 2, 2), np.float32) * 300, axis=1).reshape(count, 4),
        "features": random.random((count, D), np.float32) * 20,
        "objects_id": random.integers(0, 1600, count),
        "objects_conf": random.random(count, np.float32),
        "attrs_id": random.integers(0, 400, count),
        "attrs_conf": random.random(count, np.float32),
    }


def write_tsv(path: Path, fields: list[str]) -> Path:
    return feature_sources.write_tsv(path, {image_id: record(image_id) for image_id in COUNTS}, fields)


def mmf(image_id: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the two values that MMF saves for an image: the features [R, D] and the dictionary beside them."""
    known = record(image_id)
    scores = np.zeros((known["num_boxes"], 1600), np.float32)
    scores[np.arange(known["num_boxes"]), known["objects_id"]] = known["objects_conf"]
    info = {
        "bbox": known["boxes"],
        "num_boxes": known["num_boxes"],
        "objects": known["objects_id"],
        "cls_prob": scores,
        "image_width": known["image_w"],
        "image_height": known["image_h"],
    }
    return known["features"], info


def write_npy(folder: Path) -> Path:
    folder.mkdir()
    for image_id in COUNTS:
        features, info = mmf(image_id)
        np.save(folder / f"{image_id}.npy", features)
        np.save(folder / f"{image_id}_info.npy", info)  # type: ignore[arg-type]
    return folder


def write_lmdb(path: Path, **more: bytes) -> Path:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(path), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for image_id in COUNTS:
            features, info = mmf(image_id)
            value = {"feature_path": image_id, "features": features, **info}
            transaction.put(image_id.encode(), pickle.dumps(value))
        for key, data in more.items():
            transaction.put(key.encode(), data)
        transaction.put(b"keys", pickle.dumps([image_id.encode() for image_id in COUNTS]))
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "bua-tsv": lambda path: write_tsv(path, BUA),
    "lxmert-tsv": lambda path: write_tsv(path, LXMERT),
    "mmf-npy": write_npy,
    "mmf-lmdb": write_lmdb,
}


def run(kind: str, source: Path, out: Path, **options: Any) -> FeatureStore:
    return feature_sources.run(kind, source, out, **options).store


def failures(store: FeatureStore) -> dict[str, str]:
    return {failure.item_id: failure.message for failure in store.failures()}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_number_arrives(kind: str, tmp_path: Path) -> None:
    """Boxes arrive exactly, features to the nearest float16, and objects where the layout has them; the store is marked
    as unverified."""
    store = run(kind, WRITERS[kind](tmp_path / "source"), tmp_path / "out")
    assert store.image_ids == sorted(COUNTS)
    assert store.failures() == []
    assert (store.space, store.feature_size, store.fingerprint["imported"]) == ("mine", D, "unverified")
    for regions in store.scan():
        known = record(regions.image_id)
        assert (regions.width, regions.height) == (known["image_w"], known["image_h"])
        np.testing.assert_array_equal(regions.boxes, known["boxes"])
        np.testing.assert_array_equal(regions.features, known["features"].astype(np.float16))
        if kind == "bua-tsv":
            assert set(regions.labels.tolist()) == {-1}
            assert np.isnan(regions.scores).all()
        else:
            np.testing.assert_array_equal(regions.labels, known["objects_id"])
            np.testing.assert_array_equal(regions.scores, known["objects_conf"])
        if kind == "lxmert-tsv":
            np.testing.assert_array_equal(regions.attributes, known["attrs_id"])
            np.testing.assert_array_equal(regions.attribute_scores, known["attrs_conf"])
        else:
            assert (regions.attributes, regions.attribute_scores) == (None, None)


@pytest.mark.parametrize("kind", WRITERS)
def test_the_same_line_again_changes_nothing(kind: str, tmp_path: Path) -> None:
    """A second import finds the store of the first, and a changed source gives another store."""
    source = WRITERS[kind](tmp_path / "source")
    store = run(kind, source, tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in store.folder.rglob("parts/*")}
    assert run(kind, source, tmp_path / "out").folder == store.folder
    assert times == {path: path.stat().st_mtime_ns for path in store.folder.rglob("parts/*")}
    file = next(path for path in [*sorted(source.rglob("*[0-9].npy")), source / "data.mdb", source] if path.is_file())
    # In a TSV, base64 hides the features' bytes. There the added line end changes the file.
    file.write_bytes(file.read_bytes().replace(record("42")["features"].tobytes(), bytes(5 * D * 4)) + b"\n")
    assert run(kind, source, tmp_path / "out").folder != store.folder


def test_ids_become_the_benchmarks(tmp_path: Path) -> None:
    """A template turns COCO's bare numbers into the benchmark's image ids, and a template that gives no id is
    refused."""
    source = WRITERS["bua-tsv"](tmp_path / "trainval.tsv")
    assert "COCO_val2014_000000000042" in run("bua-tsv", source, tmp_path, ids="COCO_val2014_{:0>12}")
    with pytest.raises(ConfigError, match="does not make an image id"):
        run("bua-tsv", source, tmp_path, ids="{:d}")


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def test_torn_rows_of_a_tsv_are_failures(tmp_path: Path) -> None:
    """Rows that a crashed extraction tore cost one failure each, with the reason, and no neighbour."""
    source = WRITERS["bua-tsv"](tmp_path / "source.tsv")
    good = lines(source)
    cut = good[0][: len(good[0]) // 2]
    bad_number, short = good[1].replace(b"\t640\t", b"\twide\t"), good[2].replace(b"\t5\t", b"\t4\t")
    source.write_bytes(b"".join([good[3], bad_number, short, b"\tx\n", b"\n", b"\xff\xfe\n", cut + good[3]]))
    store = run("bua-tsv", source, tmp_path)
    assert store.image_ids == ["139"]
    assert failures(store) == {
        "31": "image_w is not a whole number: b'wide'",
        "42": "30 feature values for 4 boxes",
        "line 4": "2 fields instead of 6",
        "line 6": "1 fields instead of 6",
        "8": "11 fields instead of 6",
    }


def test_ids_of_a_tsv_are_utf8(tmp_path: Path) -> None:
    """The first id has no byte order mark, ids may have accents, and bytes that are not UTF-8 are a failure."""
    source = WRITERS["bua-tsv"](tmp_path / "source.tsv")
    good = [line.partition(b"\t") for line in lines(source)[:3]]
    names = (codecs.BOM_UTF8 + b"8", "é".encode(), "é".encode("latin-1"))
    source.write_bytes(b"".join(name + tab + rest for name, (_, tab, rest) in zip(names, good, strict=True)))
    store = run("bua-tsv", source, tmp_path)
    assert store.image_ids == ["8", "é"]
    assert failures(store) == {"line 3": "b'\\xe9' is not an image id in UTF-8"}


@pytest.mark.parametrize(
    ("ids", "says"), [("x", r"makes 'x' of '\d+' and '\d+'"), ("{0.foo}", "does not make an image")]
)
def test_ids_that_are_made_wrongly(tmp_path: Path, ids: str, says: str) -> None:
    """A template that gives two records one id, or cannot be filled in, is refused before anything is written."""
    with pytest.raises(ConfigError, match=says):
        run("bua-tsv", WRITERS["bua-tsv"](tmp_path / "source.tsv"), tmp_path / "out", ids=ids)
    assert not (tmp_path / "out").exists()


def test_attributes_that_are_torn_are_failures(tmp_path: Path) -> None:
    """Attributes of another number than the boxes, or outside int16, are failures."""
    source = WRITERS["lxmert-tsv"](tmp_path / "source.tsv")
    good = [line.split(b"\t") for line in lines(source)]
    good[0][5] = base64.b64encode(np.array([1, 2], np.int64).tobytes())
    good[1][5] = base64.b64encode(np.array([40000], np.int64).tobytes())
    source.write_bytes(b"".join(b"\t".join(values) for values in good))
    found = failures(run("lxmert-tsv", source, tmp_path))
    assert found == {"8": "attributes have shape (2,), not (3,)", "31": "attribute 40000 is out of range"}


def test_a_row_twice_is_one_row_only_if_it_is_the_same(tmp_path: Path) -> None:
    """Two equal rows of one image count once, as a resumed extraction writes them, and two different rows are a
    failure."""
    source = WRITERS["bua-tsv"](tmp_path / "source.tsv")
    good = lines(source)
    other = b"\t".join([b"42", *good[0].split(b"\t")[1:]])
    source.write_bytes(b"".join([*good, good[0], other]))
    store = run("bua-tsv", source, tmp_path)
    assert store.image_ids == ["139", "31", "8"]
    assert failures(store) == {"42": "2 records of this id differ"}


def test_values_that_no_store_holds_are_failures(tmp_path: Path) -> None:
    """NaN, another feature size, a missing or truncated file, and a malformed info file are failures."""
    source = write_npy(tmp_path / "source")
    features, info = mmf("8")
    features[0, 0] = np.nan
    np.save(source / "8.npy", features)
    np.save(source / "31.npy", np.zeros((1, D + 1), np.float32))
    (source / "42_info.npy").unlink()
    np.save(source / "77.npy", features)
    np.save(source / "77_info.npy", info["bbox"])
    np.save(source / "78.npy", features)
    (source / "78_info.npy").write_bytes((source / "139_info.npy").read_bytes()[:-99])
    np.save(source / "79.npy", features[1:])
    np.save(source / "79_info.npy", info)  # type: ignore[arg-type]
    found = failures(store := run("mmf-npy", source, tmp_path / "out"))
    assert store.image_ids == ["139"]
    assert found["8"] == "boxes or features hold NaN or infinity"
    assert found["31"] == "features have shape (1, 7), not (1, 6)"
    assert found["42"] == "42_info.npy is missing: it must hold the boxes"
    assert found["77"] == "the record must have features [R, D] and a dictionary beside them"
    assert found["78"] == "78_info.npy: UnpicklingError: pickle data was truncated"
    assert found["79"] == "features have shape (2, 6), not (3, 6)"
    (source / "139.npy").write_bytes((source / "8.npy").read_bytes())
    with pytest.raises(CoverageError, match=r"none of 7 images has features; "):
        run("mmf-npy", source, tmp_path / "other")


class Trap:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return Path.touch, (self.witness,)


def traps(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    trap = Trap(tmp_path / "sprung")
    folder = write_npy(tmp_path / "npy")
    np.save(folder / "8_info.npy", np.array({"bbox": trap}, object))
    yield "mmf-npy", folder
    yield "mmf-lmdb", write_lmdb(tmp_path / "lmdb", **{"666": pickle.dumps({"features": trap})})


def test_pickles_are_not_executed(tmp_path: Path) -> None:
    """A record whose pickle names anything but an array is a failure with that name, and nothing is called."""
    for kind, source in traps(tmp_path):
        (message,) = failures(run(kind, source, tmp_path / "out")).values()
        assert "only arrays of numbers are read" in message
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_every_pickle_of_an_array_is_read(protocol: int, tmp_path: Path) -> None:
    """Arrays in every pickle protocol from 0 to 5 are read, with numpy scalars among the numbers, because MMF's stores
    are of any age."""
    features, info = mmf("8")
    info["num_boxes"], info["image_width"] = np.int64(3), np.float32(640)
    value = pickle.dumps({"features": features, **info}, protocol)
    assert "9" in run("mmf-lmdb", write_lmdb(tmp_path / "source", **{"9": value}), tmp_path / "out")


def test_a_source_without_records_is_refused(tmp_path: Path) -> None:
    """A source that is missing, empty, or of another kind is refused in one line that names it."""
    (tmp_path / "empty.tsv").touch()
    (tmp_path / "text.tsv").write_text("hello\n")
    (tmp_path / "folder").mkdir()
    for kind, name, message in (
        ("bua-tsv", "absent.tsv", "does not exist"),
        ("bua-tsv", "empty.tsv", "it holds no record"),
        ("bua-tsv", "text.tsv", "no record can be read, 'line 1': 1 fields instead of 6"),
        ("bua-tsv", "folder", "is a folder without files of this layout"),
        ("mmf-npy", "text.tsv", "is not a folder"),
        ("mmf-lmdb", "text.tsv", "is not an LMDB"),
    ):
        with pytest.raises(InputError, match=message):
            run(kind, tmp_path / name, tmp_path / "out")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = arguments if arguments[0] == "import" else ("store", *arguments)
    return run_here(ROOT / "visualbert_core" / "__main__.py", *words)


def test_an_import_can_be_given_names(tmp_path: Path) -> None:
    """Names from a file become the labels and attributes that later commands show, and an unreadable file ends in one
    line and exit code 2."""
    folder = str(run("lxmert-tsv", WRITERS["lxmert-tsv"](tmp_path / "train.tsv"), tmp_path / "out").folder)
    first, *_ = record("31")["objects_id"].tolist()
    assert command("ls", folder, "31").stdout.split("\t")[2] == str(first)
    wrong = command("ls", folder, "--limit", "-1")
    assert (wrong.returncode, wrong.stderr) == (2, "error: --limit is -1: it must be at least 0\n")
    for kind, count in (("objects", 1600), ("attributes", 400)):
        lines = (f"{kind} {number}, synonym" for number in range(count))
        (tmp_path / f"{kind}_vocab.txt").write_text("\n".join(lines) + "\n")
    files = ("--labels", str(tmp_path / "objects_vocab.txt"), "--attributes", str(tmp_path / "attributes_vocab.txt"))
    done = command("name", folder, *files)
    assert done.stdout == f"{folder}: 1600 labels and 400 attributes have names\n"
    known = record("31")
    box = " ".join(f"{corner:.1f}" for corner in known["boxes"][0])
    label, attribute = f"objects {known['objects_id'][0]}", f"attributes {known['attrs_id'][0]}"
    scores = f"{known['objects_conf'][0]:.3f}", f"{known['attrs_conf'][0]:.3f}"
    assert command("ls", folder, "31").stdout == f"31\t{box}\t{label}\t{scores[0]}\t{attribute}\t{scores[1]}\n"
    assert f'"{label}": 1' in command("info", folder).stdout
    done = command("name", folder, "--labels", str(tmp_path / "absent.txt"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_the_command_line(tmp_path: Path) -> None:
    """The commands import, list, describe and verify a store, and a damaged store ends in one line and exit code 2."""
    source = WRITERS["bua-tsv"](tmp_path / "trainval.tsv")
    source.write_bytes(source.read_bytes() + b"torn\trow\n")
    done = command("import", "bua-tsv", str(source), "--out", str(tmp_path / "out"), "--space", "mine")
    assert done.stderr.endswith("malformed: torn: 2 fields instead of 6\n4 images, 1 malformed\n")
    folder = Path(done.stdout.strip())
    assert folder.parent == tmp_path / "out" / "trainval"
    assert command("ls", str(folder), "--limit", "1").stdout == "139\t640\t402\t2\n"
    assert '"failures": 1' in command("info", str(folder)).stdout
    assert "4 images in 1 parts are as they were written" in command("verify", str(folder)).stdout
    shutil.copytree(folder, tmp_path / "short")
    (part,) = (tmp_path / "short" / "parts").iterdir()
    part.write_bytes(part.read_bytes()[:-1])
    done = command("verify", str(tmp_path / "short"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert part.name in done.stderr
