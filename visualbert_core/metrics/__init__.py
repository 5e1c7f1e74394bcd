"""What an answer is worth and what a mean over answers is worth: pure functions on numbers, strings and boxes.

`accuracy` VQA's soft score · `recall` boxes and recall@k · `coverage` may a score be printed · `statistics` error bars
· `boxes` the conventions in which boxes are written. Which of them a benchmark uses, and on which units, is decided in
its task file. Needs NumPy only.
"""

INGREDIENT = "scores"
