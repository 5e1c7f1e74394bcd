"""Feature stores from the command line.

    python -m visualbert_core.features ls STORE [--limit N]      image ids with their size and number of regions
    python -m visualbert_core.features ls STORE IMAGE …          their regions: box, label, score, attribute, its score
    python -m visualbert_core.features info STORE                what it holds and what made it, as JSON
    python -m visualbert_core.features name STORE --labels FILE [--attributes FILE]
                                                                 say what the labels of an imported store are called
    python -m visualbert_core.features verify STORE              read and hash every byte
    python -m visualbert_core.features canary STORE --images DIR --detector FOLDER
                                                                 does this detector still give these features?
    python -m visualbert_core.features import KIND SOURCE … OUT --space NAME [--boxes CONVENTION]

STORE is the folder that holds manifest.json, or its s3://… address. An import writes OUT/CORPUS/FINGERPRINT/ and prints
that folder; running the same line again resumes. A FILE of names has one a line, that of number 0 first; of synonyms
with commas between, as bottom-up attention's objects_vocab.txt has them, the first counts. The canary extracts some
images anew, prints how they compare, and ends with exit code 2 where they do not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from visualbert_core.cluster import Pool
from visualbert_core.config import PoolConfig
from visualbert_core.errors import ConfigError, InputError, end
from visualbert_core.features import names
from visualbert_core.features.importers import KINDS, import_features
from visualbert_core.features.names import called
from visualbert_core.features.store import FeatureStore
from visualbert_core.metrics.boxes import CONVENTIONS
from visualbert_core.printable import printable
from visualbert_core.schema import Names, Regions


def main() -> int:
    flags = parse()
    run = {"ls": ls, "info": info, "name": name, "verify": verify, "canary": canary, "import": import_}[flags.command]
    run(flags)
    return 0


def ls(flags: argparse.Namespace) -> None:
    store = FeatureStore.open(flags.store)
    if flags.limit is not None and flags.limit < 0:
        raise ConfigError(f"--limit is {flags.limit}: it must be at least 0")
    if flags.image:
        for row in store.fetch_many(flags.image[: flags.limit]):
            for region in range(row.num_regions):
                print(row.image_id, *_region(store, row, region), sep="	")
        return
    for image_id, width, height, regions in islice(store.sizes(), flags.limit):
        print(f"{image_id}\t{width}\t{height}\t{regions}")


def _region(store: FeatureStore, row: Regions, region: int) -> Iterator[str]:
    yield " ".join(f"{corner:.1f}" for corner in row.boxes[region])
    yield from (called(row.labels[region], store.label_names), f"{row.scores[region]:.3f}")
    if row.attributes is not None and row.attribute_scores is not None:
        yield from (called(row.attributes[region], store.attribute_names), f"{row.attribute_scores[region]:.3f}")


def info(flags: argparse.Namespace) -> None:
    print(json.dumps(FeatureStore.open(flags.store).info(), indent=1, ensure_ascii=False))


def name(flags: argparse.Namespace) -> None:
    store = FeatureStore.open(flags.store)
    found = Names(_vocabulary(flags.labels), _vocabulary(flags.attributes) if flags.attributes else ())
    names.write(store.folder, store.fingerprint, found)
    print(f"{flags.store}: {len(found.labels)} labels and {len(found.attributes)} attributes have names")


def _vocabulary(path: Path) -> tuple[str, ...]:
    try:
        return tuple(line.partition(",")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def verify(flags: argparse.Namespace) -> None:
    store = FeatureStore.open(flags.store, verify=True)
    print(f"{flags.store}: {len(store)} images in {len(store.part_paths)} parts are as they were written")


def canary(flags: argparse.Namespace) -> None:
    from visualbert_core.features.extract import check  # with everything that a detector needs

    with Pool(PoolConfig(inline=True)) as workers:
        check(flags.store, flags.images, flags.detector, flags.number, workers)
    print(f"{flags.detector} gives the features of {flags.store}")


def import_(flags: argparse.Namespace) -> None:
    pool = PoolConfig(workers=flags.workers, gpus_per_worker=0, inline=flags.workers is None)
    with Pool(pool) as workers:
        done = import_features(
            *(flags.kind, flags.source, flags.out, flags.space, workers, flags.corpus, flags.ids, flags.boxes)
        )
    failures = done.store.failures()
    lines = [f"note: {note}" for note in done.notes]
    lines += [f"malformed: {failure.item_id}: {failure.message}" for failure in failures[:10]]
    intact = "an intact record of this image counts"
    lines += [f"torn: {failure.item_id}: {failure.message}; {intact}" for failure in done.torn[:10]]
    torn = f", {len(done.torn)} torn beside intact ones" if done.torn else ""
    lines.append(f"{len(done.store)} images, {len(failures)} malformed{torn}")
    sys.stderr.writelines(f"{printable(line)}\n" for line in lines)
    print(done.store.address)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m visualbert_core.features",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("ls", "info", "verify"):
        command = commands.add_parser(name)
        command.add_argument("store", type=Path)
        if name == "ls":
            command.add_argument("image", nargs="*", help="list the regions of these images")
            command.add_argument("--limit", type=int, help="only the first N")
    command = commands.add_parser("name")
    command.add_argument("store", type=Path)
    command.add_argument("--labels", type=Path, required=True, help="text file, a name a line")
    command.add_argument("--attributes", type=Path, help="the same for attributes")
    command = commands.add_parser("canary")
    command.add_argument("store", type=Path)
    command.add_argument("--images", type=Path, required=True, help="its images: folder, pattern, list, table or tar")
    command.add_argument("--detector", type=Path, required=True, help="detector folder")
    command.add_argument("-n", "--number", type=int, default=16, help="images to extract anew (default: 16)")
    command = commands.add_parser("import")
    command.add_argument("kind", choices=KINDS)
    command.add_argument("source", type=Path, nargs="+", help="files or folders to read, or a pattern in quotes")
    command.add_argument("out", type=Path, help="root of the feature stores")
    command.add_argument("--space", required=True, help="name of the feature space, which checkpoints are matched with")
    command.add_argument("--corpus", help="name of the corpus (default: the source's name)")
    command.add_argument("--ids", default="{}", help="image id from the source's own, e.g. COCO_val2014_{:0>12}")
    command.add_argument(
        "--boxes",
        default="xyxy",
        metavar="CONVENTION",
        choices=CONVENTIONS,
        help=f"how the boxes are written (default: xyxy in pixels): {', '.join(CONVENTIONS)}",
    )
    command.add_argument("--workers", type=int, help="Ray actors (default: this process alone)")
    return parser.parse_args()


if __name__ == "__main__":
    end(main)
