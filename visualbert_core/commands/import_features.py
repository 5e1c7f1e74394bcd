"""`visualbert import`: features that others extracted → feature store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from visualbert_core.config import PoolConfig, check_values
from visualbert_core.errors import ConfigError
from visualbert_core.io.locations import Location
from visualbert_core.metrics.boxes import CONVENTIONS
from visualbert_core.printable import logger, say
from visualbert_core.tasks.reading import choose

_LOG = logger(__name__)

_Kind = Literal["bua-tsv", "lxmert-tsv", "mmf-npy", "mmf-lmdb", "milvlg-npz", "bua-hdf5"]


@dataclass(frozen=True, kw_only=True)
class Command:
    """Import region features that others extracted.

    Writes STORE_ROOT/CORPUS/FINGERPRINT/ and prints that folder. The same line again resumes. Records that cannot be
    read are counted, and failures/ has a row for each.

        visualbert import bua-tsv trainval_resnet101_faster_rcnn_genome_36.tsv --out STORE_ROOT --space vg_c4
    """

    kind: tyro.conf.Positional[_Kind]
    """Layout of the source."""
    sources: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="SOURCE …")]
    """Files or folders to read, or a pattern in quotes. All of them together are one corpus."""
    out: Location
    """Root of the feature stores."""
    space: str
    """Name of the feature space. A checkpoint is evaluated over features of its own space only."""
    corpus: str | None = None
    """Name of the corpus. Default: the name of the source."""
    ids: str = "{}"
    """Pattern that makes an image id from the id in the source, e.g. COCO_val2014_{:0>12}."""
    boxes: str = "xyxy"
    """Box convention of the source: xyxy (in pixels), xywh, normalised, normalised-xywh, … Boxes are converted to
    xyxy."""
    workers: int | None = None
    """Number of Ray actors. Default: this process alone."""

    def __post_init__(self) -> None:
        check_values(self)
        if not self.sources:
            raise ConfigError("there is no source: name the files or folders to import after the layout")
        choose("convention of boxes", self.boxes, CONVENTIONS)

    def run(self) -> int:
        from visualbert_core.engine.pool import Pool
        from visualbert_core.features.importers.run import import_features

        pool = PoolConfig(workers=self.workers, gpus_per_worker=0, inline=self.workers is None)
        with Pool(pool) as workers:
            what = (self.kind, self.sources, self.out, self.space, workers, self.corpus, self.ids, self.boxes)
            done = import_features(*what)
        failures = done.store.failures()
        for note in done.notes:
            _LOG.warning("%s", note)
        for failure in failures[:10]:
            _LOG.warning("malformed: %s: %s", failure.item_id, failure.message)
        for torn in done.torn[:10]:
            counts = "an intact record of this image is used, a record glued to it may be lost"
            _LOG.warning("torn: %s: %s; %s", torn.item_id, torn.message, counts)
        beside = f", {len(done.torn)} torn beside intact ones" if done.torn else ""
        _LOG.info("%d images, %d malformed%s", len(done.store), len(failures), beside)
        say(done.store.folder)
        return 0
