"""A store knows the names of its labels, whichever detector wrote it. Names change nothing else in the store."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow
from test_extract import INLINE, tree
from test_store import BAD, FINGERPRINT, ROWS, same, write

from visualbert_core.config import ExtractConfig
from visualbert_core.detector import load_detector
from visualbert_core.detector.fpn import DETECTRON
from visualbert_core.engine.pool import Pool
from visualbert_core.errors import StoreError
from visualbert_core.features import label_names as names
from visualbert_core.features.extract import extract
from visualbert_core.features.label_names import label_name
from visualbert_core.features.store import FeatureStore
from visualbert_core.schema import LabelNames
from visualbert_core.synthetic.scenes import make_scene

WEIGHTS = Path(__file__).parents[1] / "visualbert_core" / "synthetic" / "weights" / "detector"
LABELS = tuple(json.loads((WEIGHTS / "config.json").read_text())["labels"])
SOME = LabelNames(("background", "café", '"cat"\t<b>'), ("red",))


def relabelled(folder: Path, labels: list[str]) -> Path:
    """Copy the detector of the synthetic data with other label names."""
    shutil.copytree(WEIGHTS, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"labels": labels}))
    return folder


def run(root: Path, detector: Path = WEIGHTS, **options: Any) -> FeatureStore:
    pictures = root / "pictures"
    if not pictures.is_dir():
        pictures.mkdir()
        for number in range(4):
            Pillow.fromarray(make_scene((5, number)).pixels).save(pictures / f"scene{number}.png")
    with Pool(INLINE) as pool:
        return extract(ExtractConfig(images=pictures, detector=detector, out=root / "out", **options), pool)


def test_a_store_knows_what_its_detector_calls_things(tmp_path: Path) -> None:
    """A store of the synthetic data's detector still names what each scene shows after the store has moved."""
    made = run(tmp_path)
    assert made.label_names == LABELS
    assert made.attribute_names == ()
    made.folder.rename(tmp_path / "alone")
    store = FeatureStore.open(tmp_path / "alone", verify=True)
    for number in range(4):
        things = {f"{thing.color} {thing.shape}" for thing in make_scene((5, number)).things}
        named = {label_name(label, store.label_names) for label in store.fetch(f"scene{number}").labels}
        assert things <= named
    info = store.info()
    assert info["named"] == {"labels": 65, "attributes": 0}
    assert set(info["commonest_labels"]) <= set(LABELS)


def test_names_change_nothing_else(tmp_path: Path) -> None:
    """A detector without names writes the same bytes, apart from the file of names. A rerun with a detector that has
    names adds them to the finished store and keeps the manifest. A rerun without names keeps them."""
    plain = relabelled(tmp_path / "plain", [])
    before = run(tmp_path, plain)
    without = tree(before.folder)
    assert before.label_names == ()
    assert not (before.folder / "names.json").exists()
    again = run(tmp_path)
    assert (again.folder, again.label_names) == (before.folder, LABELS)
    assert {name: data for name, data in tree(again.folder).items() if name != "names.json"} == without
    assert again.manifest_digest() == before.manifest_digest()
    assert run(tmp_path, plain).label_names == LABELS


def test_the_last_word_counts(tmp_path: Path) -> None:
    """A corrected name reaches the store when the same command line runs again."""
    run(tmp_path)
    better = [name.replace("ball", "sphere") for name in LABELS]
    assert run(tmp_path, relabelled(tmp_path / "better", better)).label_names == tuple(better)


def test_names_come_back_as_they_were(tmp_path: Path) -> None:
    """Names keep letters of any alphabet and characters of any kind; a store without the file has no names."""
    store = write(tmp_path, [ROWS["image005"]], 10)
    assert (store.label_names, store.attribute_names) == ((), ())
    names.write(store.folder, FINGERPRINT, SOME)
    found = FeatureStore.open(store.folder)
    assert (found.label_names, found.attribute_names) == (SOME.labels, SOME.attributes)


def test_a_number_without_a_name_is_a_number() -> None:
    """A label past the end and an unknown label (-1) are shown as numbers, not with the name of another label."""
    assert [label_name(number, SOME.labels) for number in (-1, 0, 2, 3)] == ["-1", "background", '"cat"\t<b>', "3"]


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"\xff", b'{"labels": 3, "attributes": []}', None])
def test_damaged_names_are_found_where_they_matter(tmp_path: Path, damage: bytes | None) -> None:
    """Verification and any request for a name report damaged names; features can still be read. After the file is
    deleted, the store is sound again. Names of another store (None here) are damage too."""
    store = write(tmp_path, [ROWS["image005"]], 10, [BAD])
    names.write(store.folder, FINGERPRINT | {"weights": "2e"}, SOME)
    path = store.folder / "names.json"
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(StoreError, match=r"names\.json is damaged or of a different store: delete it"):
        FeatureStore.open(store.folder, verify=True)
    opened = FeatureStore.open(store.folder)
    assert same(opened.fetch("image005"), ROWS["image005"])
    with pytest.raises(StoreError, match=r"names\.json is damaged"):
        _ = opened.label_names
    path.unlink()
    assert FeatureStore.open(store.folder, verify=True).label_names == ()


def test_drivers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    """A reader sees one whole file of names while many drivers write, never a mixture and never none."""
    store = write(tmp_path, [ROWS["image005"]], 10)
    versions = [LabelNames(tuple(f"{word} {number}" for number in range(500))) for word in ("thing", "stuff")]
    names.write(store.folder, FINGERPRINT, versions[0])
    with ThreadPoolExecutor(4) as threads:
        writes = [threads.submit(names.write, store.folder, FINGERPRINT, versions[n % 2]) for n in range(40)]
        while not all(done.done() for done in writes):
            assert names.read(store.folder, FINGERPRINT) in versions
    assert [done.result() for done in writes] == [None] * 40
    assert [path.name for path in store.folder.glob("*names*")] == ["names.json"]


def test_the_worlds_detector_names_its_labels() -> None:
    """The names of a detector are those in its config.json, with the background first."""
    detector = load_detector(WEIGHTS, "cpu")
    assert detector.names == LabelNames(LABELS)  # type: ignore[attr-defined]


def test_detectrons_classes_are_cocos() -> None:
    """The list has 81 classes with the background, each once, in the order of COCO's ids. The published weights count
    in this order."""
    assert len(set(DETECTRON.labels)) == len(DETECTRON.labels) == DETECTRON.num_classes
    assert [DETECTRON.labels.index(name) for name in ("__background__", "person", "stop sign", "toothbrush")] == [
        *(0, 1, 12, 80)
    ]
