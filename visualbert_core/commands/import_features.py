"""`visualbert import`: features that others extracted → feature store."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from visualbert_core.config import PoolConfig
from visualbert_core.printable import say

_Kind = Literal["bua-tsv", "lxmert-tsv", "mmf-npy", "mmf-lmdb"]


@dataclass(frozen=True)
class Command:
    """Import region features that others extracted.

    Writes STORE_ROOT/CORPUS/FINGERPRINT/ and prints that folder. The same line again resumes. Records that cannot be
    read are counted and kept as rows of failures/.

        visualbert import bua-tsv trainval_resnet101_faster_rcnn_genome_36.tsv STORE_ROOT --space vg_c4
    """

    kind: tyro.conf.Positional[_Kind]
    """Layout of the source."""
    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """File or folder to read."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="STORE_ROOT")]
    """Root of the feature stores."""
    space: str
    """Name of the feature space, which checkpoints are matched with."""
    corpus: str | None = None
    """Name of the corpus; default: the source's name."""
    ids: str = "{}"
    """Image id made of the source's own, e.g. COCO_val2014_{:0>12}."""
    workers: int | None = None
    """Ray actors; default: this process alone."""

    def run(self) -> int:
        """Convert every record."""
        from visualbert_core.cluster import Pool
        from visualbert_core.features.importers import import_features

        pool = PoolConfig(workers=self.workers, gpus_per_worker=0, inline=self.workers is None)
        with Pool(pool) as workers:
            store = import_features(self.kind, self.source, self.out, self.space, workers, self.corpus, self.ids)
        failures = store.failures()
        for failure in failures[:10]:
            say(f"malformed: {failure.item_id}: {failure.message}", to=sys.stderr)
        say(f"{len(store)} images, {len(failures)} malformed", to=sys.stderr)
        say(store.address)
        return 0
