"""`visualbert compare` for `ray job submit`: two run folders → what changed."""

import sys

from visualbert_core.cli import main
from visualbert_core.errors import end

if __name__ == "__main__":
    end(lambda: main(["compare", *sys.argv[1:]]))
