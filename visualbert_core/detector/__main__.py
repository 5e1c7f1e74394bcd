"""`python -m visualbert_core.detector convert NAME IN OUT`: see `convert.py`."""

from visualbert_core.detector.convert import main
from visualbert_core.errors import end

if __name__ == "__main__":
    end(main)
