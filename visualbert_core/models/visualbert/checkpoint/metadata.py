"""The metadata file `visualbert_core.json` of a checkpoint folder.

Owns what `config.json` and the weights cannot say: task, input recipe and feature space. The file is this project's own
and optional. transformers ignores it. The published checkpoints do not have it, so the feature space in which each was
trained is recognised by name and size. docs/checkpoints.md has the whole table. Sizes and features are from the
authors' configurations (https://github.com/uclanlp/visualbert).
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from visualbert_core.config import nearest
from visualbert_core.errors import CheckpointError
from visualbert_core.io.documents import brief, read_json
from visualbert_core.models.base import METADATA_FILE
from visualbert_core.models.visualbert.config import VisualBertConfig
from visualbert_core.models.visualbert.inputs import PLAIN_BOXES, RECIPES
from visualbert_core.schema import Example, Grounding, MultipleChoice, Question, Statement

FORMS: dict[str, type[Example]] = {
    "vqa": Question,
    "vcr": MultipleChoice,
    "nlvr2": Statement,
    "flickr30k_entities": Grounding,
}
"""Benchmark of the paper → the form of example that its checkpoints answer."""


@dataclass(frozen=True)
class CheckpointMetadata:
    """What a network was trained for. None means that the file does not say.

    `recipe` names the input layout. `fix_quirks` says that the network was trained without the bugs of the authors'
    code (see `inputs.py`). `box_geometry` says that box numbers are appended to every feature. `box_range` is the range
    to which these numbers are stretched from [0, 1], and `feature_scale` multiplies the features. Under Adam, a
    projection learns sooner from larger inputs.
    """

    task: str | None = None
    recipe: str = "original"
    feature_space: str | None = None
    box_geometry: bool = False
    box_range: tuple[float, float] = PLAIN_BOXES
    feature_scale: float = 1.0
    fix_quirks: bool = False

    @classmethod
    def from_folder(cls, folder: str | Path) -> CheckpointMetadata:
        """Read the metadata file; return the defaults if there is none.

        Raise CheckpointError naming the file and the key if a key is unknown or a value is wrong.
        """
        path = Path(folder) / METADATA_FILE
        if not path.exists():
            return cls()
        found = read_json(path, CheckpointError)
        if not isinstance(found, dict):
            raise CheckpointError(f"{path}: must be an object with the keys {', '.join(_TYPES)}")
        for key, value in found.items():
            if key not in _TYPES:
                raise CheckpointError(f"{path}: unknown key {brief(key)}{nearest(key, _TYPES)}")
            if not isinstance(value, _TYPES[key]):
                raise CheckpointError(f"{path}: {key}: {brief(value)} has the wrong type")
            if value == "":
                raise CheckpointError(f"{path}: {key}: is empty; name it, or leave the key out")
        if "box_range" in found:
            found["box_range"] = _range(found["box_range"], f"{path}: box_range")
        sidecar = cls(**found)
        if sidecar.recipe not in RECIPES:
            raise CheckpointError(
                f"{path}: recipe: unknown name {brief(sidecar.recipe)}{nearest(sidecar.recipe, RECIPES)}"
            )
        if sidecar.fix_quirks and sidecar.recipe != "original":
            raise CheckpointError(f"{path}: fix_quirks: belongs to recipe original, not to {sidecar.recipe}")
        if sidecar.box_range != PLAIN_BOXES and not sidecar.box_geometry:
            raise CheckpointError(f"{path}: box_range: needs box_geometry, which appends the numbers of the boxes")
        if not 0 < sidecar.feature_scale < math.inf:
            raise CheckpointError(f"{path}: feature_scale: must be above 0, got {brief(sidecar.feature_scale)}")
        return sidecar

    @property
    def inputs(self) -> dict[str, Any]:
        """Return what decides how text and features are read, for a fingerprint."""
        return {"recipe": self.recipe, "fix_quirks": self.fix_quirks, "box_geometry": self.box_geometry, **self._scales}

    @property
    def _scales(self) -> dict[str, Any]:
        """Return the keys that older checkpoints do not have, where they are not as in those."""
        found: dict[str, Any] = {} if self.box_range == PLAIN_BOXES else {"box_range": list(self.box_range)}
        return found if self.feature_scale == 1 else found | {"feature_scale": self.feature_scale}

    @property
    def form(self) -> type[Example] | None:
        """Return the form of example that the network answers; None if `task` is not given or not of the paper."""
        return None if self.task is None else FORMS.get(self.task)

    def save(self, folder: str | Path) -> None:
        """Write the metadata file into `folder`."""
        values = {key: value for key, value in asdict(self).items() if key not in ("box_range", "feature_scale")}
        values |= self._scales
        (Path(folder) / METADATA_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _range(value: list[Any], place: str) -> tuple[float, float]:
    """Return two numbers. Raise CheckpointError unless they are finite and the second is larger."""
    if len(value) == 2 and all(type(each) in (int, float) and math.isfinite(each) for each in value):
        low, high = map(float, value)
        if low < high:
            return low, high
    raise CheckpointError(f"{place}: must be two numbers, the smaller one first, got {brief(value)}")


_TYPES = {
    "task": str | None,
    "recipe": str,
    "feature_space": str | None,
    "box_geometry": bool,
    "box_range": list,
    "feature_scale": float,
    "fix_quirks": bool,
}

_SPACES = {"vqa": ("pythia_fpn", 2048), "nlvr2": ("detectron_fpn", 1024), "vcr": ("r2c_resnet50", 512)}
"""What a checkpoint was trained for → (feature space, size of a feature)."""
_TRAINED_FOR: dict[type[Example], tuple[str, int | None]] = {
    Question: ("vqa", 3129),
    Statement: ("nlvr2", 2),
    MultipleChoice: ("vcr", None),
}
"""Form of example → (what its published checkpoint was trained for, number of labels; None if it has none)."""
_NAME = re.compile(r"visualbert[-_](vqa|nlvr2|vcr)([-_]coco)?([-_]pre)?", re.IGNORECASE)


def published_space(folder: Path, form: type[Example], config: VisualBertConfig) -> str | None:
    """Return the feature space of the published checkpoint that this one looks like; None if it looks like none.

    A folder name on the path and the feature size decide first. Form, number of labels and feature size decide if no
    name fits. Parent folders count because the Hub's cache puts the name of a model there.
    """
    named = [found[1].lower() for part in folder.absolute().parts if (found := _NAME.search(part))]
    if form in _TRAINED_FOR:
        task, labels = _TRAINED_FOR[form]
        if labels in (None, config.num_labels):
            named.insert(0, task)  # tried last
    sized = (_SPACES[name] for name in reversed(named) if name in _SPACES)
    return next((space for space, size in sized if size == config.visual_embedding_dim), None)
