"""The benchmark scripts run and compare like with like; how fast anything is, is no business of a test."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, f"benchmarks/{script}", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300).stdout


def test_throughput_compares_equal_logits() -> None:
    """Every load gives transformers' logits in float32, from one layer and one image."""
    printed = run(
        *("visualbert_throughput.py", "--layers", "1", "--images", "1", "--rounds", "1", "--no-bfloat16"),
        *("--loads", "vqa-36", "nlvr2", "vcr"),
    )
    differences = re.findall(r"^visualbert_core float32 +[\d.]+ +[\d.]+x +(\S+)", printed, re.MULTILINE)
    assert len(differences) == 3
    assert all(float(difference) < 1e-5 for difference in differences)
    assert len(re.findall(r"^transformers", printed, re.MULTILINE)) == 1 + 3 * 2
