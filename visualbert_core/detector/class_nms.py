"""Class-wise non-maximum suppression over proposals that all classes share, without a loop over the classes.

The Caffe extractors (bottom-up attention, Pythia, Detectron) suppress once per class and keep of a proposal its best
score among the classes in which it survived. Here one [P, P] overlap serves all classes, and the greedy pass goes down
the ranks of every class at once: P steps in place of C suppressions, with the same result.
"""

from __future__ import annotations

import torch
from torch import Tensor


def class_wise_confidence(overlaps_PP: Tensor, scores_PC: Tensor, iou: float) -> Tensor:
    """[P]: the best score of a proposal over the classes whose suppression above `iou` it survives; 0 in none.

    `overlaps_PP` are the proposals' mutual IoU; ties of a class go to the earlier proposal.
    """
    spares_PP = (~(overlaps_PP > iou)).fill_diagonal_(True)
    ranks_PC = scores_PC.argsort(dim=0, descending=True, stable=True)
    columns_C = torch.arange(scores_PC.shape[1], device=scores_PC.device)
    alive_CP = torch.ones_like(scores_PC.T, dtype=torch.bool)
    for rank_C in ranks_PC:
        survivors_S = alive_CP[columns_C, rank_C].nonzero()[:, 0]
        alive_CP[survivors_S] &= spares_PP[rank_C[survivors_S]]
    return (scores_PC * alive_CP.T).amax(1)
