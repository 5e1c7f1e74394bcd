"""Command line of the checkpoint folder: `python -m visualbert_core.models.visualbert.checkpoint convert IN OUT`."""

from visualbert_core.errors import end
from visualbert_core.models.visualbert.checkpoint.convert import main

if __name__ == "__main__":
    end(main)
