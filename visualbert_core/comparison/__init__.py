"""Compares runs: what changed, how certain that is, on which examples, why, and whether it is a regression.

This package needs NumPy, but no torch, Ray, Pillow or template engine. `report/` shows what it finds.
"""

INGREDIENT = None
