"""The sources of an import: files or folders of one layout, and the records in them.

Owns the contract of a reader, how arrays are read without running code that a file names, and which files a source
consists of. A user may name one file, several files, a folder of files, or a pattern; all of it is one corpus.
"""

from __future__ import annotations

import io
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from visualbert_core.errors import ConfigError, InputError
from visualbert_core.io import lfs, numbered
from visualbert_core.io.safe_pickle import BROKEN, load_arrays
from visualbert_core.provenance import digest_file, digest_json
from visualbert_core.schema import Regions

Place = tuple[Any, ...] | str
"""Where a record lies in its source: (offset, length) in bytes of a TSV, the path below a folder, the row of an HDF5
file, or the key in an LMDB. Where there are several sources, it is (number of the source, place)."""


class MalformedError(ValueError):
    """A record cannot be read. The message is the reason, and becomes the message of a failure row."""


class Source(ABC):
    """A reader of one layout: of one file or folder of features."""

    notes: tuple[str, ...] = ()
    """What the user must know about this source, one line each. The lines go into the fingerprint."""
    sizes_known = True
    """Whether widths and heights are the true sizes of the images."""
    files: ClassVar[str | None] = None
    """A regular expression for the names of the files in a folder; None where a whole folder is one source."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def records(self) -> Iterator[tuple[str, Place]]:
        """Yield (id, place) of every record. Raise InputError where the source does not have this layout."""

    @abstractmethod
    def digest(self) -> str:
        """Return the xxh3-128 of everything in the source."""

    @abstractmethod
    def read(self, image_id: str, place: Place) -> Regions:
        """Read a record: boxes as they are written, features in any float type. Raise MalformedError."""


class FolderSource(Source):
    """A folder of files, at any depth. Raise InputError where it does not exist."""

    suffix: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder: name the folder of the {self.suffix} files")

    def records(self) -> Iterator[tuple[str, Place]]:
        return ((path.stem, path.relative_to(self.path).as_posix()) for path in self._files())

    def digest(self) -> str:
        return digest_json([[path.relative_to(self.path).as_posix(), digest_file(path)] for path in self._files()])

    def _files(self) -> list[Path]:
        return sorted(self.path.rglob(f"*{self.suffix}"))


class _Several(Source):
    """Several sources that are one corpus."""

    def __init__(self, paths: Sequence[Path], readers: Sequence[Source]) -> None:
        self.paths, self.readers = paths, readers
        self.notes = tuple(dict.fromkeys(note for reader in readers for note in reader.notes))
        self.sizes_known = all(reader.sizes_known for reader in readers)

    def records(self) -> Iterator[tuple[str, Place]]:
        for number, reader in enumerate(self.readers):
            yield from ((name, (number, place)) for name, place in reader.records())

    def digest(self) -> str:
        readers = zip(self.paths, self.readers, strict=True)
        return digest_json([[path.name, reader.digest()] for path, reader in readers])

    def read(self, image_id: str, place: Place) -> Regions:
        return self.readers[int(place[0])].read(image_id, place[1])


def find(kind: type[Source], given: Sequence[Path]) -> list[Path]:
    """Find the files or folders that `given` consists of, in order.

    Raise InputError where there is none, or where a file of a numbered set is missing. Raise ConfigError where one is
    given twice.
    """
    paths: list[Path] = []
    for path in map(_absolute, given):
        inside = [path] if path.exists() else sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        if not inside:
            raise InputError(f"{path} does not exist: correct the path")
        for one in inside:
            paths += _files(kind, one)
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ConfigError(f"{twice} is given twice: name it once")
    alone = len(paths) == 1 and paths[0] == _absolute(given[0])
    for gap in numbered.gaps(path.name for path in paths):
        if gap.says_total or not alone:  # a user who names only `train.tsv.1` may mean that file alone
            missing = f"{gap.first} is missing beside {gap.there[0]} ({gap.missing:,} missing)"
            raise InputError(f"{paths[0].parent}: {missing}: download it")
    return paths


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()  # workers may have another working folder


def _files(kind: type[Source], path: Path) -> list[Path]:
    """Return the files of this layout in a folder, or the path itself where it is one source."""
    if kind.files is None or not path.is_dir():
        return [path]
    files = [file for file in sorted(path.iterdir()) if re.search(kind.files, file.name) and file.is_file()]
    if not files:
        raise InputError(f"{path} is a folder without files of this layout ({kind.files}): name the files")
    return files


def open_source(kind: type[Source], paths: Sequence[Path]) -> Source:
    """Open all paths as one source."""
    readers = [kind(path) for path in paths]
    return readers[0] if len(readers) == 1 else _Several(paths, readers)


def corpus_name(given: Sequence[Path], paths: Sequence[Path]) -> str:
    """Return the default name of a corpus: the folder's or the file's name without the suffix.

    For several files, or a pattern, it joins the different names without suffixes and numbers.
    """
    if len(given) == 1 and _absolute(given[0]).exists():
        return _absolute(given[0]).stem
    stems = sorted({re.split(r"\.tsv|\.hdf5|\.h5|-\d+-of-\d+", path.name)[0] for path in paths})
    return "-".join(stems)


def refuse_pointer(path: Path) -> None:
    """Raise InputError where a file of a source is a Git LFS pointer."""
    if lfs.is_pointer_file(path):
        raise InputError(f"{path} is {lfs.REASON}")


def whole(path: Path) -> bytes:
    """Read the bytes of a file that is one record. Raise MalformedError where it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MalformedError(f"{path.name}: {error.strerror}") from None
    if lfs.is_pointer(data):
        raise MalformedError(f"{path.name} is {lfs.REASON}")
    return data


def npy(data: bytes, name: str) -> Any:
    """Read a .npy file, also one with pickled objects. `name` is for messages. Raise MalformedError."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = header(file)
        # An array of objects is a pickle behind the header.
        if dtype.hasobject:
            return unpickle(file.read())
        file.seek(0)
        return np.lib.format.read_array(file)
    except (ValueError, EOFError, MemoryError) as error:  # a MalformedError is a ValueError
        raise MalformedError(f"{name}: {error}") from None


def unpickle(data: bytes) -> Any:
    """Read a pickle of arrays, dictionaries, strings and numbers. Raise MalformedError for anything else."""
    try:
        return load_arrays(io.BytesIO(data))
    except BROKEN as error:
        raise MalformedError(f"{type(error).__name__}: {error}") from None


def floats(features: np.ndarray) -> np.ndarray:
    """Return features of any floating-point type as float32.

    Raise MalformedError for integers: they are quantised features, or the bits of another type.
    """
    if features.dtype.kind != "f":
        raise MalformedError(f"features are {features.dtype}, not floating-point numbers")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinity, which `checks.checked` refuses
        return features.astype(np.float32)
