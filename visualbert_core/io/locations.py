"""Locations: the paths of files and folders on a disk or in an object store.

A location is a `pathlib.Path`, or for an address such as s3://bucket/key a `UPath` of universal-pathlib
(github.com/fsspec/universal_pathlib). Both have `/`, `name`, `stat`, `open` and `read_bytes`. `location` makes one from
a text, where a flag or a configuration is read. Object stores are reached through fsspec and its plug-ins, such as s3fs
for s3://. A plug-in reads credentials and endpoints from its own environment variables. Only this file knows the
plug-ins.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

import fsspec
from upath import UPath
from upath.implementations.cloud import CloudPath

from visualbert_core.errors import ConfigError, VisualBertCoreError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")

Location: TypeAlias = Path | UPath
"""A file or folder on a disk, or in an object store."""
Locations: TypeAlias = Location | tuple[Location, ...]
"""One location, or several where a reader joins them."""

# Only stores in which a file appears whole, after its last byte has arrived: a part must never be seen half written.
OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")

ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/(/?)")
"""The beginning of an address. The second slash may be missing, because `pathlib.Path` drops it. The protocol has two
letters at least, because C:/ is a disk."""


class ObjectPath(CloudPath):
    """A file or folder of an object store. A whole file takes one request, and every failure is an OSError."""

    __slots__ = ()

    def __new__(cls, *segments: Any, **options: Any) -> Self:
        return object.__new__(cls)  # UPath.__new__ would make the class that is registered for the protocol

    @classmethod
    def _fs_factory(cls, urlpath: str, protocol: str, storage_options: Mapping[str, Any]) -> Any:
        return _system(protocol)  # one for the process; fsspec would connect again in every thread

    def read_bytes(self) -> bytes:
        """Read the file with one GET. UPath's method would ask for the size first. Raise FileNotFoundError."""
        data: bytes = self.fs.cat_file(self.path)
        return data

    def write_bytes(self, data: bytes) -> int:
        """Write the file whole or not at all: one PUT, or one multipart upload, which shows once it is complete."""
        self.fs.pipe_file(self.path, data)
        return len(data)


def location(place: str | Location) -> Location:
    """Return the path of a name on a disk, or of an address such as s3://bucket/key.

    Raise ConfigError for an address with another protocol, and for an address that has been a `pathlib.Path`. A Path
    drops one of the slashes, so that files would go to a folder named s3: in the working folder.
    """
    if isinstance(place, ObjectPath):
        return place
    text = str(place)
    if not (found := ADDRESS.match(text)):
        return place if isinstance(place, Path) else Path(text)
    if not found[2]:
        raise ConfigError(f"{text} lacks a slash of {found[1]}://, which a pathlib.Path drops: give it as a text")
    if found[1] not in OBJECT_STORES:
        raise ConfigError(f"{found[1]}:// is not one of {', '.join(OBJECT_STORES)}: use one of them, or a folder")
    if options := getattr(place, "storage_options", None):
        named = ", ".join(options)
        raise ConfigError(f"{text}: storage options ({named}) have no effect: set the store's environment variables")
    return ObjectPath(text)


def place_names(places: Locations | None) -> str:
    """Return one location or several as a text for messages."""
    return ", ".join(map(str, places)) if isinstance(places, tuple) else str(places)


def is_address(text: str) -> bool:
    """Return whether a text is an address, of any protocol. Make no path, because there may be millions of texts."""
    return "://" in text and ADDRESS.match(text) is not None


def absolute(place: str | Location) -> Location:
    """Return a location as an absolute path, with ~ expanded. An address stays as it is."""
    return location(place).expanduser().absolute()


def absolute_paths(config: Config) -> Config:
    """Make the paths of a configuration absolute, because a worker has another working folder."""
    return replace(config, **{each.name: _absolute(getattr(config, each.name)) for each in fields(config)})


def _absolute(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_absolute, value))
    if isinstance(value, dict):  # the further tasks of a recipe
        return {name: _absolute(each) for name, each in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return absolute_paths(value)
    return absolute(value) if isinstance(value, Path) else value


class _Translated:
    """A file system, or an open file of it, whose failures are all OSErrors. Those of botocore are not, such as missing
    credentials or a lost connection."""

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
        """Open a file of the file system."""
        return _Translated(self._ask(self._inner.open, key, *args, **options), self._address + key)

    def _ask(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        try:
            return method(*args, **options)
        except OSError:
            raise
        except VisualBertCoreError:  # raised by a signal handler, while the request was waiting
            raise
        except Exception as error:  # the errors of the plug-ins' libraries have no common base class
            key = args[0] if args and isinstance(args[0], str) else ""
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OSError(f"{self._address}{key}: {reason}") from error


@lru_cache
def _system(protocol: str) -> _Translated:
    try:
        # Without a cache of listings, because another process may write a file that this one has just looked for.
        system = fsspec.filesystem(protocol, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        raise ConfigError(f"{protocol}:// cannot be read here: {error}") from error
    return _Translated(system, f"{protocol}://")
