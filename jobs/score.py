"""`visualbert score` for `ray job submit`: predictions of any system → the official score."""

import sys

from visualbert_core.cli import main
from visualbert_core.errors import end

if __name__ == "__main__":
    end(lambda: main(["score", *sys.argv[1:]]))
