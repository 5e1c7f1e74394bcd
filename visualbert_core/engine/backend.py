"""The contract between the scheduler and a backend, which runs actors.

`pool.py` has two backends, on Ray and in this process, and the tests have a stand-in. The scheduler knows nothing else
of actors.
"""

from __future__ import annotations

from typing import Any, Protocol

from visualbert_core.engine.shards import Marker, Shard


class LostError(Exception):
    """An actor ended or is unusable. `blameless` says that its shard was not the cause, because its node was lost."""

    def __init__(self, message: str, blameless: bool = False) -> None:
        super().__init__(message)
        self.blameless = blameless


class Backend(Protocol):
    """Starts actors and sends them shards. It returns handles of actors and of calls. A call is hashable."""

    @property
    def size(self) -> int:
        """Return how many actors there may be at once. The number changes as nodes come and go."""

    @property
    def gpus(self) -> float:
        """Return how many GPUs one actor reserves."""

    def room(self) -> str:
        """Say in words what an actor needs, and for how many actors the nodes have room."""

    def unplaced(self, booting: int) -> int:
        """Return how many of the `booting` actors no node has room for. The processes of the others are starting."""

    def boot(self) -> tuple[Any, Any]:
        """Start an actor. Return it, and a call that ends (with None) when the actor is ready."""

    def submit(self, actor: Any, shard: Shard) -> Any:
        """Start a shard on an actor. Return the call, whose result is the marker of the shard."""

    def wait(self, calls: list[Any]) -> Any | None:
        """Return one of the calls that has ended, or None where no call ends within half a second."""

    def result(self, call: Any) -> Marker | None:
        """Return the result of an ended call.

        Raise LostError where the actor ended, and the error of the worker where the worker raised one.
        """

    def release(self, actor: Any) -> None:
        """Keep an idle actor for the next stage."""

    def discard(self, actor: Any) -> None:
        """End an actor, whether it still runs or not."""
