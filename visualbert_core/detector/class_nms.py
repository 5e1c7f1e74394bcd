"""Class-wise non-maximum suppression over proposals that all classes share, without a loop over the classes.

The Caffe extractors (bottom-up attention, Pythia, Detectron) suppress once per class and keep of a proposal its best
score among the classes in which it survived. Here one [P, P] overlap serves all classes, and the greedy pass goes down
the ranks of every class at once, with the same result.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou


def confidences(boxes_P4: Tensor, scores_PC: Tensor, iou: float, wanted: int) -> Tensor:
    """Of each proposal the best score among the classes whose suppression above `iou` it survives, 0 in none: [P].

    `boxes_P4` are half-open; ties of a class go to the earlier proposal. Exact for the `wanted` greatest; what cannot
    be among them may read 0. A score is only ever suppressed by a greater one, so scores under a floor are left out
    while enough proposals stay above it. All classes go together, one step a rank.
    """
    overlaps_PP = box_iou(boxes_P4, boxes_P4) > iou
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
