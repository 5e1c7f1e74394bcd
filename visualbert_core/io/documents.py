"""The strict reader of JSON and YAML: configurations, `config.json`, sidecars, indices, run documents.

The formats (RFC 8259, YAML 1.1) and the libraries that read them accept more than a file can mean. A key that stands
twice loses one value in silence. NaN passes every range check. A file of brackets overflows the stack, and a few YAML
aliases fill the memory. Here each of these is an error of one line, which names the key. For a key that stands twice it
names both lines.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

from visualbert_core.errors import ConfigError, InputError
from visualbert_core.io import lfs

DEEPEST = 64
"""The greatest depth of nested lists and mappings."""
LARGEST = 2**63
"""Integers are smaller than this in magnitude: they must fit into 64 bits."""

_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")

_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 120
_BRIEF.maxlevel, _BRIEF.maxlong = 2, 40


def brief(value: object) -> str:
    """Return a value of a file as an error message quotes it: on one line, and short for a large value too."""
    return _BRIEF.repr(value)


def read_json(path: Path, error: type[InputError] = ConfigError) -> Any:
    """Read and parse a file. Raise `error` with the path, and the line or key, where it is missing or not strict
    JSON."""
    data = _read(path, error)
    try:
        return parse_json(data)
    except ValueError as reason:
        raise error(f"{path}: {reason}") from None


def parse_json(data: bytes | str) -> Any:
    """Return the value of a JSON text. Raise ValueError, with a message of one line, where it is not strict JSON."""
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_without_repetition, parse_constant=_no_number)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not valid JSON: {error}") from None
    except RecursionError:
        raise ValueError(_too_deep()) from None
    except _RepeatedKeyError as error:
        raise ValueError(_repetition(text, str(error))) from None
    except ValueError as error:  # Python refuses to convert an integer of thousands of digits (CVE-2020-10735)
        raise ValueError(f"not valid JSON: {_reason(error)}") from None
    _check(value)
    return value


def read_yaml(path: Path) -> Any:
    """Read and parse a file. Raise ConfigError with the path, and the line or key, where it is missing or not strict
    YAML."""
    data = _read(path, ConfigError)
    try:
        value = _parse_yaml(data.decode("utf-8"))
        _check(value)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{path}: {_too_deep()}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    return value


def _read(path: Path, error: type[InputError]) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as reason:
        raise error(f"{path}: {reason.strerror}") from reason
    except ValueError as reason:  # the name holds a NUL
        raise error(f"{str(path)!r}: {reason}") from None
    if lfs.is_pointer(data):
        raise error(f"{path}: {lfs.REASON}")
    return data


# ---------------------------------------------------------------------------------------------------------------------
# keys that stand twice


class _RepeatedKeyError(Exception):
    """A key stands twice in a JSON object. The text of the error is the key."""


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _RepeatedKeyError(next(key for place, (key, _) in enumerate(pairs) if key in dict(pairs[:place])))
    return found


def _repetition(text: str, key: str) -> str:
    """Return the error message for a JSON key that stands twice.

    The json module does not give the lines of keys. The YAML reader does, and it reads nearly every JSON text.
    """
    try:
        _parse_yaml(text)
    except ValueError as error:
        return str(error)
    except (yaml.YAMLError, RecursionError):
        pass
    return f"the key {brief(key)} stands twice in one object: keep one"


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's loader of plain values, with two further checks.

    A scalar that Python cannot convert is an error with its line: a 13th month, an integer of a million digits.
    Brackets that are nested too deep are an error at once, because PyYAML needs minutes for thousands of them.
    """

    def fetch_flow_collection_start(self, TokenClass: type[yaml.Token]) -> None:
        if self.flow_level > DEEPEST:
            raise ValueError(_too_deep())
        super().fetch_flow_collection_start(TokenClass)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except RecursionError:
            raise
        except (ValueError, OverflowError) as error:
            raise yaml.constructor.ConstructorError(None, None, _reason(error), node.start_mark) from None


def _parse_yaml(text: str) -> Any:
    loader = _StrictLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_nodes(loader, node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_nodes(loader: _StrictLoader, root: yaml.Node) -> None:
    """Raise ValueError naming key and lines of a key that stands twice in a mapping, or of a number in another base.

    A mapping may repeat a key that `<<` merges into it: it then overrides the merged value.
    """
    waiting: list[tuple[str, yaml.Node]] = [("", root)]
    seen: set[int] = set()  # ids of nodes; an alias is the same node object as its anchor
    while waiting:
        place, node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            _refuse_base(loader, place, node)
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(f"{place}[{number}]", each) for number, each in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            waiting += _keys_of(loader, place, node)


def _keys_of(loader: _StrictLoader, place: str, mapping: yaml.MappingNode) -> Iterator[tuple[str, yaml.Node]]:
    """Yield every value of a mapping, and every key that is a scalar, with the path of the key."""
    lines: dict[Hashable, int] = {}
    for key, value in mapping.value:
        inside = _joined(place, key.value if isinstance(key, yaml.ScalarNode) else "?")
        yield inside, value
        if isinstance(key, yaml.ScalarNode):
            yield inside, key
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        name, line = loader.construct_object(key, deep=True), key.start_mark.line + 1
        if not isinstance(name, Hashable):
            continue  # a list as a key: the loader reports it later
        if name in lines:
            first = lines[name]
            where = f"twice in line {line}" if first == line else f"in line {first} and again in line {line}"
            raise ValueError(f"{inside}: the key stands {where}: keep one")
        lines[name] = line


def _joined(place: str, key: object) -> str:
    return f"{place}.{key}" if place else str(key)


# ---------------------------------------------------------------------------------------------------------------------
# values that cannot be meant


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _refuse_base(loader: _StrictLoader, place: str, node: yaml.ScalarNode) -> None:
    """Raise ValueError for a number that looks decimal, or like a time or a ratio, and that YAML 1.1 reads in another
    base: it reads `1:30` as 90 and `010` as 8. The prefixes `0x` and `0b` are clear, so they are allowed."""
    if node.tag not in _NUMBERS:
        return
    value, text = loader.construct_object(node), node.value.replace("_", "")
    base = 60 if ":" in text else 8 if re.fullmatch(r"[-+]?0[0-7]+", text) and int(text) != value else None
    if base is not None:
        where = f"YAML reads {node.value} in line {node.start_mark.line + 1} as {value} (base {base})"
        raise ValueError(f"{place}: {where}: write the number in base 10, or put it in quotes")


def _check(value: Any) -> None:
    """Raise ValueError naming the key of a number that is NaN, infinite or too large, or of a surrogate in a text."""
    for place, each in _walk(value):
        wrong = _wrong(each)
        if wrong:
            raise ValueError(f"{place}: {wrong}" if place else wrong)


def _wrong(value: object) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number"
    if isinstance(value, int) and abs(value) >= LARGEST:
        return f"an integer of {int(value.bit_length() * math.log10(2)) + 1:,} digits does not fit into 64 bits"
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        return f"{value!a} holds half a character"
    return None


def _walk(root: Any) -> Iterator[tuple[str, Any]]:
    """Yield every value with its key. Visit each container once, also where several aliases name it.

    Raise ValueError where containers are nested too deep.
    """
    waiting: list[tuple[str, Any, int]] = [("", root, 0)]
    seen: set[int] = set()
    while waiting:
        place, value, depth = waiting.pop()
        yield place, value
        if not isinstance(value, dict | list) or id(value) in seen:
            continue
        seen.add(id(value))
        if depth == DEEPEST:
            raise ValueError(_too_deep())
        if isinstance(value, dict):
            for key, each in value.items():
                yield place, key
                waiting.append((_joined(place, key), each, depth + 1))
        else:
            waiting += [(f"{place}[{number}]", each, depth + 1) for number, each in enumerate(value)]


def _too_deep() -> str:
    return f"lists or mappings are nested more than {DEEPEST} deep"


def _reason(error: Exception) -> str:
    if "integer string conversion" in str(error):
        return "an integer of thousands of digits"
    return " ".join(str(error).split())
