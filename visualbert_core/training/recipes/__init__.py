"""The recipes that this package ships: those of VisualBERT's authors, with the source of each number beside it.

`visualbert train NAME` takes a recipe by the name of its file without the suffix. Li et al. 2019 (arXiv:1908.03557) and
github.com/uclanlp/visualbert at 2a9e8bd58a20 differ in places; the comments of a recipe say which it takes, and where
it leaves out a slip of their code.
"""

from __future__ import annotations

from pathlib import Path

INGREDIENT = None

FOLDER = Path(__file__).parent


def shipped() -> dict[str, Path]:
    """Return the recipes: name → file."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
