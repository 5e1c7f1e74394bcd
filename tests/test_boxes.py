"""Conventions of boxes: a declared one is converted, an undeclared one is recognised, and correct boxes pass."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from visualbert_core.metrics.boxes import CONVENTIONS, Suspicion, flaw, suspect, to_xyxy

Source = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def source(images: int = 30, boxes: int = 36, size: tuple[int, int] = (640, 480)) -> Source:
    """Return (boxes [N, 4], widths [N], heights [N], rows [N]) as detectors give them. Boxes have any place and size
    within the image."""
    random = np.random.default_rng(7)
    sides = np.array([size if number % 3 else size[::-1] for number in range(images)], float).repeat(boxes, axis=0)
    ends = np.sort(random.random((len(sides), 2, 2)), axis=1)  # [N, near and far, x and y]
    found = (ends * sides[:, None]).reshape(-1, 4)
    found[::36] = np.concatenate([0 * sides, sides], axis=1)[::36]  # some boxes are the whole image
    return found, sides[:, 0], sides[:, 1], np.arange(images).repeat(boxes)


def centre(b: np.ndarray) -> np.ndarray:
    return np.concatenate([(b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2]], axis=1)


def corner(b: np.ndarray) -> np.ndarray:
    return np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], axis=1)


WRITE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "xyxy": lambda b: b,
    "xywh": corner,
    "yxyx": lambda b: b[:, [1, 0, 3, 2]],
    "cxcywh": centre,
    "yxhw": lambda b: corner(b)[:, [1, 0, 3, 2]],
    "xxyy": lambda b: b[:, [0, 2, 1, 3]],
    "reversed": lambda b: b[:, [2, 3, 0, 1]],
}


def write(convention: str, boxes: np.ndarray, width: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Convert pixels in xyxy to the named convention."""
    for scale, length in (("normalised", 1), ("per-mille", 1000)):
        if convention.startswith(scale):
            boxes = boxes / np.stack([width, height, width, height], axis=1) * length
            convention = convention[len(scale) + 1 :] or "xyxy"
    return WRITE[convention](boxes)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_declared_convention_is_converted(convention: str) -> None:
    """Boxes in a declared convention become the original pixels, with the sides of one image or with sides for each
    box."""
    boxes, width, height, rows = source()
    written = write(convention, boxes, width, height)
    np.testing.assert_allclose(to_xyxy(written, convention, width, height), boxes, atol=1e-9)
    one = rows == 0
    np.testing.assert_allclose(to_xyxy(written[one], convention, width[0], height[0]), boxes[one], atol=1e-9)
    assert suspect(written, width, height, rows, convention) is None


def seen_as(convention: str) -> str:
    """Return the name under which a convention is recognised. Relative coordinates do not show which of x and y comes
    first."""
    scale, dash, order = convention.rpartition("-y")
    return {"xyx": scale, "xhw": f"{scale}-xywh"}[order] if dash and order in ("xyx", "xhw") else convention


@pytest.mark.parametrize("convention", [name for name in CONVENTIONS if name != "xyxy"])
def test_another_convention_is_recognised(convention: str) -> None:
    """An undeclared convention is recognised by name, from many boxes and from few images with one box each."""
    boxes, width, height, rows = source()
    written = write(convention, boxes, width, height)
    found = suspect(written, width, height, rows)
    assert found is not None
    assert found.looks_like == seen_as(convention)
    # With 36 boxes an image, a stride of 37 takes one box of each image.
    single = suspect(written[5::37], width[5::37], height[5::37])
    assert single is not None
    assert single.looks_like == seen_as(convention)


@pytest.mark.parametrize("convention", [name for name in CONVENTIONS if name != "xyxy"])
def test_pixels_that_are_declared_otherwise_are_recognised(convention: str) -> None:
    """A wrong declaration is refused, and the error names what the boxes look like."""
    found = suspect(*source(), declared=convention)
    assert found is not None
    assert found.looks_like == "xyxy"


def test_width_and_height_swapped() -> None:
    """Swapped width and height look like y before x, so the message names both causes."""
    boxes, width, height, rows = source()
    assert "width and height of the images swapped?" in str(suspect(boxes, height, width, rows))


def test_the_words() -> None:
    """The message is one line with the number of bad boxes and the convention, or no convention where none fits."""
    xywh = np.array([[10, 10, 50, 90], [50, 40, 40, 20], [10, 10, 140, 90], [100, 100, 10, 10]])
    assert str(suspect(xywh, 200, 120)) == "2 of 4 boxes end before they begin: x, y, width, height?"
    part = np.array([[0.1, 0.2, 0.5, 0.9], [0.0, 0.0, 1.0, 1.0]])
    assert str(suspect(part, 200, 120)) == "all coordinates lie in [0, 1]: normalised?"
    assert str(flaw(np.array([[0, 0, 20000, 5]]), 200, 120)) == "1 of 1 box reaches outside its image"
    thousandths = np.array([[85.0, 233, 235, 307], [579, 256, 797, 349]])
    assert str(suspect(thousandths, 200, 120)) == "2 of 2 boxes reach outside their image: per-mille?"
    assert suspect(part, 200, 120, declared="per-mille") == Suspicion("all coordinates lie in [0, 1]", "normalised")
    far = suspect(xywh + 60, 200, 120, declared="xywh")
    assert far == Suspicion("4 of 4 boxes, read as xywh, reach outside their image", None)


def test_parts_counted_from_the_middle() -> None:
    """Coordinates in [-1, 1] are suspicious like those in [0, 1], but no convention reads them."""
    boxes, width, height, rows = source()
    found = suspect(boxes / np.stack([width, height] * 2, axis=1) * 2 - 1, width, height, rows)
    assert found == Suspicion("all coordinates lie in [-1, 1]", None)


def test_thousandths_of_large_images() -> None:
    """Thousandths stay inside large images, so the check recognises them by their limit of 1000 in several images."""
    boxes, width, height, rows = source(size=(4000, 3000))
    found = suspect(boxes / np.stack([width, height] * 2, axis=1) * 1000, width, height, rows)
    assert str(found) == "no coordinate exceeds 1000, and every image is larger: per-mille?"


def test_official_boxes_raise_nothing() -> None:
    """Correct boxes are not suspicious: whole images, boxes a rounding or a pixel outside, empty boxes, zero padding,
    images of four pixels, unknown sides."""
    boxes, width, height, rows = source()
    assert suspect(boxes, width, height, rows) is None
    assert suspect(boxes + 1, width, height, rows) is None
    assert suspect(boxes) is None
    assert flaw(np.array([[0, 0, 500, 375]]), 500, 375) is None
    assert flaw(np.array([[0, 0, 500.6, 376]]), 500, 375) is None
    assert flaw(np.array([[7, 7, 7, 7], [499, 3, 499, 80]]), 500, 375) is None
    assert flaw(np.zeros((36, 4)), 500, 375) is None
    assert flaw(np.array([[0, 0, 1, 1]]), 2, 2) is None
    assert suspect(np.empty((0, 4)), 500, 375) is None
    assert suspect(np.full((3, 4), np.nan), 500, 375) is None


@pytest.mark.parametrize("convention", [name for name in CONVENTIONS if name != "xyxy"])
def test_one_bad_row_is_a_row(convention: str) -> None:
    """One image in another convention among four makes that image suspicious, but not the whole source."""
    boxes, width, height, rows = source(images=4)
    one = rows == 0
    boxes[one] = write(convention, boxes[one], width[one], height[one])
    assert suspect(boxes, width, height, rows) is None
    assert flaw(boxes[one], width[0], height[0]) is not None
    assert flaw(boxes[rows == 1], width[36], height[36]) is None
