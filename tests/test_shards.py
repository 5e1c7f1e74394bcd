"""A plan moves no item that it need not move, and a shard is done only when its marker says so."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import random
import time
import uuid
from collections import UserList
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from conftest import small_files
from hypothesis import given, settings
from hypothesis import strategies as st

import visualbert_core.engine.shards as shards_module
from visualbert_core.engine.shards import Manifest, Part, Shard, ShardFolder, plan, publish
from visualbert_core.errors import InputError, ShardError, StoreError

NAMES = [f"COCO_val2014_{number:012d}" for number in random.Random(0).sample(range(600_000), 3_000)]
IDS = st.sets(st.text(min_size=1, max_size=4), max_size=60)


def part_of(shard: Shard, failed: int = 0) -> Part:
    data = "\n".join(shard.items).encode()
    return Part(data, len(shard.items) - failed, b"bad" if failed else None, failed)


def fill(folder: ShardFolder, shards: Iterable[Shard]) -> None:
    for shard in shards:
        folder.commit(shard, part_of(shard))


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


# plan ---------------------------------------------------------------------------------------------------------------


@given(ids=IDS, target=st.integers(1, 10))
def test_a_plan_is_a_partition(ids: set[str], target: int) -> None:
    """Every item is in exactly one shard, items ascend, and no shard is larger than 1.5 × target."""
    shards = plan(ids, "salt", target)
    assert sorted(item for shard in shards for item in shard.items) == sorted(ids)
    for shard in shards:
        assert list(shard.items) == sorted(shard.items)
        assert 0 < len(shard.items) <= max(1, target * 3 // 2)


@given(ids=IDS, new=st.text(min_size=1, max_size=4), target=st.integers(1, 10))
@settings(max_examples=300)
def test_one_more_image_moves_no_other(ids: set[str], new: str, target: int) -> None:
    """A new id replaces at most one shard, and the new shards hold that shard's items and the new id."""
    before, after = set(plan(ids - {new}, "salt", target)), set(plan(ids | {new}, "salt", target))
    gone, come = before - after, after - before
    assert len(gone) <= 1
    assert {item for shard in come for item in shard.items} == {item for shard in gone for item in shard.items} | {new}


def test_the_average_shard_is_near_the_target() -> None:
    """Over many sizes of a corpus, the mean number of keys per shard is within a fifth of the target."""
    means = []
    for count in range(600, 3_000, 100):
        means.append(count / len(plan(NAMES[:count], "salt", 100)))
    assert 80 < sum(means) / len(means) < 120


def test_order_and_number_of_workers_do_not_matter_but_the_salt_does() -> None:
    """The same items in any order give the same shards; another salt gives other shard ids and the same cuts."""
    again, other = plan(reversed(NAMES), "salt", 100), plan(NAMES, "other salt", 100)
    assert plan(NAMES, "salt", 100) == again
    assert [shard.items for shard in other] == [shard.items for shard in again]
    assert not {shard.shard_id for shard in other} & {shard.shard_id for shard in again}


def test_items_of_one_key_stay_together() -> None:
    """Examples of one image share a shard, sorted by image and then by example, and the size of a shard counts
    images."""
    examples = {f"q{number:04d}": NAMES[number % 300] for number in range(1_500)}
    shards = plan(examples, "salt", 20)
    homes: dict[str, set[str]] = {}
    for shard in shards:
        assert list(shard.items) == sorted(shard.items, key=lambda item: (examples[item], item))
        for item in shard.items:
            homes.setdefault(examples[item], set()).add(shard.shard_id)
    assert all(len(home) == 1 for home in homes.values())
    assert max(len(shard.items) for shard in shards) <= 30 * 5


def test_a_duplicate_is_refused_by_name() -> None:
    """An item that is listed twice would be two rows of one name, so the error names it."""
    with pytest.raises(InputError, match=r"'b' is listed twice"):
        plan(["a", "b", "c", "b"], "salt", 10)


# protocol -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def shards() -> list[Shard]:
    return plan(NAMES[:30], "salt", 5)


@pytest.fixture
def folder(tmp_path: Path) -> ShardFolder:
    return ShardFolder(tmp_path / "out")


def test_a_shard_travels_with_its_items() -> None:
    """A shard of a plan holds only the places of its items. A pickled shard holds the items, and is equal to it."""
    ids = Ids([f"image{number}" for number in range(100)])
    shards = plan(ids, "salt", 10)
    ids.looks = 0
    data = [pickle.dumps(shard) for shard in shards]
    assert ids.looks == 100
    arrived = [pickle.loads(one) for one in data]
    assert ids.looks == 100
    assert arrived == shards
    assert [hash(shard) for shard in arrived] == [hash(shard) for shard in shards]
    assert all(type(shard.items) is tuple for shard in arrived)
    assert shards[0].items[:2] == arrived[0].items[:2]
    assert str(shards[0]) == str(arrived[0])


class Ids(UserList[str]):
    """A list of ids that counts how often an id is read."""

    looks = 0

    def __getitem__(self, index: Any) -> Any:
        self.looks += 1
        return super().__getitem__(index)


def test_a_finished_folder_reads_back(folder: ShardFolder, shards: list[Shard]) -> None:
    """The manifest lists the shards in plan order with what they hold, and reading verifies every byte."""
    for number, shard in enumerate(shards):
        folder.commit(shard, part_of(shard, failed=number % 2))
    written = folder.finish(shards, {"corpus": "coco"})
    assert folder.read_manifest(verify=True) == written
    assert [marker.shard_id for marker in written.shards] == [shard.shard_id for shard in shards]
    assert (written.rows, written.failed) == (30 - len(shards) // 2, len(shards) // 2)
    assert written.about == {"corpus": "coco"}


def test_two_runs_leave_the_same_bytes(tmp_path: Path, shards: list[Shard]) -> None:
    """The published bytes do not depend on when, in what order or how often they are published."""
    first, second = ShardFolder(tmp_path / "1"), ShardFolder(tmp_path / "2")
    fill(first, shards)
    fill(second, [*reversed(shards), *shards])
    first.finish(shards, {"b": 1, "a": 2})
    second.finish(shards, {"a": 2, "b": 1})
    assert tree(first.root) == tree(second.root)


def test_a_part_without_a_marker_is_redone(
    folder: ShardFolder, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies between part and marker leaves exactly that shard to be done."""
    fill(folder, shards[1:])
    publish = shards_module.publish

    def dies_at_the_marker(path: Path, data: bytes) -> None:
        if path.suffix == ".json":
            raise KeyboardInterrupt
        publish(path, data)

    monkeypatch.setattr(shards_module, "publish", dies_at_the_marker)
    with pytest.raises(KeyboardInterrupt):
        folder.commit(shards[0], part_of(shards[0]))
    assert folder.part_path(shards[0].shard_id).exists()
    assert folder.pending(shards) == [shards[0]]


def test_an_interrupted_write_publishes_nothing(
    folder: ShardFolder, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error while a part is written leaves no file under any name."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        folder.commit(shards[0], part_of(shards[0]))
    assert tree(folder.root) == {}


def test_leftovers_of_killed_writers_are_ignored(folder: ShardFolder, shards: list[Shard]) -> None:
    """Drafts, and markers of another plan, are ignored and cause no error."""
    fill(folder, shards)
    folder.part_path("x").with_name(".a.parquet.123").write_bytes(b"half")
    folder.marker_path("stranger").write_bytes(b"{")
    assert folder.pending(shards) == []
    assert len(folder.finish(shards, {}).shards) == len(shards)
    folder.read_manifest(verify=True)


def test_only_old_drafts_are_swept(folder: ShardFolder, shards: list[Shard]) -> None:
    """Finishing deletes the old drafts of killed writers, and keeps young drafts that a writer may still need."""
    fill(folder, shards)
    old, young = (folder.part_path(name).with_name(f".{name}.parquet.{uuid.uuid4().hex}") for name in ("a", "b"))
    for draft, age in ((old, 4000), (young, 10)):
        draft.write_bytes(b"half")
        os.utime(draft, (time.time() - age,) * 2)
    before = tree(folder.root).keys()
    folder.finish(shards, {})
    assert before - tree(folder.root).keys() == {str(old.relative_to(folder.root))}


def test_a_trial_publishes_nothing(folder: ShardFolder, shards: list[Shard]) -> None:
    """A trial, which only tests whether the process survives a shard, leaves no file."""
    trial = dataclasses.replace(shards[0], quarantined=shards[0].items[1:], trial=True)
    assert trial.touched == shards[0].items[:1]
    assert folder.commit(trial, Part(b"", 1, b"", len(trial.items) - 1)).rows == 1
    assert tree(folder.root) == {}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"shard_id": 1}'])
def test_a_broken_marker_means_not_done(folder: ShardFolder, shards: list[Shard], text: str) -> None:
    """A shard whose marker cannot be read is not done."""
    fill(folder, shards)
    folder.marker_path(shards[2].shard_id).write_text(text)
    assert folder.pending(shards) == [shards[2]]


def test_every_item_is_accounted_for(folder: ShardFolder, shards: list[Shard]) -> None:
    """A part whose rows and failures do not add up to its items is refused and not published."""
    with pytest.raises(ShardError, match=rf"{shards[0].shard_id}: 1 rows \+ 0 failures for {len(shards[0].items)}"):
        folder.commit(shards[0], Part(b"", 1, None, 0))
    assert tree(folder.root) == {}


def test_no_manifest_before_the_last_shard(folder: ShardFolder, shards: list[Shard]) -> None:
    """An unfinished folder has no manifest: the writer and the reader both say so."""
    fill(folder, shards[:-1])
    with pytest.raises(ShardError, match=f"1 of {len(shards)} shards are not done, the first is {shards[-1].shard_id}"):
        folder.finish(shards, {})
    with pytest.raises(StoreError, match=r"is unfinished \(it has no manifest\.json\): run the line again"):
        folder.read_manifest()


def test_a_name_that_is_nearly_one(folder: ShardFolder, shards: list[Shard]) -> None:
    """A missing folder is not called unfinished, and for the folder above the error names the folders in it."""
    fill(folder, shards)
    folder.finish(shards, {})
    with pytest.raises(StoreError, match=r"outt is not there: correct its name"):
        ShardFolder(folder.root.with_name("outt")).read_manifest()
    with pytest.raises(StoreError, match=rf"is the folder of {folder.root.name}: name one of them"):
        ShardFolder(folder.root.parent).read_manifest()


def test_finishing_twice_writes_once_and_another_plan_replaces(folder: ShardFolder, shards: list[Shard]) -> None:
    """Finishing again with the same manifest writes nothing. The manifest of a larger corpus replaces it and keeps the
    shards that both share."""
    fill(folder, shards)
    folder.finish(shards, {})
    before = folder.manifest_path.stat().st_mtime_ns
    folder.finish(shards, {})
    assert folder.manifest_path.stat().st_mtime_ns == before
    larger = plan(NAMES[:31], "salt", 5)
    todo = folder.pending(larger)
    assert 1 <= len(todo) <= 2
    fill(folder, todo)
    folder.finish(larger, {})
    assert folder.read_manifest().rows == 31


def damaged(folder: ShardFolder, shard: Shard, data: bytes | None) -> None:
    path = folder.part_path(shard.shard_id)
    path.unlink() if data is None else path.write_bytes(data)


@pytest.mark.parametrize(("data", "says"), [(b"short", "has 5 bytes instead of"), (None, "is missing")])
def test_a_part_of_the_wrong_size_is_refused_and_redone(
    folder: ShardFolder, shards: list[Shard], data: bytes | None, says: str
) -> None:
    """A truncated or missing part is named on reading, and the next run repairs it."""
    fill(folder, shards)
    folder.finish(shards, {})
    damaged(folder, shards[1], data)
    with pytest.raises(StoreError, match=rf"{shards[1].shard_id}\.parquet {says}"):
        folder.read_manifest()
    assert folder.pending(shards) == [shards[1]]


def test_a_flipped_bit_is_found_by_verification(folder: ShardFolder, shards: list[Shard]) -> None:
    """A changed bit that keeps the size passes the fast check and fails the full one, which names the file."""
    fill(folder, shards)
    folder.finish(shards, {})
    data = bytearray(folder.part_path(shards[1].shard_id).read_bytes())
    data[0] ^= 1
    damaged(folder, shards[1], bytes(data))
    assert isinstance(folder.read_manifest(), Manifest)
    with pytest.raises(StoreError, match=rf"{shards[1].shard_id}\.parquet is damaged"):
        folder.read_manifest(verify=True)


def test_a_manifest_that_is_none_is_refused(folder: ShardFolder) -> None:
    """Another kind of file under the manifest's name is refused."""
    folder.root.mkdir()
    folder.manifest_path.write_text(json.dumps({"hello": 1}))
    with pytest.raises(StoreError, match="is not a manifest"):
        folder.read_manifest()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """On a full disk the system's error does not name the user's file, or names a draft. Our error names the file and
    keeps its class, and no draft is left."""
    path = tmp_path / "report.html"
    publish(path, b"before")
    # A limit on the size of files stands in for a full disk.
    with small_files(10), pytest.raises(OSError, match=rf"File too large: '{path}'$") as caught:
        publish(path, b"much longer than that")
    assert caught.value.errno == errno.EFBIG
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("report.html", b"before")]
    with pytest.raises(FileExistsError, match=rf"'{path}/inside'$"):  # the folder of the path is a file
        publish(path / "inside", b"")
