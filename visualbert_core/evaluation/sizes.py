"""Are the images those that the annotations are for? Told by width and height, where the annotations have them.

Boxes of one size of an image mean nothing on another: over pictures at three quarters of their size, a model that finds
everything scores 0. The store knows the size of every image that it has features of; no features are read here.
"""

from __future__ import annotations

from visualbert_core.errors import InputError
from visualbert_core.features.importers.hdf5 import NO_SIZES
from visualbert_core.features.store import FeatureStore
from visualbert_core.tasks import Task

Size = tuple[int, int]
_ROUNDING = 1.5  # pixels that a resized side may be off
_NEAR = 0.01  # the part of a side up to which nobody resizes on purpose


def check_sizes(task: Task, store: FeatureStore) -> list[str]:
    """What must be said with every score. Raises InputError where an image of the store has another size than its
    annotations are for. What the store does not have, or the annotations do not tell, is not judged here."""
    told = task.image_sizes()
    if not told:
        return []
    if NO_SIZES in store.fingerprint.get("notes", ()):
        return ["imported without the sizes of the images: they were not compared with those of the annotations"]
    seen = {image_id: (width, height) for image_id, width, height, _ in store.sizes() if image_id in told}
    differing = [image_id for image_id, size in seen.items() if size != told[image_id]]
    if not differing:
        return []
    first = differing[0]
    files = task.annotation_files()
    mine = next((path for path in reversed(files) if path.stem == first), files[0])  # the last is the boxes' own
    raise InputError(
        f"{len(differing):,} of {len(seen):,} images have another size than their annotations are for: image {first} "
        f"is {_called(seen[first])} in {store.address}, {_called(told[first])} in {mine}"
        f"{_why(seen[first], told[first])}; extract the features of the images that were annotated, or import them "
        "with their own sizes"
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
