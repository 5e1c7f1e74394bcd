"""`visualbert train` for `ray job submit`: a recipe → checkpoints."""

import sys

from visualbert_core.cli import main
from visualbert_core.errors import end

if __name__ == "__main__":
    end(lambda: main(["train", *sys.argv[1:]]))
