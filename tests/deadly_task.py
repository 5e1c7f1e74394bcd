"""A benchmark whose reader ends its process once, as a node that dies does."""

from __future__ import annotations

import os
import random
import signal
from typing import Any

from visualbert_core.tasks.vqa import VqaTask

DEADLY = "deadly"
CALLS = 60


class DeadlyVqa(VqaTask):
    """VQA v2. Where its annotations lie beside a file `deadly`, the first process that draws CALLS examples dies."""

    calls = 0

    def drawn(self, example: Any, draws: random.Random) -> Any:
        """Draw an example, or die."""
        self.calls += 1
        if self.calls == CALLS:
            try:
                (self.files[0].parent / DEADLY).unlink()
            except FileNotFoundError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().drawn(example, draws)
