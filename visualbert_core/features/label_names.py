"""The names of a store's labels and attributes.

Owns the file `names.json` beside the manifest. A name changes no feature, so names are not in the fingerprint, the
parts or the manifest. A store without names can therefore get them later, when the same line is run again. The file has
its own hash and the fingerprint of its store, so a damaged file and a file of a different store are found without the
manifest. Without the file, labels are numbers, and nothing else changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from visualbert_core.engine.shards import publish
from visualbert_core.errors import StoreError
from visualbert_core.io.locations import Location
from visualbert_core.provenance import digest_json
from visualbert_core.schema import LabelNames

FILE = "names.json"


def label_name(number: int, names: Sequence[str]) -> str:
    """Return the name of a label or an attribute, or its number in decimals where it has no name.

    The number -1 means that the store does not know the label.
    """
    return names[number] if 0 <= number < len(names) else str(number)


def write(store: Location, fingerprint: Mapping[str, Any], names: LabelNames) -> None:
    """Write `names` into the folder of a store, finished or not. They replace earlier names.

    Empty names write nothing, so earlier names stay. Drivers that run at the same time write the same bytes; where
    their names differ, the last driver's names stay.
    """
    if names != LabelNames():
        publish(store / FILE, _encoded(fingerprint, names))


def read(store: Location, fingerprint: Mapping[str, Any]) -> LabelNames:
    """Read the names in the folder of a store. Return empty names where there is no file.

    Raise StoreError where the file is damaged or belongs to a different store.
    """
    path = store / FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return LabelNames()
    try:
        record = json.loads(data)
        names = LabelNames(tuple(record["labels"]), tuple(record["attributes"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        names = LabelNames()
    # Encoding is deterministic, so equal bytes mean that the hash and the fingerprint fit.
    if data != _encoded(fingerprint, names):
        raise StoreError(f"{path} is damaged or of a different store: delete it and run the line again that wrote it")
    return names


def _encoded(fingerprint: Mapping[str, Any], names: LabelNames) -> bytes:
    """Return the bytes of the file for a store with this fingerprint."""
    record = {"fingerprint": digest_json(fingerprint), **asdict(names)}
    return json.dumps({**record, "xxh3_128": digest_json(record)}, indent=1, sort_keys=True).encode()
