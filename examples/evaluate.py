"""Evaluate a checkpoint on VQA v2 over a feature store. The same line again resumes.

python examples/evaluate.py ANNOTATIONS STORE MODEL RUNS
"""

import sys
from pathlib import Path

from visualbert_core import EvaluateConfig, Pool, PoolConfig, evaluate

if __name__ == "__main__":
    annotations, features, model, out = map(Path, sys.argv[1:])
    config = EvaluateConfig(task="vqa", split="val", annotations=annotations, features=features, model=model, out=out)
    with Pool(PoolConfig(inline=True)) as pool:
        run = evaluate(config, pool)
    assert run.scores is not None  # None on splits without public labels
    for metric, value in run.scores["scores"].items():
        low, high = run.scores["intervals"][metric]
        print(f"{metric} {value:.2f} [{low:.2f}, {high:.2f}], n = {run.scores['units'][metric]}")
