"""What a source of features is: files or folders of one layout, the records in them, and which shards are missing.

A source may be given as one file, several, a folder of them, or a pattern. Whatever it is, it is one corpus.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from visualbert_core.errors import ConfigError, InputError
from visualbert_core.io import lfs, numbered
from visualbert_core.provenance import digest_json
from visualbert_core.schema import Regions

Place = tuple[Any, ...] | str
"""Where a record lies in its source: bytes (offset, length) of a TSV, the path below a folder, the key in an LMDB;
of several sources with the number of the source before it."""


class MalformedError(ValueError):
    """A record that cannot be read; the message is the reason."""


class Source(Protocol):
    """A file or folder of features."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever imports must know, a line each; it goes into the fingerprint."""

    @property
    def sizes_known(self) -> bool:
        """Whether widths and heights are the images' own."""

    def records(self) -> Iterator[tuple[str, Place]]:
        """(id, place) of every record. Raises InputError where the source is not of this layout."""

    def digest(self) -> str:
        """xxh3-128 of everything in it."""

    def read(self, image_id: str, place: Place) -> Regions:
        """One record: boxes as they are written, features in any float type. Raises MalformedError."""


class Several:
    """Sources that are one corpus."""

    def __init__(self, paths: Sequence[Path], readers: Sequence[Source]) -> None:
        self.paths, self.readers = paths, readers
        self.notes: tuple[str, ...] = tuple(dict.fromkeys(note for reader in readers for note in reader.notes))
        self.sizes_known = all(reader.sizes_known for reader in readers)

    def records(self) -> Iterator[tuple[str, Place]]:
        for number, reader in enumerate(self.readers):
            yield from ((name, (number, place)) for name, place in reader.records())

    def digest(self) -> str:
        readers = zip(self.paths, self.readers, strict=True)
        return digest_json([[path.name, reader.digest()] for path, reader in readers])

    def read(self, image_id: str, place: Place) -> Regions:
        return self.readers[int(place[0])].read(image_id, place[1])


@dataclass(frozen=True)
class Kind:
    """A layout: how one file or folder of it is opened, and the names of its files where a folder holds several."""

    open: Callable[[Path], Source]
    files: str | None = None
    """Regular expression; None where a folder is one source."""


def find(kind: Kind, given: Sequence[Path]) -> list[Path]:
    """The files or folders that make up what was given, in order.

    Raises InputError where there is none, and where names count shards that are not there.
    """
    paths: list[Path] = []
    for path in map(_absolute, given):
        inside = [path] if path.exists() else sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        if not inside:
            raise InputError(f"{path} does not exist")
        for one in inside:
            paths += _files(kind, one)
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ConfigError(f"{twice} is given twice")
    alone = len(paths) == 1 and paths[0] == _absolute(given[0])
    for gap in numbered.gaps(path.name for path in paths):
        if gap.says_total or not alone:  # `train.tsv.1`, named on purpose, may be all
            missing = f"{gap.first} is missing beside {gap.there[0]} ({gap.missing:,} missing)"
            raise InputError(f"{paths[0].parent}: {missing}: fetch it")
    return paths


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()  # workers may stand elsewhere


def _files(kind: Kind, path: Path) -> list[Path]:
    if kind.files is None or not path.is_dir():
        return [path]
    files = [file for file in sorted(path.iterdir()) if re.search(kind.files, file.name) and file.is_file()]
    if not files:
        raise InputError(f"{path} is not a file, and no name in it is one of this layout's ({kind.files})")
    return files


def open_source(kind: Kind, paths: Sequence[Path]) -> Source:
    """One reader of all of them."""
    return kind.open(paths[0]) if len(paths) == 1 else Several(paths, [kind.open(path) for path in paths])


def corpus_name(given: Sequence[Path], paths: Sequence[Path]) -> str:
    """What a corpus is called by default: the name of the folder or file, of several what their names begin with."""
    if len(given) == 1 and _absolute(given[0]).exists():
        return _absolute(given[0]).stem
    stems = sorted({re.split(r"\.tsv|\.hdf5|\.h5|-\d+-of-\d+", path.name)[0] for path in paths})
    return "-".join(stems)


def refuse_pointer(path: Path) -> None:
    """Raise InputError where a file that is a whole source is a Git LFS pointer."""
    if lfs.is_pointer_file(path):
        raise InputError(f"{path} is {lfs.REASON}")


def whole(path: Path) -> bytes:
    """The bytes of a file that is one record. Raises MalformedError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MalformedError(f"{path.name}: {error.strerror}") from None
    if lfs.is_pointer(data):
        raise MalformedError(f"{path.name} is {lfs.REASON}")
    return data
