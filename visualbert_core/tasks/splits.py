"""Is it the official split, and is it this one? What a folder of annotations is known by: how many, and their ids.

A file that was cut at a line's end, or one shard of two, reads as well as the whole; only its size tells. So a score is
official where the annotations hold as many as the benchmark's authors published, and is otherwise that of a subset, or
of somebody's own set, and says so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from visualbert_core.errors import AnnotationError


def subset_line(split: str, units: str, count: int, sizes: Mapping[str, int]) -> str | None:
    """What must be said where `count` is not the official split's size; None where it is."""
    known = sizes[split]
    if count == known:
        return None
    share = f"{count:,} of {known:,} {units}" if count < known else f"{count:,} {units} where {known:,} are official"
    return f"{share}: this is not the official {split} split, so it has no official score and no paper's number beside"


def protocol_name(protocol: str, units: str, count: int, subset: str | None) -> str:
    """The protocol's name, which says over what it was used where that is not the official split."""
    return protocol if subset is None else f"{protocol}; own set or subset of {count:,} {units}"


def check_split(where: str, key: str, found: str, own: str, official: Collection[str]) -> None:
    """Refuse an id or a field that names another official split than the file's. Names that no official split has are
    somebody's own, and pass. Raises AnnotationError."""
    if found != own and found in official:
        raise AnnotationError(
            f"{where}: {key} is of the split {found!r}, the file is to be {own!r}; put the files of one split together"
        )
