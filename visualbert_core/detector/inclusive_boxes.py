"""Boxes as Fast R-CNN and its heirs up to Detectron counted them: the last pixel belongs to the box, so that a side is
x2 - x1 + 1; torchvision's are half-open. Anchors, deltas, clipping, and the published choice of regions by class-wise
non-maximum suppression, all in pixels of the resized image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.ops import box_iou

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


def confidences(boxes_P4: Tensor, scores_PC: Tensor, iou: float, wanted: int) -> Tensor:
    """Of each proposal the best score among the classes whose non-maximum suppression keeps it, 0 where none does.

    Exact for the `wanted` greatest; what cannot be among them may read 0. A score is only ever suppressed by a greater
    one, so scores under a floor are left out while enough proposals stay above it. All classes go together, one step a
    rank: the proposals are the same in each, so they share one matrix of overlaps.
    """
    overlaps_PP = box_iou(half_open(boxes_P4), half_open(boxes_P4)) > iou
    wanted = min(wanted, len(boxes_P4))
    floor = float(scores_PC.amax(1).sort(descending=True).values[wanted - 1]) if wanted else 0.0
    while True:
        found = _above(overlaps_PP, scores_PC, floor)
        if floor <= 0 or int((found > 0).sum()) >= wanted:
            return found
        floor = floor / 4 if floor > float(scores_PC.min()) else 0.0


def _above(overlaps_PP: Tensor, scores_PC: Tensor, floor: float) -> Tensor:
    classes = (scores_PC >= floor).any(0).nonzero().squeeze(1)
    scores_CP = scores_PC[:, classes].T.contiguous()
    ranked = scores_CP.sort(dim=1, descending=True, stable=True)
    gone_CP = scores_CP < floor
    rows = torch.arange(len(classes), device=scores_PC.device)
    for rank in range(int((~gone_CP).sum(1).max()) if len(classes) else 0):
        chosen = ranked.indices[:, rank]
        hit = overlaps_PP[chosen] & ~gone_CP[rows, chosen, None]
        hit[rows, chosen] = False
        gone_CP |= hit
    return scores_CP.masked_fill(gone_CP, 0).amax(0) if len(classes) else scores_PC.new_zeros(len(scores_PC))
