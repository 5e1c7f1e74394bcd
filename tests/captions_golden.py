"""What the official programs make of captions: tests/golden/captions, see tests/golden/README.md."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from conftest import ROOT

GOLDEN = ROOT / "tests" / "golden" / "captions"
OFFICIAL = {"cider": "CIDEr", "bleu-1": "Bleu_1", "bleu-2": "Bleu_2", "bleu-3": "Bleu_3", "bleu-4": "Bleu_4"}
OFFICIAL |= {"rouge-l": "ROUGE_L"}
SETS = ("good", "wrong_image", "same_for_all", "edge")


@cache
def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def coco_folder(folder: Path, references: Any, split: str = "own") -> Path:
    """Write references in COCO's form where the task looks for a split, and return the folder."""
    (folder / f"captions_{split}.json").write_text(json.dumps(references), encoding="utf-8")
    return folder
