"""Further feature layouts, and one corpus in several files, become one store with the same numbers."""

from __future__ import annotations

import pickle
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_here
from feature_sources import BUA, WRITERS, Records, failures, records, run, write_hdf5, write_npz, write_tsv

from visualbert_core.errors import ConfigError, InputError
from visualbert_core.features.importers.hdf5 import NO_SIZES
from visualbert_core.features.store import FeatureStore

REPORTS = Path(__file__).parent / "reports"


def same(store: FeatureStore, known: Records, labels: bool = False) -> None:
    """Assert that the store has every image, box and feature, and the labels where the layout has them."""
    assert store.image_ids == sorted(known)
    for image_id, record in known.items():
        row = store.fetch(image_id)
        assert (row.width, row.height) == (record["image_w"], record["image_h"])
        np.testing.assert_array_equal(row.boxes, record["boxes"])
        np.testing.assert_array_equal(row.features, record["features"].astype(np.float16))
        np.testing.assert_array_equal(row.labels, record["objects_id"] if labels else -np.ones(len(row.boxes)))


# ---------------------------------------------------------------------------------------------------------------------
# .npz files.


def test_reported_npz(tmp_path: Path) -> None:
    """The reported .npz files, which store features as [D, R], are imported with their labels."""
    done = run("milvlg-npz", REPORTS / "npz", tmp_path)
    assert (failures(done), done.store.feature_size) == ({}, 16)
    with np.load(REPORTS / "npz/COCO_val2014_000000000073.npz") as arrays:
        row = done.store.fetch("COCO_val2014_000000000073")
        np.testing.assert_array_equal(row.boxes, arrays["bbox"])
        np.testing.assert_array_equal(row.features, arrays["x"].T.astype(np.float16))
    assert ((row.width, row.height), row.labels.tolist()) == ((200, 120), [*range(6)])


@pytest.mark.parametrize("transposed", [True, False])
def test_npz_either_way_up(transposed: bool, tmp_path: Path) -> None:
    """Features as [R, D] and as [D, R] give the same store, with labels and attributes."""
    known = records()
    done = run("milvlg-npz", write_npz(tmp_path / "source", known, transposed), tmp_path / "out")
    same(done.store, known, labels=True)
    np.testing.assert_array_equal(done.store.fetch("2").attributes, known["2"]["attrs_id"])
    np.testing.assert_array_equal(done.store.fetch("2").scores, known["2"]["objects_conf"])


class Trap:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> object:
        return Path.touch, (self.witness,)


def test_npz_that_are_broken_are_malformed(tmp_path: Path) -> None:
    """A file that is cut, empty, incomplete, contradictory, square or a pickle with code costs its row only."""
    source = write_npz(tmp_path / "source", known := records(9))
    (source / "1.npz").write_bytes((source / "1.npz").read_bytes()[:-40])
    (source / "2.npz").write_bytes(b"")
    sizes = {"image_h": 480, "image_w": 640}
    np.savez(source / "3.npz", x=known["3"]["features"], bbox=known["3"]["boxes"])
    np.savez(source / "4.npz", x=known["4"]["features"], bbox=known["4"]["boxes"], num_bbox=7, **sizes)
    np.savez(source / "5.npz", x=np.ones((8, 8)), bbox=known["5"]["boxes"], num_bbox=8, **sizes)
    trap = np.array({"objects_id": Trap(tmp_path / "sprung")}, object)
    np.savez(source / "6.npz", x=known["6"]["features"], bbox=known["6"]["boxes"], num_bbox=8, **sizes, info=trap)
    done = run("milvlg-npz", source, tmp_path / "out")
    found = failures(done)
    assert done.store.image_ids == ["7", "8", "9"]
    assert (found["1"], found["2"]) == ("1.npz: File is not a zip file", "2.npz: File is not a zip file")
    assert found["3"] == "3.npz: KeyError: 'image_w'"
    assert found["4"] == "4.npz: num_bbox is 7, but there are 8 boxes"
    assert found["5"] == "5.npz: x has shape (8, 8), so either side may be the boxes"
    assert "only arrays of numbers are read" in found["6"]
    assert not (tmp_path / "sprung").exists()


# ---------------------------------------------------------------------------------------------------------------------
# HDF5 files.


@pytest.mark.parametrize("source", ["hdf5", "hdf5/val36.hdf5"])
def test_reported_hdf5(source: str, tmp_path: Path) -> None:
    """The reported file's spatial features do not fit its boxes, so its image sizes come from the boxes, and a note
    says so."""
    h5py = pytest.importorskip("h5py")
    done = run("bua-hdf5", REPORTS / source, tmp_path)
    assert (done.store.image_ids, failures(done), done.notes) == (["42", "73"], {}, (NO_SIZES,))
    assert done.store.fingerprint["notes"] == [NO_SIZES]
    with h5py.File(REPORTS / "hdf5/val36.hdf5") as file:
        for row, image_id in enumerate(("42", "73")):
            found = done.store.fetch(image_id)
            np.testing.assert_array_equal(found.boxes, file["image_bb"][row])
            np.testing.assert_array_equal(found.features, file["image_features"][row].astype(np.float16))
            assert (found.width, found.height) == tuple(np.ceil(found.boxes[:, 2:].max(axis=0)))


def test_hdf5_with_the_sizes_of_images(tmp_path: Path) -> None:
    """Official files have boxes relative to the image in their spatial features, so the image's size is known."""
    done = run("bua-hdf5", write_hdf5(tmp_path / "val36", records()), tmp_path / "out")
    assert done.notes == ()
    same(done.store, records())


@pytest.mark.parametrize("corner", [0, 1])
def test_hdf5_whose_near_corners_do_not_fit(corner: int, tmp_path: Path) -> None:
    """The size of an image follows only where the left and top of the relative boxes fit as well as the right and
    bottom."""
    h5py = pytest.importorskip("h5py")
    source = write_hdf5(tmp_path / "val36", records())
    with h5py.File(source, "r+") as file:
        parts = file["spatial_features"][:]
        parts[0, 0, corner] += 0.1
        file["spatial_features"][:] = parts
    assert run("bua-hdf5", source, tmp_path / "out").notes == (NO_SIZES,)


def test_hdf5_with_a_box_in_a_row(tmp_path: Path) -> None:
    """In the layout with 10 to 100 boxes an image, pos_boxes says which rows belong to which image."""
    h5py = pytest.importorskip("h5py")
    known = {**records(2, 3), "3": records(3, 7)["3"]}
    with h5py.File(tmp_path / "train.hdf5", "w") as file:
        for name, field in (("image_features", "features"), ("image_bb", "boxes")):
            file[name] = np.concatenate([record[field] for record in known.values()])
        sides = np.concatenate([[[r["image_w"], r["image_h"]] * 2] * len(r["boxes"]) for r in known.values()])
        file["spatial_features"] = file["image_bb"][:] / sides
        file["pos_boxes"] = np.array([[0, 3], [3, 6], [6, 13]])
    (tmp_path / "train_imgid2idx.pkl").write_bytes(pickle.dumps({1: 0, 2: 1, 3: 2}))
    same(run("bua-hdf5", tmp_path / "train.hdf5", tmp_path / "out").store, known)


def test_hdf5_whose_boxes_are_normalised_are_refused(tmp_path: Path) -> None:
    """Normalised boxes are refused, although the layout does not say how large an image is."""
    known = records()
    for record in known.values():
        record["boxes"] = record["boxes"] / 640
        record["image_w"] = record["image_h"] = 1
    with pytest.raises(InputError, match=r"all coordinates lie in \[0, 1\]: normalised\?"):
        run("bua-hdf5", write_hdf5(tmp_path / "val36", known), tmp_path / "out")


def test_hdf5_that_are_broken(tmp_path: Path) -> None:
    """An id beyond the file is a failure of its image, and a file without ids, with code in the ids, or in another
    format ends in one line."""
    source = write_hdf5(tmp_path / "val36", records())
    ids = tmp_path / "val36_imgid2idx.pkl"
    ids.write_bytes(pickle.dumps({1: 0, 2: 1, 9: 6}))
    assert failures(run("bua-hdf5", source, tmp_path / "out")) == {"9": "its row is 6, but the file has 6 rows"}
    ids.write_bytes(pickle.dumps({1: Trap(tmp_path / "sprung")}))
    with pytest.raises(InputError, match="only arrays of numbers are read"):
        run("bua-hdf5", source, tmp_path / "out")
    assert not (tmp_path / "sprung").exists()
    ids.unlink()
    with pytest.raises(InputError, match=r"val36_imgid2idx.pkl is missing: it must say which row is which image"):
        run("bua-hdf5", source, tmp_path / "out")
    (tmp_path / "text.hdf5").write_text("hello")
    (tmp_path / "text_imgid2idx.pkl").write_bytes(pickle.dumps({1: 0}))
    with pytest.raises(InputError, match=r"text.hdf5 is not an HDF5 file"):
        run("bua-hdf5", tmp_path / "text.hdf5", tmp_path / "out")


# ---------------------------------------------------------------------------------------------------------------------
# Several files.


def test_reported_shards_are_one_store(tmp_path: Path) -> None:
    """A folder, a pattern and a list of paths give the same images and fingerprint, and the folder or the files name
    the corpus."""
    folder = REPORTS / "tsv_shards"
    shards = sorted(folder.iterdir())
    ways = {"tsv_shards": folder, "train": folder / "train.tsv.*", "several": shards}
    stores = [
        run("bua-tsv", source, tmp_path, corpus="several" if name == "several" else None).store
        for name, source in ways.items()
    ]
    assert [store.folder.parent.name for store in stores] == list(ways)
    for store in stores:
        assert store.image_ids == ["100", "42", "73", "99"]
        assert store.folder.name == stores[0].folder.name  # equal content gives an equal fingerprint
    whole = tmp_path / "train.tsv"
    whole.write_bytes(b"".join(shard.read_bytes() for shard in shards))
    one = run("bua-tsv", whole, tmp_path).store
    for image_id in one.image_ids:
        np.testing.assert_array_equal(stores[0].fetch(image_id).features, one.fetch(image_id).features)
        np.testing.assert_array_equal(stores[0].fetch(image_id).boxes, one.fetch(image_id).boxes)


@pytest.mark.parametrize("kind", WRITERS)
def test_every_layout_may_come_in_several(kind: str, tmp_path: Path) -> None:
    """Two sources of any layout become one corpus."""
    known = records()
    first, second = dict(list(known.items())[:2]), dict(list(known.items())[2:])
    sources = [WRITERS[kind](tmp_path / "a", first), WRITERS[kind](tmp_path / "b", second)]
    store = run(kind, sources, tmp_path / "out").store
    same(store, known, labels=not kind.startswith("bua"))
    assert store.folder.parent.name == "a-b"


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (("train.tsv.0", "train.tsv.2"), "train.tsv.1 is missing beside train.tsv.0 (1 missing)"),
        (("train.tsv.1",), "train.tsv.0 is missing beside train.tsv.1 (1 missing)"),
        (("x-00000-of-00002.tsv",), "x-00001-of-00002.tsv is missing beside x-00000-of-00002.tsv (1 missing)"),
        (("x-2-of-3.tsv", "x-3-of-3.tsv"), "x-1-of-3.tsv is missing beside x-2-of-3.tsv (1 missing)"),
        (("a_0.tsv", "a_3.tsv", "b_0.tsv"), "a_1.tsv is missing beside a_0.tsv (2 missing)"),
        (("x-00000.tsv", "x-00002.tsv"), "x-00001.tsv is missing beside x-00000.tsv (1 missing)"),
        (("train.tsv.0", "train.tsv.1", "val.tsv"), None),
        (("x-00000-of-00002.tsv", "x-00001-of-00002.tsv"), None),
        (("x-1-of-2.tsv", "x-2-of-2.tsv"), None),
        (("trainval_resnet101_faster_rcnn_genome_36.tsv",), None),
        (("train2014_36.tsv", "train2014_100.tsv", "val2014.tsv", "val2017.tsv"), None),
        (("v1.5.tsv", "v1.0.tsv"), None),
    ],
)
def test_missing_shards(names: tuple[str, ...], missing: str | None, tmp_path: Path) -> None:
    """A set of files with a missing number is refused, and years and numbers of boxes in the names are not counted."""
    (tmp_path / "folder").mkdir()
    for number, name in enumerate(names):
        known = {str(10 * number + int(image_id)): record for image_id, record in records(2).items()}
        write_tsv(tmp_path / "folder" / name, known, BUA)
    if missing:
        with pytest.raises(InputError, match=re.escape(f"folder: {missing}: download it")):
            run("bua-tsv", tmp_path / "folder", tmp_path / "out")
    else:
        assert len(run("bua-tsv", tmp_path / "folder", tmp_path / "out").store) == 2 * len(names)


def test_one_shard_that_is_named_is_all(tmp_path: Path) -> None:
    """A shard that the user names alone is read alone, unless its name says how many shards there are."""
    shard = shutil.copy(REPORTS / "tsv_shards/train.tsv.1", tmp_path / "train.tsv.1")
    assert run("bua-tsv", Path(shard), tmp_path).store.image_ids == ["100", "99"]
    counted = Path(shard).rename(tmp_path / "train-00001-of-00002.tsv")
    with pytest.raises(InputError, match=r"train-00000-of-00002\.tsv is missing"):
        run("bua-tsv", counted, tmp_path)


def test_what_is_no_set_of_files(tmp_path: Path) -> None:
    """A file given twice, a folder without files of the layout, and a pattern without matches are refused."""
    shards = sorted((REPORTS / "tsv_shards").iterdir())
    with pytest.raises(ConfigError, match=r"train.tsv.0 is given twice"):
        run("bua-tsv", [*shards, shards[0]], tmp_path)
    with pytest.raises(InputError, match="is a folder without files of this layout"):
        run("bua-tsv", REPORTS / "hdf5", tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        run("bua-tsv", REPORTS / "tsv_shards/val.*", tmp_path)


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_here(ROOT / "visualbert_core" / "__main__.py", "import", *arguments)


def test_the_command_line(tmp_path: Path) -> None:
    """The import command takes several paths and a declared convention, counts torn rows, and refuses a bad source in
    one line."""
    done = command("bua-tsv", *sorted((REPORTS / "tsv_shards").iterdir()), "--out", tmp_path, "--space", "mine")
    assert done.stderr.endswith("\n4 images, 0 malformed\n")
    done = command("bua-tsv", REPORTS / "tsv/xywh.tsv", "--out", tmp_path, "--space", "mine", "--boxes", "xywh")
    assert (done.returncode, len(FeatureStore.open(done.stdout.strip()))) == (0, 1)
    done = command("bua-tsv", REPORTS / "tsv/glued.tsv", "--out", tmp_path, "--space", "mine")
    assert done.stderr.endswith(
        "\nWARNING: torn: 73: 11 fields instead of 6; an intact record of this image is used, a record glued to it "
        "may be lost\n"
        "4 images, 0 malformed, 1 torn beside intact ones\n"
    )
    done = command("bua-hdf5", REPORTS / "hdf5", "--out", tmp_path, "--space", "mine")
    assert f"\nWARNING: {NO_SIZES}\n2 images, 0 malformed\n" in done.stderr
    done = command("bua-tsv", REPORTS / "tsv/f64feat.tsv", "--out", tmp_path, "--space", "vg_c4")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
