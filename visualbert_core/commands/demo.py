"""`visualbert demo`: the whole job over the synthetic data, from images to a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from visualbert_core.commands.nightly import run_and_show


@dataclass(frozen=True, kw_only=True)
class Command:
    """Run the whole job over small synthetic scenes: draw images, extract features, evaluate four checkpoints, report.

    The demo needs no download and no GPU. The same line again computes nothing. Its matrix is
    visualbert_core/synthetic/demo.yaml.

        visualbert demo
        visualbert demo --out /shared/demo
    """

    out: Path = Path("out/demo")
    """Folder for the scenes, the features, the runs and report.html."""

    def run(self) -> int:
        from visualbert_core.nightly.matrix import load_matrix
        from visualbert_core.synthetic import DEMO

        return run_and_show(load_matrix(DEMO, {"out": str(self.out)}))
