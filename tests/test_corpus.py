"""Which images a corpus has, for every kind of source, and which sources are refused."""

from __future__ import annotations

import io
import os
import re
import socket
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from PIL import Image as Pillow

from visualbert_core.corpus.images import DecodeError, fetch, identify, image_shape, read_image
from visualbert_core.corpus.listing import Corpus, list_images
from visualbert_core.errors import InputError
from visualbert_core.features.worker import plan_images
from visualbert_core.io import lfs
from visualbert_core.schema import Image


def test_listing_is_recursive_sorted_and_case_insensitive(tmp_path: Path) -> None:
    """Images of any depth and letter case are found, other files are not, and an id keeps every dot except the
    suffix's."""
    for name in ("b/x.y.JPG", "a/2.png", "1.jpeg", "z.webp", "notes.txt", "x.json", "c.tiff.bak"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    images = list_images(tmp_path, "none")
    assert list(images) == ["1", "2", "x.y", "z"]
    assert images["x.y"] == Image("x.y", str(tmp_path / "b/x.y.JPG"))


def test_boxes_lie_beside_their_image(tmp_path: Path) -> None:
    """The boxes of an image have its path with .json, as in VCR, whether or not the file exists yet."""
    (tmp_path / "3005_X@0.jpg").touch()
    (image,) = list_images(tmp_path, "beside").values()
    assert image.boxes_path == str(tmp_path / "3005_X@0.json")


def test_two_files_of_one_id_are_refused(tmp_path: Path) -> None:
    """Two files of one name, in two folders or with two suffixes, would be one row, so the error names both paths."""
    for name in ("a/1.jpg", "b/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"two images have the id '1': .*1\.(jpg|png) and .*1\.(jpg|png)"):
        list_images(tmp_path, "none")


def test_no_images_is_an_error(tmp_path: Path) -> None:
    """A missing folder and an empty folder are errors, never an empty corpus."""
    with pytest.raises(InputError, match="is not a folder, pattern, list, table or tar"):
        list_images(tmp_path / "nowhere", "none")
    with pytest.raises(InputError, match="has no images"):
        list_images(tmp_path, "none")


def test_patterns(tmp_path: Path) -> None:
    """A pattern takes the images that it matches and ignores other files."""
    for name in ("a1.jpg", "a2.png", "b1.jpg", "a3.txt", "deep/a4.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(list_images(tmp_path / "a*")) == ["a1", "a2"]
    assert list(list_images(f"{tmp_path}/**/a?.jpg")) == ["a1", "a4"]
    with pytest.raises(InputError, match="has no images"):
        list_images(tmp_path / "c*")


def test_lists(tmp_path: Path) -> None:
    """A list has one path a line, absolute or relative to the list's folder, and may have blank lines."""
    for name in ("in/1.jpg", "2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    path = tmp_path / "val.txt"
    path.write_text(f"\ufeffin/1.jpg\n\n{tmp_path / '2.png'}\n")  # with a byte order mark, as Windows writes text
    expected = [Image("1", str(tmp_path / "in/1.jpg")), Image("2", str(tmp_path / "2.png"))]
    assert list(list_images(path).values()) == expected


def test_a_line_that_comes_twice(tmp_path: Path) -> None:
    """One file that a list names twice is reported as such, and not as two images that need other names."""
    (tmp_path / "1.jpg").touch()
    (tmp_path / "val.txt").write_text("1.jpg\n1.jpg\n")
    with pytest.raises(InputError, match=r"/1\.jpg is in the corpus twice; remove it once"):
        list_images(tmp_path / "val.txt")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("3.jpg", r"val\.txt line 2: .*3\.jpg is not there"),
        ("1.gz", r"line 2: '1\.gz' has no suffix of an image"),
        ("x" * 5000 + ".jpg", r"line 2: x{196}\.jpg is not there"),
        ("x" * 5000, r"line 2: 'x{200}' has no suffix of an image"),
        ("3\0.jpg", r"line 2: .*3\0\.jpg is not there"),
        ("1.jpg/2.jpg", r"line 2: .*1\.jpg/2\.jpg is not there"),
    ],
)
def test_lists_that_are_wrong(tmp_path: Path, line: str, says: str) -> None:
    """A line that names no image is refused with its number, so a corpus is never silently smaller than its list."""
    (tmp_path / "1.jpg").touch()
    (tmp_path / "val.txt").write_text(f"1.jpg\n{line}\n")
    with pytest.raises(InputError, match=says):
        list_images(tmp_path / "val.txt")


def packed(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def png(value: int, size: tuple[int, int] = (4, 6)) -> bytes:
    buffer = io.BytesIO()
    Pillow.new("RGB", size, (value, 0, 9)).save(buffer, "PNG")
    return buffer.getvalue()


def test_tars(tmp_path: Path) -> None:
    """Images inside tar shards are read in place, with the same pixels and digest as the files themselves."""
    packed(tmp_path / "s-0.tar", {"a/x.1.png": png(1), "a/x.1.json": b"{}", "a/._x.1.png": b"mac"})
    packed(tmp_path / "s-1.tar", {"y.png": png(2, (3, 5)), "broken.png": png(3)[:40]})
    broken, x, y = list_images(tmp_path / "s-*.tar").values()
    assert [image.image_id for image in (broken, x, y)] == ["broken", "x.1", "y"]
    for image, value, shape in ((x, 1, (6, 4)), (y, 2, (5, 3))):
        pixels, digest = read_image(image)
        assert (pixels == np.array([value, 0, 9])).all()
        assert image_shape(image) == pixels.shape[:2] == shape
        assert digest == xxhash.xxh3_128_hexdigest(png(value, shape[::-1]))
    with pytest.raises(DecodeError):
        read_image(broken)
    assert list(list_images(tmp_path / "s-1.tar").values()) == [broken, y]


def test_tars_that_are_refused(tmp_path: Path) -> None:
    """Compressed and damaged tars, one id in two tars, and boxes beside a tar's images are errors that name the
    place."""
    one = packed(tmp_path / "1.tar", {"a.png": png(1)})
    packed(tmp_path / "2.tar", {"b/a.png": png(2)})
    with pytest.raises(InputError, match=r"two images have the id 'a': .*1\.tar at byte 512 and .*2\.tar at byte 512"):
        list_images(tmp_path / "*.tar")
    with pytest.raises(InputError, match=r"boxes beside images are read only from a folder on a disk"):
        list_images(one, "beside")
    packed(tmp_path / "z.tar", {"a.png": png(1)}, "w:gz")
    with pytest.raises(InputError, match=r"z\.tar: cannot be read as an uncompressed tar"):
        list_images(tmp_path / "z.tar")
    (tmp_path / "cut.tar").write_bytes(one.read_bytes()[:300])
    with pytest.raises(InputError, match=r"cut\.tar: cannot be read as an uncompressed tar"):
        list_images(tmp_path / "cut.tar")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a pipe"),
    ],
)
def test_what_is_no_file_in_a_tar_is_a_failure(kind: bytes, says: str, tmp_path: Path) -> None:
    """An image that is a link or a device in its tar is a failure with a reason, and its neighbours are read."""
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name in ("a.png", "b.png", "c.png"):
            entry = tarfile.TarInfo(name)
            if name == "b.png":
                entry.type, entry.linkname = kind, "a.png"
                tar.addfile(entry)
            else:
                entry.size = len(png(1))
                tar.addfile(entry, io.BytesIO(png(1)))
    corpus = list_images(tmp_path / "t.tar")
    assert list(corpus) == ["a", "b", "c"]
    assert all((read_image(corpus[name])[0] == [1, 0, 9]).all() for name in "ac")
    for read in (read_image, image_shape):
        with pytest.raises(
            DecodeError, match=rf"^t\.tar at byte 1024 is {says} in its tar; pack the files themselves$"
        ):
            read(corpus["b"])
    with pytest.raises(InputError, match="boxes beside images are read only from a folder on a disk"):
        list_images(tmp_path / "t.tar", "beside")


def test_a_tar_that_ends_early_is_refused(tmp_path: Path) -> None:
    """A tar that was cut between two members, has a damaged later header, or was joined to another one is refused,
    because Python's tarfile would read the first images and stop silently."""
    whole = packed(tmp_path / "1.tar", {"a.png": png(1), "b.png": png(2)}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:1024])
    with pytest.raises(InputError, match=r"cut\.tar: the tar has no end mark"):
        list_images(tmp_path / "cut.tar")
    for name, data in {"damaged": whole[:1024] + b"x" + whole[1025:], "joined": whole + whole}.items():
        (tmp_path / f"{name}.tar").write_bytes(data)
        with pytest.raises(InputError, match=rf"{name}\.tar: the tar is damaged at byte \d+, or holds several tars"):
            list_images(tmp_path / f"{name}.tar")


def hostile(folder: Path) -> dict[str, str]:
    """Create names with an image's suffix that lead to no file. Return the expected message for each."""
    (folder / "empty.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # the path of a socket has a hundred characters at most
        server.bind("socket.png")
    links = {
        "zero": "/dev/zero",
        "null": "/dev/null",
        "piped": "pipe.png",
        "self": "self.png",
        "nothing": "nowhere.png",
    }
    links |= {"through": "plain.txt/a.png", "long": "x" * 300, "folder": "empty.png"}
    (folder / "plain.txt").touch()
    for name, target in links.items():
        (folder / f"{name}.png").symlink_to(target)
    kinds = {"empty": "a folder", "pipe": "a pipe", "socket": "a socket", "zero": "a device", "null": "a device"}
    kinds |= {"piped": "a pipe", "self": "a link that leads to itself", "folder": "a folder"}
    found = {name: f"{name}.png is {kind}, not a file" for name, kind in kinds.items()}
    return found | {name: f"{name}.png is a link to nothing" for name in ("nothing", "through", "long")}


def as_pattern(folder: Path) -> str:
    return f"{folder}/*.png"


def as_list(folder: Path) -> Path:
    path = folder.parent / "list.txt"
    path.write_text("".join(f"{name}\n" for name in sorted(folder.glob("*.png"))))
    return path


@pytest.mark.parametrize("source", [Path, as_pattern, as_list])
def test_what_leads_to_no_file_is_a_failure(source: Callable[[Path], str | Path], tmp_path: Path) -> None:
    """Links to devices, pipes, nothing or themselves, and pipes, sockets and folders with an image's name, are listed
    and fail with a reason without being opened, and images among them are read."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    expected = hostile(folder)
    (folder / "image.png").write_bytes(png(1))
    (folder / "link.png").symlink_to("image.png")
    corpus = list_images(source(folder))
    assert list(corpus) == sorted([*expected, "image", "link"])
    assert (read_image(corpus["link"])[0] == [1, 0, 9]).all()
    for name, message in expected.items():
        for read in (read_image, image_shape, identify):
            with pytest.raises(DecodeError, match=f"^{re.escape(message)}$"):
                read(corpus[name])


def test_a_folder_of_an_images_name_with_images(tmp_path: Path) -> None:
    """A folder `clip.gif/` with frames in it counts as a folder, and the frames are the images."""
    (tmp_path / "clip.gif" / "deep").mkdir(parents=True)
    (tmp_path / "clip.gif" / "deep" / "1.png").write_bytes(png(1))
    assert list(list_images(tmp_path)) == ["1"]
    assert list(list_images(f"{tmp_path}/**/*")) == ["1"]


def test_what_lies_among_images_and_is_none(tmp_path: Path) -> None:
    """The files that macOS adds beside an image are ignored, and so are pipes without an image's name."""
    for name in ("1.png", "._1.png"):
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "itself").symlink_to("itself")
    assert list(list_images(tmp_path)) == ["1"]


def test_a_disk_that_is_gone_later_is_no_bad_image(tmp_path: Path) -> None:
    """A link that leads nowhere only after the listing keeps the system's error, because a lost mount must not turn a
    million images into a million failures."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "1.png").write_bytes(png(1))
    (tmp_path / "a.png").symlink_to("disk/1.png")
    corpus = list_images(f"{tmp_path}/a.png")
    (tmp_path / "disk").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError):
        read_image(corpus["a"])


def test_a_disk_that_is_not_mounted_is_no_corpus(tmp_path: Path) -> None:
    """A corpus in which every image is a link to nothing is refused, but a single such link is one failure."""
    for name in "ab":
        (tmp_path / f"{name}.png").symlink_to(f"/not/mounted/{name}.png")
    with pytest.raises(InputError, match=r"all 2 images are links to nothing: is a disk not mounted\?"):
        list_images(tmp_path)
    (tmp_path / "c.png").write_bytes(png(1))
    assert list(list_images(tmp_path)) == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["t.tar", "t.parquet"])
@pytest.mark.parametrize(
    ("target", "says"), [(None, "a pipe"), ("/dev/zero", "a device"), ("nowhere", "a link to nothing")]
)
def test_tars_and_tables_that_are_no_files(name: str, target: str | None, says: str, tmp_path: Path) -> None:
    """A tar or table that would be read for ever, or waited for, is refused, and the message says what it is."""
    if target is None:
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to(target)
    with pytest.raises(InputError, match=rf"{re.escape(name)} is {says}, not a file"):
        list_images(tmp_path / "t.*")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


@pytest.mark.parametrize("name", ["t.tar", "t.parquet", "t.txt", "t.lst", "saved"])
def test_git_lfs_pointers_are_named(name: str, tmp_path: Path) -> None:
    """A tar, a table, a list or a saved dataset that is a Git LFS pointer is refused as one."""
    path = tmp_path / name
    if name == "saved":
        path.mkdir()
        (path / "dataset_info.json").write_text("{}")
        (path / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
        (path / "data.arrow").write_bytes(POINTER)
    else:
        path.write_bytes(POINTER)
    with pytest.raises(InputError, match=rf"{name}\S* is {lfs.REASON}$"):
        list_images(path)
    if name == "saved":
        (path / "state.json").write_bytes(POINTER)
        with pytest.raises(InputError, match=rf"state\.json is {lfs.REASON}$"):
            list_images(path)


@pytest.mark.parametrize(
    ("names", "lacks"),
    [
        (["train-00000-of-00002"], "train-00001-of-00002"),
        (["train-00001-of-00003-0123456789abcdef", "train-00002-of-00003-fedcba9876543210"], "train-00000-of-00003"),
        (["a_1_of_2"], "a_0_of_2"),
        (["a-1-of-3", "a-3-of-3"], "a-2-of-3"),
        (["train-0-of-2", "train-1-of-2", "val-0-of-2"], "val-1-of-2"),
    ],
)
@pytest.mark.parametrize("suffix", [".parquet", ".tar"])
def test_half_a_set_is_refused(names: list[str], lacks: str, suffix: str, tmp_path: Path) -> None:
    """Where the names promise more files than exist, the first missing name is reported, for a folder, a pattern and a
    single file."""
    for number, name in enumerate(names):
        if suffix == ".tar":
            packed(tmp_path / (name + suffix), {f"{number}.png": png(number)})
        else:
            pq.write_table(pa.table({"id": [number], "image": [png(number)]}), tmp_path / (name + suffix))
    folder = [tmp_path] if suffix == ".parquet" else []
    for source in (*folder, f"{tmp_path}/*{suffix}", tmp_path / (names[-1] + suffix)):
        with pytest.raises(InputError, match=rf": {lacks}{suffix} of the same set is not beside it"):
            list_images(source)


@pytest.mark.parametrize("suffix", [".parquet", ".tar"])
@pytest.mark.parametrize(
    ("names", "lacks"),
    [(["dev-00000", "dev-00002"], "dev-00001"), (["a_1", "a_2", "a_4"], "a_3"), (["00000", "00003"], "00001")],
)
def test_a_gap_is_refused_where_names_do_not_say_how_many(
    names: list[str], lacks: str, suffix: str, tmp_path: Path
) -> None:
    """A folder or pattern whose numbered files have a gap is refused, but one of the files may be named by itself."""
    for number, name in enumerate(names):
        if suffix == ".tar":
            packed(tmp_path / (name + suffix), {f"{number}.png": png(number)})
        else:
            pq.write_table(pa.table({"id": [number], "image": [png(number)]}), tmp_path / (name + suffix))
    folder = [tmp_path] if suffix == ".parquet" else []
    for source in (*folder, f"{tmp_path}/*{suffix}"):
        with pytest.raises(InputError, match=rf": {lacks}{suffix} of the same set is not beside it"):
            list_images(source)
    assert list(list_images(tmp_path / (names[0] + suffix))) == ["0"]


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00002-0123456789abcdef", "train-00001-of-00002-fedcba9876543210"],
        ["a-1-of-2", "a-2-of-2", "b-0-of-1"],
        ["shard-000007", "7-of-5", "best-of-2"],
        ["dev-00000", "dev-00001", "val-00000"],
        ["shard-000007", "shard-000009", "coco_2014", "coco_2017"],
        ["v1.0", "v1.2", "2024-01-01", "2024-01-03", "day_2024-01"],
    ],
)
def test_whole_sets_and_other_names_are_read(names: list[str], tmp_path: Path) -> None:
    """Complete sets are read, counted from 0 or from 1, with or without hashes in the names, and one file of a set may
    be named by itself."""
    for number, name in enumerate(names):
        pq.write_table(pa.table({"id": [number], "image": [png(number)]}), tmp_path / f"{name}.parquet")
    assert len(list_images(tmp_path)) == len(names)
    assert list(list_images(tmp_path / f"{names[0]}.parquet")) == ["0"]


def test_tars_among_the_files_of_a_folder_are_left_alone(tmp_path: Path) -> None:
    """A tar among the images of a folder is ignored, because it may be an archive of them."""
    (tmp_path / "a.png").write_bytes(png(1))
    packed(tmp_path / "all.tar", {"a.png": png(1)})
    assert list_images(tmp_path) == {"a": Image("a", str(tmp_path / "a.png"))}


def test_files_tars_and_tables_in_one_corpus(tmp_path: Path) -> None:
    """In a corpus of files, a tar and a table, each id finds its own bytes, and there is no other id."""
    for name in ("a/2.png", "a/9.JPG", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(int(name[2])))
    packed(tmp_path / "t.tar", {"8.png": png(8), "3.png": png(3)})
    rows = {"id": ["7", "4"], "image": [png(7), png(4)]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    corpus = list_images(f"{tmp_path}/**/*")
    assert list(corpus) == list(corpus.ids) == ["1", "2", "3", "4", "7", "8", "9"]
    for image_id, image in zip(corpus, fetch(list(corpus.values())), strict=True):
        assert image.image_id == image_id
        assert read_image(image)[1] == xxhash.xxh3_128_hexdigest(png(int(image_id)))
    assert "5" not in corpus
    assert corpus.get("") is None
    assert list(corpus.first(2)) == list(corpus.ids[:2]) == ["1", "2"]
    assert "3" not in corpus.first(2)


def test_a_folder_that_links_to_itself_is_listed_once(tmp_path: Path) -> None:
    """Links to folders are followed, because image folders often consist of them, but circles are not."""
    (tmp_path / "corpus" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.png").write_bytes(png(1))
    (tmp_path / "corpus" / "deep" / "there").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "corpus" / "deep" / "back").symlink_to(tmp_path / "corpus")
    assert list(list_images(tmp_path / "corpus")) == ["1"]


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """A file name that is not UTF-8 cannot be an id, so the error names the file as far as it can be shown."""
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).touch()
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(InputError, match=r"\.png': its name is not UTF-8"):
        list_images(tmp_path)


def test_members_whose_names_are_no_text(tmp_path: Path) -> None:
    """Where a tar has a name in another encoding, the error names the member."""
    packed(tmp_path / "t.tar", {"e\udcff.png": png(1)})
    with pytest.raises(InputError, match=r"t\.tar: 'e\\udcff' is not UTF-8, so it cannot be an image id; rename it"):
        list_images(tmp_path / "t.tar")


def test_a_planned_image_costs_the_driver_little(tmp_path: Path) -> None:
    """Corpus and plan hold at most 67 bytes an image (27 of them the id), whatever its path."""
    ids = [f"COCO_train2017_{number:012d}" for number in range(20_000)]
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    corpus = Corpus(Image(image_id, f"/a/long/path/to/{image_id[-1]}/{image_id}.jpg") for image_id in ids)
    shards = plan_images(corpus, corpus.ids, "salt", 1000)
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert sum(len(shard.images) for shard in shards) == len(ids)
    # An id has 27 letters here.
    assert used / len(ids) < 27 + 40
