"""Trains the detector of the demo from random weights, and measures it on unseen scenes.

Owns the training scenes, the configuration, and the loop that all trainings of this folder share. The network is a
small Faster R-CNN (Ren et al. 2015, arXiv:1506.01497). A class is a pair of shape and colour, 64 in all, and the
background. So the region feature (fc7) contains the colour without an attribute head.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torchvision.models.detection import FasterRCNN
from torchvision.ops import box_iou

from visualbert_core.detector.torchvision_rcnn import DetectorConfig, Selection, TorchvisionRCNN, build
from visualbert_core.engine.processes import helpers, stopping
from visualbert_core.printable import say
from visualbert_core.synthetic.scenes import COLORS, SHAPES, SIZE, Scene, Thing, make_scene, through_jpeg

TRAIN, HELD_OUT = 0, 2
"""The second number in the seed of a scene. The validation files have 1 (`files.VALIDATION`). So no two sets share a
scene."""

LABELS = ("background", *(f"{color} {shape}" for shape in SHAPES for color in COLORS))
CONFIG = DetectorConfig(
    builder="tiny_rcnn",
    space="world-tiny-rcnn-fc7",
    builder_args={"num_classes": len(LABELS), "feature_size": 256, "image_size": SIZE, "roi_size": 5},
    labels=LABELS,
    selection=Selection(score_threshold=0.3, nms_iou=0.45, min_regions=1, max_regions=16),
)
BATCH, LEARNING_RATE, WEIGHT_DECAY, CLIP = 8, 3e-3, 0.02, 5.0

T = TypeVar("T")


def label_of(thing: Thing) -> int:
    return LABELS.index(f"{thing.color} {thing.shape}")


def make_scenes(seed: int, part: int, count: int) -> list[Scene]:
    """Draw scenes 0 … count - 1 of a part, in parallel, with the pixels that JPEG files would hold.

    The demo reads JPEG files, so training sees the same artefacts.
    """
    draw = partial(_draw, seed, part)
    with stopping("while scenes were drawn"), helpers() as pool:
        return list(pool.map(draw, range(count), chunksize=64))


def _draw(seed: int, part: int, index: int) -> Scene:
    return through_jpeg(make_scene((seed, part, index)))


def train_detector(scenes: Sequence[Scene], seed: int, steps: int) -> FasterRCNN:
    """Train from random weights. The result depends only on the scenes, the seed, the steps and the thread count."""
    torch.manual_seed(seed)
    model = build(CONFIG).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.15)

    def loss(step: int, batch: Sequence[tuple[Scene, bool]]) -> torch.Tensor:
        return torch.stack(list(model(*_targets(batch)).values())).sum()

    batches = _batches(scenes, steps, np.random.default_rng([seed, 99]))
    descend("detector", steps, batches, loss, optimizer, schedule, CLIP)
    return model


def descend(
    label: str,
    steps: int,
    batches: Iterable[T],
    loss: Callable[[int, T], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    clip: float,
) -> None:
    """Go down `loss(step, batch)`, a step for each of `steps` batches. Print a line every ten seconds."""
    began = said = time.monotonic()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for step, batch in enumerate(batches):
        value = loss(step, batch)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        schedule.step()
        now, done = time.monotonic(), step + 1
        if now - said > 10 or done == steps:
            said, rate = now, done / (now - began)
            left = (steps - done) / rate
            say(f"{label} {done}/{steps}  {rate:.1f}/s  {left:.0f} s left  loss {value.item():.3f}")


def _batches(scenes: Sequence[Scene], steps: int, rng: np.random.Generator) -> Iterator[list[tuple[Scene, bool]]]:
    order: list[int] = []
    for _ in range(steps):
        if len(order) < BATCH:
            order = [int(i) for i in rng.permutation(len(scenes))]
        yield [(scenes[order.pop()], bool(rng.random() < 0.5)) for _ in range(BATCH)]


def _targets(batch: Sequence[tuple[Scene, bool]]) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    images, targets = [], []
    for scene, flip in batch:
        pixels = scene.pixels[:, ::-1] if flip else scene.pixels
        boxes = np.array([t.box for t in scene.things], np.float32)
        if flip:
            boxes[:, [0, 2]] = SIZE - boxes[:, [2, 0]]  # the right edge becomes the left one
        images.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255)
        labels = torch.tensor([label_of(t) for t in scene.things])
        targets.append({"boxes": torch.from_numpy(boxes), "labels": labels})
    return images, targets


def found_share(detector: TorchvisionRCNN, scenes: Sequence[Scene]) -> dict[str, Any]:
    """Return the percentage of things found with the right class (IoU ≥ 0.5), and the regions per scene."""
    found = things = regions = 0
    for start in range(0, len(scenes), 16):
        chunk = scenes[start : start + 16]
        for scene, detection in zip(chunk, detector.detect([s.pixels for s in chunk]), strict=True):
            gold = torch.tensor([t.box for t in scene.things])
            overlap = box_iou(gold, torch.from_numpy(detection.boxes)) >= 0.5
            same = torch.tensor([label_of(t) for t in scene.things])[:, None] == torch.from_numpy(detection.labels)
            found += int((overlap & same).any(1).sum())
            things += len(scene.things)
            regions += len(detection.boxes)
    return {"things found": 100 * found / things, "regions per scene": regions / len(scenes)}
