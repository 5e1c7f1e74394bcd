"""Compare two runs of one benchmark: what changed, how surely, and why.

python examples/compare.py RUN_A RUN_B
"""

import sys
from pathlib import Path

from visualbert_core import compare, read_run

if __name__ == "__main__":
    before, after = (read_run(Path(folder)) for folder in sys.argv[1:])
    comparison = compare(before, after)
    for metric, change in comparison.metrics.items():
        print(f"{metric} {change.before:.2f} → {change.after:.2f}, p = {change.p:.4f}")
    for cause in comparison.causes:
        print(cause)
