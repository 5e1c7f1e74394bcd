"""What stops a training early: a signal, or the hours that it may take. The training saves first.

The first SIGTERM or SIGINT is noted, and the step that runs is finished. A second one acts as before.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from visualbert_core.engine.processes import SIGNALS


class Stop:
    """Knows whether the training should stop."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._began = time.monotonic()

    def reason(self, hours: float | None) -> str | None:
        """Return why the training should stop, or None."""
        over = hours is not None and time.monotonic() - self._began > hours * 3600
        return self.signal or (f"{hours:g} hours are over" if over else None)


@contextmanager
def listening() -> Iterator[Stop]:
    """Note the first SIGTERM or SIGINT, so that the training is saved after its step. A second one acts as before.

    In another thread do nothing: Python allows handlers in the main thread only.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}

    def restore_handlers() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: object) -> None:
        stop.signal = signal.Signals(number).name
        restore_handlers()

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        restore_handlers()
