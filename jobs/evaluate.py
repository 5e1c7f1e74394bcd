"""`visualbert evaluate` for `ray job submit`: a checkpoint on one split of a benchmark → run folder."""

import sys

from visualbert_core.cli import main
from visualbert_core.errors import end

if __name__ == "__main__":
    end(lambda: main(["evaluate", *sys.argv[1:]]))
