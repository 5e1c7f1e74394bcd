"""Runs a matrix of models × tasks × splits every night (`matrix`).

`gating` compares a night with an earlier one. `dry_run` says what a night would do.
"""

INGREDIENT = None
