"""Features that others have extracted → feature store, by the same shards and markers as an extraction.

Owns the four layouts in which region features of VisualBERT's kind lie about, and what counts as malformed:

- `bua-tsv`    rows of tools/generate_tsv.py of peteanderson80/bottom-up-attention: base64 float32, no header
- `lxmert-tsv` rows of airsplay/lxmert (obj36): the same with objects and attributes
- `mmf-npy`    a folder of NAME.npy and NAME_info.npy, written by facebookresearch/mmf's extract_features_*.py
- `mmf-lmdb`   mmf's lmdb_conversion.py of such a folder

What made the features cannot be known, so the fingerprint says "imported, unverified", names the layout and the digest
of the source, and takes the name of the space from whoever imports. Boxes are taken as pixels of the original image,
as all four write them; an unknown label is -1, an unknown score NaN, an unknown image digest "". A row that cannot be
read is a failure with the reason. Pickles may hold arrays and nothing else (`pickles.py`).
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash

from visualbert_core import storage
from visualbert_core.cluster import Pool
from visualbert_core.config import folder_name
from visualbert_core.errors import ConfigError, InputError
from visualbert_core.features.store import FeatureStore, encode, encode_failures, store_folder, to_half
from visualbert_core.pickles import BROKEN, load_arrays
from visualbert_core.provenance import digest_file, digest_json
from visualbert_core.schema import SCHEMA_VERSION, Failure, Regions
from visualbert_core.shards import Marker, Part, Shard, ShardFolder, plan, publish

INGREDIENT = "features"

SHARD = 1024  # images

Place = tuple[int, int] | str
"""Where a record lies in its source: bytes (offset, length) of a TSV, the path below a folder, the key in an LMDB."""


class MalformedError(ValueError):
    """A record that cannot be read; the message is the reason."""


class Source(Protocol):
    """A file or folder of features."""

    def records(self) -> Iterator[tuple[str, Place]]:
        """(id, place) of every record. Raises InputError where the source is not of this layout."""

    def digest(self) -> str:
        """xxh3-128 of everything in it."""

    def read(self, image_id: str, place: Place) -> Regions:
        """One record, features in any float type. Raises MalformedError."""


@dataclass(frozen=True)
class RecordShard(Shard):
    """A shard of records that knows where they lie; `places` are in the order of `items`, several where an id comes
    several times."""

    places: tuple[tuple[Place, ...], ...]


def import_features(
    kind: str, source: Path, out: Path, space: str, pool: Pool, corpus: str | None = None, ids: str = "{}"
) -> FeatureStore:
    """Fill `<out>/<corpus>/<fingerprint>/` with the features of `source` and open it; the same line again resumes.

    `kind` is one of `KINDS`, `space` the name that checkpoints are matched with, `corpus` by default the name of the
    source. `ids` makes image ids of the source's own: `COCO_val2014_{:0>12}` for bare COCO numbers. Reads the source
    once to name it and once to convert it.

    Raises InputError for a source that is empty or not of this kind, ShardError where a shard could not be written,
    CoverageError where every record is malformed.
    """
    if kind not in KINDS:
        raise ConfigError(f"{kind!r} is none of {', '.join(KINDS)}")
    source, out = storage.absolute(source), storage.absolute(out)  # workers may stand elsewhere
    corpus = source.stem if corpus is None else folder_name(corpus)
    if not source.exists():
        raise InputError(f"{source} does not exist")
    reader = KINDS[kind](source)
    places: dict[str, tuple[Place, ...]] = {}
    names: dict[str, str] = {}
    for name, place in reader.records():
        image_id = _named(name, ids)
        if (first := names.setdefault(image_id, name)) != name:
            both = f"{first!r} and {name!r}"
            raise ConfigError(f"{ids!r} makes {image_id!r} of {both}: write {{}} where the source's id is to stand")
        places[image_id] = (*places.get(image_id, ()), place)
    fingerprint = {
        "imported": "unverified",
        "kind": kind,
        "source": reader.digest(),
        "ids": ids,
        "space": space,
        "feature_size": _feature_size(reader, places, source),
    }
    folder = ShardFolder(store_folder(out, corpus, fingerprint))
    publish(folder.root / "fingerprint.json", json.dumps(fingerprint, indent=1, sort_keys=True).encode())
    shards = [
        RecordShard(shard.shard_id, shard.items, tuple(places[item] for item in shard.items))
        for shard in plan(list(places), f"{SCHEMA_VERSION}:{digest_json(fingerprint)}", SHARD)
    ]
    make_worker = partial(ImportWorker, kind, source, folder.root, fingerprint)
    pool.run(make_worker, folder.pending(shards), f"import of {source.name}")
    folder.finish(shards, {"corpus": corpus, "fingerprint": fingerprint})
    return FeatureStore.open_made(folder.root)


def _named(name: str, ids: str) -> str:
    try:
        return ids.format(name)
    except (ValueError, LookupError, AttributeError) as error:
        raise ConfigError(f"{ids!r} does not make an image id of {name!r}: {error}") from error


def _feature_size(reader: Source, places: Mapping[str, tuple[Place, ...]], source: Path) -> int:
    """D of the first record, by id, that can be read."""
    reason = "it holds no record"
    for image_id in sorted(places):
        try:
            return int(reader.read(image_id, places[image_id][0]).features.shape[1])
        except MalformedError as error:
            reason = f"no record can be read, {image_id!r}: {error}"
    raise InputError(f"{source}: {reason}")


class ImportWorker:
    """Turns shards of records into committed parts."""

    def __init__(self, kind: str, source: Path, store: Path, fingerprint: dict[str, Any]) -> None:
        self.reader = KINDS[kind](source)
        self.folder = ShardFolder(store)
        self.fingerprint = fingerprint

    def run(self, shard: RecordShard) -> Marker:
        """Convert and commit one shard."""
        lost = shard.lost()
        records = zip(shard.items, shard.places, strict=True)
        outcomes = [lost.get(image_id) or self._row(image_id, places) for image_id, places in records]
        rows = [row for row in outcomes if isinstance(row, Regions)]
        failures = [failure for failure in outcomes if isinstance(failure, Failure)]
        part = Part(encode(rows, self.fingerprint), len(rows), encode_failures(failures), len(failures))
        return self.folder.commit(shard, part)

    def _row(self, image_id: str, places: tuple[Place, ...]) -> Regions | Failure:
        try:
            rows = [_checked(self.reader.read(image_id, place), self.fingerprint["feature_size"]) for place in places]
            # A resumed extraction may have written an image twice; only equal rows are one.
            if len({row.features.tobytes() + row.boxes.tobytes() for row in rows}) > 1:
                raise MalformedError(f"{len(rows)} records of this id, and they differ")
        except MalformedError as error:
            return Failure(image_id, "decode", "Malformed", str(error))
        return rows[0]


def _checked(row: Regions, feature_size: int) -> Regions:
    """The row with its features as float16; the store has its own types for the rest. Raises MalformedError."""
    count = len(row.boxes)
    expected = {"boxes": (count, 4), "labels": (count,), "scores": (count,), "features": (count, feature_size)}
    if row.attributes is not None:
        expected |= {"attributes": (count,), "attribute_scores": (count,)}
    for name, shape in expected.items():
        if (found := getattr(row, name).shape) != shape:
            raise MalformedError(f"{name} have shape {found}, not {shape}")
    if not (np.isfinite(row.boxes).all() and np.isfinite(row.features).all()):
        raise MalformedError("boxes or features hold NaN or infinity")
    if count > np.iinfo(np.int16).max or row.width < 1 or row.height < 1:
        raise MalformedError(f"{count} regions in an image of {row.width} × {row.height}")
    for kind, values in (("label", row.labels), ("attribute", row.attributes)):
        if count and values is not None and not -1 <= values.min() <= values.max() <= np.iinfo(np.int16).max:
            raise MalformedError(f"{kind} {values.max()} is out of range")
    return replace(row, features=to_half(row.features))


# ---------------------------------------------------------------------------------------------------------------------
# TSV

_BUA = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
_LXMERT = (
    *("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf"),
    *("num_boxes", "boxes", "features"),
)


class TsvSource:
    """Lines of tab-separated fields whose arrays are base64. Read once through for ids and offsets, then by offset."""

    def __init__(self, path: Path, fields: tuple[str, ...]) -> None:
        self.path = path
        self.fields = fields
        self._digest: str | None = None
        if not path.is_file():
            raise InputError(f"{path} is not a file")

    def records(self) -> Iterator[tuple[str, Place]]:
        state, offset = xxhash.xxh3_128(), 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                state.update(line)
                mark = len(BOM_UTF8) if number == 1 and line.startswith(BOM_UTF8) else 0
                if line[mark:].strip():
                    name, tab, _ = line[mark:].partition(b"\t")
                    yield (_id(name) if tab else None) or f"line {number}", (offset + mark, len(line) - mark)
                offset += len(line)
        self._digest = state.hexdigest()

    def digest(self) -> str:
        return self._digest or digest_file(self.path)

    def read(self, image_id: str, place: Place) -> Regions:
        assert isinstance(place, tuple)
        with self.path.open("rb") as file:
            file.seek(place[0])
            values = file.read(place[1]).rstrip(b"\r\n").split(b"\t")
        if len(values) != len(self.fields):
            raise MalformedError(f"{len(values)} fields instead of {len(self.fields)}")
        if _id(values[0]) is None:
            raise MalformedError(f"{values[0][:40]!r} is no image id in UTF-8")
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


def _id(name: bytes) -> str | None:
    """The id that a field holds; None where it is none."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return None
    return text if text and text.strip() == text else None


def _shaped(boxes: np.ndarray, count: int) -> np.ndarray:
    if len(boxes) != count * 4:
        raise MalformedError(f"{len(boxes)} box values for {count} boxes")
    return boxes.reshape(count, 4)


def _int(record: Mapping[str, bytes], name: str) -> int:
    try:
        return int(record[name])
    except ValueError:
        raise MalformedError(f"{name} is no number: {record[name][:20]!r}") from None


def _base64(record: Mapping[str, bytes], name: str, dtype: str) -> np.ndarray:
    try:
        return np.frombuffer(base64.b64decode(record[name], validate=True), dtype)
    except (binascii.Error, ValueError) as error:
        raise MalformedError(f"{name}: {error}") from None


# ---------------------------------------------------------------------------------------------------------------------
# MMF


class NpySource:
    """NAME.npy and NAME_info.npy, at any depth."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder")

    def records(self) -> Iterator[tuple[str, Place]]:
        for path in sorted(self.folder.rglob("*.npy")):
            if not path.stem.endswith("_info"):
                yield path.stem, path.relative_to(self.folder).as_posix()

    def digest(self) -> str:
        files = sorted(self.folder.rglob("*.npy"))
        return digest_json([[path.relative_to(self.folder).as_posix(), digest_file(path)] for path in files])

    def read(self, image_id: str, place: Place) -> Regions:
        path = self.folder / str(place)
        info = path.with_name(f"{path.stem}_info.npy")
        if not info.exists():
            raise MalformedError(f"{info.name} is missing")
        return _mmf(image_id, _npy(path), _npy(info))


class LmdbSource:
    """An LMDB of pickled records, with the list of its keys under `keys`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def records(self) -> Iterator[tuple[str, Place]]:
        with _environment(self.path).begin() as transaction:
            for key in transaction.cursor().iternext(values=False):
                name = bytes(key).decode(errors="backslashreplace")
                if name != "keys":
                    yield name.rpartition("/")[2], bytes(key).hex()

    def digest(self) -> str:
        return digest_file(self.path / "data.mdb" if self.path.is_dir() else self.path)

    def read(self, image_id: str, place: Place) -> Regions:
        with _environment(self.path).begin() as transaction:
            record = _unpickle(transaction.get(bytes.fromhex(str(place))))
        if not isinstance(record, dict) or "features" not in record:
            raise MalformedError("it is no record of features")
        return _mmf(image_id, record["features"], record)


@lru_cache
def _environment(path: Path) -> Any:
    """An open LMDB; a process may open each only once."""
    try:
        import lmdb
    except ImportError as error:
        raise ConfigError("an LMDB needs the lmdb package: pip install lmdb") from error
    try:
        return lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise InputError(f"{path} is not an LMDB: {error}") from error


def _mmf(image_id: str, features: Any, info: Any) -> Regions:
    """`cls_prob` is [R, classes] from extract_features_vmb.py and [R] from extract_features_frcnn.py."""
    if isinstance(info, np.ndarray) and info.shape == ():
        info = info.item()
    if not isinstance(info, dict) or not isinstance(features, np.ndarray) or features.ndim != 2:
        raise MalformedError("features of [R, D] and a dictionary beside them are expected")
    try:
        boxes = np.asarray(info["bbox"], np.float32)
        labels, scores = info.get("objects"), info.get("cls_prob")
        labels = np.full(len(boxes), -1) if labels is None else np.asarray(labels, np.int64)
        scores = np.full(len(boxes), np.nan) if scores is None else np.asarray(scores, np.float32)
        width, height = int(info["image_width"]), int(info["image_height"])
        features = features.astype(np.float32)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise MalformedError(f"{type(error).__name__}: {error}") from None
    if scores.ndim == 2:
        scores = scores.max(axis=1, initial=0.0)
    return Regions(image_id, width, height, boxes, labels, scores, features, "")


def _npy(path: Path) -> Any:
    """A .npy file, pickled objects included."""
    data = io.BytesIO(path.read_bytes())
    try:
        version = np.lib.format.read_magic(data)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = header(data)
        if dtype.hasobject:
            return _unpickle(data.read())
        data.seek(0)
        return np.lib.format.read_array(data)
    except (ValueError, EOFError, MemoryError) as error:
        raise MalformedError(f"{path.name}: {error}") from None


def _unpickle(data: bytes) -> Any:
    try:
        return load_arrays(io.BytesIO(data))
    except BROKEN as error:
        raise MalformedError(f"{type(error).__name__}: {error}") from None


KINDS: dict[str, Any] = {
    "bua-tsv": partial(TsvSource, fields=_BUA),
    "lxmert-tsv": partial(TsvSource, fields=_LXMERT),
    "mmf-npy": NpySource,
    "mmf-lmdb": LmdbSource,
}
