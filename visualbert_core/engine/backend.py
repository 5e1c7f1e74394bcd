"""The contract between the scheduler and whatever runs actors: Ray (`cluster.py`), this process, or a stand-in."""

from __future__ import annotations

from typing import Any, Protocol

from visualbert_core.engine.shards import Marker, Shard


class LostError(Exception):
    """An actor is gone or unusable. `blameless` where that had nothing to do with what it was doing: its node went."""

    def __init__(self, message: str, blameless: bool = False) -> None:
        super().__init__(message)
        self.blameless = blameless


class Backend(Protocol):
    """Where actors live. It hands out handles of actors and of calls; a call is hashable."""

    @property
    def size(self) -> int:
        """How many actors there may be at once; changes as nodes come and go."""

    @property
    def gpus(self) -> float:
        """GPUs of an actor."""

    def room(self) -> str:
        """What an actor needs, and for how many the nodes have room, in words."""

    def unplaced(self, booting: int) -> int:
        """How many of `booting` actors that are not ready have room on no node; the processes of the rest start."""

    def boot(self) -> tuple[Any, Any]:
        """Start an actor; returns it and the call whose result (None) says that it is ready."""

    def submit(self, actor: Any, shard: Shard) -> Any:
        """Start a shard on an actor; returns the call whose result is the shard's marker."""

    def wait(self, calls: list[Any]) -> Any | None:
        """One of the calls that has ended; None if none does within half a second."""

    def result(self, call: Any) -> Marker | None:
        """Return what an ended call gave. Raises LostError where its actor ended, else what the worker raised."""

    def release(self, actor: Any) -> None:
        """Take back an actor that has nothing to do, for the next stage."""

    def discard(self, actor: Any) -> None:
        """End an actor, dead or alive."""
