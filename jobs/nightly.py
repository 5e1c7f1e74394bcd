"""A matrix of models × tasks × splits: extract what is missing → evaluate → report.

    python jobs/nightly.py jobs/demo.yaml
    python jobs/nightly.py my.yaml --out /shared/evaluation
    ray job submit --working-dir . -- python jobs/nightly.py my.yaml --out /shared/evaluation

Running the same line again resumes, and computes nothing that is already there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from visualbert_core.errors import end
from visualbert_core.nightly import load_matrix, run_matrix
from visualbert_core.report.terminal import print_table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("matrix", type=Path, help="YAML file, see jobs/demo.yaml")
    parser.add_argument("--out", help="overrides `out` of the YAML file")
    args = parser.parse_args()
    config = load_matrix(args.matrix, {"out": args.out} if args.out else {})
    night = run_matrix(config)
    console = Console()
    print_table(night.info, night.cells, console)
    console.print(f"\nReport:          {night.report}", soft_wrap=True, highlight=False)
    console.print(f"Runs:            {config.out / 'runs' / config.name}", soft_wrap=True, highlight=False)
    console.print(f"Feature stores:  {config.out / 'features'}", soft_wrap=True, highlight=False)
    return night.exit_code


if __name__ == "__main__":
    end(main)
