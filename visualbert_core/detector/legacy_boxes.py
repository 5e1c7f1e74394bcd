"""Anchors, deltas and clipping of boxes in the convention of Fast R-CNN, which Detectron (Caffe2) still followed.

In this convention the last pixel belongs to the box, so a side is x2 - x1 + 1 long. torchvision's boxes are half-open:
a side is x2 - x1 long. All boxes here are xyxy, in pixels of the resized image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ASPECT_RATIOS = (0.5, 1.0, 2.0)
LARGEST_LOG_SCALE = math.log(1000 / 16)  # Detectron's BBOX_XFORM_CLIP: the logarithm of a size cannot overflow `exp`


def anchors(height: int, width: int, stride: int, side: int) -> Tensor:
    """Return the anchors [height * width * ratios, 4] of a map with the given cell size (`stride`).

    Anchors are about `side` pixels long and centred on the middle of each cell's pixels.
    """
    ratios = torch.tensor(ASPECT_RATIOS, dtype=torch.float64)
    # As Detectron's `generate_anchors`, round the sides of an anchor of one cell, and scale them up only then. The
    # weights were trained with these anchors, which differ from exact ones by whole pixels.
    widths = (stride**2 / ratios).sqrt().round()
    sides = torch.stack([widths, (widths * ratios).round()], 1) * (side / stride)
    half, centre = (sides - 1) / 2, (stride - 1) / 2
    cell_A4 = torch.cat([centre - half, centre + half], 1).float()
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    shifts_N4 = torch.stack([columns, rows, columns, rows], -1).view(-1, 1, 4) * float(stride)
    return (shifts_N4 + cell_A4).view(-1, 4)


def decode(deltas_N4: Tensor, anchors_N4: Tensor) -> Tensor:
    """Apply deltas (dx, dy, log width, log height) to anchors. Return boxes [N, 4]."""
    sides = anchors_N4[:, 2:] - anchors_N4[:, :2] + 1
    centres = anchors_N4[:, :2] + 0.5 * sides + deltas_N4[:, :2] * sides
    half = 0.5 * deltas_N4[:, 2:].clamp(max=LARGEST_LOG_SCALE).exp() * sides
    return torch.cat([centres - half, centres + half - 1], 1)


def clip(boxes_N4: Tensor, size: tuple[int, int]) -> Tensor:
    """Clip boxes to the pixels of an image of (H, W) `size`: the last pixel is W - 1, H - 1."""
    height, width = size
    x, y = boxes_N4[:, 0::2].clamp(0, width - 1), boxes_N4[:, 1::2].clamp(0, height - 1)
    return torch.stack([x, y], 2).view(-1, 4)


def half_open(boxes_N4: Tensor) -> Tensor:
    """Return the same boxes in torchvision's convention, where a side is x2 - x1 long."""
    return boxes_N4 + boxes_N4.new_tensor([0, 0, 1, 1])
