"""Checks that the images have the width and height that the annotations give, where the annotations give them.

The boxes of annotations mean nothing on an image of another size. Over images at three quarters of their size, a model
that finds everything scores 0. A store knows the size of its images. The header of an image file holds its size.
"""

from __future__ import annotations

from visualbert_core.errors import InputError
from visualbert_core.evaluation.inputs import Source
from visualbert_core.tasks import Task

Size = tuple[int, int]
_ROUNDING = 1.5  # pixels by which the side of a resized image may be off
_NEAR = 0.01  # a change by less than this part of a side is not an intended resize


def check_sizes(task: Task, source: Source) -> list[str]:
    """Return the warnings that stand with every score.

    Raises InputError where an image has another size than in its annotations. Images that the source lacks, and images
    without a size in the annotations, are not checked.
    """
    told = task.image_sizes()
    if not told:
        return []
    seen = source.sizes(told)
    differing = [image_id for image_id, size in seen.items() if size != told[image_id]]
    if not differing:
        return list(source.notes)
    first = differing[0]
    files = task.annotation_files()
    # The message names the annotation file of the image. Flickr30K Entities has two, and the last holds the size.
    mine = next((path for path in reversed(files) if path.stem == first), files[0])
    raise InputError(
        f"{len(differing):,} of {len(seen):,} images have another size than in their annotations: image {first} "
        f"is {_called(seen[first])} in {source.address}, {_called(told[first])} in {mine}"
        f"{_why(seen[first], told[first])}; use the annotated images or their features, or import these features with "
        "the sizes of the images"
    )


def _called(size: Size) -> str:
    return "{} × {}".format(*size)


def _why(seen: Size, told: Size) -> str:
    """Return a likely reason for the difference, in brackets; "" where none is likely."""
    if seen == told[::-1]:
        return " (width and height swapped: turned by its EXIF tag in one of them?)"
    across, down = (one / other for one, other in zip(seen, told, strict=True))
    if max(abs(across - 1), abs(down - 1)) < _NEAR:
        apart = max(abs(one - other) for one, other in zip(seen, told, strict=True))
        return f" ({apart} pixel{'s' if apart > 1 else ''} apart: rounded by a resize, or cropped?)"
    if abs(across - down) < _ROUNDING / min(told):
        return f" (resized to {100 * across:.0f} %?)"
    return ""
