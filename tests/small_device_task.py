"""A benchmark whose worker has a device that is too small, in any process that opens it: for workers on Ray."""

from __future__ import annotations

from typing import Any

import torch

from visualbert_core.models.visualbert.trainable import VisualBertTrainable
from visualbert_core.tasks.vqa import VqaTask

TOKENS = 40
SMALL = "small"


class SmallDeviceVqa(VqaTask):
    """VQA v2. Where its annotations lie beside a file `small`, a pass of more than TOKENS tokens raises what torch
    raises on a GPU without memory."""

    def read(self) -> None:
        """Read the split, and let the passes of this process fail."""
        super().read()
        if (self.files[0].parent / SMALL).exists():
            VisualBertTrainable.losses = _losses  # type: ignore[method-assign]


def _losses(self: VisualBertTrainable, prepared: Any, real: Any = VisualBertTrainable.losses) -> torch.Tensor:
    sums: torch.Tensor = real(self, prepared)
    if sum(prepared[0].lengths) > TOKENS:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return sums
