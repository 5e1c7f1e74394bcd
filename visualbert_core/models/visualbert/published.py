"""The published checkpoints and the features that each was trained on, of which none of their files says a word.

docs/checkpoints.md has the whole table; sizes and features are from the authors' configurations.
"""

from __future__ import annotations

import re
from pathlib import Path

from visualbert_core.models.visualbert.config import VisualBertConfig

_SPACES = {"vqa": ("pythia_fpn", 2048), "nlvr2": ("detectron_fpn", 1024), "vcr": ("r2c_resnet50", 512)}
"""Data that a checkpoint was trained for → the space and size of its features."""
_LABELS = {"vqa": 3129, "nlvr2": 2}
_NAME = re.compile(r"visualbert[-_](vqa|nlvr2|vcr)([-_]coco)?([-_]pre)?", re.IGNORECASE)


def published_space(folder: Path, task: str, config: VisualBertConfig) -> str | None:
    """The feature space of the published checkpoint that has this one's name and size, or its task, number of labels
    and size; None where there is none. A name is that of any folder on the way, as in the Hub's cache."""
    named = [found[1].lower() for part in folder.absolute().parts if (found := _NAME.search(part))]
    for likely in (*reversed(named), task):
        space, size = _SPACES.get(likely, (None, 0))
        of_task = likely in named or _LABELS.get(task, config.num_labels) == config.num_labels
        if config.visual_embedding_dim == size and of_task:
            return space
    return None
