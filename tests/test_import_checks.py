"""Sources that differ from their declaration are refused before anything is written, and one bad record is a failure
row."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_sources import BUA, WRITERS, failures, records, run, write_npy, write_tsv

from visualbert_core.detector.fpn import DETECTRON, PYTHIA
from visualbert_core.errors import CoverageError, InputError
from visualbert_core.features.importers.checks import SPACES, _type
from visualbert_core.io import lfs

REPORTS = Path(__file__).parent / "reports"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
SIZED = [kind for kind in WRITERS if kind != "bua-hdf5"]  # the layouts that state the image sizes


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("xywh", r"3 of 5 boxes end before they begin: x, y, width, height\? \(if so, declare --boxes xywh\)"),
        ("normalised", r"all coordinates lie in \[0, 1\]: normalised\? \(if so, declare --boxes normalised\)"),
        ("outside", r"5 of 5 boxes reach outside their image: per-mille\?"),
        ("swapped-wh", r"12 of 20 boxes reach outside their image: y, x, y, x, or width and height .* swapped\?"),
        ("f16feat", r"4 of 4 records make sense as float16 and not as float32: .* \(8 values per box were read\)"),
        ("f64feat", r"4 of 4 records make sense as float64 and not as float32: .* \(32 values per box were read\)"),
    ],
)
@pytest.mark.parametrize("space", ["mine", "vg_c4"])
def test_reported_sources_are_refused(name: str, says: str, space: str, tmp_path: Path) -> None:
    """Each reported source is refused in one line that says what it looks like, whatever the space, and nothing is
    written."""
    with pytest.raises(InputError, match=says):
        run("bua-tsv", REPORTS / f"tsv/{name}.tsv", tmp_path / "out", space)
    assert not (tmp_path / "out").exists()


def test_reported_sources_that_are_right(tmp_path: Path) -> None:
    """A correct source is imported whole, one with NaN keeps its usable rows, and of a torn and an intact row of one
    image, the intact row counts."""
    done = run("bua-tsv", REPORTS / "tsv/ok.tsv", tmp_path)
    assert failures(done) == {}
    whole = done.store.fetch("73")
    assert failures(run("bua-tsv", REPORTS / "tsv/nan.tsv", tmp_path)) == {
        "42": "boxes or features hold NaN or infinity",
        "73": "all coordinates lie in [0, 1]: normalised?",
    }
    glued = run("bua-tsv", REPORTS / "tsv/glued.tsv", tmp_path)
    assert (glued.store.image_ids, failures(glued)) == (["100", "42", "73", "99"], {})
    assert [(failure.item_id, failure.message) for failure in glued.torn] == [("73", "11 fields instead of 6")]
    np.testing.assert_array_equal(glued.store.fetch("73").features, whole.features)


# ---------------------------------------------------------------------------------------------------------------------
# Boxes.

Write = Callable[[np.ndarray, int, int], np.ndarray]
OTHERS: dict[str, Write] = {
    "xywh": lambda b, w, h: np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], axis=1),
    "yxyx": lambda b, w, h: b[:, [1, 0, 3, 2]],
    "reversed": lambda b, w, h: b[:, [2, 3, 0, 1]],
    "normalised": lambda b, w, h: b / (w, h, w, h),
    "per-mille": lambda b, w, h: b / (w, h, w, h) * 1000,
}


def written(convention: str, ids: set[str] | None = None) -> dict[str, dict[str, Any]]:
    """Return records in which the boxes of the images `ids`, or of all images, have another convention."""
    known = records()
    for image_id, record in known.items():
        if ids is None or image_id in ids:
            boxes = OTHERS[convention](record["boxes"], record["image_w"], record["image_h"])
            record["boxes"] = boxes.astype(np.float32)
    return known


@pytest.mark.parametrize("convention", OTHERS)
@pytest.mark.parametrize("kind", SIZED)
def test_another_convention_is_refused_and_read_where_declared(kind: str, convention: str, tmp_path: Path) -> None:
    """Another convention is refused in every layout; if the user declares it, a separate store has the boxes in
    pixels."""
    source = WRITERS[kind](tmp_path / "source", written(convention))
    with pytest.raises(InputError, match=rf"declare --boxes {convention}[;)]"):
        run(kind, source, tmp_path / "out")
    done = run(kind, source, tmp_path / "out", boxes=convention)
    assert (failures(done), done.store.fingerprint["boxes"]) == ({}, convention)
    for image_id, record in records().items():
        np.testing.assert_allclose(done.store.fetch(image_id).boxes, record["boxes"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", SIZED)
def test_width_and_height_swapped_are_refused(kind: str, tmp_path: Path) -> None:
    """Swapped width and height are refused in every layout that has them."""
    known = records()
    for record in known.values():
        record["image_w"], record["image_h"] = record["image_h"], record["image_w"]
    with pytest.raises(InputError, match="or width and height of the images swapped"):
        run(kind, WRITERS[kind](tmp_path / "source", known), tmp_path / "out")


@pytest.mark.parametrize("kind", SIZED)
def test_boxes_of_images_of_another_size_are_refused(kind: str, tmp_path: Path) -> None:
    """Boxes for images of another size are refused, although they fit no other convention."""
    known = records()
    for record in known.values():
        record["boxes"] = record["boxes"] * 5
    with pytest.raises(InputError, match="of 48 boxes reach outside their image; declare their convention"):
        run(kind, WRITERS[kind](tmp_path / "source", known), tmp_path / "out")


@pytest.mark.parametrize("kind", SIZED)
def test_boxes_of_smaller_images_are_said(kind: str, tmp_path: Path) -> None:
    """Boxes that all end far before their images' edges give a note, and boxes that fill their images give none."""
    known = records(5, 30)
    right = run(kind, WRITERS[kind](tmp_path / "right", known), tmp_path / "out")
    assert right.notes == ()
    for record in known.values():
        record["boxes"] = record["boxes"] * np.float32(0.75)
    (note,) = run(kind, WRITERS[kind](tmp_path / "source", known), tmp_path / "out").notes
    assert note.startswith("none of 150 boxes reaches beyond 7")
    assert note.endswith("were the images resized, so that the boxes and the sizes have different scales?")


@pytest.mark.parametrize("convention", OTHERS)
@pytest.mark.parametrize("kind", SIZED)
def test_one_image_of_another_convention_is_malformed(kind: str, convention: str, tmp_path: Path) -> None:
    """One image in another convention is a failure with the reason, and its neighbours are imported."""
    done = run(kind, WRITERS[kind](tmp_path / "source", written(convention, {"4"})), tmp_path / "out")
    assert done.store.image_ids == ["1", "2", "3", "5", "6"]
    assert list(failures(done)) == ["4"]
    assert any(word in failures(done)["4"] for word in ("begin", "outside", "all coordinates"))


@pytest.mark.parametrize("kind", WRITERS)
def test_one_image_with_one_bad_box_is_malformed(kind: str, tmp_path: Path) -> None:
    """An image with one box that ends before it begins, or lies far outside, is a failure."""
    known = records()
    # Left and right are swapped.
    known["2"]["boxes"][3] = known["2"]["boxes"][3][[2, 1, 0, 3]]
    known["5"]["boxes"][0, 2] *= 40
    done = run(kind, WRITERS[kind](tmp_path / "source", known), tmp_path / "out")
    assert failures(done)["2"] == "1 of 8 boxes ends before it begins"
    if kind in SIZED:
        assert failures(done)["5"] == "1 of 8 boxes reaches outside its image"


def test_a_wrong_declaration_is_refused(tmp_path: Path) -> None:
    """A wrong declaration is refused, and the error names what the boxes look like."""
    source = WRITERS["bua-tsv"](tmp_path / "source.tsv", records())
    with pytest.raises(InputError, match=r"boxes, read as xywh, reach outside their image: left, top, right, bottom\?"):
        run("bua-tsv", source, tmp_path / "out", boxes="xywh")


def test_a_source_is_judged_as_a_whole(tmp_path: Path) -> None:
    """The check samples the whole source, so it finds another convention that begins after the first rows."""
    few, many = records(4, 1), {}
    for number in range(700):
        record = dict(few[str(number % 4 + 1)])
        if number > 300:
            record["boxes"] = record["boxes"] / (640, 640, 640, 640)
        many[f"{number:04}"] = record | {"boxes": record["boxes"].astype(np.float32)}
    with pytest.raises(InputError, match=r"of 300 boxes lie in \[0, 1\]"):
        run("bua-tsv", WRITERS["bua-tsv"](tmp_path / "source.tsv", many), tmp_path / "out")


# ---------------------------------------------------------------------------------------------------------------------
# Features.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("field", ["features", "boxes"])
@pytest.mark.parametrize("kind", WRITERS)
def test_nan_and_infinity_are_malformed(kind: str, field: str, value: float, tmp_path: Path) -> None:
    """NaN or infinity in the features or boxes of any layout costs that image only."""
    known = records()
    known["3"][field][1, 2] = value
    done = run(kind, WRITERS[kind](tmp_path / "source", known), tmp_path / "out")
    assert failures(done) == {"3": "boxes or features hold NaN or infinity"}


@pytest.mark.parametrize("dtype", ["<f2", "<f8"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sparse", [True, False])
def test_the_type_of_features_is_seen(dtype: str, seed: int, sparse: bool) -> None:
    """float16 and float64 bytes are recognised by the magnitudes alone, with exact zeros (as behind a ReLU) and
    without."""
    drawn = np.random.default_rng(seed).standard_normal((36, 64))
    drawn = np.maximum(drawn, 0) if sparse else drawn
    name = {"<f2": "float16", "<f8": "float64"}[dtype]
    for values in (drawn, drawn.astype(np.float32), drawn.astype(np.float16)):
        assert _type(np.frombuffer(values.astype(dtype).tobytes(), "<f4")) == name
    assert _type(np.frombuffer(drawn.round().astype("<f8").tobytes(), "<f4")) == "float64"


@pytest.mark.parametrize("seed", range(3))
def test_features_of_float32_are_left_alone(seed: int) -> None:
    """float32 features of any usual distribution pass, also if they were rounded to float16 or bfloat16 before."""
    random = np.random.default_rng(seed)
    normal = random.standard_normal((36, 64))
    exponential = np.exp(3 * random.standard_normal((36, 64)))
    softmax = np.exp(20 * normal) / np.exp(20 * normal).sum(axis=1, keepdims=True)
    whole = random.integers(0, 9, (36, 64)).astype(float)
    for values in (normal, np.maximum(normal, 0), exponential, softmax, whole, normal * 0, normal * 0 + 1):
        features = values.astype(np.float32)
        bfloat16 = (features.view(np.uint32) & 0xFFFF0000).view(np.float32)
        half = features.clip(-6e4, 6e4).astype(np.float16).astype(np.float32)
        for one in (features, half, bfloat16):
            assert _type(one) is None


@pytest.mark.parametrize(
    ("dtype", "scale", "says"),
    [
        (">f4", 1, "make sense as big-endian float32 and not as float32"),
        (">f2", 1, "are not what a network gives"),
        ("i1", 40, "are not what a network gives"),
        ("u1", 60, "are not what a network gives"),
        ("<i4", 60, "are not what a network gives"),
        ("<i8", 60, "are not what a network gives"),
        ("<f4", 0, "are all 0"),
    ],
)
@pytest.mark.parametrize("kind", ["bua-tsv", "lxmert-tsv"])
def test_bytes_of_any_other_type_are_refused(kind: str, dtype: str, scale: int, says: str, tmp_path: Path) -> None:
    """Bytes of any other type are refused, also for a space of unknown size: other byte orders, whole numbers, and only
    zeros."""
    known = records()
    for record in known.values():
        record["features"] = (record["features"] * scale).clip(-127, 127).astype(dtype)
    with pytest.raises(InputError, match=f"the features of [56] of 6 records {says}"):
        run(kind, WRITERS[kind](tmp_path / "source", known), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", "bool"])
@pytest.mark.parametrize("kind", [kind for kind in WRITERS if "tsv" not in kind])
def test_whole_numbers_are_no_features(kind: str, dtype: str, tmp_path: Path) -> None:
    """Quantised features and the bits of bfloat16 are refused by the dtype, in the layouts that store it."""
    known = records()
    for record in known.values():
        record["features"] = (record["features"] * 40).astype(dtype)
    with pytest.raises(InputError, match=f"features are {dtype}, not floating-point numbers"):
        run(kind, WRITERS[kind](tmp_path / "source", known), tmp_path / "out")


def test_known_spaces_have_the_detectors_sizes() -> None:
    """The importer's table of feature sizes agrees with the detectors' recipes."""
    assert (SPACES["pythia_fpn"], SPACES["detectron_fpn"]) == (PYTHIA.feature_size, DETECTRON.feature_size)


@pytest.mark.parametrize(
    ("space", "size", "says"),
    [
        ("vg_c4", 1024, "1,024 values per box, but vg_c4 has 2,048: float16 or features of detectron_fpn?"),
        ("vg_c4", 4096, "4,096 values per box, but vg_c4 has 2,048: float64?"),
        ("r2c_resnet50", 2048, "2,048 values per box, but r2c_resnet50 has 512: features of pythia_fpn or features of"),
        ("vg_c4", 16, "16 values per box, but vg_c4 has 2,048: name the space of these features (--space)"),
    ],
)
def test_a_named_space_has_its_size(space: str, size: int, says: str, tmp_path: Path) -> None:
    """A known space has a fixed feature size in every layout, and another size is refused with a hint at its cause."""
    source = write_npy(tmp_path / "source", records(2, 3, size))
    with pytest.raises(InputError) as caught:
        run("mmf-npy", source, tmp_path / "out", space)
    assert says in str(caught.value)
    assert run("mmf-npy", source, tmp_path / "out").store.feature_size == size


def test_the_size_is_that_of_most_records(tmp_path: Path) -> None:
    """Most records decide the feature size, because the first image may be the odd one."""
    known = records()
    known["1"]["features"] = known["1"]["features"].astype(np.float64)
    done = run("bua-tsv", WRITERS["bua-tsv"](tmp_path / "source.tsv", known), tmp_path / "out")
    assert failures(done) == {"1": "features have shape (8, 32), not (8, 16)"}


# ---------------------------------------------------------------------------------------------------------------------
# Torn rows and Git LFS pointers.


@pytest.mark.parametrize("torn_first", [True, False])
@pytest.mark.parametrize("cut", [0.3, 0.9])
def test_a_torn_row_beside_an_intact_one(torn_first: bool, cut: float, tmp_path: Path) -> None:
    """An intact row counts beside a torn one of the same image, wherever the cut is, in either order, also across two
    files."""
    whole = write_tsv(tmp_path / "whole.tsv", records(), BUA)
    rows = whole.read_bytes().splitlines(keepends=True)
    torn = rows[2][: int(len(rows[2]) * cut)] + b"\n"
    first, second = ([*rows[:2], torn], rows[2:]) if torn_first else (rows[:3], [torn, *rows[3:]])
    (tmp_path / "a.tsv").write_bytes(b"".join(first))
    (tmp_path / "b.tsv").write_bytes(b"".join(second))
    (tmp_path / "both.tsv").write_bytes(b"".join(first + second))
    expected = run("bua-tsv", whole, tmp_path / "out").store.fetch("3").features
    for source in ([tmp_path / "a.tsv", tmp_path / "b.tsv"], tmp_path / "both.tsv"):
        done = run("bua-tsv", source, tmp_path / "out")
        assert (done.store.image_ids, failures(done)) == ([*"123456"], {})
        assert [failure.item_id for failure in done.torn] == ["3"]
        np.testing.assert_array_equal(done.store.fetch("3").features, expected)


def test_torn_rows_without_an_intact_one(tmp_path: Path) -> None:
    """An image with torn rows only is a failure, and so is an image with two intact rows that differ."""
    rows = write_tsv(tmp_path / "source.tsv", records(), BUA).read_bytes().splitlines(keepends=True)
    other = b"\t".join([b"2", *rows[4].split(b"\t")[1:]])
    (tmp_path / "source.tsv").write_bytes(b"".join([*rows[:2], rows[2][:99] + b"\n", rows[2][:50] + b"\n", other]))
    done = run("bua-tsv", tmp_path / "source.tsv", tmp_path / "out")
    assert (done.store.image_ids, done.torn) == (["1"], ())
    assert failures(done)["2"] == "2 records of this id differ"
    assert "3" in failures(done)


@pytest.mark.parametrize("kind", ["bua-tsv", "lxmert-tsv", "mmf-lmdb", "bua-hdf5"])
def test_a_source_that_is_a_pointer_is_refused(kind: str, tmp_path: Path) -> None:
    """A source that is a single Git LFS pointer is refused by name, with the remedy."""
    source = WRITERS[kind](tmp_path / "source", records())
    path = source / "data.mdb" if source.is_dir() else source
    path.write_bytes(POINTER)
    with pytest.raises(InputError, match=f"{path.name} is {lfs.REASON}"):
        run(kind, source, tmp_path / "out")


def test_the_ids_of_an_hdf5_that_are_a_pointer_are_refused(tmp_path: Path) -> None:
    """A pointer in place of an HDF5 file's ids is refused, because some repositories keep every .pkl in Git LFS."""
    source = WRITERS["bua-hdf5"](tmp_path / "val36", records())
    (tmp_path / "val36_imgid2idx.pkl").write_bytes(POINTER)
    with pytest.raises(InputError, match=f"val36_imgid2idx.pkl is {lfs.REASON}"):
        run("bua-hdf5", source, tmp_path / "out")


@pytest.mark.parametrize("name", ["3.npy", "3_info.npy", "3.npz"])
def test_one_file_that_is_a_pointer_is_malformed(name: str, tmp_path: Path) -> None:
    """One pointer in a folder costs one image, and a folder of pointers only is refused."""
    kind = "milvlg-npz" if name.endswith("npz") else "mmf-npy"
    source = WRITERS[kind](tmp_path / "source", records())
    (source / name).write_bytes(POINTER)
    assert failures(run(kind, source, tmp_path / "out")) == {"3": f"{name} is {lfs.REASON}"}
    for path in source.iterdir():
        path.write_bytes(POINTER)
    with pytest.raises((InputError, CoverageError), match=lfs.REASON):
        run(kind, source, tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
