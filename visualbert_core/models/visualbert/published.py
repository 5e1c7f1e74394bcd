"""The published checkpoints, and the feature space that each was trained in.

Their files do not name the feature space, so it is recognised by name and size. docs/checkpoints.md has the whole
table. Sizes and features are from the authors' configurations (https://github.com/uclanlp/visualbert).
"""

from __future__ import annotations

import re
from pathlib import Path

from visualbert_core.models.visualbert.config import VisualBertConfig
from visualbert_core.schema import Example, MultipleChoice, Question, Statement

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
