"""Fine-tune a checkpoint on a benchmark, then print the best score and where the best checkpoint is.

python examples/train.py TASK SPLIT ANNOTATIONS STORE MODEL TRAINING
"""

import sys
from pathlib import Path

from visualbert_core import TrainConfig, train

if __name__ == "__main__":
    task, split, *places = sys.argv[1:]
    annotations, features, model, out = map(Path, places)
    done = train(
        TrainConfig(
            task=task,
            split=split,
            annotations=annotations,
            features=features,
            model=model,
            out=out,
            steps=4,  # a real training takes epochs=10
            validate_split=split,  # a real training validates on another split
        )
    )
    best = done.record["validation"]
    print(f"{best['headline']} {best['scores'][best['headline']]:.2f} after step {best['step']}: {done.best}")
