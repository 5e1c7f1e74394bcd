"""The scheduler: the loop that keeps a pool of actors busy until every shard is committed.

Owns what happens after a failure: which shard is tried again, which actor is replaced, whether the shard or the actor
was the cause, and when to stop. It knows nothing of Ray. It reaches actors through the contract `Backend`
(`backend.py`). `bisection.py` finds the guilty items of a shard that ends its actors. A bisection is not stored: when
the driver is killed, the next run begins it anew.

The states of a shard, which one `Attempt` holds:

                dispatch          result
    queued ───────────────▶ running ────▶ committed
      ▲                      │   │
      │ time is up           │   │ its actor ended       dispatch, alone          result
      │               raises │   └───────────────▶ suspect ───────────▶ running alone ────▶ committed
    waiting ◀────────────────┘                      ▲ ▲                 │    │
                                                    │ │ its first death,│    │ its second death,
                                                    │ │ or not its fault│    │ or it hung
                                                    │ └─────────────────┘    ▼
                                                    └─────────────────── bisected
                                            every trial is answered

- A shard waits 2 s after its first error and 20 s after its second error. A suspect that has waited is a suspect again.
- A death counts for a shard that was alone on its actor, or that hung there. It does not count where the actor had
  finished nothing yet while other actors had. The first nine losses of a node do not count either.
- A trial of a bisection is a separate attempt. It begins as a suspect. A result answers it, and so does an error, which
  its process has survived. A trial of one item is answered at its third death. A trial of several items is cut again at
  its first death.
- A shard is given up in five cases: at its third error; after ten deaths in a row in its trials; when two bisections
  found no guilty item; when one item ends its actors and no actor has ever finished anything; when the shard still ends
  actors although all its items are quarantined.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from visualbert_core.config import PoolConfig
from visualbert_core.engine.backend import Backend, LostError
from visualbert_core.engine.bisection import MAX_DEATHS_PER_SHARD, Bisection, Step, trial
from visualbert_core.engine.progress import LOG_SECONDS, Progress, Shards, Workers
from visualbert_core.engine.shards import Marker, Shard
from visualbert_core.errors import InputError, ShardError, UnfinishedError

IN_FLIGHT = 2  # shards per actor
MAX_LOST_NODES = 10  # nodes lost while they computed only this shard; the tenth counts as a death
RETRY_WAITS = (2.0, 20.0)  # seconds before the second and the third attempt of a shard that raised an error
MAX_FAILED_STARTS = 5  # actors in a row, for each place, that ended before they finished anything
START_WAIT, MAX_START_WAIT = 1.0, 60.0  # seconds before the next start after a failed start; doubles up to the maximum
MAX_FRUITLESS_BISECTIONS = 2  # bisections of one shard without a guilty item
MAX_GIVEN_UP = 3  # shards given up in a row, with none finished in between: the cause is not in the shards
MAX_ERRORS_IN_A_ROW = 10  # attempts that raised; then no new shard begins before these have been tried again
CONTROL_ITEMS = 16  # harmless items that a new actor must survive before it is given a suspect
HANG_FACTOR, MIN_HANG, MIN_TRIAL_HANG = 20, 600.0, 60.0  # a shard hangs after 20 times the usual time, at least 600 s


@dataclass(eq=False)
class Attempt:
    """A shard or a trial that is not finished, and what has happened to it."""

    shard: Shard
    whole: Attempt | None = None  # for a trial: the attempt of its shard
    control: bool = False  # a trial of harmless items, which shows whether an actor works
    suspect: bool = False  # an actor ended while it computed this, so it runs alone from then on
    deaths: int = 0
    lost_nodes: int = 0
    errors: int = 0
    bisection: Bisection | None = None  # None for a trial
    fruitless_bisections: int = 0  # bisections that found every item harmless
    cause: Exception | None = None
    started_at: float = 0.0  # when it was given to an actor
    due_at: float = 0.0  # when its wait ends


@dataclass(eq=False)
class Actor:
    """An actor and the attempts that it computes."""

    handle: Any
    ready: bool = False
    proven: bool = False  # it has finished something, so it works
    finished_at: float = 0.0  # when its last attempt ended
    in_flight: list[Attempt] = field(default_factory=list)


class Scheduler:
    """Runs every shard. It waits neither for actors that never start nor for idle ones.

    A shard that raises an error is tried again twice, after a wait. When an actor ends, each shard in flight on it
    becomes a suspect and runs alone from then on. A suspect that ends two actors, or hangs, is bisected. It then runs
    without its guilty items. A broken GPU must not quarantine good images, so suspects go only to actors that have
    finished something: a shard, or a control of harmless items. One ShardError reports the shards that were given up,
    after all other shards are committed.
    """

    def __init__(
        self,
        backend: Backend,
        shards: Sequence[Shard],
        progress: Progress,
        config: PoolConfig | None = None,
        stop: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.backend, self.progress, self.stop = backend, progress, stop
        self.config = config or PoolConfig()
        self.queue = deque(Attempt(shard) for shard in shards)
        self.suspects: deque[Attempt] = deque()
        self.waiting: list[Attempt] = []
        self.given_up: list[Attempt] = []
        self.actors: list[Actor] = []
        self.calls: dict[Any, tuple[Actor, Attempt | None]] = {}
        self.markers: list[Marker] = []
        self.control: Shard | None = None
        self.total, self.done = len(shards), 0
        self.paces: deque[float] = deque(maxlen=99)  # seconds per item, of the last shards
        self.failed_starts = self.given_up_in_a_row = self.errors_in_a_row = 0  # actors, shards, attempts in a row
        self.ready_at = self.noted_at = self.start_at = time.monotonic()

    def run(self) -> list[Marker]:
        """Run every shard, and return their markers in no particular order.

        Raise InputError as soon as a worker raises it, and UnfinishedError where `stop` returned a reason. Raise
        ShardError for shards that were given up: at the end, or as soon as no shard is finished any more.
        """
        try:
            while (reason := self.stop()) is None and self._outstanding():
                self._start_actors()
                self._requeue()
                self._dispatch()
                self._step()
            if reason is not None:
                self._drain(reason)
        finally:
            for actor in self.actors:
                (self.backend.release if actor.ready and not actor.in_flight else self.backend.discard)(actor.handle)
        if self.given_up:
            raise ShardError(self._summary()) from self.given_up[0].cause
        return self.markers

    def _outstanding(self) -> int:
        return len(self.queue) + len(self.suspects) + len(self.waiting) + self._running()

    def _running(self) -> int:
        return sum(len(actor.in_flight) for actor in self.actors)

    def _drain(self, reason: str) -> None:
        """Wait until the running shards are committed, and start no others."""
        self.progress.note(f"stopping ({reason}): waiting for {self._running()} running shards, the others are left")
        while self._running():
            self._step()
        if left := self.total - self.done:
            raise UnfinishedError(
                f"stopped ({reason}): {left} of {self.total} shards are left; run the same line again to compute them"
            )

    # which actor computes what --------------------------------------------------------------------------------------

    def _start_actors(self) -> None:
        now = time.monotonic()
        while now >= self.start_at and len(self.actors) < min(self.backend.size, self._outstanding()):
            handle, call = self.backend.boot()
            actor = Actor(handle)
            self.actors.append(actor)
            self.calls[call] = (actor, None)
        if any(actor.ready for actor in self.actors):
            self.ready_at = self.noted_at = now
        elif now - self.ready_at > self.config.start_timeout:
            raise ShardError(f"no worker has started in {now - self.ready_at:.0f} s: {self._why_none_is_ready()}")
        elif now - self.noted_at > LOG_SECONDS:
            self.noted_at = now
            self.progress.note(f"waiting for a worker: {self._why_none_is_ready()}")

    def _why_none_is_ready(self) -> str:
        """Say why no worker is ready: the workers are starting, or the nodes have no room for them."""
        unplaced = self.backend.unplaced(len(self.actors))
        if starting := len(self.actors) - unplaced:
            others = f", {unplaced} without room" if unplaced else ""
            return f"{starting} starting (a process that imports its libraries and loads its model){others}"
        return self.backend.room() if self.actors else "the last worker ended, the next one starts soon"

    def _requeue(self) -> None:
        now = time.monotonic()
        for attempt in [attempt for attempt in self.waiting if attempt.due_at <= now]:
            self.waiting.remove(attempt)
            if attempt.suspect:
                self.suspects.append(attempt)
            else:
                self.queue.appendleft(attempt)  # first, because its cause may stop all shards

    def _dispatch(self) -> None:
        for depth in range(IN_FLIGHT):
            for actor in self.actors:
                alone = any(attempt.suspect for attempt in actor.in_flight)
                if actor.ready and len(actor.in_flight) == depth and not alone:
                    self._give_work(actor)

    def _give_work(self, actor: Actor) -> None:
        """Give an actor one attempt, first from the queue. A suspect runs alone, so that only it can be guilty."""
        if self.queue and (self.queue[0].errors or self.errors_in_a_row < MAX_ERRORS_IN_A_ROW or not self.waiting):
            attempt = self.queue.popleft()
        elif self.suspects and not actor.in_flight:
            if self.control is None or actor.proven:
                attempt = self.suspects.popleft()
            else:
                attempt = Attempt(self.control, control=True)
        else:
            return
        attempt.started_at = time.monotonic()
        actor.in_flight.append(attempt)
        self.calls[self.backend.submit(actor.handle, attempt.shard)] = (actor, attempt)

    # results and errors ---------------------------------------------------------------------------------------------

    def _step(self) -> None:
        if not self.calls:
            time.sleep(0.1)
        elif (call := self.backend.wait(list(self.calls))) is not None:
            self._on_result(call)
        self._end_hung_actors()
        states = (len(self.queue) + len(self.waiting), self._running(), len(self.suspects), len(self.given_up))
        ready = sum(actor.ready for actor in self.actors)
        booting = len(self.actors) - ready
        unplaced = self.backend.unplaced(booting)
        workers = Workers(ready, booting - unplaced, unplaced, self.backend.gpus)
        self.progress.show(Shards(*states, self.done), workers)

    def _on_result(self, call: Any) -> None:
        actor, attempt = self.calls.pop(call)
        try:
            marker = self.backend.result(call)
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a worker raises is an error of its shard
            if attempt is None or isinstance(error, LostError):
                self._on_actor_death(actor, error)
            else:
                actor.in_flight.remove(attempt)
                actor.finished_at = time.monotonic()
                self._retry(actor, attempt, error)
            return
        if attempt is None:
            actor.ready = True
            self.progress.ready()
            return
        actor.in_flight.remove(attempt)
        actor.proven, actor.finished_at = True, time.monotonic()
        self.failed_starts = self.errors_in_a_row = 0
        self.control = self.control or trial(attempt.shard, attempt.shard.touched[:CONTROL_ITEMS])
        if attempt.control:
            return
        if attempt.whole is not None:
            assert attempt.whole.bisection is not None
            attempt.whole.bisection.deaths = 0
            self._on_answer(attempt.whole)
        elif marker is not None:
            self.done += 1
            self.given_up_in_a_row = 0
            self.paces.append((time.monotonic() - attempt.started_at) / len(attempt.shard.items))
            self.markers.append(marker)
            self.progress.add(marker)

    def _retry(self, actor: Actor, attempt: Attempt, error: Exception) -> None:
        attempt.cause = error
        self.errors_in_a_row += 1
        if attempt.control:
            actor.proven = True  # the process raised an error, so it survived
        elif attempt.whole is not None:  # its process survived too; the whole shard will raise the error again
            self._on_answer(attempt.whole)
        elif attempt.errors >= len(RETRY_WAITS):
            self._give_up(attempt)
        else:
            attempt.due_at = time.monotonic() + RETRY_WAITS[attempt.errors]
            attempt.errors += 1
            self.waiting.append(attempt)

    def _give_up(self, attempt: Attempt) -> None:
        self.given_up.append(attempt)
        self.given_up_in_a_row += 1
        if self.given_up_in_a_row >= MAX_GIVEN_UP:
            raise ShardError(self._summary() + "; the run was stopped, because no shard was finished in between")

    def _end_hung_actors(self) -> None:
        now = time.monotonic()
        for actor, attempt in list(self.calls.values()):
            if attempt is None or actor not in self.actors:
                continue
            # Attempts in flight on one actor share it, so each has more time. An attempt may also wait for the one
            # before it, so its time begins when that one ended.
            limit = self._limit(attempt) * len(actor.in_flight)
            if now - max(attempt.started_at, actor.finished_at) > limit:
                self._on_actor_death(actor, LostError(f"the worker did not end in {limit:.0f} s"), hung=attempt)

    def _limit(self, attempt: Attempt) -> float:
        """Return how many seconds a shard may take. A trial may take its share of them, at least MIN_TRIAL_HANG."""
        items = len(attempt.shard.items)
        limit = self.config.shard_timeout
        if limit is None:
            limit = max(MIN_HANG, HANG_FACTOR * median(self.paces) * items) if self.paces else math.inf
        if attempt.whole is None:
            return limit
        return max(min(limit, MIN_TRIAL_HANG), limit * len(attempt.shard.touched) / items)

    # deaths of actors -----------------------------------------------------------------------------------------------

    def _on_actor_death(self, actor: Actor, error: Exception, hung: Attempt | None = None) -> None:
        """Remove an actor, and decide what follows for its attempts. The loop then starts another actor.

        A second call of this actor may have ended already. Its shard runs again, which is harmless.
        """
        self.backend.discard(actor.handle)
        self.actors.remove(actor)
        self.calls = {call: task for call, task in self.calls.items() if task[0] is not actor}
        blameless = isinstance(error, LostError) and error.blameless
        accused = actor.in_flight[0] if len(actor.in_flight) == 1 else hung
        # A failed start predicts that the next actor fails too. Three kinds of death predict nothing: the actor had
        # finished something before; its node was lost, which ends several actors at once; it computed a suspect.
        if not (actor.proven or blameless or (accused is not None and accused.suspect)):
            self.start_at = time.monotonic() + min(MAX_START_WAIT, START_WAIT * 2**self.failed_starts)
            self.failed_starts += 1
        for attempt in actor.in_flight:
            attempt.suspect, attempt.cause = True, error
            attempt.lost_nodes += blameless
            if attempt.control:
                continue
            innocent = blameless and attempt.lost_nodes < MAX_LOST_NODES
            if attempt is accused and (actor.proven or self.control is None) and not innocent:
                # A whole shard that hung is bisected at once: a second try would cost the whole time limit again.
                attempt.deaths = max(attempt.deaths + 1, MAX_DEATHS_PER_SHARD if hung and attempt.whole is None else 0)
                self._retry_or_bisect(attempt, error)
            else:
                self.suspects.append(attempt)
        too_many = self.failed_starts >= MAX_FAILED_STARTS * (len(self.actors) + 1)
        if too_many and not any(other.proven for other in self.actors):
            summary = f"; {self._summary()}" if self.given_up else ""
            reason = f"{self.failed_starts} workers in a row finished nothing, the last: {_line(error)}{summary}"
            raise ShardError(reason) from error

    def _retry_or_bisect(self, attempt: Attempt, error: Exception) -> None:
        """Decide what follows for an attempt that ended an actor while it was alone there."""
        whole = attempt.whole or attempt
        bisection = whole.bisection = whole.bisection or Bisection(whole.shard)
        if bisection.abandoned:
            return
        whole.cause = error
        match bisection.on_death(attempt.shard, attempt.deaths, actor_works=self.control is not None):
            case Step.RETRY:
                self.suspects.append(attempt)
            case Step.SPLIT:
                self.suspects.extend(Attempt(piece, whole, suspect=True) for piece in bisection.split(attempt.shard))
            case Step.ANSWERED:
                self._on_answer(whole)
            case Step.GIVE_UP:
                self.suspects = deque(other for other in self.suspects if other.whole is not whole)
                self._give_up(whole)

    def _on_answer(self, whole: Attempt) -> None:
        """Count an answered trial of a shard. After the last trial the shard runs again, without its guilty items."""
        bisection = whole.bisection
        assert bisection is not None
        if not bisection.on_answer():
            return
        whole.bisection = None
        whole.fruitless_bisections += not bisection.guilty
        if whole.fruitless_bisections >= MAX_FRUITLESS_BISECTIONS:
            self._give_up(whole)
            return
        if bisection.guilty:
            names = ", ".join(sorted(bisection.guilty)[:3])
            self.progress.note(f"quarantined {len(bisection.guilty)} item(s) that end every worker process: {names}")
        whole.shard, whole.deaths = bisection.without_guilty(), 0
        self.suspects.append(whole)

    def _summary(self) -> str:
        attempt = self.given_up[0]
        names = ", ".join(attempt.shard.items[:3])
        return (
            f"{len(self.given_up)} shard(s) failed on every attempt, the first {attempt.shard.shard_id} "
            f"({len(attempt.shard.items)} items from {names}): {_line(attempt.cause)}; finished shards are kept"
        )


def _line(error: Exception | None) -> str:
    lines = str(error).strip().splitlines()
    name = type(error).__name__
    return lines[0] if isinstance(error, LostError) else f"{name}: {lines[0]}" if lines else name
