"""The published checkpoints, and the features that each was trained on: none of their files says a word of it.

docs/checkpoints.md has the whole table; sizes and features are from the authors' configurations.
"""

from __future__ import annotations

import re
from pathlib import Path

from visualbert_core.models.visualbert.config import VisualBertConfig
from visualbert_core.schema import Example, MultipleChoice, Question, Statement

_SPACES = {"vqa": ("pythia_fpn", 2048), "nlvr2": ("detectron_fpn", 1024), "vcr": ("r2c_resnet50", 512)}
"""What a checkpoint was trained for → the space of its features, and their size."""
_TRAINED_FOR: dict[type[Example], tuple[str, int | None]] = {
    Question: ("vqa", 3129),
    Statement: ("nlvr2", 2),
    MultipleChoice: ("vcr", None),
}
"""Form of example → what the published checkpoint of it was trained for, and its number of labels if it has one."""
_NAME = re.compile(r"visualbert[-_](vqa|nlvr2|vcr)([-_]coco)?([-_]pre)?", re.IGNORECASE)


def published_space(folder: Path, form: type[Example], config: VisualBertConfig) -> str | None:
    """Return the feature space of the published checkpoint that has the name and size of this one, or else its form,
    number of labels and size; None where it is like none. The name is that of a folder on the way, as in the Hub's
    cache."""
    named = [found[1].lower() for part in folder.absolute().parts if (found := _NAME.search(part))]
    if form in _TRAINED_FOR:
        task, labels = _TRAINED_FOR[form]
        if labels in (None, config.num_labels):
            named.insert(0, task)
    sized = (_SPACES[name] for name in reversed(named) if name in _SPACES)
    return next((space for space, size in sized if size == config.visual_embedding_dim), None)
