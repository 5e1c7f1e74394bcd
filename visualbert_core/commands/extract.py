"""`visualbert extract`: images → feature store."""

from __future__ import annotations

from dataclasses import dataclass, field

from visualbert_core.commands.declarations import Flat
from visualbert_core.config import DriftConfig, ExtractConfig, PoolConfig
from visualbert_core.printable import logger, say_result

_LOG = logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Command:
    """Extract the region features of an image corpus into a feature store.

    Writes STORE_ROOT/CORPUS/FINGERPRINT/ and prints that folder. The same line again resumes. Images that fail are
    counted, and failures/ has a row for each. Exit code 2: --canary found other features. 3: no image has features, or
    more than --max-failures images failed. 6: SIGTERM or --max-hours stopped the job before the end.

        visualbert extract --images DIR --detector FOLDER --out STORE_ROOT
        ray job submit --working-dir . -- python jobs/extract_features.py --images … (the same)
    """

    extraction: Flat[ExtractConfig]
    drift: Flat[DriftConfig] = field(default_factory=DriftConfig)
    pool: Flat[PoolConfig] = field(default_factory=PoolConfig)
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        from visualbert_core.engine.pool import Pool
        from visualbert_core.features.drift import check_plan
        from visualbert_core.features.extract import plan_extraction, run_extraction

        with Pool(self.pool) as pool:
            plan = plan_extraction(self.extraction)
            check_plan(plan, self.drift, pool)
            store = run_extraction(plan, pool)
        failures = store.failures()
        if failures:
            _LOG.warning("%s of %s images quarantined", f"{len(failures):,}", f"{len(store) + len(failures):,}")
        for failure in failures[:10]:
            _LOG.warning("quarantined: %s: %s: %s", failure.item_id, failure.stage, failure.message)
        document = {"store": str(store.folder), "images": len(store), "quarantined": len(failures)}
        say_result(self.json, document, [store.folder])
        return 0
