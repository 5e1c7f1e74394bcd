"""Read TSV files whose fields are arrays in base64: bottom-up attention's and LXMERT's.

Owns the fields of these two layouts: tools/generate_tsv.py of peteanderson80/bottom-up-attention, and airsplay/lxmert.
"""

from __future__ import annotations

import base64
import binascii
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import xxhash

from visualbert_core.errors import InputError
from visualbert_core.features.importers.sources import MalformedError, Place, Source, refuse_pointer
from visualbert_core.provenance import digest_file
from visualbert_core.schema import Regions


class TsvSource(Source):
    """Read a TSV: first all of it for ids and offsets, and then single lines by offset."""

    files = r"\.tsv(\.\d+)?$"
    fields: ClassVar[tuple[str, ...]]

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._digest: str | None = None
        if not path.is_file():
            raise InputError(f"{path} is not a file: name a .tsv file")
        refuse_pointer(path)

    def records(self) -> Iterator[tuple[str, Place]]:
        state, offset = xxhash.xxh3_128(), 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                state.update(line)
                # Some editors write a byte order mark, which is not a part of the first id.
                mark = len(BOM_UTF8) if number == 1 and line.startswith(BOM_UTF8) else 0
                if line[mark:].strip():
                    name, tab, _ = line[mark:].partition(b"\t")
                    yield (_id(name) if tab else None) or f"line {number}", (offset + mark, len(line) - mark)
                offset += len(line)
        self._digest = state.hexdigest()  # saves `digest` a second reading

    def digest(self) -> str:
        return self._digest or digest_file(self.path)

    def read(self, image_id: str, place: Place) -> Regions:
        with self.path.open("rb") as file:
            file.seek(int(place[0]))
            values = file.read(int(place[1])).rstrip(b"\r\n").split(b"\t")
        if len(values) != len(self.fields):
            raise MalformedError(f"{len(values)} fields instead of {len(self.fields)}")
        if _id(values[0]) is None:
            raise MalformedError(f"{values[0][:40]!r} is not an image id in UTF-8")
        record = dict(zip(self.fields, values, strict=True))
        count = _int(record, "num_boxes")
        features = _base64(record, "features", "<f4")
        if count < 1 or len(features) % count:
            raise MalformedError(f"{len(features)} feature values for {count} boxes")
        objects = "objects_id" in record
        return Regions(
            image_id=image_id,
            width=_int(record, "image_w" if "image_w" in record else "img_w"),
            height=_int(record, "image_h" if "image_h" in record else "img_h"),
            boxes=_shaped(_base64(record, "boxes", "<f4"), count),
            labels=_base64(record, "objects_id", "<i8") if objects else np.full(count, -1),
            scores=_base64(record, "objects_conf", "<f4") if objects else np.full(count, np.nan),
            features=features.reshape(count, -1),
            image_digest="",
            attributes=_base64(record, "attrs_id", "<i8") if objects else None,
            attribute_scores=_base64(record, "attrs_conf", "<f4") if objects else None,
        )


class BuaTsv(TsvSource):
    fields = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")


class LxmertTsv(TsvSource):
    fields = (
        *("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf"),
        *("num_boxes", "boxes", "features"),
    )


def _id(name: bytes) -> str | None:
    """Return the id that a field holds, or None where the field is empty, padded with spaces or not UTF-8."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return None
    return text if text and text.strip() == text else None


def _shaped(boxes: np.ndarray, count: int) -> np.ndarray:
    if len(boxes) != count * 4:
        like = {count * 2: ": float16?", count * 8: ": float64?"}.get(len(boxes), "")
        raise MalformedError(f"{len(boxes)} box values for {count} boxes{like}")
    return boxes.reshape(count, 4)


def _int(record: Mapping[str, bytes], name: str) -> int:
    try:
        return int(record[name])
    except ValueError:
        raise MalformedError(f"{name} is not a whole number: {record[name][:20]!r}") from None


def _base64(record: Mapping[str, bytes], name: str, dtype: str) -> np.ndarray:
    try:
        return np.frombuffer(base64.b64decode(record[name], validate=True), dtype)
    except (binascii.Error, ValueError) as error:
        raise MalformedError(f"{name}: {error}") from None
