"""Runs beside runs: what changed, how surely, on which examples, because of what, and whether that is a regression.

    compare.py      two run folders → the change of every metric, overall and by group
    flips.py        the examples that got worse or better
    attribution.py  the ingredient that a change came from
    gate.py         pass, fail or cannot tell
    history.py      what every night came to

Needs NumPy and no torch, Ray, Pillow or page. `report/` shows what this finds.
"""

INGREDIENT = None
