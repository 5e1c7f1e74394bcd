"""`visualbert extract` for `ray job submit`: images → feature store."""

import sys

from visualbert_core.cli import main
from visualbert_core.errors import end

if __name__ == "__main__":
    end(lambda: main(["extract", *sys.argv[1:]]))
