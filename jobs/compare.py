"""Two run folders of one task and split → what changed, how surely, on which examples, because of what.

    python jobs/compare.py RUN_A RUN_B
    python jobs/compare.py RUN_A RUN_B --annotations DIR [--annotations DIR] --json

Runs over different annotations or splits are not compared (exit code 5) but with the annotations of one of them, under
which both are then scored anew, or with --force. No model, no Ray, no torch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from visualbert_core.comparison.compare import SHOWN, compare, describe
from visualbert_core.errors import end
from visualbert_core.evaluation.run import Run, read_run
from visualbert_core.printable import Parser, say, say_json
from visualbert_core.provenance import digest_files
from visualbert_core.tasks import Task, open_task


def main() -> int:
    args = parse()
    before, after = read_run(args.before), read_run(args.after)
    tasks = dict(_opened(folder, after) for folder in args.annotations)
    comparison = compare(before, after, tasks, args.force, args.flips)
    if args.as_json:
        say_json(comparison.document())
        return 0
    for line in describe(comparison):
        say(line)
    return 0


def _opened(folder: Path, run: Run) -> tuple[str, Task]:
    spec = run.record["spec"]
    task = open_task(spec["task"], folder, spec["split"])
    return digest_files(task.annotation_files()), task


def parse() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("before", type=Path, metavar="RUN_A", help="run folder")
    parser.add_argument("after", type=Path, metavar="RUN_B", help="run folder")
    parser.add_argument(
        *("--annotations", "-a"),
        type=Path,
        action="append",
        default=[],
        help="folder of official files that RUN_A or RUN_B was scored by; may be given for both, in any order",
    )
    parser.add_argument("--force", action="store_true", help="compare what is not comparable, and say so")
    parser.add_argument("--flips", type=int, default=SHOWN, help="flips to list each way (default: %(default)s)")
    parser.add_argument("--json", action="store_true", dest="as_json", help="one JSON object on stdout")
    return parser.parse_args()


if __name__ == "__main__":
    end(main)
