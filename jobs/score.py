"""Score predictions: a leaderboard's file, of any system, or a run folder. No model, no Ray, no torch.

    python jobs/score.py --task nlvr2 --split dev --annotations DIR --predictions predictions.csv
    python jobs/score.py --task vqa --split val --annotations DIR --predictions RUNS/MODEL__vqa__val --json

Exit code 3: some examples have no prediction, several, or an answer of the wrong type, or ids are unknown; then there
is no score, and a table on stderr says which.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from visualbert_core.errors import end
from visualbert_core.evaluation.score import Mode, describe, read_answers, score
from visualbert_core.printable import Parser, say, say_json
from visualbert_core.provenance import digest_files
from visualbert_core.tasks import open_task, paper_numbers


def main() -> int:
    args = parse()
    mode: Mode = "partial" if args.allow_partial else "official" if args.official_lenient else "strict"
    task = open_task(args.task, args.annotations, args.split, args.protocol)
    digest = digest_files(task.annotation_files())
    answers = read_answers(task, args.predictions, digest, mode)
    if not answers.coverage.complete:
        for line in answers.coverage.table().splitlines():
            say(line, to=sys.stderr)
    document = score(task, answers, digest, mode)
    if args.as_json:
        say_json(document)
        return 0
    for line in describe(document, paper_numbers(task)):
        say(line)
    return 0


def parse() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--task", required=True, help="vqa, vcr, nlvr2 or flickr30k_entities")
    parser.add_argument("--split", required=True, help="val, dev, test1, …")
    parser.add_argument("--annotations", type=Path, required=True, help="folder of the official annotation files")
    parser.add_argument("--predictions", type=Path, required=True, help="submission file or run folder")
    parser.add_argument("--protocol", help="where a benchmark has several (default: the official or usual one)")
    unusual = parser.add_mutually_exclusive_group()
    unusual.add_argument("--allow-partial", action="store_true", help="missing predictions: print the range they leave")
    unusual.add_argument("--official-lenient", action="store_true", help="accept what the official program accepts")
    parser.add_argument("--json", action="store_true", dest="as_json", help="one JSON object on stdout")
    return parser.parse_args()


if __name__ == "__main__":
    end(main)
