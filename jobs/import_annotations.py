"""`visualbert import-annotations` for `ray job submit`: a Hugging Face dataset → a benchmark's official files."""

import sys

from visualbert_core.cli import main
from visualbert_core.errors import end

if __name__ == "__main__":
    end(lambda: main(["import-annotations", *sys.argv[1:]]))
