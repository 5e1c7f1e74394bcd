"""`python -m visualbert_core …` is `visualbert …`, for where the program is not on the path."""

from visualbert_core.cli import entry

INGREDIENT = None

if __name__ == "__main__":
    entry()
