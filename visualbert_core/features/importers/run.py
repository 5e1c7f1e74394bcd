"""Run an import: read a source of a known kind and fill a feature store, shard by shard.

Owns the kinds, the fingerprint of an import, and the choice between several records of one image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from visualbert_core.config import folder_name
from visualbert_core.engine.pool import Pool
from visualbert_core.engine.shards import Marker, Shard, ShardFolder, plan, publish
from visualbert_core.errors import ConfigError
from visualbert_core.features.importers.checks import Expected, checked, look
from visualbert_core.features.importers.hdf5 import Hdf5Source
from visualbert_core.features.importers.milvlg import NpzSource
from visualbert_core.features.importers.mmf import LmdbSource, NpySource
from visualbert_core.features.importers.sources import MalformedError, Place, Source, corpus_name, find, open_source
from visualbert_core.features.importers.tsv import BuaTsv, LxmertTsv
from visualbert_core.features.parts import Outcome, encode_outcomes
from visualbert_core.features.store import FeatureStore, store_folder
from visualbert_core.io.locations import Location, absolute
from visualbert_core.metrics.boxes import CONVENTIONS
from visualbert_core.provenance import digest_json
from visualbert_core.schema import SCHEMA_VERSION, Failure, Regions

SHARD = 1024  # images

KINDS: dict[str, type[Source]] = {
    "bua-tsv": BuaTsv,
    "lxmert-tsv": LxmertTsv,
    "mmf-npy": NpySource,
    "mmf-lmdb": LmdbSource,
    "milvlg-npz": NpzSource,
    "bua-hdf5": Hdf5Source,
}


@dataclass(frozen=True)
class Imported:
    """The result of an import."""

    store: FeatureStore
    torn: tuple[Failure, ...]
    """Records that cannot be read, of images that also have an intact record, which is in the store."""
    notes: tuple[str, ...]
    """What the source does not say, or what looks odd in it, one line each."""


@dataclass(frozen=True)
class RecordShard(Shard):
    """A shard of records with their places, in the order of `items`. An id with several records has several places."""

    places: tuple[tuple[Place, ...], ...]


def import_features(
    kind: str,
    source: Path | Sequence[Path],
    out: str | Location,
    space: str,
    pool: Pool,
    corpus: str | None = None,
    ids: str = "{}",
    boxes: str = "xyxy",
) -> Imported:
    """Fill `<out>/<corpus>/<fingerprint>/` with the features of `source`, and open it as a store.

    `kind` is one of `KINDS`. `source` is a file or a folder, several of them, or a pattern. `space` is the feature
    space that checkpoints are matched with. `corpus` is by default the name of the source. `ids` is a format that turns
    the source's ids into image ids: `COCO_val2014_{:0>12}` for bare COCO numbers. `boxes` is the convention of the
    source's boxes, one of `metrics.boxes.CONVENTIONS`. The source is read once for its digest and once to convert it.
    Running the same line again resumes the work.

    Raise ConfigError where an argument is unknown or does not fit the source. Raise InputError where the source is
    empty, or contradicts its kind, space or convention. Raise ShardError where a shard cannot be written, CoverageError
    where every record is malformed.
    """
    for value, known in ((kind, KINDS), (boxes, CONVENTIONS)):
        if value not in known:
            raise ConfigError(f"{value!r} is none of {', '.join(known)}: name one of these")
    given = [source] if isinstance(source, Path) else list(source)
    paths = find(KINDS[kind], given)
    corpus = corpus_name(given, paths) if corpus is None else folder_name(corpus)
    name = ", ".join(map(str, given))
    reader = open_source(KINDS[kind], paths)
    places = _places(reader, ids)
    expected, remarks = look(reader, places, name, space, boxes)
    places, torn = _without_torn(reader, places, expected)
    fingerprint = {
        "imported": "unverified",
        "kind": kind,
        "source": reader.digest(),
        "ids": ids,
        "space": space,
        "feature_size": expected.feature_size,
    }
    # The default convention is left out, so that stores from before there was a choice keep their folders.
    fingerprint |= {"boxes": boxes} if boxes != "xyxy" else {}
    fingerprint |= {"notes": list(reader.notes)} if reader.notes else {}
    folder = ShardFolder(store_folder(absolute(out), corpus, fingerprint))
    publish(folder.root / "fingerprint.json", json.dumps(fingerprint, indent=1, sort_keys=True).encode())
    shards = [
        RecordShard(shard.shard_id, shard.items, tuple(places[item] for item in shard.items))
        for shard in plan(list(places), f"{SCHEMA_VERSION}:{digest_json(fingerprint)}", SHARD)
    ]
    make_worker = partial(ImportWorker, kind, paths, folder.root, fingerprint, expected)
    pool.run(make_worker, folder.pending(shards), f"import of {corpus}")
    folder.finish(shards, {"corpus": corpus, "fingerprint": fingerprint})
    return Imported(FeatureStore.open_made(folder.root), torn, (*reader.notes, *remarks))


def _places(reader: Source, ids: str) -> dict[str, tuple[Place, ...]]:
    """Return the places of each image's records. Raise ConfigError where `ids` gives two ids of the source one name."""
    places: dict[str, tuple[Place, ...]] = {}
    names: dict[str, str] = {}
    for name, place in reader.records():
        image_id = _named(name, ids)
        if (first := names.setdefault(image_id, name)) != name:
            both = f"{first!r} and {name!r}"
            raise ConfigError(f"{ids!r} makes {image_id!r} of {both}: write {{}} in the place of the source's id")
        places[image_id] = (*places.get(image_id, ()), place)
    return places


def _named(name: str, ids: str) -> str:
    try:
        return ids.format(name)
    except (ValueError, LookupError, AttributeError) as error:
        raise ConfigError(f"{ids!r} does not make an image id of {name!r} ({error}): correct --ids") from error


def _without_torn(
    reader: Source, places: Mapping[str, tuple[Place, ...]], expected: Expected
) -> tuple[dict[str, tuple[Place, ...]], tuple[Failure, ...]]:
    """Drop the torn records of images that also have an intact one. Return the places to keep, and the failures.

    An extraction that was killed and resumed leaves a torn row and writes the image again; bottom-up attention's
    published TSV of test2014 has such rows.
    """
    kept, torn = dict(places), []
    for image_id, several in places.items():
        if len(several) == 1:
            continue
        outcomes = [_row(reader, image_id, place, expected) for place in several]
        intact = tuple(place for place, row in zip(several, outcomes, strict=True) if isinstance(row, Regions))
        if intact:
            kept[image_id] = intact
            torn += [row for row in outcomes if isinstance(row, Failure)]
    return kept, tuple(torn)


def _row(reader: Source, image_id: str, place: Place, expected: Expected) -> Outcome:
    try:
        return checked(reader.read(image_id, place), expected)
    except MalformedError as error:
        return Failure(image_id, "decode", "Malformed", str(error))


class ImportWorker:
    """Turn shards of records into committed parts."""

    def __init__(
        self, kind: str, paths: Sequence[Path], store: Location, fingerprint: dict[str, Any], expected: Expected
    ) -> None:
        self.reader = open_source(KINDS[kind], paths)
        self.folder = ShardFolder(store)
        self.fingerprint = fingerprint
        self.expected = expected

    def run(self, shard: RecordShard) -> Marker:
        """Convert and commit one shard."""
        lost = shard.lost()
        records = zip(shard.items, shard.places, strict=True)
        outcomes = [lost.get(image_id) or self._row(image_id, places) for image_id, places in records]
        return self.folder.commit(shard, encode_outcomes(outcomes, self.fingerprint))

    def _row(self, image_id: str, places: tuple[Place, ...]) -> Outcome:
        """Convert the records of one image, which must be equal where there are several."""
        outcomes = [_row(self.reader, image_id, place, self.expected) for place in places]
        rows = [row for row in outcomes if isinstance(row, Regions)]
        # A resumed extraction may have written an image twice. Rows that differ leave no way to choose.
        if len({row.features.tobytes() + row.boxes.tobytes() for row in rows}) > 1:
            return Failure(image_id, "decode", "Malformed", f"{len(rows)} records of this id differ")
        return outcomes[0]
