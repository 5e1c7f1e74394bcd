"""Finds why a score changed: splits the change among the ingredients in which two runs differ.

There are two kinds of ingredient. Model, features, code, library versions and settings make the answers. Annotations
and scorer, together the judge, give the answers their values. Stored predictions can be scored again, so swapping the
judge separates the two kinds. Within a kind, the change belongs to the one ingredient that differs. If several differ,
only another evaluation can separate them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from visualbert_core.provenance import code_digests, outside_code
from visualbert_core.tasks import Task

JUDGING = ("annotations", "scorer")
NOTHING = "nothing that is recorded"
_TWO_FAMILIES = "two families: one reads regions and the other pixels, so all of this belongs together"
_TOGETHER = "they differ together: to tell them apart, evaluate once more with one of them as before"


@dataclass(frozen=True)
class Cause:
    """The points that some ingredients caused. None if they cannot be separated from another cause.

    `how` says how the points were found. `lines` say what differs.
    """

    ingredients: tuple[str, ...]
    points: float | None
    how: str
    lines: tuple[str, ...]

    def __str__(self) -> str:
        points = "     ?" if self.points is None else f"{self.points:+6.2f}"
        return f"{points} points: {' and '.join(self.ingredients)} ({self.how}){'; '.join(('', *self.lines))}"


def causes(
    total: float,
    of_judge: Callable[[], Sequence[float]],
    answers_changed: bool,
    differs: Mapping[str, Sequence[str]],
    pixels: tuple[bool, bool] = (False, False),
) -> Iterator[Cause]:
    """Yield the causes of a change of `total` points. Yield none if the runs are equal.

    If all points are known, they add up to `total`. `differs` maps each ingredient that differs to lines that say how.
    `of_judge` returns the points that the judge caused, once for each run whose stored predictions can be scored under
    the judge of the other run. `pixels` says of each run whether its model reads pixels.
    """
    judging = {name: lines for name, lines in differs.items() if name in JUDGING}
    making = dict(_making(differs, any(pixels))) if answers_changed else {}
    together = _TWO_FAMILIES if pixels[0] != pixels[1] else _TOGETHER
    if answers_changed and not judging:
        yield _cause(making, total, "nothing else differs" if len(making) == 1 else together)
    elif judging and not answers_changed:
        yield _cause(judging, total, "the answers are the same")
    elif judging and answers_changed and (shares := of_judge()):
        points = sum(shares) / len(shares)
        how = "stored predictions scored under the other annotations" + (", both ways" if len(shares) == 2 else "")
        yield _cause(making, total - points, f"what is left; {together}" if len(making) > 1 else "what is left")
        yield _cause(judging, points, how)
    elif judging and answers_changed:
        how = "answers and judge changed together: give --annotations to score stored predictions anew"
        yield _cause(making | judging, None, how)


def _making(differs: Mapping[str, Sequence[str]], pixels: bool) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the ingredients that can have changed an answer, with the lines that say what differs in them.

    Three lines cannot change an answer. The name of a model's folder and the shard size never do. The feature code acts
    through the store, and the manifest of the store is compared already. Without a store this code decodes the images,
    so then it counts. The code with which a task asks its questions belongs to the scorer.
    """
    idle = ("spec.model:", "spec.shard_size:", *([] if pixels else ["code.features:"]))
    for name, lines in differs.items():
        acting = [line for line in lines if not line.startswith(idle)]
        if name not in JUDGING and acting:
            yield name, acting


def _cause(differs: Mapping[str, Sequence[str]], points: float | None, how: str) -> Cause:
    if not differs:
        return Cause((NOTHING,), points, "reruns differ", ())
    return Cause(tuple(differs), points, how, tuple(line for lines in differs.values() for line in lines))


def scored_here(provenance: Mapping[str, Any], task: Task) -> bool:
    """Return whether the code of this installation for `task` scored a run."""
    code, own = provenance["code"], code_digests(("scores",)) | outside_code("task", type(task))
    names = ("scores", "task")  # of this package, and of a task from outside it
    return provenance["protocol"] == task.protocol and all(code.get(name) == own.get(name) for name in names)
