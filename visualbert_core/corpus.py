"""Which images a corpus has and where their bytes lie: a folder, a pattern, a list of files, or tar shards.

Owns the id of an image: its file name without the last suffix, which is how the benchmarks name theirs
(`COCO_val2014_000000000042`, `dev-850-0-img0`, `1000092795`). An id must be unique in the corpus, since a row of the
feature store is found by it.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from glob import glob, has_magic
from pathlib import Path, PurePosixPath
from typing import Literal

from visualbert_core.errors import InputError
from visualbert_core.schema import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
LISTS = frozenset({".txt", ".lst"})


def list_images(source: str | Path, boxes: Literal["none", "beside"] = "none") -> list[Image]:
    """Every image of a corpus, sorted by id.

    `source` is a folder (files at any depth), a pattern with * or ?, a .txt or .lst file with a path a line (relative
    to the list's folder), or a .tar file; a pattern may name tar files (webdataset shards). Tar members are read where
    they lie. Other files than images are passed over, except in a list, where they are an error. With boxes "beside",
    each image has its boxes in the JSON of the same name (VCR's layout); one that is missing is that image's failure
    later.

    Raises InputError where there is nothing to read, for a damaged or compressed tar, or naming two images of one id.
    """
    by_id: dict[str, Image] = {}
    for image in _images(Path(source).absolute()):
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
    """What a corpus is called unless told otherwise: its folder, or the list's or tar's name without the suffix."""
    path = Path(source).absolute()
    while has_magic(path.name):
        path = path.parent
    return path.name if path.is_dir() else path.stem


def _images(source: Path) -> Iterator[Image]:
    if source.is_dir():
        paths = _below(source)
    elif source.suffix.lower() in LISTS and source.is_file():
        paths = _listed(source)
    elif source.is_file():
        paths = iter([source])
    elif has_magic(str(source)):
        paths = (Path(name) for name in sorted(glob(str(source), recursive=True)))  # noqa: PTH207  (absolute patterns)
    else:
        raise InputError(f"{source} is no folder, pattern, list or tar of images: name what holds them")
    for path in paths:
        if path.suffix.lower() == ".tar":
            yield from _members(path)
        elif path.suffix.lower() in SUFFIXES:
            yield Image(path.name[: -len(path.suffix)], str(path))


def _below(root: Path) -> Iterator[Path]:
    # os.walk skips a folder that it cannot read unless told otherwise, and the corpus would silently be smaller.
    for folder, _, names in os.walk(root, onerror=_raise, followlinks=True):
        # A tar in a folder of images is somebody's archive, most likely of the very same images.
        yield from (Path(folder, name) for name in names if not name.lower().endswith(".tar"))


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
    if image.size is not None:
        raise InputError(f"{image.path}: boxes beside the images are read from folders, not from tars; unpack it")
    return Image(image.image_id, image.path, boxes_path=str(Path(image.path).with_suffix(".json")))


def _place(image: Image) -> str:
    return image.path if image.size is None else f"{image.path} at byte {image.start}"
