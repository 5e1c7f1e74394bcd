"""Where a file or folder lies: on a disk, or in an object store. The only file that knows fsspec's plug-ins.

A location is a `pathlib.Path`, or for an address such as s3://bucket/key a path of universal-pathlib (`UPath`); both
have `/`, `name`, `stat`, `open` and `read_bytes`. `location` makes one of a text, where a flag or a configuration is
read. Object stores are reached through fsspec and its plug-ins (`pip install s3fs` for s3://), which read credentials
and endpoints from their own environment variables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Self, TypeAlias

import fsspec
from upath import UPath
from upath.implementations.cloud import CloudPath

from visualbert_core.errors import ConfigError, VisualBertCoreError

Location: TypeAlias = Path | UPath
"""A file or folder on a disk, or in an object store."""

# Only file systems in which a file appears whole, when its last byte has arrived.
OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")

ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/(/?)")
"""What an address begins with, also one that has been a `pathlib.Path`; two letters at least, as C:/ is a disk."""


class ObjectPath(CloudPath):
    """A file or folder of an object store. Whole files take one request, and every trouble is an OSError."""

    __slots__ = ()

    def __new__(cls, *segments: Any, **options: Any) -> Self:
        return object.__new__(cls)  # UPath's own would make it the class that is registered for the protocol

    @classmethod
    def _fs_factory(cls, urlpath: str, protocol: str, storage_options: Mapping[str, Any]) -> Any:
        return _system(protocol)  # one a process; fsspec itself would connect anew in every thread

    def read_bytes(self) -> bytes:
        """Read the file with one GET, where UPath's own asks for its size first. Raises FileNotFoundError."""
        data: bytes = self.fs.cat_file(self.path)
        return data

    def write_bytes(self, data: bytes) -> int:
        """Write the file whole or not at all: one PUT, or one multipart upload, which shows when it is complete."""
        self.fs.pipe_file(self.path, data)
        return len(data)


def location(place: str | Location) -> Location:
    """Make a path of a name on a disk or an address such as s3://bucket/key.

    Raises ConfigError for an address of another kind, or that has been a `pathlib.Path`, which drops one of its
    slashes: what is written there would go to a folder called s3: of the working folder."""
    if isinstance(place, ObjectPath):
        return place
    text = str(place)
    if not (found := ADDRESS.match(text)):
        return place if isinstance(place, Path) else Path(text)
    if not found[2]:
        raise ConfigError(f"{text} lacks a slash of {found[1]}://, as a pathlib.Path drops one: give it as a text")
    if found[1] not in OBJECT_STORES:
        raise ConfigError(f"{found[1]}:// is none of {', '.join(OBJECT_STORES)}: use one of them, or a folder")
    if options := getattr(place, "storage_options", None):
        named = ", ".join(options)
        raise ConfigError(f"{text}: options ({named}) are not carried: set the store's environment variables")
    return ObjectPath(text)


def is_address(text: str) -> bool:
    """Say whether a text is an address, of any kind; makes no path, as there may be millions of texts."""
    return "://" in text and ADDRESS.match(text) is not None


def absolute(place: str | Location) -> Location:
    """Make a location for whoever stands elsewhere, ~ being the home folder; an address is the same everywhere."""
    return location(place).expanduser().absolute()


class _Translated:
    """A file system, or a file of it, all of whose troubles are OSErrors. botocore's are not: no credentials, no
    connection."""

    def __init__(self, inner: Any, address: str) -> None:
        self._inner, self._address = inner, address

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ask(self._inner.close)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return partial(self._ask, found) if callable(found) else found

    def open(self, key: str, *args: Any, **options: Any) -> _Translated:
        """A file of the file system."""
        return _Translated(self._ask(self._inner.open, key, *args, **options), self._address + key)

    def _ask(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        try:
            return method(*args, **options)
        except OSError:
            raise
        except VisualBertCoreError:  # a signal's
            raise
        except Exception as error:  # the plug-ins' libraries have no common base
            key = args[0] if args and isinstance(args[0], str) else ""
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OSError(f"{self._address}{key}: {reason}") from error


@lru_cache
def _system(protocol: str) -> _Translated:
    try:
        # Another process may write what this one has just looked for.
        system = fsspec.filesystem(protocol, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        raise ConfigError(f"{protocol}:// cannot be read here: {error}") from error
    return _Translated(system, f"{protocol}://")
