"""Nights: the matrix of models × tasks × splits (`matrix`), its gate (`gating`), and what it would do (`plan`)."""

INGREDIENT = None
