"""Answers must not depend on the batch or on the number of workers. The check lists each answer that does, with the two
runs that differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, SmallNight

from visualbert_core.config import EvaluateConfig, PoolConfig
from visualbert_core.evaluation.invariance_check import check_invariance, describe
from visualbert_core.models import load_model
from visualbert_core.schema import Prediction

INLINE = PoolConfig(inline=True)
CELLS = {
    "vqa": ("val", "vqa", "vqa-val2014", "visualbert-vqa"),
    "vcr": ("val", "vcr", "vcr-val", "visualbert-vcr"),
    "nlvr2": ("dev", "nlvr2", "nlvr2-dev", "visualbert-nlvr2"),
    "flickr30k_entities": ("val", "flickr30k", "flickr30k-val", "visualbert-flickr30k"),
}


def config(night: SmallNight, task: str, out: Path) -> EvaluateConfig:
    split, annotations, corpus, model = CELLS[task]
    (store,) = (night.out / "features" / corpus).iterdir()
    return EvaluateConfig(
        task=task,
        split=split,
        annotations=night.out / "synthetic" / annotations,
        features=store,
        model=ROOT / "visualbert_core" / "synthetic" / "weights" / model,
        out=out,
        batch_size=7,
    )


@pytest.mark.parametrize("task", CELLS)
def test_no_answer_depends_on_its_batch(task: str, small_night: SmallNight, tmp_path: Path) -> None:
    """Every task gives the same answers alone and in batches, with logits equal to 1e-4, and the check leaves no file
    behind."""
    found = check_invariance(config(small_night, task, tmp_path), INLINE, examples=20)
    assert (found.examples, found.batch_size, found.changed) == (20, 7, ())
    assert 0 <= found.largest_difference < 1e-4
    assert list(tmp_path.iterdir()) == []


class Leaky:
    """A model that changes the logits of the second example of a batch, as if padding leaked."""

    def __init__(self, model: Any, nudge: float) -> None:
        self.model, self.nudge = model, nudge
        self.reads, self.forms, self.name, self.protocol = model.reads, model.forms, "Leaky", ""

    def examine(self, batch: Sequence[Any]) -> list[tuple[Prediction, np.ndarray]]:
        found = self.model.examine(batch)
        for place, (prediction, logits) in enumerate(found[1:2], start=1):
            other = logits[::-1] + self.nudge
            found[place] = Prediction(prediction.example_id, prediction.image_id, "other", ()), other
        return list(found)


def test_a_leak_is_found_and_sized(small_night: SmallNight, tmp_path: Path) -> None:
    """The check lists exactly the examples that a batch changes, with the gap between the two answers."""

    def leaky(*opening: Any) -> Any:
        return Leaky(load_model(*opening), nudge=0.5)

    found = check_invariance(config(small_night, "nlvr2", tmp_path), INLINE, examples=20, load=leaky)
    assert 1 <= len(found.changed) < 20
    assert all(each.together == "other" and each.alone in ("True", "False") for each in found.changed)
    assert all(each.gap > 0 for each in found.changed)
    assert found.largest_difference >= 0.5
    verdict, _, first, *_ = describe(found)
    assert verdict == f"20 examples, alone and in batches of 7: {len(found.changed)} answers changed"
    assert first.startswith(f"{found.changed[0].example_id}: {found.changed[0].alone} → other, logit gap ")
