"""Functions that tests call on Ray. This file imports no torch, so that their processes start fast."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from visualbert_core.engine.stopping import Stop


def dies(deaths: Path) -> None:
    """Kill this process, and count that."""
    with deaths.open("a") as file:
        file.write("x")
    os.kill(os.getpid(), signal.SIGKILL)


def waits_for_a_signal(began: Path) -> str:
    """Return the name of the signal that comes."""
    with Stop() as stop:
        began.touch()
        while stop.reason() is None:
            time.sleep(0.02)
    return str(stop.signal)
