"""Images → feature store.

    python jobs/extract_features.py --images DIR --detector FOLDER --out STORE_ROOT
    ray job submit --working-dir . -- python jobs/extract_features.py --images DIR --detector FOLDER --out STORE_ROOT

Writes STORE_ROOT/CORPUS/FINGERPRINT/ and prints that folder on stdout; progress goes to stderr. Images that do not
decode, or that end every process that touches them, are counted and kept as rows of failures/. Running the same line
again resumes; with --canary N only after N images of the store (or of --canary-store) were extracted anew and came out
the same, else it ends with exit code 2. Exit code 3: no image has features, or more than --max-failures have none. Exit
code 6: stopped by SIGTERM or --max-hours before the end. `ray job submit` reads the cluster's address in
RAY_API_SERVER_ADDRESS, and sends a token where RAY_AUTH_MODE=token.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from visualbert_core.cluster import Pool
from visualbert_core.config import ExtractConfig, add_pool_flags, take_pool
from visualbert_core.errors import end
from visualbert_core.features.extract import extract
from visualbert_core.printable import Parser, say, say_json


def main() -> int:
    flags = parse()
    as_json = flags.pop("as_json")
    with Pool(take_pool(flags)) as pool:
        store = extract(ExtractConfig(**flags), pool)
    failures = store.failures()
    if failures:
        say(f"{len(failures):,} of {len(store) + len(failures):,} images quarantined", to=sys.stderr)
    for failure in failures[:10]:
        say(f"quarantined: {failure.item_id}: {failure.stage}: {failure.message}", to=sys.stderr)
    if as_json:
        say_json({"store": store.address, "images": len(store), "quarantined": len(failures)})
    else:
        say(store.address)
    return 0


def parse() -> dict[str, Any]:
    parser = Parser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder, pattern, list, table or tar; s3://…")
    parser.add_argument("--detector", type=Path, required=True, help="folder with config.json and model.safetensors")
    parser.add_argument("--out", type=Path, required=True, help="root of the feature stores: folder or s3://…")
    parser.add_argument("--corpus", help="name of the corpus (default: the images folder's name)")
    parser.add_argument("--boxes", choices=("none", "beside"), default="none", help="beside: use NAME.json, as in VCR")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="see docs/features.md")
    parser.add_argument("--batch-size", type=int, default=ExtractConfig.batch_size)
    parser.add_argument("--shard-size", type=int, default=ExtractConfig.shard_size, help="images per part, about")
    parser.add_argument("--max-failures", type=int, help="exit 3 where more images than these are quarantined")
    parser.add_argument("--canary", type=int, metavar="N", help="first compare N images with the store that is resumed")
    parser.add_argument("--canary-store", type=Path, help="compare with this store instead, e.g. one that was imported")
    parser.add_argument("--limit", type=int, help="only the first N images")
    add_pool_flags(parser)
    parser.add_argument("--json", action="store_true", dest="as_json", help="one JSON object on stdout")
    return vars(parser.parse_args())


if __name__ == "__main__":
    end(main)
