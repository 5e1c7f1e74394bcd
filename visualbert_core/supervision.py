"""The loop that keeps a pool of workers busy until every shard is committed, and the progress it shows.

Owns what happens when something fails: which shard is retried, which actor is replaced, who is to blame and when to
stop. Knows nothing of Ray: actors are whatever keeps the `Actors` contract (`cluster.py`). Counts nothing itself:
progress is the sum of committed markers.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from visualbert_core.errors import InputError, ShardError
from visualbert_core.shards import Marker, Shard

IN_FLIGHT = 2  # shards per actor
DEATHS = 2  # actors that died with only this shard in flight
ERRORS = 3  # exceptions that a shard may raise
BOOTS = 5  # actors in a row that ended without having finished anything
LOG_SECONDS = 10.0


class LostError(Exception):
    """An actor is gone or unusable, whatever it was doing."""


class Actors(Protocol):
    """Where workers live. Actors and calls are handles; a call is hashable."""

    size: int
    """How many actors there may be at once."""

    def boot(self) -> tuple[Any, Any]:
        """Start an actor; returns it and the call whose result (None) says that it is ready."""

    def submit(self, actor: Any, shard: Shard) -> Any:
        """Start a shard on an actor; returns the call whose result is the shard's marker."""

    def wait(self, calls: list[Any]) -> Any | None:
        """One of the calls that has ended; None if none does within half a second."""

    def result(self, call: Any) -> Marker | None:
        """Of a call that has ended. Raises LostError at the actor's end, and otherwise what the worker raised."""

    def release(self, actor: Any) -> None:
        """Take back an actor that has nothing to do, for the next stage."""

    def discard(self, actor: Any) -> None:
        """End an actor, dead or alive."""


@dataclass(eq=False)
class _Ticket:
    """A shard on its way, and what has happened to it."""

    shard: Shard
    suspect: bool = False  # was in flight when an actor died; runs alone from then on
    deaths: int = 0
    errors: int = 0
    cause: Exception | None = None


@dataclass(eq=False)
class _Seat:
    """An actor, and what it is doing."""

    actor: Any
    ready: bool = False
    useful: bool = False
    load: list[_Ticket] = field(default_factory=list)


class Supervisor:
    """Runs every shard; actors that are idle or never start do not hold it up.

    A shard that raises goes to the end of the queue, three times. When an actor dies, each shard in flight on it is a
    suspect and from then on runs alone; one that ends two more actors is given up. Given-up shards are raised as one
    ShardError after everything else is committed; finding the guilty item among theirs would start from there.
    """

    def __init__(self, actors: Actors, shards: Sequence[Shard], progress: Progress) -> None:
        self.actors, self.progress = actors, progress
        self.queue = deque(_Ticket(shard) for shard in shards)
        self.suspects: deque[_Ticket] = deque()
        self.given_up: list[_Ticket] = []
        self.seats: list[_Seat] = []
        self.calls: dict[Any, tuple[_Seat, _Ticket | None]] = {}
        self.markers: list[Marker] = []
        self.fruitless = 0

    def run(self) -> list[Marker]:
        """The markers, in no particular order. Raises InputError as soon as a worker does, ShardError at the end or
        when no actor gets anything done."""
        try:
            while outstanding := len(self.queue) + len(self.suspects) + sum(len(seat.load) for seat in self.seats):
                while len(self.seats) < min(self.actors.size, outstanding):
                    self._boot()
                self._feed()
                call = self.actors.wait(list(self.calls))
                if call is not None:
                    self._settle(call)
                self.progress.show()
        finally:
            for seat in self.seats:
                (self.actors.release if seat.ready and not seat.load else self.actors.discard)(seat.actor)
        if self.given_up:
            raise ShardError(self._verdict()) from self.given_up[0].cause
        return self.markers

    def _boot(self) -> None:
        actor, call = self.actors.boot()
        seat = _Seat(actor)
        self.seats.append(seat)
        self.calls[call] = (seat, None)

    def _feed(self) -> None:
        for depth in range(IN_FLIGHT):
            for seat in self.seats:
                if seat.ready and len(seat.load) == depth and not any(ticket.suspect for ticket in seat.load):
                    self._give(seat)

    def _give(self, seat: _Seat) -> None:
        """New shards first. A suspect gets an actor to itself, so that nobody else is blamed for what it does."""
        if self.queue:
            ticket = self.queue.popleft()
        elif self.suspects and not seat.load:
            ticket = self.suspects.popleft()
        else:
            return
        seat.load.append(ticket)
        self.calls[self.actors.submit(seat.actor, ticket.shard)] = (seat, ticket)

    def _settle(self, call: Any) -> None:
        seat, ticket = self.calls.pop(call)
        try:
            marker = self.actors.result(call)
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a worker raises is held against its shard
            if ticket is None or isinstance(error, LostError):
                self._bury(seat, error)
            else:
                self._retry(seat, ticket, error)
            return
        if ticket is None or marker is None:
            seat.ready = True
            self.progress.ready()
            return
        seat.load.remove(ticket)
        seat.useful = True
        self.fruitless = 0
        self.markers.append(marker)
        self.progress.add(marker)

    def _retry(self, seat: _Seat, ticket: _Ticket, error: Exception) -> None:
        seat.load.remove(ticket)
        ticket.cause = error
        ticket.errors += 1
        if ticket.errors >= ERRORS:
            self.given_up.append(ticket)
        else:
            (self.suspects if ticket.suspect else self.queue).append(ticket)

    def _bury(self, seat: _Seat, error: Exception) -> None:
        """Forget an actor; the loop boots another. If one of its other calls had ended, doing it again is harmless."""
        self.actors.discard(seat.actor)
        self.seats.remove(seat)
        self.calls = {call: task for call, task in self.calls.items() if task[0] is not seat}
        alone = len(seat.load) == 1
        for ticket in seat.load:
            ticket.suspect, ticket.cause = True, error
            ticket.deaths += alone
            (self.given_up if ticket.deaths >= DEATHS else self.suspects).append(ticket)
        # A lost node takes several actors at once; those that had been useful say nothing about the next ones.
        self.fruitless += not seat.useful
        if self.fruitless >= BOOTS:
            verdict = f"; {self._verdict()}" if self.given_up else ""
            raise ShardError(f"{BOOTS} workers in a row finished nothing, the last: {_line(error)}{verdict}") from error

    def _verdict(self) -> str:
        ticket = self.given_up[0]
        names = ", ".join(ticket.shard.items[:3])
        return (
            f"{len(self.given_up)} shard(s) failed on every attempt, the first {ticket.shard.shard_id} "
            f"({len(ticket.shard.items)} items from {names}): {_line(ticket.cause)}; finished shards are kept"
        )


def _line(error: Exception | None) -> str:
    lines = str(error).strip().splitlines()
    name = type(error).__name__
    return lines[0] if isinstance(error, LostError) else f"{name}: {lines[0]}" if lines else name


class Progress:
    """Items done and failed, as markers say: a bar in a terminal, otherwise a line every ten seconds; on stderr."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total = label, total
        self.done = self.failed = 0
        self.began = self.logged = time.monotonic()
        text, status = TextColumn("{task.description}"), TextColumn("{task.fields[status]}")
        columns: list[ProgressColumn] = [text, BarColumn(), MofNCompleteColumn(), status, TimeRemainingColumn()]
        console = Console(stderr=True)
        self.bar = Bar(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task(label, total=total, status="")

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        self._log()

    def ready(self) -> None:
        """Until the first item is done the clock starts anew, so that rates leave out how long workers took to boot."""
        if not self.done:
            self.began = time.monotonic()

    def add(self, marker: Marker) -> None:
        self.failed += marker.failed
        self.done += marker.rows + marker.failed
        self.bar.update(self.task, completed=self.done, status=self._status())

    def show(self) -> None:
        """To be called often; the bar draws itself."""
        if time.monotonic() - self.logged > LOG_SECONDS:
            self._log()

    def _status(self) -> str:
        return f"{self.done / max(time.monotonic() - self.began, 1e-9):.1f}/s, {self.failed} failed"

    def _log(self) -> None:
        self.logged = time.monotonic()
        if self.bar.disable:
            seconds = (self.total - self.done) * (self.logged - self.began) / max(self.done, 1)
            left = f", {seconds:.0f} s left" if 0 < self.done < self.total else ""
            sys.stderr.write(f"{self.label}: {self.done} of {self.total}, {self._status()}{left}\n")
            sys.stderr.flush()
