"""An actor through which the driver and the workers of a training tell each other things. It needs no torch."""

from __future__ import annotations

from typing import Any


class Board:
    """Holds why to stop, and what workers have told since the driver last asked: (kind, what) in order."""

    def __init__(self) -> None:
        self._told: list[tuple[str, Any]] = []
        self._stop: str | None = None

    def stop(self, reason: str) -> None:
        self._stop = reason

    def reason(self) -> str | None:
        return self._stop

    def tell(self, kind: str, what: Any) -> None:
        self._told.append((kind, what))

    def news(self) -> list[tuple[str, Any]]:
        found, self._told = self._told, []
        return found
