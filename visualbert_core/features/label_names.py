"""What a store's labels and attributes are called: `names.json` beside its manifest.

A name changes no feature. So names are no part of the fingerprint, of a part or of the manifest, whose bytes stay what
they were: a store from before they were kept opens without any and gets them when the same line is run again, and an
older version neither sees the file nor removes it. It carries its own hash and the fingerprint of its store, so one
that is damaged or another store's is found by itself. Without it, labels are numbers and nothing else changes.
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
    """The name of a label or attribute, or else its number in decimals (-1: the store does not know it)."""
    return names[number] if 0 <= number < len(names) else str(number)


def write(store: Location, fingerprint: Mapping[str, Any], names: LabelNames) -> None:
    """Leave `names` in the folder of a store, finished or not, in place of others; empty ones leave what is there.

    Drivers that run at once write the same bytes. Where they have renamed a label in between, the last one's stand.
    """
    if names != LabelNames():
        publish(store / FILE, _encoded(fingerprint, names))


def read(store: Location, fingerprint: Mapping[str, Any]) -> LabelNames:
    """The names in the folder of a store; empty where there are none. Raises StoreError for a damaged file."""
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
    if data != _encoded(fingerprint, names):
        raise StoreError(f"{path} is damaged or another store's: delete it and run the line again that wrote it")
    return names


def _encoded(fingerprint: Mapping[str, Any], names: LabelNames) -> bytes:
    record = {"fingerprint": digest_json(fingerprint), **asdict(names)}
    return json.dumps({**record, "xxh3_128": digest_json(record)}, indent=1, sort_keys=True).encode()
