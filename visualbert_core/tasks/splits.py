"""Decides whether annotations are the whole official split, and whether they are of the split that the user names.

A file that was cut at the end of a line reads without an error, and so does one file of two; only the size shows the
fault. So a score is official only where the annotations have the size that the benchmark's authors published.
Otherwise, the score is marked as the score of a subset or of the user's own set.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from visualbert_core.errors import AnnotationError


def subset_line(split: str, units: str, count: int, sizes: Mapping[str, int]) -> str | None:
    """Return a warning where `count` is not the size of the official split; None where it is."""
    known = sizes[split]
    if count == known:
        return None
    share = f"{count:,} of {known:,} {units}" if count < known else f"{count:,} {units} where {known:,} are official"
    return f"{share}: this is not the official {split} split, so its score is not official and has no paper's number"


def protocol_name(protocol: str, units: str, count: int, subset: str | None) -> str:
    """Return the protocol's name. Where the annotations are not the official split, the name says so."""
    return protocol if subset is None else f"{protocol}; own set or subset of {count:,} {units}"


def check_split(where: str, key: str, found: str, own: str, official: Collection[str]) -> None:
    """Raise AnnotationError where the id or field `key` names another official split than `own`.

    A name that no official split has belongs to the user's own set, so it passes.
    """
    if found != own and found in official:
        raise AnnotationError(
            f"{where}: {key} is of the split {found!r}, but the file should be {own!r}; put the files of one split "
            "together"
        )
