"""The loop that keeps a pool of workers busy until every shard is committed.

Owns what happens when something fails: which shard is retried, which actor is replaced, who is to blame and when to
stop. Knows nothing of Ray: actors are whatever keeps the `Actors` contract (`cluster.py`).

A shard that ends its workers is bisected to the guilty items: they become failure rows, the others are computed. What
one run has learned of them is not kept for the next: a killed driver starts a bisection anew.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

from visualbert_core.config import PoolConfig
from visualbert_core.errors import InputError, ShardError, UnfinishedError
from visualbert_core.progress import LOG_SECONDS, Progress, Shards, Workers
from visualbert_core.shards import Marker, Shard

IN_FLIGHT = 2  # shards per actor
DEATHS = 2  # actors that died with only this shard in flight
ALONE = 3  # actors that died with only this item in flight
NODES = 10  # nodes that may be lost under a shard alone before it is held against it after all
PIECES = 16  # of a shard under trial; more than two, because a death costs a boot and a live trial next to nothing
WAITS = (2.0, 20.0)  # seconds until a shard that raised is tried again; then it is given up
BOOTS = 5  # actors in a row, for each place, that ended without having finished anything
BOOT_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds until the next is started after the first of them, doubling up to this
GIVEN_UP = 3  # shards in a row that were given up without another being finished: it is not them
RAISED = 10  # attempts in a row that raised: no further shard is begun before those have been tried again
TRIALS = 10  # deaths in a row in the trials of one shard before it is given up as a whole
CONTROL = 16  # items, known to be harmless, that a fresh actor must survive before it is given a suspect
SLOW, LONG, SHORT = 20, 600.0, 60.0  # a shard hangs after 20 times the usual, at least 600 s; a trial at least 60 s


class LostError(Exception):
    """An actor is gone or unusable. `blameless` where that had nothing to do with what it was doing: its node went."""

    def __init__(self, message: str, blameless: bool = False) -> None:
        super().__init__(message)
        self.blameless = blameless


class Actors(Protocol):
    """Where workers live. Actors and calls are handles; a call is hashable."""

    @property
    def size(self) -> int:
        """How many actors there may be at once; changes as nodes come and go."""

    @property
    def gpus(self) -> float:
        """GPUs of an actor."""

    def room(self) -> str:
        """What an actor needs, and for how many the nodes have room, in words."""

    def unplaced(self, booting: int) -> int:
        """How many of so many actors that are not ready have room on no node; the others' processes are starting."""

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
    """A shard or a trial on its way, and what has happened to it."""

    shard: Shard
    case: _Case | None = None  # whose trial this is
    control: bool = False  # harmless items, to see whether an actor is any good
    suspect: bool = False  # was in flight when an actor died; runs alone from then on
    deaths: int = 0
    nodes: int = 0
    errors: int = 0
    acquittals: int = 0  # times that every item alone was found harmless
    cause: Exception | None = None
    since: float = 0.0  # when it was given to an actor; while it waits, when its waiting ends


@dataclass(eq=False)
class _Case:
    """A shard that ends its workers, and how the trials of its items go."""

    ticket: _Ticket
    guilty: set[str] = field(default_factory=set)
    open: int = 0  # trials without a verdict
    deaths: int = 0  # in a row


@dataclass(eq=False)
class _Seat:
    """An actor, and what it is doing."""

    actor: Any
    ready: bool = False
    useful: bool = False
    finished: float = 0.0  # when it last ended a shard
    load: list[_Ticket] = field(default_factory=list)


class Supervisor:
    """Runs every shard; actors that are idle or never start do not hold it up.

    A shard that raises is tried again after a while, twice. When an actor dies, each shard in flight on it is a suspect
    and from then on runs alone; one that ends two more actors, or does not end itself, is put on trial: its items run
    in pieces that publish nothing, those that end an actor in smaller ones, down to single items. An item that ends
    three actors alone is quarantined, and the shard runs once more without it. So that a broken GPU does not quarantine
    good images, suspects are given only to actors that have finished something, be it a control of harmless items.
    Given-up shards are raised as one ShardError after everything else is committed.
    """

    def __init__(
        self,
        actors: Actors,
        shards: Sequence[Shard],
        progress: Progress,
        config: PoolConfig | None = None,
        stop: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.actors, self.progress, self.stop = actors, progress, stop
        self.config = config or PoolConfig()
        self.queue = deque(_Ticket(shard) for shard in shards)
        self.suspects: deque[_Ticket] = deque()
        self.waiting: list[_Ticket] = []
        self.given_up: list[_Ticket] = []
        self.seats: list[_Seat] = []
        self.calls: dict[Any, tuple[_Seat, _Ticket | None]] = {}
        self.markers: list[Marker] = []
        self.control: Shard | None = None
        self.total, self.done = len(shards), 0
        self.paces: deque[float] = deque(maxlen=99)  # seconds per item of the last shards
        self.fruitless = self.hopeless = self.raised = 0  # actors, shards and attempts in a row
        self.staffed = self.noted = self.boot_at = time.monotonic()

    def run(self) -> list[Marker]:
        """The markers, in no particular order. Raises InputError as soon as a worker does, UnfinishedError where `stop`
        gave a reason, ShardError at the end or as soon as nothing gets done any more."""
        try:
            while (reason := self.stop()) is None and self._outstanding():
                self._boot()
                self._call_back()
                self._feed()
                self._step()
            if reason is not None:
                self._drain(reason)
        finally:
            for seat in self.seats:
                (self.actors.release if seat.ready and not seat.load else self.actors.discard)(seat.actor)
        if self.given_up:
            raise ShardError(self._verdict()) from self.given_up[0].cause
        return self.markers

    def _outstanding(self) -> int:
        return len(self.queue) + len(self.suspects) + len(self.waiting) + self._running()

    def _running(self) -> int:
        return sum(len(seat.load) for seat in self.seats)

    def _drain(self, reason: str) -> None:
        """Shards that run are committed; nothing new is started."""
        self.progress.note(f"stopping ({reason}): {self._running()} running shards are finished, the others are left")
        while self._running():
            self._step()
        if left := self.total - self.done:
            raise UnfinishedError(
                f"stopped ({reason}): {left} of {self.total} shards are left; the same line again does them"
            )

    # who works ------------------------------------------------------------------------------------------------------

    def _boot(self) -> None:
        now = time.monotonic()
        while now >= self.boot_at and len(self.seats) < min(self.actors.size, self._outstanding()):
            actor, call = self.actors.boot()
            seat = _Seat(actor)
            self.seats.append(seat)
            self.calls[call] = (seat, None)
        if any(seat.ready for seat in self.seats):
            self.staffed = self.noted = now
        elif now - self.staffed > self.config.start_timeout:
            raise ShardError(f"no worker has started in {now - self.staffed:.0f} s: {self._lack()}")
        elif now - self.noted > LOG_SECONDS:
            self.noted = now
            self.progress.note(f"waiting for a worker: {self._lack()}")

    def _lack(self) -> str:
        """Why no worker is ready: those that have room are starting, or there is none."""
        unplaced = self.actors.unplaced(len(self.seats))
        if starting := len(self.seats) - unplaced:
            others = f", {unplaced} without room" if unplaced else ""
            return f"{starting} starting (a process that imports its libraries and loads its model){others}"
        return self.actors.room() if self.seats else "the last one ended, the next is about to be started"

    def _call_back(self) -> None:
        now = time.monotonic()
        for ticket in [ticket for ticket in self.waiting if ticket.since <= now]:
            self.waiting.remove(ticket)
            if ticket.suspect:
                self.suspects.append(ticket)
            else:
                self.queue.appendleft(ticket)  # before others: it may be all of them

    def _feed(self) -> None:
        for depth in range(IN_FLIGHT):
            for seat in self.seats:
                if seat.ready and len(seat.load) == depth and not any(ticket.suspect for ticket in seat.load):
                    self._give(seat)

    def _give(self, seat: _Seat) -> None:
        """New shards first. A suspect gets an actor to itself, so that nobody else is blamed for what it does."""
        if self.queue and (self.queue[0].errors or self.raised < RAISED or not self.waiting):
            ticket = self.queue.popleft()
        elif self.suspects and not seat.load:
            if self.control is None or seat.useful:
                ticket = self.suspects.popleft()
            else:
                ticket = _Ticket(self.control, control=True)
        else:
            return
        ticket.since = time.monotonic()
        seat.load.append(ticket)
        self.calls[self.actors.submit(seat.actor, ticket.shard)] = (seat, ticket)

    # what comes back ------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        if not self.calls:
            time.sleep(0.1)
        elif (call := self.actors.wait(list(self.calls))) is not None:
            self._settle(call)
        self._end_the_hung()
        states = (len(self.queue) + len(self.waiting), self._running(), len(self.suspects), len(self.given_up))
        ready = sum(seat.ready for seat in self.seats)
        booting = len(self.seats) - ready
        unplaced = self.actors.unplaced(booting)
        workers = Workers(ready, booting - unplaced, unplaced, self.actors.gpus)
        self.progress.show(Shards(*states, self.done), workers)

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
                seat.load.remove(ticket)
                seat.finished = time.monotonic()
                self._retry(seat, ticket, error)
            return
        if ticket is None:
            seat.ready = True
            self.progress.ready()
            return
        seat.load.remove(ticket)
        seat.useful, seat.finished = True, time.monotonic()
        self.fruitless = self.raised = 0
        self.control = self.control or _trial(ticket.shard, ticket.shard.touched[:CONTROL])
        if ticket.control:
            return
        if ticket.case is not None:
            ticket.case.deaths = 0
            self._close(ticket.case)
        elif marker is not None:
            self.done += 1
            self.hopeless = 0
            self.paces.append((time.monotonic() - ticket.since) / len(ticket.shard.items))
            self.markers.append(marker)
            self.progress.add(marker)

    def _retry(self, seat: _Seat, ticket: _Ticket, error: Exception) -> None:
        ticket.cause = error
        self.raised += 1
        if ticket.control:
            seat.useful = True  # it raised, so it did not end its process
        elif ticket.case is not None:  # the same; the whole shard will raise, too
            self._close(ticket.case)
        elif ticket.errors >= len(WAITS):
            self._give_up(ticket)
        else:
            ticket.since = time.monotonic() + WAITS[ticket.errors]
            ticket.errors += 1
            self.waiting.append(ticket)

    def _give_up(self, ticket: _Ticket) -> None:
        self.given_up.append(ticket)
        self.hopeless += 1
        if self.hopeless >= GIVEN_UP:
            raise ShardError(self._verdict() + "; the run was stopped, as none was finished in between")

    def _end_the_hung(self) -> None:
        now = time.monotonic()
        for seat, ticket in list(self.calls.values()):
            if ticket is None or seat not in self.seats:
                continue
            # Those in flight on an actor share it, and what waits for the one before it does not hang.
            limit = self._limit(ticket) * len(seat.load)
            if now - max(ticket.since, seat.finished) > limit:
                self._bury(seat, LostError(f"the worker did not end in {limit:.0f} s"), hung=ticket)

    def _limit(self, ticket: _Ticket) -> float:
        """Seconds that a shard may take; a trial its share of them."""
        items = len(ticket.shard.items)
        limit = self.config.shard_timeout
        if limit is None:
            limit = max(LONG, SLOW * median(self.paces) * items) if self.paces else math.inf
        if ticket.case is None:
            return limit
        return max(min(limit, SHORT), limit * len(ticket.shard.touched) / items)

    # who is to blame ------------------------------------------------------------------------------------------------

    def _bury(self, seat: _Seat, error: Exception, hung: _Ticket | None = None) -> None:
        """Forget an actor; the loop boots another. If one of its other calls had ended, doing it again is harmless."""
        self.actors.discard(seat.actor)
        self.seats.remove(seat)
        self.calls = {call: task for call, task in self.calls.items() if task[0] is not seat}
        blameless = isinstance(error, LostError) and error.blameless
        accused = seat.load[0] if len(seat.load) == 1 else hung
        # A lost node takes several actors at once, and a suspect is expected to end its own: neither says anything
        # about the next ones, and nor does the end of an actor that had been useful.
        if not (seat.useful or blameless or (accused is not None and accused.suspect)):
            self.boot_at = time.monotonic() + min(LONGEST_WAIT, BOOT_WAIT * 2**self.fruitless)
            self.fruitless += 1
        for ticket in seat.load:
            ticket.suspect, ticket.cause = True, error
            ticket.nodes += blameless
            if ticket.control:
                continue
            if ticket is accused and (seat.useful or self.control is None) and not (blameless and ticket.nodes < NODES):
                ticket.deaths = max(ticket.deaths + 1, DEATHS if hung and ticket.case is None else 0)
                self._judge(ticket, error)
            else:
                self.suspects.append(ticket)
        if self.fruitless >= BOOTS * (len(self.seats) + 1) and not any(other.useful for other in self.seats):
            verdict = f"; {self._verdict()}" if self.given_up else ""
            reason = f"{self.fruitless} workers in a row finished nothing, the last: {_line(error)}{verdict}"
            raise ShardError(reason) from error

    def _judge(self, ticket: _Ticket, error: Exception) -> None:
        """Of a ticket that has ended an actor alone."""
        case, items = ticket.case or _Case(ticket, open=1), ticket.shard.touched
        if case.open < 0:
            return
        case.ticket.cause = error
        case.deaths += ticket.case is not None
        enough = ticket.deaths >= (ALONE if len(items) == 1 else DEATHS if ticket.case is None else 1)
        untold = enough and len(items) == 1 and self.control is None  # the item or the machine?
        if case.deaths >= TRIALS or not items or untold:
            case.open = -1
            self.suspects = deque(suspect for suspect in self.suspects if suspect.case is not case)
            self._give_up(case.ticket)
        elif not enough:
            self.suspects.append(ticket)
        elif len(items) == 1:
            case.guilty.update(items)
            self._close(case)
        else:
            pieces = _pieces(items)
            case.open += len(pieces) - 1
            self.suspects.extend(_Ticket(_trial(case.ticket.shard, piece), case, suspect=True) for piece in pieces)

    def _close(self, case: _Case) -> None:
        """One trial of a case is over; after the last one the shard runs without its guilty items."""
        case.open -= 1
        if case.open:
            return
        ticket = case.ticket
        ticket.acquittals += not case.guilty
        if ticket.acquittals >= DEATHS:
            self._give_up(ticket)
            return
        if case.guilty:
            names = ", ".join(sorted(case.guilty)[:3])
            self.progress.note(f"quarantined {len(case.guilty)} item(s) that end every worker process: {names}")
        lost = case.guilty.union(ticket.shard.quarantined)
        quarantined = tuple(item for item in ticket.shard.items if item in lost)
        ticket.shard, ticket.deaths = dataclasses.replace(ticket.shard, quarantined=quarantined), 0
        self.suspects.append(ticket)

    def _verdict(self) -> str:
        ticket = self.given_up[0]
        names = ", ".join(ticket.shard.items[:3])
        return (
            f"{len(self.given_up)} shard(s) failed on every attempt, the first {ticket.shard.shard_id} "
            f"({len(ticket.shard.items)} items from {names}): {_line(ticket.cause)}; finished shards are kept"
        )


def _pieces(items: tuple[str, ...]) -> list[tuple[str, ...]]:
    size = math.ceil(len(items) / PIECES)
    return [items[start : start + size] for start in range(0, len(items), size)]


def _trial(shard: Shard, piece: tuple[str, ...]) -> Shard:
    others = set(shard.items) - set(piece)
    quarantined = tuple(item for item in shard.items if item in others)
    return dataclasses.replace(shard, quarantined=quarantined, trial=True)


def _line(error: Exception | None) -> str:
    lines = str(error).strip().splitlines()
    name = type(error).__name__
    return lines[0] if isinstance(error, LostError) else f"{name}: {lines[0]}" if lines else name
