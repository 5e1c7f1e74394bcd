"""How families of models write a box into their text, and how that text becomes a box again.

                prompt for       box in the text                       coordinates
    qwen-vl     a phrase         (x1,y1),(x2,y2)                       0 to 999 of each side
    qwen2.5-vl  a phrase         "bbox_2d": [x1, y1, x2, y2]           pixels of the image as the processor resizes it
    qwen3-vl    a phrase         "bbox_2d": [x1, y1, x2, y2]           0 to 1000 of each side
    paligemma   a phrase         <locNNNN> four times: y1 x1 y2 x2     1,024 bins of each side, near edges
    florence-2  a caption        phrase<loc_N> four times: x1 y1 x2 y2 1,000 bins of each side, centres
    kosmos-2    a caption so far <object><patch_index_NNNN> twice      the corner cells of a grid of 32 × 32

Sources: `eval_mm/evaluate_grounding.py` of github.com/QwenLM/Qwen-VL at 10cb9041; the grounding notebooks of Qwen2.5-VL
and Qwen3-VL; the PaliGemma configurations of github.com/google-research/big_vision; the processors of Florence-2 and
Kosmos-2 in transformers, which the tests compare with.

Qwen-VL's program writes at most 28 tokens, and the documentation of Florence-2 in transformers 1,024.

A text is read strictly: the first box in it counts, and only if its numbers are in range and its sides are positive.
Nothing is guessed from other text. Every text is read without an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in parts of the sides of an image: 0 to 1."""
Size = tuple[int, int]
"""Width and height in pixels."""

CELLS = 32  # of a side of Kosmos-2's grid
_NUMBER = r"\s*(-?[0-9]{1,6}(?:\.[0-9]{1,6})?)\s*"  # bounded: Python refuses to convert thousands of digits
_JSON_BOX = re.compile(rf'"bbox_2d"\s*:\s*\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]', re.ASCII)
_JSON_PROMPT = "Locate {}, output its bbox coordinates using JSON format."


@dataclass(frozen=True)
class Resize:
    """How an image processor of Qwen resizes: both sides to multiples of `factor`, and `least` to `most` pixels."""

    factor: int
    least: int
    most: int

    def of(self, size: Size) -> Size:
        """Return the size of a resized image, as `smart_resize` of transformers computes it."""
        width, height = size
        across, down = (round(side / self.factor) * self.factor for side in size)
        if across * down > self.most:
            shrink = math.sqrt(width * height / self.most)
            across, down = (max(self.factor, math.floor(s / shrink / self.factor) * self.factor) for s in size)
        elif across * down < self.least:
            grow = math.sqrt(self.least / (width * height))
            across, down = (math.ceil(side * grow / self.factor) * self.factor for side in size)
        return across, down


@dataclass(frozen=True)
class BoxFormat:
    """How a family asks for a box and writes it."""

    prompt: str
    """The text with {} in the place of the phrase or the caption."""
    pattern: re.Pattern[str]
    """Finds a box in a text. Its groups are the numbers of the box."""
    most: float
    """The largest number of a box. Infinity where it depends on the image."""
    numbers: Callable[[Box, Size], Sequence[int]]
    """Return the numbers for a box. The size is that of the resized image."""
    box: Callable[[Sequence[float], Size], Box]
    """Return the box for numbers."""
    text: str
    """The beginning of an answer, with a %-format for each number. {phrase} stands for the phrase."""
    new_tokens: int
    """The tokens after which a text is cut, where the user does not say: enough for the box and what surrounds it."""
    caption: bool = False
    """Whether one prompt asks for all phrases of a caption."""
    so_far: bool = False
    """Whether the prompt has the caption up to the phrase, and the phrase within <phrase> tags."""
    resized: bool = False
    """Whether the numbers are pixels of the resized image."""

    def write(self, box: Box, size: Size, phrase: str) -> str:
        """Return the answer of a model that means this box, up to the end of the box."""
        clipped = tuple(min(max(side, 0.0), 1.0) for side in box)
        left, top, right, bottom = clipped
        numbers = self.numbers((left, top, max(left, right), max(top, bottom)), size)
        return (self.text % tuple(numbers)).replace("{phrase}", phrase)

    def read(self, text: str, size: Size) -> Box | None:
        """Return the first box of a text, cut to the image; None where there is none. `size` is as in `numbers`."""
        match = self.pattern.search(text)
        if match is None:
            return None
        numbers = [float(group) for group in match.groups()]
        if max(numbers) > self.most:
            return None
        left, top, right, bottom = (min(max(side, 0.0), 1.0) for side in self.box(numbers, size))
        return (left, top, right, bottom) if left < right and top < bottom else None


# ---------------------------------------------------------------------------------------------------------------------
# numbers of each format


def _scaled(most: int) -> Callable[[Box, Size], Sequence[int]]:
    return lambda box, _: [round(side * most) for side in box]


def _parts(most: int) -> Callable[[Sequence[float], Size], Box]:
    return lambda n, _: (n[0] / most, n[1] / most, n[2] / most, n[3] / most)


def _bin(side: float, count: int) -> int:
    return min(math.floor(side * count), count - 1)


def _to_pixels(box: Box, size: Size) -> Sequence[int]:
    return [round(side * length) for side, length in zip(box, size * 2, strict=True)]


def _of_pixels(n: Sequence[float], size: Size) -> Box:
    width, height = size
    return n[0] / width, n[1] / height, n[2] / width, n[3] / height


def _to_paligemma(box: Box, _: Size) -> Sequence[int]:
    left, top, right, bottom = (_bin(side, 1024) for side in box)
    return top, left, bottom, right


def _of_paligemma(n: Sequence[float], _: Size) -> Box:
    return n[1] / 1024, n[0] / 1024, n[3] / 1024, n[2] / 1024


def _to_florence(box: Box, _: Size) -> Sequence[int]:
    return [_bin(side, 1000) for side in box]


def _of_florence(n: Sequence[float], _: Size) -> Box:
    return (n[0] + 0.5) / 1000, (n[1] + 0.5) / 1000, (n[2] + 0.5) / 1000, (n[3] + 0.5) / 1000


def _to_kosmos(box: Box, _: Size) -> Sequence[int]:
    left, top = (_bin(side, CELLS) for side in box[:2])
    right, bottom = (max(math.ceil(side * CELLS - 1), first) for side, first in zip(box[2:], (left, top), strict=True))
    return top * CELLS + left, bottom * CELLS + right


def _of_kosmos(n: Sequence[float], _: Size) -> Box:
    """Return the box from the centre of a cell to the centre of another; the whole cells where they share a row or
    column."""
    (top, left), (bottom, right) = (divmod(int(index), CELLS) for index in n)
    if left == right or top == bottom:
        return left / CELLS, top / CELLS, (right + 1) / CELLS, (bottom + 1) / CELLS
    return (left + 0.5) / CELLS, (top + 0.5) / CELLS, (right + 0.5) / CELLS, (bottom + 0.5) / CELLS


FORMATS = {
    "qwen-vl": BoxFormat(
        prompt="<ref>{}</ref><box>",
        pattern=re.compile(
            r"\(\s*([0-9]{1,4})\s*,\s*([0-9]{1,4})\s*\)\s*,\s*\(\s*([0-9]{1,4})\s*,\s*([0-9]{1,4})\s*\)"
        ),
        most=999,
        numbers=_scaled(999),
        box=_parts(999),
        text="(%d,%d),(%d,%d)",
        new_tokens=28,
    ),
    "qwen2.5-vl": BoxFormat(
        prompt=_JSON_PROMPT,
        pattern=_JSON_BOX,
        most=math.inf,
        numbers=_to_pixels,
        box=_of_pixels,
        text='```json\n[\n\t{"bbox_2d": [%d, %d, %d, %d]',
        new_tokens=128,
        resized=True,
    ),
    "qwen3-vl": BoxFormat(
        prompt='Locate every object that matches the description "{}" in the image. '
        "Report bbox coordinates in JSON format.",
        pattern=_JSON_BOX,
        most=1000,
        numbers=_scaled(1000),
        box=_parts(1000),
        text='```json\n[\n\t{"bbox_2d": [%d, %d, %d, %d]',
        new_tokens=128,
    ),
    "paligemma": BoxFormat(
        prompt="detect {}",
        pattern=re.compile(r"<loc([0-9]{4})>" * 4),
        most=1023,
        numbers=_to_paligemma,
        box=_of_paligemma,
        text="<loc%04d><loc%04d><loc%04d><loc%04d>",
        new_tokens=32,
    ),
    "florence-2": BoxFormat(
        prompt="<CAPTION_TO_PHRASE_GROUNDING>{}",
        pattern=re.compile(r"<loc_([0-9]{1,3})>" * 4),
        most=999,
        numbers=_to_florence,
        box=_of_florence,
        text="{phrase}<loc_%d><loc_%d><loc_%d><loc_%d>",
        new_tokens=1024,
        caption=True,
    ),
    "kosmos-2": BoxFormat(
        prompt="<grounding>{}",
        pattern=re.compile(r"<object>\s*<patch_index_([0-9]{4})>\s*<patch_index_([0-9]{4})>"),
        most=CELLS**2 - 1,
        numbers=_to_kosmos,
        box=_of_kosmos,
        text="<object><patch_index_%04d><patch_index_%04d></object>",
        new_tokens=32,
        so_far=True,
    ),
}
"""Name of a format → the format."""

FAMILIES = {
    "qwen2_5_vl": "qwen2.5-vl",
    "qwen3_vl": "qwen3-vl",
    "qwen3_vl_moe": "qwen3-vl",
    "paligemma": "paligemma",
    "florence2": "florence-2",
    "kosmos-2": "kosmos-2",
}
"""`model_type` of a checkpoint → the format that the family was trained with."""
