"""Are the images those that the annotations are for? Told by width and height, where the annotations have them.

Boxes of one size of an image mean nothing on another: over pictures at three quarters of their size, a model that finds
everything scores 0. A store knows the size of every image that it has features of, and a header that of a picture.
"""

from __future__ import annotations

from visualbert_core.errors import InputError
from visualbert_core.evaluation.inputs import Source
from visualbert_core.tasks import Task

Size = tuple[int, int]
_ROUNDING = 1.5  # pixels that a resized side may be off
_NEAR = 0.01  # the part of a side up to which nobody resizes on purpose


def check_sizes(task: Task, source: Source) -> list[str]:
    """Return what must be said with every score. Raises InputError where an image has another size than its
    annotations are for. What is not there, or the annotations do not tell, is not judged here."""
    told = task.image_sizes()
    if not told:
        return []
    seen = source.sizes(told)
    differing = [image_id for image_id, size in seen.items() if size != told[image_id]]
    if not differing:
        return list(source.notes)
    first = differing[0]
    files = task.annotation_files()
    mine = next((path for path in reversed(files) if path.stem == first), files[0])  # the last is the boxes' own
    raise InputError(
        f"{len(differing):,} of {len(seen):,} images have another size than their annotations are for: image {first} "
        f"is {_called(seen[first])} in {source.address}, {_called(told[first])} in {mine}"
        f"{_why(seen[first], told[first])}; use the images that were annotated (their features, or import these with "
        "the sizes of the images)"
    )


def _called(size: Size) -> str:
    return "{} × {}".format(*size)


def _why(seen: Size, told: Size) -> str:
    if seen == told[::-1]:
        return " (width and height swapped: turned by its EXIF tag in one of them?)"
    across, down = (one / other for one, other in zip(seen, told, strict=True))
    if max(abs(across - 1), abs(down - 1)) < _NEAR:
        apart = max(abs(one - other) for one, other in zip(seen, told, strict=True))
        return f" ({apart} pixel{'s' if apart > 1 else ''} apart: rounded by a resize, or cropped?)"
    if abs(across - down) < _ROUNDING / min(told):
        return f" (resized to {100 * across:.0f} %?)"
    return ""
