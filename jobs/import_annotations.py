"""A Hugging Face dataset (a folder or a Hub id) → a benchmark's official annotation files, for every other job.

    python jobs/import_annotations.py --task vqa --dataset lmms-lab/VQAv2 --dataset-split validation \\
        --split val --out annotations/vqa

Which columns it takes for what: visualbert_core/tasks/hub.py. Prints the files that it wrote.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from visualbert_core.errors import end
from visualbert_core.printable import Parser, say
from visualbert_core.tasks.hub import import_annotations


def main() -> int:
    args = parse()
    for path in import_annotations(args.task, args.dataset, args.dataset_split or args.split, args.split, args.out):
        say(path)
    return 0


def parse() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--task", required=True, help="vqa or nlvr2")
    parser.add_argument("--dataset", required=True, help="folder or Hub id")
    parser.add_argument("--dataset-split", help="its name for the split (default: the benchmark's own)")
    parser.add_argument("--split", required=True, help="the benchmark's split: val, train, dev, test1, …")
    parser.add_argument("--out", type=Path, required=True, help="annotations folder to write into")
    return parser.parse_args()


if __name__ == "__main__":
    end(main)
