"""Draws scenes from a seed: two to six coloured shapes on a noisy background, 224 × 224 pixels.

A scene uses only three to five colours and shapes, so repeats are common. Questions that count or compare need repeats.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE, MAX_THINGS = 224, 6
SHAPES = ("ball", "box", "cone", "star", "ring", "heart", "cross", "moon")
COLORS = {
    "red": (205, 40, 40),
    "green": (45, 150, 55),
    "blue": (45, 75, 205),
    "yellow": (235, 210, 50),
    "purple": (135, 50, 165),
    "orange": (240, 130, 30),
    "white": (240, 240, 240),
    "black": (25, 25, 25),
}
RADII = {"small": (11.0, 15.0), "large": (24.0, 33.0)}
_SUPERSAMPLE = 3


@dataclass(frozen=True)
class Thing:
    """One shape. `box` is the tight xyxy box of its mask in pixels, without the right and bottom edge."""

    shape: str
    color: str
    size: str
    box: tuple[float, float, float, float]

    @property
    def center(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


Things = Sequence[Thing]


@dataclass(frozen=True)
class Scene:
    """The things and the image that shows them: uint8 [224, 224, 3], RGB."""

    things: tuple[Thing, ...]
    pixels: np.ndarray


def make_scene(seed: tuple[int, ...], min_things: int = 2) -> Scene:
    """Draw the scene of a seed. The same seed always gives the same scene."""
    rng = np.random.default_rng(seed)
    canvas = _background(rng)
    colors = rng.choice(list(COLORS), size=rng.integers(3, 6), replace=False)
    shapes = rng.choice(SHAPES, size=rng.integers(3, 6), replace=False)
    things: list[Thing] = []
    for cx, cy, size, radius in _place(rng, int(rng.integers(min_things, MAX_THINGS + 1))):
        shape, color = str(rng.choice(shapes)), str(rng.choice(colors))
        box = _paint(canvas, rng, shape, color, cx, cy, radius)
        things.append(Thing(shape, color, size, box))
    return Scene(tuple(things), _finish(canvas, rng))


def encode(pixels: np.ndarray, fmt: str) -> bytes:
    """Return the bytes of an image file. `fmt` is JPEG (quality 85) or PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, fmt, **({"quality": 85} if fmt == "JPEG" else {}))
    return buffer.getvalue()


def through_jpeg(scene: Scene) -> Scene:
    """Return the scene with the pixels that a reader of its JPEG file would see."""
    pixels = np.array(Image.open(io.BytesIO(encode(scene.pixels, "JPEG"))))
    return Scene(scene.things, pixels)


def _place(rng: np.random.Generator, count: int) -> list[tuple[float, float, str, float]]:
    """Return (centre x, centre y, size, radius) of things that do not touch; fewer than `count` if there is no room."""
    placed: list[tuple[float, float, str, float]] = []
    for _ in range(200):
        if len(placed) == count:
            break
        size = str(rng.choice(list(RADII)))
        radius = float(rng.uniform(*RADII[size]))
        cx, cy = rng.uniform(radius + 4, SIZE - radius - 4, size=2)
        if all(math.hypot(cx - x, cy - y) > radius + r + 5 for x, y, _, r in placed):
            placed.append((float(cx), float(cy), size, radius))
    return placed


def _background(rng: np.random.Generator) -> np.ndarray:
    base = rng.uniform(90, 185, size=3)
    canvas = np.broadcast_to(base, (SIZE, SIZE, 3)).astype(np.float32)
    for cells, amplitude in ((3, 26.0), (7, 13.0), (14, 7.0)):
        noise = Image.fromarray(rng.normal(0, amplitude, size=(cells, cells)).astype(np.float32))
        canvas = canvas + np.asarray(noise.resize((SIZE, SIZE), Image.Resampling.BICUBIC))[..., None]
    if rng.random() < 0.35:
        angle, period = rng.uniform(0, math.pi), rng.uniform(9, 28)
        ys, xs = np.mgrid[:SIZE, :SIZE]
        stripes = np.sin((xs * math.cos(angle) + ys * math.sin(angle)) * (2 * math.pi / period))
        canvas = canvas + (rng.uniform(4, 14) * stripes)[..., None].astype(np.float32)
    return canvas


def _paint(
    canvas: np.ndarray, rng: np.random.Generator, shape: str, color: str, cx: float, cy: float, radius: float
) -> tuple[float, float, float, float]:
    """Draw one thing with shading and a soft shadow onto the canvas. Return the box of its mask."""
    half = int(radius) + 9
    left, top = round(cx) - half, round(cy) - half
    mask = _mask(shape, cx - left, cy - top, radius, float(rng.uniform(-0.3, 0.3)), 2 * half)
    shadow_image = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(3))
    shadow = np.roll(np.asarray(shadow_image, np.float32) / 255, (3, 3), axis=(0, 1))
    tint = np.asarray(COLORS[color], np.float32) + rng.normal(0, 9, size=3).astype(np.float32)
    ramp = np.linspace(-1, 1, 2 * half, dtype=np.float32)
    slope = rng.uniform(-16, 16, size=2)
    paint = tint + (slope[0] * ramp[:, None] + slope[1] * ramp[None, :])[..., None]

    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + 2 * half, SIZE), min(top + 2 * half, SIZE)
    inner = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    view = canvas[y0:y1, x0:x1]
    view *= 1 - 0.45 * shadow[inner][..., None]
    alpha = mask[inner][..., None]
    view[:] = view * (1 - alpha) + paint[inner] * alpha

    rows, columns = np.nonzero(mask.max(1) > 0.3)[0], np.nonzero(mask.max(0) > 0.3)[0]
    return (
        float(left + columns[0]),
        float(top + rows[0]),
        float(left + columns[-1] + 1),
        float(top + rows[-1] + 1),
    )


def _finish(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    pixels = canvas + rng.normal(0, rng.uniform(2, 7), size=canvas.shape)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(0.8))
    return np.array(image)


def _mask(shape: str, cx: float, cy: float, radius: float, angle: float, side: int) -> np.ndarray:
    """Return how much of each pixel the shape covers: float32 [side, side].

    Pillow draws without anti-aliasing, so the shape is drawn three times as large and box-filtered.
    """
    image = Image.new("L", (side * _SUPERSAMPLE, side * _SUPERSAMPLE))
    _DRAW[shape](ImageDraw.Draw(image), cx * _SUPERSAMPLE, cy * _SUPERSAMPLE, radius * _SUPERSAMPLE, angle)
    return np.asarray(image.reduce(_SUPERSAMPLE), np.float32) / 255


Draw = Callable[[ImageDraw.ImageDraw, float, float, float, float], None]


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: int = 255) -> None:
    draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def _polygon(points: list[tuple[float, float]]) -> Draw:
    """Return a function that draws a polygon. Its points are in units of the radius, with y pointing down."""

    def draw_polygon(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, angle: float) -> None:
        c, s = math.cos(angle), math.sin(angle)
        draw.polygon([(x + r * (px * c - py * s), y + r * (px * s + py * c)) for px, py in points], fill=255)

    return draw_polygon


def _ball(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, angle: float) -> None:
    _disc(draw, x, y, r)


def _ring(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, angle: float) -> None:
    _disc(draw, x, y, r)
    _disc(draw, x, y, 0.52 * r, fill=0)


def _moon(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, angle: float) -> None:
    _disc(draw, x, y, r)
    _disc(draw, x + 0.55 * r * math.cos(angle), y + 0.55 * r * math.sin(angle), 0.8 * r, fill=0)


def _star_points() -> list[tuple[float, float]]:
    turns = [(math.pi * k / 5 - math.pi / 2, 1.0 if k % 2 == 0 else 0.42) for k in range(10)]
    return [(length * math.cos(turn), length * math.sin(turn)) for turn, length in turns]


def _heart_points() -> list[tuple[float, float]]:
    turns = [2 * math.pi * k / 40 for k in range(40)]
    wide = [16 * math.sin(t) ** 3 / 17 for t in turns]
    tall = [-(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 17 for t in turns]
    return list(zip(wide, tall, strict=True))


_A = 0.34  # half the width of an arm of the cross
_CROSS_TOP = [(-1, _A), (-1, -_A), (-_A, -_A), (-_A, -1), (_A, -1), (_A, -_A)]
_DRAW: dict[str, Draw] = {
    "ball": _ball,
    "box": _polygon([(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)]),
    "cone": _polygon([(0, -1), (0.9, 0.8), (-0.9, 0.8)]),
    "star": _polygon(_star_points()),
    "ring": _ring,
    "heart": _polygon(_heart_points()),
    "cross": _polygon([*_CROSS_TOP, *((-x, -y) for x, y in _CROSS_TOP)]),
    "moon": _moon,
}
