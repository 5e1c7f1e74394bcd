"""The sidecar `visualbert_core.json`: what a checkpoint folder's configuration and weights cannot say."""

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
"""The benchmarks of the paper → the form of example that their checkpoints answer."""


@dataclass(frozen=True)
class CheckpointMetadata:
    """What a network was trained for. None: not said. `recipe` names the input layout and `fix_quirks` says whether it
    is without the authors' bugs (see `inputs.py`)."""

    task: str | None = None
    recipe: str = "original"
    feature_space: str | None = None
    box_geometry: bool = False
    fix_quirks: bool = False

    @classmethod
    def from_folder(cls, folder: str | Path) -> CheckpointMetadata:
        """Read the sidecar; the defaults if there is none. Raises CheckpointError naming the file and the key."""
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
        """The form of example that the network answers; None where `task` is not said, or is a benchmark of
        somebody's own."""
        return None if self.task is None else FORMS.get(self.task)

    def save(self, folder: str | Path) -> None:
        """Write the sidecar into `folder`."""
        (Path(folder) / METADATA_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


_TYPES = {
    "task": str | None,
    "recipe": str,
    "feature_space": str | None,
    "box_geometry": bool,
    "fix_quirks": bool,
}
