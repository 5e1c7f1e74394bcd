"""Because of what a score changed: its change split among the ingredients in which two runs differ.

Answers come from model, features, code, library versions and settings; what they are worth from annotations and
scorer. Stored predictions can be judged anew, so the two kinds are told apart by swapping the judge; within a kind a
change belongs to the one ingredient that differs, or to several together, which only another evaluation could separate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from visualbert_core.provenance import code_digests, outside_code
from visualbert_core.tasks import Task

JUDGING = ("annotations", "scorer")
NOTHING = "nothing that is recorded"


@dataclass(frozen=True)
class Cause:
    """Points of a change, None where they cannot be told from another cause's; `lines` say what differs."""

    ingredients: tuple[str, ...]
    points: float | None
    how: str
    lines: tuple[str, ...]

    def __str__(self) -> str:
        points = "     ?" if self.points is None else f"{self.points:+6.2f}"
        return f"{points} points: {' and '.join(self.ingredients)} ({self.how}){'; '.join(('', *self.lines))}"


class Swap(Protocol):
    """Headline scores, percent: as they were, and with the judge swapped; None where it is not at hand."""

    @property
    def before(self) -> float: ...
    @property
    def after(self) -> float: ...
    def before_judged_as_after(self) -> float | None: ...
    def after_judged_as_before(self) -> float | None: ...


def causes(
    swap: Swap, answers_changed: bool, differs: Mapping[str, Sequence[str]], reads_pixels: bool = False
) -> Iterator[Cause]:
    """Yield the causes whose points, where all are known, add up to after - before; none where the runs are equal."""
    total = swap.after - swap.before
    judging = {name: lines for name, lines in differs.items() if name in JUDGING}
    making = dict(_making(differs, reads_pixels)) if answers_changed else {}
    if answers_changed and not judging:
        yield _cause(making, total, "nothing else differs" if len(making) == 1 else _TOGETHER)
    elif judging and not answers_changed:
        yield _cause(judging, total, "the answers are the same")
    elif judging and answers_changed:
        yield from _told_apart(swap, total, making, judging)


_TOGETHER = "they differ together: to tell them apart, evaluate once more with one of them as before"


def _told_apart(
    swap: Swap, total: float, making: Mapping[str, Sequence[str]], judging: Mapping[str, Sequence[str]]
) -> Iterator[Cause]:
    """Swap the judge: of the earlier predictions, of the later ones, or both ways and take the mean."""
    shares = []
    if (value := swap.before_judged_as_after()) is not None:
        shares.append(value - swap.before)
    if (value := swap.after_judged_as_before()) is not None:
        shares.append(swap.after - value)
    if not shares:
        how = "answers and judge changed together: give --annotations to score stored predictions anew"
        yield _cause({**making, **judging}, None, how)
        return
    of_judge = sum(shares) / len(shares)
    how = "stored predictions scored under the other annotations" + (", both ways" if len(shares) == 2 else "")
    yield _cause(making, total - of_judge, f"what is left; {_TOGETHER}" if len(making) > 1 else "what is left")
    yield _cause(judging, of_judge, how)


def _making(differs: Mapping[str, Sequence[str]], reads_pixels: bool) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the ingredients that can have changed an answer, with the lines that can. The code that makes features acts
    through a store, whose manifest is compared; without a store it decodes the images. A model's folder may be called
    anything. How a task asks is the scorer's code.
    """
    idle = (
        ("spec.model:", "spec.shard_size:") if reads_pixels else ("code.features:", "spec.model:", "spec.shard_size:")
    )
    for name, lines in differs.items():
        acting = [line for line in lines if not line.startswith(idle)]
        if name not in JUDGING and acting:
            yield name, acting


def _cause(differs: Mapping[str, Sequence[str]], points: float | None, how: str) -> Cause:
    if not differs:
        return Cause((NOTHING,), points, "reruns differ", ())
    return Cause(tuple(differs), points, how, tuple(line for lines in differs.values() for line in lines))


Scorer = tuple[str, str, str | None]
"""What judges, but for the annotations: protocol, code of this package, code of a task from outside it."""


def scorer_of(provenance: Mapping[str, Any]) -> Scorer:
    """Return what judged a run."""
    code = provenance["code"]
    return provenance["protocol"], code["scores"], code.get("task")


def scorer_at_hand(task: Task) -> Scorer:
    """Return what would judge now."""
    return task.protocol, code_digests()["scores"], outside_code(type(task)).get("task")
