"""One model × task × split over a feature store → run folder.

    python jobs/evaluate.py --task vqa --split val --annotations DIR --features STORE --model FOLDER --out RUNS
    python jobs/evaluate.py … --self-check       # does an answer depend on batch or workers? 64 examples, no run
    ray job submit --working-dir . -- python jobs/evaluate.py --task … (the same)

Writes RUNS/MODEL__TASK__SPLIT/ with predictions and, if they cover the split, scores.json and the leaderboard's file
(that alone where the split has no public labels). Running the same line again resumes; a finished run is not computed
again. Exit code 3: some examples have no prediction, so there is no score. Exit code 4: the self-check found an answer
that changed. Exit code 6: stopped by SIGTERM or --max-hours before the end. `ray job submit` reads the cluster's
address in RAY_API_SERVER_ADDRESS, and sends a token where RAY_AUTH_MODE=token.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from visualbert_core.cluster import Pool, start_ray
from visualbert_core.config import EvaluateConfig, add_pool_flags, take_pool
from visualbert_core.errors import end
from visualbert_core.evaluation.run import evaluate
from visualbert_core.evaluation.selfcheck import REGRESSION, describe, self_check
from visualbert_core.storage import absolute  # a worker's working directory is another one


def main() -> int:
    flags = parse()
    as_json, checks = flags.pop("as_json"), flags.pop("self_check")
    workers = take_pool(flags)
    if checks:
        start_ray()  # one for both of its pools
        check = self_check(EvaluateConfig(**flags), workers)
        print(json.dumps(asdict(check)) if as_json else "\n".join(describe(check)))
        return REGRESSION if check.changed else 0
    with Pool(workers) as pool:
        run = evaluate(EvaluateConfig(**flags), pool)
    if run.scores is None:
        submission = run.folder / run.record["submission"]
        answer = {"run": str(run.folder), "submission": str(submission)}
        print(json.dumps(answer) if as_json else f"no public labels, so no score: {submission}")
        return 0
    if as_json:
        print(json.dumps(run.scores | {"run": str(run.folder)}))
        return 0
    for warning in run.scores["warnings"]:
        print(f"WARNING: {warning}")
    for metric, value in run.scores["scores"].items():
        low, high = run.scores["intervals"][metric]
        spread = "" if low is None else f"  [{low:.2f}, {high:.2f}]"
        print(f"{metric:>14} {value:6.2f}{spread}  n={run.scores['units'][metric]}")
    print(f"{run.scores['protocol']}\n{run.folder}")
    return 0


def parse() -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, help="vqa, vcr, nlvr2 or flickr30k_entities")
    parser.add_argument("--split", required=True, help="val, dev, test1, …")
    parser.add_argument("--annotations", type=absolute, required=True, help="folder of the official annotation files")
    parser.add_argument("--features", type=absolute, required=True, help="feature store: its folder or s3://… address")
    parser.add_argument("--model", type=absolute, required=True, help="checkpoint folder")
    parser.add_argument("--out", type=absolute, required=True, help="folder of the run folders")
    parser.add_argument("--regions", choices=("own", "wrong-image"), default="own", help="wrong-image: the baseline")
    parser.add_argument(
        "--foreign-features", action="store_true", help="allow features of another space than trained on"
    )
    parser.add_argument("--feature-space", metavar="NAME", help="what it was trained on, where it does not say")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default=EvaluateConfig.precision)
    parser.add_argument("--batch-size", type=int, default=EvaluateConfig.batch_size)
    parser.add_argument("--shard-size", type=int, default=EvaluateConfig.shard_size, help="images per shard, about")
    add_pool_flags(parser)
    parser.add_argument("--self-check", action="store_true", help="batch and worker invariance on 64 examples")
    parser.add_argument("--json", action="store_true", dest="as_json", help="one JSON object on stdout")
    return vars(parser.parse_args())


if __name__ == "__main__":
    end(main)
