"""Which images a corpus has and where their bytes lie: a folder, a pattern, a list of files, tar shards, or tables.

Owns the id of an image: its file name without the last suffix, which is how the benchmarks name theirs
(`COCO_val2014_000000000042`, `dev-850-0-img0`, `1000092795`); a table may say it itself (see `tables`). An id must be
unique in the corpus, since a row of the feature store is found by it.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator
from glob import glob, has_magic
from pathlib import Path, PurePosixPath
from typing import Literal

from visualbert_core import storage
from visualbert_core.errors import InputError
from visualbert_core.schema import Image
from visualbert_core.tables import list_parquet, list_saved

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
LISTS = frozenset({".txt", ".lst"})
TABLE = ".parquet"


def list_images(source: str | Path, boxes: Literal["none", "beside"] = "none") -> list[Image]:
    """Every image of a corpus, sorted by id.

    `source` is a folder (files at any depth), a pattern with * or ?, a .txt or .lst file with a path a line (relative
    to the list's folder), a .tar or a .parquet file; a pattern may name several of these. A folder without images is
    its Parquet files, or what `Dataset.save_to_disk` left in it. An `s3://…` address is a folder or a Parquet file.
    Tar members are read where they lie. Other files than images are passed over, except in a list, where they are an
    error. With boxes "beside", each image has its boxes in the JSON of the same name (VCR's layout); one that is
    missing is that image's failure later.

    Raises InputError where there is nothing to read, for a damaged or compressed tar, a table without images or ids, or
    naming two images of one id.
    """
    by_id: dict[str, Image] = {}
    for image in _images(storage.absolute(source)):
        if boxes == "beside":
            image = _with_boxes(image)
        if image.image_id in by_id:
            first, second = _place(by_id[image.image_id]), _place(image)
            raise InputError(f"two images are called {image.image_id!r}: {first} and {second}; rename one")
        by_id[image.image_id] = image
    if not by_id:
        raise InputError(f"{source} has no images ({' '.join(sorted(SUFFIXES))}): name what holds them")
    return [by_id[image_id] for image_id in sorted(by_id)]


def corpus_name(source: str | Path) -> str:
    """What a corpus is called unless told otherwise: its folder, or the name without the suffix of a list, tar or
    table."""
    path = storage.absolute(source)
    while has_magic(path.name):
        path = path.parent
    folder = path.suffix.lower() != TABLE if storage.url(path) else path.is_dir()
    return path.name if folder else path.stem


def _images(source: Path) -> Iterator[Image]:
    if storage.url(source):
        paths = iter([source]) if source.suffix.lower() == TABLE else _images_or_tables(storage.files(source))
    elif (source / "state.json").is_file() and (source / "dataset_info.json").is_file():
        yield from list_saved(source)
        return
    elif (source / "dataset_dict.json").is_file():
        raise InputError(f"{source} holds the splits of a dataset: name the folder of one of them")
    elif source.is_dir():
        paths = _images_or_tables(_below(source))
    elif source.suffix.lower() in LISTS and source.is_file():
        paths = _listed(source)
    elif source.is_file():
        paths = iter([source])
    elif has_magic(str(source)):
        paths = (Path(name) for name in sorted(glob(str(source), recursive=True)))  # noqa: PTH207  (absolute patterns)
    else:
        raise InputError(f"{source} is no folder, pattern, list, table or tar of images: name what holds them")
    for path in paths:
        if path.suffix.lower() == ".tar":
            yield from _members(path)
        elif path.suffix.lower() == TABLE:
            yield from list_parquet(path)
        elif path.suffix.lower() in SUFFIXES:
            yield Image(path.name[: -len(path.suffix)], storage.url(path) or str(path))


def _images_or_tables(paths: Iterable[Path]) -> Iterator[Path]:
    """What makes a folder a corpus. A table or a tar among images is their metadata or an archive of the very same."""
    known = [path for path in paths if path.suffix.lower() in {*SUFFIXES, TABLE}]
    images = [path for path in known if path.suffix.lower() != TABLE]
    return iter(images or known)


def _below(root: Path) -> Iterator[Path]:
    # os.walk skips a folder that it cannot read unless told otherwise, and the corpus would silently be smaller.
    for folder, _, names in os.walk(root, onerror=_raise, followlinks=True):
        yield from (Path(folder, name) for name in names)


def _raise(error: OSError) -> None:
    raise error


def _listed(path: Path) -> Iterator[Path]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        found = path.parent / line.strip()
        if found.suffix.lower() not in SUFFIXES:
            raise InputError(f"{path} line {number}: {line.strip()!r} does not end like an image")
        if not found.is_file():
            raise InputError(f"{path} line {number}: {found} is not there; correct the list")
        yield found


def _members(path: Path) -> Iterator[Image]:
    """Images of an uncompressed tar, each as a range of the tar's bytes."""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                # AppleDouble files ("._a.jpg") come with tars made on a Mac and hold no picture.
                if not member.isfile() or name.suffix.lower() not in SUFFIXES or name.name.startswith("._"):
                    continue
                if member.issparse():
                    raise InputError(f"{path}: member {member.name!r} is sparse; pack the tar without --sparse")
                image_id = name.name[: -len(name.suffix)]
                yield Image(image_id, str(path), start=member.offset_data, size=member.size)
    except tarfile.TarError as error:
        raise InputError(f"{path}: cannot be read as an uncompressed tar ({error}); unpack it") from None


def _with_boxes(image: Image) -> Image:
    if image.size is not None or image.row is not None or storage.url(image.path):
        raise InputError(f"{image.path}: boxes beside the images are read from folders on a disk only; unpack it there")
    return Image(image.image_id, image.path, boxes_path=str(Path(image.path).with_suffix(".json")))


def _place(image: Image) -> str:
    if image.row is not None:
        return f"{image.path} row {image.row}"
    return image.path if image.size is None else f"{image.path} at byte {image.start}"
