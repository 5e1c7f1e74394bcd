"""Which item the scheduler blames: thousands of runs over simulated actors that die for many reasons, without a
process.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from visualbert_core.config import PoolConfig
from visualbert_core.engine import scheduler
from visualbert_core.engine.backend import LostError
from visualbert_core.engine.progress import Progress
from visualbert_core.engine.scheduler import Scheduler
from visualbert_core.engine.shards import FileDigest, Marker, Shard, plan
from visualbert_core.errors import ShardError

SHARDS = plan([str(number) for number in range(300)], "test", 5)


@dataclass(eq=False)
class Actor:
    place: int
    alive: bool = True


@dataclass
class Simulation:
    """Actors on `size` places. The first `broken` places end every actor that computes, and fast; an item in `poison`
    ends any actor. In addition a share `misfortune` of calls ends its actor, and a share `spot` ends its node."""

    seed: int
    size: int = 4
    broken: int = 0
    poison: frozenset[str] = frozenset()
    misfortune: float = 0.0
    spot: float = 0.0
    gpus: float = 1.0
    free: list[int] = field(default_factory=list)
    committed: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chance, self.free = random.Random(self.seed), list(range(self.size))
        self.under: list[Any] = []

    def room(self) -> str:
        return "room"

    def unplaced(self, booting: int) -> int:
        return 0

    def boot(self) -> tuple[Any, Any]:
        actor = Actor(self.free.pop(0))
        return actor, (actor, None)

    def submit(self, actor: Actor, shard: Shard) -> Any:
        return actor, shard, object()

    def wait(self, calls: list[Any]) -> Any:
        fast = [call for call in calls if call[0].place < self.broken]
        # A broken GPU fails at once, so half of the time its calls end first.
        return self.chance.choice(fast if fast and self.chance.random() < 0.5 else calls)

    def result(self, call: Any) -> Marker | None:
        actor, shard = call[:2]
        if shard is None:
            return None
        if self.chance.random() < self.spot:
            raise LostError("node", blameless=True)
        died = actor.place < self.broken or self.poison & set(shard.touched) or self.chance.random() < self.misfortune
        if died:
            raise LostError("process")
        if not shard.trial:
            assert shard.shard_id not in self.committed
            self.committed[shard.shard_id] = shard.quarantined
        return Marker(shard.shard_id, len(shard.touched), len(shard.quarantined), FileDigest(0, ""), None)

    def release(self, actor: Actor) -> None:
        pass

    def discard(self, actor: Actor) -> None:
        assert actor.alive
        actor.alive = False
        self.free.append(actor.place)

    def run(self) -> set[str]:
        """Run all shards and return the quarantined items."""
        with Progress("simulation", 300) as progress:
            Scheduler(self, SHARDS, progress, PoolConfig()).run()
        assert self.committed.keys() == {shard.shard_id for shard in SHARDS}
        for shard in SHARDS:
            assert list(self.committed[shard.shard_id]) == [
                i for i in shard.items if i in self.committed[shard.shard_id]
            ]
        return {item for quarantined in self.committed.values() for item in quarantined}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(scheduler, "START_WAIT", 0.0)
    return


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("poison", [0, 1, 3, 6])
def test_exactly_the_deadly_items_are_quarantined(size: int, poison: int) -> None:
    """Exactly the deadly items are quarantined, with any number of workers and deadly items, while nodes come and
    go."""
    for seed in range(20):
        guilty = frozenset(random.Random(seed).sample([str(number) for number in range(300)], poison))
        assert Simulation(seed, size, poison=guilty, spot=0.05).run() == guilty


@pytest.mark.parametrize("poison", [0, 3])
def test_a_broken_gpu_quarantines_nothing(poison: int) -> None:
    """A place where every actor dies at once costs no good item, although most suspect shards fail there."""
    for seed in range(50):
        guilty = frozenset(random.Random(seed).sample([str(number) for number in range(300)], poison))
        assert Simulation(seed, size=3, broken=1, poison=guilty).run() == guilty


def test_random_deaths_quarantine_nothing() -> None:
    """Actors that die at random in one call of ten, as where memory is short, quarantine no item."""
    for seed in range(50):
        assert Simulation(seed, size=3, misfortune=0.1).run() == set()


@pytest.mark.parametrize("size", [1, 3])
def test_a_lost_node_counts_against_no_shard(size: int) -> None:
    """Where every third call loses its node, the run takes longer and quarantines nothing."""
    for seed in range(50):
        assert Simulation(seed, size, spot=0.3).run() == set()


@pytest.mark.parametrize("size", [1, 4])
def test_a_cluster_of_broken_gpus_is_given_up(size: int) -> None:
    """Where no call ever finishes, the run ends soon and quarantines nothing."""
    simulation = Simulation(0, size, broken=size)
    with pytest.raises(ShardError, match=r"workers in a row finished nothing|no shard was finished in between"):
        simulation.run()
    assert not simulation.committed


@dataclass
class Timed(Simulation):
    """One actor in simulated time. Its shards in flight share it; a shard takes `alone` seconds when it is the only
    one."""

    alone: float = 0.0
    now: float = 0.0
    spent: dict[Any, float] = field(default_factory=dict)

    def wait(self, calls: list[Any]) -> Any:
        working = [call for call in calls if call[1] is not None]
        if len(working) < len(calls):
            return next(call for call in calls if call[1] is None)
        self.now += 10
        for call in working:
            self.spent[call] = self.spent.get(call, 0.0) + 10 / len(working)
        return next((call for call in working if self.spent[call] >= self.alone), None)


def test_two_shards_that_share_a_worker_have_the_time_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that needs 90 of 100 allowed seconds alone, and so 180 beside another shard, does not count as
    hanging."""
    timed = Timed(0, size=1, alone=90.0)
    monkeypatch.setattr(scheduler.time, "monotonic", lambda: timed.now)
    with Progress("simulation", 300) as progress:
        markers = Scheduler(timed, SHARDS, progress, PoolConfig(shard_timeout=100)).run()
    assert len(markers) == len(SHARDS)


def test_a_mount_that_is_gone_is_found_out_before_every_shard_has_been_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards that raised are tried again before a new shard starts, because each attempt may take minutes."""
    monkeypatch.setattr(scheduler, "RETRY_WAITS", (0.02, 0.02))
    attempts: list[str] = []

    class Mountless(Simulation):
        def result(self, call: Any) -> Marker | None:
            if call[1] is None:
                return None
            attempts.append(call[1].shard_id)
            raise PermissionError(13, "Permission denied", "/mnt/images")

    with pytest.raises(ShardError, match="the run was stopped"):
        Mountless(0, size=2).run()
    assert len(set(attempts)) <= scheduler.MAX_ERRORS_IN_A_ROW + 2 * scheduler.IN_FLIGHT
    assert len(attempts) <= 3 * len(set(attempts))
