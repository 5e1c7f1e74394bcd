"""The text of a comparison, of two runs or over seeds, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from visualbert_core.comparison.compare import PARSED, Change, Comparison, p_value
from visualbert_core.comparison.seeds import SeedsChange, SeedsComparison
from visualbert_core.printable import printable

_LINES = 8  # flips of each direction, and groups of each kind
_HEADER = f"{'metric':<14} {'before':>7} {'after':>7} {'points':>7}  {'95 % interval':<16} {'p':>8} {'n':>9}"


def describe(comparison: Comparison) -> Iterator[str]:
    """Yield the lines that show a comparison in a terminal."""
    yield f"{comparison.before['folder']} → {comparison.after['folder']}"
    yield comparison.basis
    yield from (f"WARNING: {warning}" for warning in comparison.warnings)
    yield from ("", _HEADER)
    yield from (_line(metric, change) for metric, change in comparison.metrics.items())
    if comparison.parsed is not None:
        yield _line(PARSED, comparison.parsed)
    yield from ("", f"answers: {comparison.answers_changed:,} of {comparison.examples:,} changed")
    for metric, found in comparison.flips.items():
        yield f"{metric}: {found.worse_count:,} worse, {found.better_count:,} better"
        yield from (f"  {flip}" for flip in (*found.worse[:_LINES], *found.better[:_LINES]))
    yield from ("", "because of:")
    yield from (f"  {cause}" for cause in comparison.causes)
    for kind, groups in comparison.groups.items():
        rows = [(name, changes) for name, changes in groups.items() if comparison.headline in changes]
        moved = sorted(rows, key=lambda row: row[1][comparison.headline].p)[:_LINES]
        yield from ("", f"{comparison.headline} by {kind}" + (f", {_LINES} of {len(rows)}" * (len(rows) > _LINES)))
        shown = ((name, changes[comparison.headline]) for name, changes in moved)
        yield from (_line(name, change, change.p_holm) for name, change in shown)


def describe_seeds(comparison: SeedsComparison) -> Iterator[str]:
    """Yield the lines that show a comparison over seeds in a terminal."""
    seeds = comparison.metrics[comparison.headline].seeds
    yield f"{comparison.task} {comparison.split}: {len(seeds)} seeds, paired by seed and unit"
    yield "the interval counts seeds and images (Obuchowski and Rockette 1995, Hillis 2007)"
    yield from ("", f"{_HEADER}  each seed")
    for metric, change in comparison.metrics.items():
        yield f"{_line(metric, change)}  {' '.join(f'{value:+.2f}' for value in change.seeds.values())}"
    yield from ("", "what differs:")
    yield from (f"  {printable(line)}" for line in comparison.differs)


def _line(name: str, change: Change | SeedsChange, p_holm: float | None = None) -> str:
    spread = "" if change.low is None else f"[{change.low:+.2f}, {change.high:+.2f}]"
    return (
        f"{printable(name):<14} {change.before:7.2f} {change.after:7.2f} {change.difference:+7.2f}  {spread:<16} "
        f"{p_value(change.p if p_holm is None else p_holm):>8} {change.n:>9,}"
    )
