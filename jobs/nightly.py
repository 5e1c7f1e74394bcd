"""A matrix of models × tasks × splits: extract what is missing → evaluate → compare with an earlier night → report.

    python jobs/nightly.py jobs/demo.yaml
    python jobs/nightly.py my.yaml --out /shared/evaluation
    python jobs/nightly.py my.yaml --dry-run           # images, examples and time, and nothing done
    python jobs/nightly.py my.yaml --limit 20          # a smoke night: does everything run?
    ray job submit --working-dir . -- python jobs/nightly.py my.yaml --out /shared/evaluation

Running the same line again resumes, and computes nothing that is already there. Where the file has a `gate`, every
night is a run of its own (--night, default: the date), compared with the last one that did not fail; exit code 4 says
that something got worse, 5 that one cannot tell. `ray job submit` reads the cluster's address in
RAY_API_SERVER_ADDRESS, and sends a token where RAY_AUTH_MODE=token; --out must be a folder that all nodes see.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from visualbert_core.errors import end
from visualbert_core.nightly import load_matrix, run_matrix, runs_folder
from visualbert_core.nightly.plan import plan_night
from visualbert_core.printable import Parser, say, unguarded
from visualbert_core.report.terminal import print_table


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("matrix", type=Path, help="YAML file, see jobs/demo.yaml")
    parser.add_argument("--out", help="overrides `out` of the YAML file")
    parser.add_argument("--night", help="name of this night (default: the date, UTC)")
    parser.add_argument("--limit", type=int, help="a smoke night: N images a corpus and N examples a cell, no scores")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done")
    args = parser.parse_args()
    overrides = {name: getattr(args, name) for name in ("out", "night", "limit") if getattr(args, name) is not None}
    config = load_matrix(args.matrix, overrides)
    if args.dry_run:
        for step in plan_night(config, runs_folder(config)):
            say(step)
        return 0
    night = run_matrix(config)
    print_table(night.info, night.cells, Console(file=unguarded(sys.stdout)))
    say()
    say(f"Report:          {night.report}")
    say(f"Runs:            {night.runs}")
    say(f"Feature stores:  {config.out / 'features'}")
    if night.judged is not None:
        verdict = f"{night.judged.gate.verdict}, see {night.runs / 'summary.md'}"
        say(f"Gate:            {verdict}")
    return night.exit_code


if __name__ == "__main__":
    end(main)
