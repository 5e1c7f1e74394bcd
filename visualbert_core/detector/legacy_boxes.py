"""Boxes as Fast R-CNN and its heirs up to Detectron counted them: the last pixel belongs to the box, so that a side is
x2 - x1 + 1; torchvision's are half-open. Anchors, deltas and clipping, in pixels of the resized image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ASPECT_RATIOS = (0.5, 1.0, 2.0)
LARGEST_LOG_SCALE = math.log(1000 / 16)


def anchors(height: int, width: int, stride: int, side: int) -> Tensor:
    """Anchors of a map, [height * width * ratios, 4], as Fast R-CNN's: sides rounded *before* they are scaled up, and
    centred on the middle pixel of each cell."""
    ratios = torch.tensor(ASPECT_RATIOS, dtype=torch.float64)
    widths = (stride**2 / ratios).sqrt().round()
    sides = torch.stack([widths, (widths * ratios).round()], 1) * (side / stride)
    half, centre = (sides - 1) / 2, (stride - 1) / 2
    cell_A4 = torch.cat([centre - half, centre + half], 1).float()
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    shifts_N4 = torch.stack([columns, rows, columns, rows], -1).view(-1, 1, 4) * float(stride)
    return (shifts_N4 + cell_A4).view(-1, 4)


def decode(deltas_N4: Tensor, anchors_N4: Tensor) -> Tensor:
    """Deltas (dx, dy, log width, log height) of anchors → boxes xyxy."""
    sides = anchors_N4[:, 2:] - anchors_N4[:, :2] + 1
    centres = anchors_N4[:, :2] + 0.5 * sides + deltas_N4[:, :2] * sides
    half = 0.5 * deltas_N4[:, 2:].clamp(max=LARGEST_LOG_SCALE).exp() * sides
    return torch.cat([centres - half, centres + half - 1], 1)


def clip(boxes_N4: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes within the pixels of an image of (H, W)."""
    height, width = size
    x, y = boxes_N4[:, 0::2].clamp(0, width - 1), boxes_N4[:, 1::2].clamp(0, height - 1)
    return torch.stack([x, y], 2).view(-1, 4)


def half_open(boxes_N4: Tensor) -> Tensor:
    """The same boxes for functions that take a side for x2 - x1."""
    return boxes_N4 + boxes_N4.new_tensor([0, 0, 1, 1])
