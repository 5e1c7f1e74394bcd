"""Scores of answers, and how certain their means are: pure functions on numbers, strings and boxes.

    accuracy      VQA's soft accuracy (Antol et al. 2015)
    recall        IoU of boxes and recall@k
    coverage      whether predictions are complete, so that a score may be printed
    statistics    the metrics of a run with their intervals, and tests between two runs
    boxes         the conventions in which boxes are written

Each task file decides which of them its benchmark uses. Everything needs NumPy only; `statistics` also imports SciPy
where it computes a tail.
"""

INGREDIENT = "scores"
