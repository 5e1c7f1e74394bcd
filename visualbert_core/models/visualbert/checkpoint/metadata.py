"""The metadata file `visualbert_core.json` of a checkpoint folder.

Owns what `config.json` and the weights cannot say: task, input recipe and feature space. The file is this project's own
and optional. transformers ignores it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from visualbert_core.config import nearest
from visualbert_core.errors import CheckpointError
from visualbert_core.io.documents import brief, read_json
from visualbert_core.models.base import METADATA_FILE
from visualbert_core.models.visualbert.inputs import RECIPES
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
    code (see `inputs.py`). `box_geometry` says that box numbers are appended to every feature.
    """

    task: str | None = None
    recipe: str = "original"
    feature_space: str | None = None
    box_geometry: bool = False
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
        sidecar = cls(**found)
        if sidecar.recipe not in RECIPES:
            raise CheckpointError(
                f"{path}: recipe: unknown name {brief(sidecar.recipe)}{nearest(sidecar.recipe, RECIPES)}"
            )
        if sidecar.fix_quirks and sidecar.recipe != "original":
            raise CheckpointError(f"{path}: fix_quirks: belongs to recipe original, not to {sidecar.recipe}")
        return sidecar

    @property
    def form(self) -> type[Example] | None:
        """Return the form of example that the network answers; None if `task` is not given or not of the paper."""
        return None if self.task is None else FORMS.get(self.task)

    def save(self, folder: str | Path) -> None:
        """Write the metadata file into `folder`."""
        (Path(folder) / METADATA_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


_TYPES = {
    "task": str | None,
    "recipe": str,
    "feature_space": str | None,
    "box_geometry": bool,
    "fix_quirks": bool,
}
