"""Parsed YAML or JSON → the frozen dataclasses of `config`, or of a detector's folder.

An unknown key is an error that names the nearest known one. A value of the wrong type is an error that names the key.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from upath import UPath

from visualbert_core.config import nearest
from visualbert_core.errors import ConfigError
from visualbert_core.io.documents import brief
from visualbert_core.io.locations import Location, location

T = TypeVar("T")

_POWER = re.compile(r"[-+]?\d+e[-+]?\d+", re.ASCII)
"""A number such as 2e-5, which YAML 1.1 takes for a text because it has no point."""

_REFUSED = object()


def from_mapping(cls: type[T], values: Any, where: str, absent: Any = _REFUSED) -> T:
    """Build the dataclass `cls` from parsed YAML or JSON. Raise ConfigError beginning with `where` and the key.

    A missing key that has no default is an error too, unless `absent` is given: that value then takes its place.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected a mapping of {cls.__name__} keys, found {type(values).__name__}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {brief(key)}{nearest(str(key), fields)}")
    missing = [name for name, f in fields.items() if name not in values and _required(f)]
    if missing and absent is _REFUSED:
        raise ConfigError(f"{where}: missing key {missing[0]!r}")
    hints = typing.get_type_hints(cls)
    arguments = dict.fromkeys(missing, absent)
    arguments |= {key: _convert(hints[key], value, f"{where}: {key}") for key, value in values.items()}
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _required(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        if UPath in args:  # before the last line of this case, which would take an address for a Path
            for each in args:
                if get_origin(each) is tuple and isinstance(value, list) and value:
                    return _convert(each, value, where)
            return _location(value, where)
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where}: {brief(value)} is not one of {', '.join(map(str, args))}")
        return value
    if dataclasses.is_dataclass(hint):
        return from_mapping(typing.cast(type[Any], hint), value, where)
    if origin is tuple:
        return tuple(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(_expect(list, value, where)))
    if origin is dict:
        named = {str(k): _convert(args[1], v, f"{where}.{k}") for k, v in _expect(dict, value, where).items()}
        if len(named) < len(value):  # in YAML 1 and "1" are two keys
            raise ConfigError(f"{where}: two keys are spelt alike: {', '.join(map(brief, value))}: rename one")
        return named
    if hint is Path:
        return Path(_path(value, where)).expanduser()
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str) and _POWER.fullmatch(value):
        return float(value)
    return value if hint is Any else _expect(hint, value, where)


def _path(value: Any, where: str) -> str:
    """Return the text of a path. An empty text would name the working folder, and an empty list names none."""
    if value != [] and (text := _expect(str, value, where)).strip():
        return text
    raise ConfigError(f"{where} is empty: name a path, or leave the key out")


def _location(value: Any, where: str) -> Location:
    text = _path(value, where)
    try:
        return location(text).expanduser()
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _expect(kind: type[T], value: Any, where: str) -> T:
    # isinstance(True, int) holds, but `workers: true` is a mistake.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{where}: expected {kind.__name__}, found {brief(value)}")
    return value
