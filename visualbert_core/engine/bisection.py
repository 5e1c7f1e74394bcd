"""Bisection: a search for the items of a shard that end every process that computes them.

Owns how a shard is cut into trials and when an item is guilty. It starts nothing. The scheduler runs the trials and
reports how each trial ended. A trial computes some of a shard's items and publishes nothing. The search is a simple
form of delta debugging (Zeller and Hildebrandt 2002).

    the shard ──▶ 16 pieces ──▶ 16 pieces of each piece that ended its actor ──▶ … ──▶ single items

An item that ends three actors, each time alone, is guilty.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from enum import Enum, auto

from visualbert_core.engine.shards import Shard

MAX_DEATHS_PER_SHARD = 2  # actors that ended while they computed only this shard
MAX_DEATHS_PER_ITEM = 3  # actors that ended while they computed only this item
MAX_DEATHS_IN_A_ROW = 10  # deaths in the trials of one shard, after which the whole shard is given up
PIECES = 16  # not 2: each death costs the start of a process, and a trial that survives costs almost nothing


class Step(Enum):
    """The next step after a shard or a trial has ended its actor."""

    RETRY = auto()  # run the same items again, alone
    SPLIT = auto()  # run the same items in pieces
    ANSWERED = auto()  # run nothing: the only item is guilty
    GIVE_UP = auto()  # give up the whole shard


@dataclass(eq=False)
class Bisection:
    """One search for the guilty items of one shard."""

    shard: Shard
    guilty: set[str] = field(default_factory=set)
    unanswered: int = 1  # trials without an answer; the search begins with one trial, the whole shard
    deaths: int = 0  # trials in a row that ended their actor
    abandoned: bool = False  # the shard was given up, so results of running trials are ignored

    def on_death(self, attempted: Shard, deaths: int, actor_works: bool) -> Step:
        """Decide what follows after `attempted`, the shard or a trial, has ended `deaths` actors, each time alone.

        `actor_works` says whether any actor has finished a shard or a trial before.
        """
        items = attempted.touched
        self.deaths += attempted.trial
        enough = deaths >= _deaths_needed(attempted)
        # While no actor has finished anything, the machine may be the cause and not the item.
        unclear = enough and len(items) == 1 and not actor_works
        if self.deaths >= MAX_DEATHS_IN_A_ROW or not items or unclear:
            self.abandoned = True
            return Step.GIVE_UP
        if not enough:
            return Step.RETRY
        if len(items) > 1:
            return Step.SPLIT
        self.guilty.update(items)
        return Step.ANSWERED

    def split(self, attempted: Shard) -> list[Shard]:
        """Cut a shard or trial that ended its actor into trials of fewer items."""
        items = attempted.touched
        size = math.ceil(len(items) / PIECES)
        pieces = [items[start : start + size] for start in range(0, len(items), size)]
        self.unanswered += len(pieces) - 1
        return [trial(self.shard, piece) for piece in pieces]

    def on_answer(self) -> bool:
        """Count a trial that needs no further trial. Return whether it was the last."""
        self.unanswered -= 1
        return not self.unanswered and not self.abandoned

    def without_guilty(self) -> Shard:
        """Return the shard with its guilty items quarantined."""
        lost = self.guilty.union(self.shard.quarantined)
        quarantined = tuple(item for item in self.shard.items if item in lost)
        return dataclasses.replace(self.shard, quarantined=quarantined)


def trial(shard: Shard, items: tuple[str, ...]) -> Shard:
    """Return a trial: a copy of the shard that computes only `items`."""
    others = set(shard.items) - set(items)
    quarantined = tuple(item for item in shard.items if item in others)
    return dataclasses.replace(shard, quarantined=quarantined, trial=True)


def _deaths_needed(attempted: Shard) -> int:
    """Return how many actors must end before a shard is cut or an item is guilty.

    A trial of several items needs one death, because its shard has ended enough actors already.
    """
    if len(attempted.touched) == 1:
        return MAX_DEATHS_PER_ITEM
    return 1 if attempted.trial else MAX_DEATHS_PER_SHARD
