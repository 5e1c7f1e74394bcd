"""`visualbert nightly`: a matrix of models × tasks × splits, compared with an earlier night."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from visualbert_core.printable import say, unguarded

if TYPE_CHECKING:
    from visualbert_core.config import NightlyConfig
    from visualbert_core.nightly.night import Night


@dataclass(frozen=True)
class Command:
    """Run a matrix: extract missing features → evaluate → compare with an earlier night → report.

    The same line again resumes, and computes nothing that is already there. If the file has a `gate`, every night has
    its own runs (--night names it, default: the date), and is compared with the last night that did not fail. Exit code
    4: a score got worse. 5: the gate cannot tell. --out must be a folder that all nodes see.

        visualbert nightly my.yaml --out /shared/evaluation
        visualbert nightly my.yaml --dry-run           (print numbers of images and examples and the time, do nothing)
        visualbert nightly my.yaml --limit 20          (a smoke night: does everything run?)
        ray job submit --working-dir . -- python jobs/nightly.py my.yaml --out /shared/evaluation
    """

    matrix: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MATRIX")]
    """YAML file such as jobs/nightly.yaml."""
    out: str | None = None
    """Folder for all results. It replaces `out` of the YAML file."""
    night: str | None = None
    """Name of this night. Default: the date, UTC."""
    limit: int | None = None
    """Run a smoke night: this many images per corpus and examples per cell, without scores."""
    dry_run: bool = False
    """Print what the night would do, and do nothing."""

    def run(self) -> int:
        from visualbert_core.nightly.dry_run import plan_night
        from visualbert_core.nightly.matrix import load_matrix, runs_folder

        flags = {"out": self.out, "night": self.night, "limit": self.limit}
        config = load_matrix(self.matrix, {name: value for name, value in flags.items() if value is not None})
        if not self.dry_run:
            return run_and_show(config)
        for step in plan_night(config, runs_folder(config)):
            say(step)
        return 0


def run_night(config: NightlyConfig) -> Night:
    """Run the matrix. If it names the synthetic data, make them first where they are missing."""
    from visualbert_core.nightly.night import run_matrix

    if config.synthetic:
        from visualbert_core.synthetic.files import make_synthetic

        make_synthetic(config.data, config.synthetic)
    return run_matrix(config)


def run_and_show(config: NightlyConfig) -> int:
    """Run the matrix, print its table and the paths of its results, and return the exit code."""
    from rich.console import Console

    from visualbert_core.report.terminal import print_table

    night = run_night(config)
    print_table(night.info, night.cells, Console(file=unguarded(sys.stdout)))
    say()
    say(f"Report:          {night.report}")
    say(f"Runs:            {night.runs}")
    if (stores := config.out / "features").exists():
        say(f"Feature stores:  {stores}")
    if night.judged is not None:
        say(f"Gate:            {night.judged.gate.verdict}, see {night.runs / 'summary.md'}")
    return night.exit_code
