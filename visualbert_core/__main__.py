"""`python -m visualbert_core …` does what `visualbert …` does, also where that program is not on the PATH."""

from visualbert_core.cli import entry

INGREDIENT = None

if __name__ == "__main__":
    entry()
