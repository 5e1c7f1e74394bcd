"""What stops a job before its end: SIGTERM or SIGINT, or the hours that it may take.

A job decides itself where it can stop. The pool lets the running shards be committed, and a training saves after its
step. A second signal acts as it would without this file.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Notes the first signal inside its context, and knows the hours.

    `heard` is called in the main thread with the name of the signal, and may raise an error. In another thread no
    signal is noted: Python allows handlers in the main thread only.
    """

    def __init__(self, hours: float | None = None, heard: Callable[[str], None] = lambda name: None) -> None:
        self.signal: str | None = None
        self._hours, self._heard = hours, heard
        self._began, self._owner = time.monotonic(), os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def listen(self) -> None:
        """Set the handlers, again where a library has replaced them."""
        if self.signal is None:
            for number in self._before:
                signal.signal(number, self._note)

    def reason(self) -> str | None:
        """Return why nothing further may be started, or None where it may."""
        over = self._hours is not None and time.monotonic() - self._began > self._hours * 3600
        return self.signal or (f"{self._hours:g} hours are over" if over else None)

    def _note(self, number: int, _: object) -> None:
        if os.getpid() != self._owner:  # a child that has just been forked still has this handler
            return
        self.signal = signal.Signals(number).name
        self._restore()
        self._heard(self.signal)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
