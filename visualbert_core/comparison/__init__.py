"""Compares runs: what changed, how certain that is, on which examples, why, and whether it is a regression.

    compare.py      two run folders → the change of every metric, overall and by group
    text.py         a comparison as text
    flips.py        the examples that got worse or better
    attribution.py  the ingredient that caused a change
    gate.py         pass, fail or cannot tell
    history.py      the results of every night

This package needs NumPy, but no torch, Ray, Pillow or template engine. `report/` shows what it finds.
"""

INGREDIENT = None
