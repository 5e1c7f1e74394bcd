"""Score the predictions of any system by the official metric, without a model, Ray or torch.

python examples/score_a_file.py TASK SPLIT ANNOTATIONS PREDICTIONS
"""

import sys
from pathlib import Path

from visualbert_core import open_task, read_prediction_set, score
from visualbert_core.provenance import digest_files

if __name__ == "__main__":
    name, split, annotations, predictions = sys.argv[1:]
    task = open_task(name, Path(annotations), split)
    digest = digest_files(task.annotation_files())
    document = score(task, read_prediction_set(task, Path(predictions), digest), digest)
    print(document["protocol"])
    print(document["scores"])
