"""Reads a matrix of models × tasks × splits (`matrix`), and runs it every night (`night`).

`gating` compares a night with an earlier one. `dry_run` says what a night would do.
"""

INGREDIENT = None
