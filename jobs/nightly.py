"""`visualbert nightly` for `ray job submit`: a matrix of models × tasks × splits → report."""

import sys

from visualbert_core.cli import main
from visualbert_core.errors import end

if __name__ == "__main__":
    end(lambda: main(["nightly", *sys.argv[1:]]))
