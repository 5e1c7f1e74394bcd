"""Add a family of models. This one names the colour that is nearest to the mean colour of the image.

python examples/own_family.py ANNOTATIONS IMAGES FOLDER RUNS
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from visualbert_core import EvaluateConfig, Pool, PoolConfig, evaluate
from visualbert_core.config import AnsweringConfig
from visualbert_core.models import ReadsPixels
from visualbert_core.schema import Example, Pixels, Prediction, Question


class MeanColour:
    visual_source = "pixels"
    reads, forms = ReadsPixels(), frozenset({Question})
    name, protocol = "MeanColour", ""

    def __init__(self, colours: dict[str, list[int]]) -> None:
        self.colours = colours

    @classmethod
    def from_pretrained(cls, folder: Path, form: type[Example], *_: str | AnsweringConfig | None) -> Self:
        return cls(json.loads((Path(folder) / "config.json").read_text())["colours"])

    def fingerprint(self) -> dict[str, Any]:
        return {"colours": self.colours}

    def predict(self, batch: Sequence[tuple[Example, tuple[Pixels, ...]]]) -> list[Prediction]:
        return [Prediction(e.example_id, e.image_ids[0], self._nearest(images[0].rgb), ()) for e, images in batch]

    def _nearest(self, rgb: np.ndarray) -> str:
        return min(self.colours, key=lambda name: np.linalg.norm(rgb.mean((0, 1)) - self.colours[name]))


if __name__ == "__main__":
    annotations, images, folder, out = map(Path, sys.argv[1:])
    colours = {"red": [255, 0, 0], "green": [0, 255, 0], "blue": [0, 0, 255], "yes": [128, 128, 128]}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "mean_colour", "colours": colours}))
    config = EvaluateConfig(task="vqa", split="val", annotations=annotations, images=images, model=folder, out=out)
    with Pool(PoolConfig(inline=True)) as pool:
        run = evaluate(config, pool, MeanColour.from_pretrained)
    print(run.scores and run.scores["scores"])
