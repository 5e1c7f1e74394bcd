"""Any Faster R-CNN of torchvision as a detector of region features: fc7 of its box head, with the box of each feature.

torchvision's `postprocess_detections` drops the index that ties a box to its proposal (github.com/pytorch/vision issue
4309). So this file calls the public parts instead: transform, backbone, rpn, roi_heads.box_roi_pool, box_head,
box_predictor and box_coder.

A detector folder holds `config.json` (`DetectorConfig`) and `model.safetensors`. This file owns these decisions:

- pixels are RGB in [0, 1], with torchvision's resize and normalisation;
- a feature is pooled from the *proposal*;
- the stored box is that proposal, refined for its best class (`box_kind: refined`) or unchanged (`proposal`);
- one class-agnostic non-maximum suppression (NMS) ranks proposals by their best class score, as in
  py-bottom-up-attention. On a CPU it takes under 2 ms an image; NMS in each of 1,600 classes takes 200 ms and more.
"""

from __future__ import annotations

import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import FrozenBatchNorm2d, clip_boxes_to_image, nms

from visualbert_core.config import check_range, check_values
from visualbert_core.detector.folder import LONGEST_SIDE, FolderConfig, FolderDetector
from visualbert_core.detector.inference import Columns
from visualbert_core.detector.roi_align import pool_as
from visualbert_core.detector.tiny_rcnn import tiny_rcnn
from visualbert_core.errors import CheckpointError
from visualbert_core.io.documents import brief


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which proposals become regions.

    One class-agnostic NMS runs on the score of the best class. All that is left with at least `score_threshold` is
    kept, but at least `min_regions` (where NMS leaves so many) and at most `max_regions`.
    """

    score_threshold: float = 0.2
    nms_iou: float = 0.5
    min_regions: int = 10
    max_regions: int = 100
    box_kind: Literal["refined", "proposal"] = "refined"

    def __post_init__(self) -> None:
        check_values(self)
        check_range(self, 0, 1, "score_threshold", "nms_iou")
        check_range(self, 0, None, "min_regions")
        check_range(self, 1, None, "max_regions")


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(FolderConfig):
    """`config.json` of a detector folder."""

    builder: str
    """`tiny_rcnn`, or the name of a Faster R-CNN function in torchvision.models.detection."""
    builder_args: dict[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    """Class names, background first."""
    norm_eps: float | None = None
    """Epsilon of the batch norms; default: torchvision's. The COCO_V1 weights of fasterrcnn_resnet50_fpn need 0.
    torchvision sets 0 only where it downloads these weights itself."""
    selection: Selection = field(default_factory=Selection)

    def __post_init__(self) -> None:
        check_values(self)
        check_range(self, 0, None, "norm_eps")


class TorchvisionRCNN(FolderDetector[FasterRCNN, DetectorConfig]):
    """See `detector.Detector`."""

    config_class = DetectorConfig

    @staticmethod
    def empty(config: DetectorConfig) -> FasterRCNN:
        return build(config)

    def _feature_size(self) -> int:
        size: int = self.model.roi_heads.box_predictor.cls_score.in_features
        return size

    def recipe(self) -> dict[str, Any]:
        transform = self.model.transform
        return {
            "color_order": "RGB",
            "resize": {"rule": "torchvision bilinear", "min": list(transform.min_size), "max": transform.max_size},
            "mean": list(transform.image_mean),
            "std": list(transform.image_std),
            "pooled_from": "proposal",
            "nms": "class-agnostic",
            "proposals": self.model.rpn.post_nms_top_n(),
        }

    @staticmethod
    def bfloat16_parts(network: FasterRCNN) -> Sequence[Sequence[nn.Module]]:
        return (network.backbone,), (network.rpn.head.conv,), (network.roi_heads.box_head,)

    def _detect(self, pixels_BHWC: Tensor, given: Sequence[np.ndarray] | None) -> list[Columns]:
        model, original = self._ready, (pixels_BHWC.shape[1], pixels_BHWC.shape[2])
        pixels_BCHW = _long_enough(pixels_BHWC.permute(0, 3, 1, 2), model.transform)
        batch, _ = model.transform(list(pixels_BCHW.float().div_(255)))
        maps = model.backbone(batch.tensors)
        maps = OrderedDict([("0", maps)]) if isinstance(maps, Tensor) else maps
        size = batch.image_sizes[0]
        if given is None:
            proposals, _ = model.rpn(batch, maps)
        else:
            stored = [torch.from_numpy(boxes).to(self.device) for boxes in given]
            proposals = [resize_boxes(boxes, original, size) for boxes in stored]
        described = self._described(batch, maps, proposals)
        if given is not None:
            return [(boxes, *columns) for boxes, (_, _, *columns) in zip(stored, described, strict=True)]
        chosen = (self._choose(columns, size) for columns in described)
        return [(resize_boxes(boxes, size, original), *columns) for boxes, *columns in chosen]

    def _described(
        self, batch: ImageList, maps: dict[str, Tensor], proposals: list[Tensor]
    ) -> Iterator[tuple[Tensor, ...]]:
        """Yield for each image its proposals, the refined ones, and their labels, scores and features."""
        heads = self._ready.roi_heads
        pooled = pool_as(heads.box_roi_pool, maps, proposals, batch.tensors.shape[2:])
        features_PD = heads.box_head(pooled)
        logits_PC, deltas = heads.box_predictor(features_PD)
        scores_P, labels_P = logits_PC.softmax(-1)[:, 1:].max(-1)
        labels_P = labels_P + 1  # class 0 is the background
        refined_PC4 = heads.box_coder.decode(deltas, proposals)
        refined_P4 = refined_PC4[torch.arange(len(labels_P), device=labels_P.device), labels_P]
        columns = (torch.cat(proposals), refined_P4, labels_P.to(torch.int16), scores_P, features_PD)
        return zip(*(column.split([len(p) for p in proposals]) for column in columns), strict=True)

    def _choose(self, described: tuple[Tensor, ...], size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Choose the regions of one image of (H, W) `size`, best first. Their boxes are in pixels of that image."""
        proposals_P4, refined_P4, labels_P, scores_P, features_PD = described
        rule = self.config.selection
        refined_P4 = clip_boxes_to_image(refined_P4, size)
        # NMS looks at refined boxes even where proposals are stored: the choice does not depend on `box_kind`.
        order = nms(refined_P4, scores_P, rule.nms_iou)
        above = int((scores_P[order] >= rule.score_threshold).sum())
        order = order[: min(max(above, rule.min_regions), rule.max_regions)]
        boxes_P4 = refined_P4 if rule.box_kind == "refined" else proposals_P4
        return tuple(column[order] for column in (boxes_P4, labels_P, scores_P, features_PD))


def _long_enough(pixels_BCHW: Tensor, transform: GeneralizedRCNNTransform) -> Tensor:
    """Repeat the lines of very narrow images, so that at least one pixel is left after the resize.

    torchvision would shrink their short side to 0 pixels, and crash.
    """
    short, long = sorted(pixels_BCHW.shape[2:])
    remains = short * min(transform.min_size[-1] / short, transform.max_size / long)
    if remains >= 1:
        return pixels_BCHW
    return pixels_BCHW.repeat_interleave(math.ceil(1 / remains) + 1, 2 if pixels_BCHW.shape[2] == short else 3)


def build(config: DetectorConfig) -> FasterRCNN:
    """Return the untrained network that a config names.

    Raise CheckpointError for an unknown builder, for arguments that it does not take, and for images too large.
    """
    builder: Callable[..., Any] | None = tiny_rcnn
    arguments = dict(config.builder_args)
    if config.builder != "tiny_rcnn":
        builder = getattr(torchvision.models.detection, config.builder, None)
        if not config.builder.startswith("fasterrcnn_") or builder is None:
            known = [n for n in dir(torchvision.models.detection) if n.startswith("fasterrcnn_")]
            raise CheckpointError(f"unknown detector builder {config.builder!r}; known: tiny_rcnn, {', '.join(known)}")
        arguments |= {"weights": None, "weights_backbone": None}
    assert builder is not None
    try:
        inspect.signature(builder).bind(**arguments)
    except TypeError as error:
        raise CheckpointError(f"detector builder {config.builder!r}: {error}") from error
    model = builder(**arguments)
    for module in model.modules():
        if config.norm_eps is not None and isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            module.eps = config.norm_eps
    assert isinstance(model, FasterRCNN)
    sides = (*model.transform.min_size, model.transform.max_size)
    if not all(1 <= side <= LONGEST_SIDE for side in sides):
        raise CheckpointError(f"images would be {brief(sides)} pixels a side: a side must be 1 to {LONGEST_SIDE:,}")
    return model
