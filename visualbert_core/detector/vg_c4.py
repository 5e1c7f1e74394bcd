"""`vg_c4`: the Faster R-CNN of bottom-up attention, a ResNet-101-C4 for 1,600 objects and 400 attributes.

Anderson et al. 2018 trained it on Visual Genome (https://github.com/peteanderson80/bottom-up-attention, Caffe). Its
weights also run in https://github.com/airsplay/py-bottom-up-attention (detectron2). Hugging Face has them as
`unc-nlp/frcnn-vg-finetuned`, for its research projects lxmert and visual_bert. The feature of a region is the mean of
res5 over its *proposal*. The box of a region is that proposal, refined for its best class. `vg_c4_network.py` has the
network. This file has the recipe: preprocessing and the selection of regions.

The defaults of `VgC4Config` come from py-bottom-up-attention's script for COCO: 36 regions at 600 × 1000 pixels. Two
other recipes are published:

- Hugging Face's has `resize="interpolate"`. The rest is in the `config.yaml` beside its weights (`convert` reads it).
- The original with 10 to 100 regions is `Selection(rule="class-wise", box_kind="proposal", nms_iou=(0.3,),
  min_regions=10, max_regions=100)`, with weights of its own. Caffe's proposals lie on a grid of whole pixels, so boxes
  differ slightly here.

It may be that no threshold of `nms_iou` leaves `min_regions` boxes. Then Hugging Face's code returns the boxes of the
previous image, or crashes on the first image. This file keeps the boxes of the last threshold, as
py-bottom-up-attention does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import clip_boxes_to_image, nms

from visualbert_core.config import check_range, check_values
from visualbert_core.detector.class_nms import confidences
from visualbert_core.detector.folder import LONGEST_SIDE, FolderConfig, FolderDetector, check_colours
from visualbert_core.detector.inference import Columns
from visualbert_core.detector.resize import pillow_bilinear
from visualbert_core.detector.vg_c4_network import STAGES, Architecture, Described, Proposals, VgC4Network
from visualbert_core.errors import ConfigError

_SMALLEST = 3  # pixels; a shorter side vanishes, because the network's max pooling has no padding


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How uint8 RGB pixels become the input that the network was trained on."""

    color_order: Literal["BGR", "RGB"] = "BGR"
    """Caffe's networks read BGR, the order in which OpenCV decodes images."""
    mean: tuple[float, ...] = (102.9801, 115.9465, 122.7717)
    """In `color_order`, for pixels from 0 to 255."""
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    short_side: int = 600
    """Pixels of the shorter side after the resize."""
    long_side: int = 1000
    """The most pixels of the longer side. Where it would be longer, the shorter side shrinks with it."""
    resize: Literal["pillow", "interpolate"] = "pillow"
    """Both are bilinear with half-pixel centres. `pillow` (detectron2): the filter widens as the image shrinks, and the
    result is rounded to whole grey levels. `interpolate` (Hugging Face): torch's function of that name, whose filter is
    two pixels wide at any scale."""

    def __post_init__(self) -> None:
        check_values(self)
        check_range(self, 1, LONGEST_SIDE, "short_side", "long_side")
        check_colours(self, "mean", "std")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which proposals become regions.

    `best-class` (py-bottom-up-attention, Hugging Face): each proposal is refined for its best class, and one
    non-maximum suppression (NMS) runs over all classes. The thresholds of `nms_iou` are tried in order until
    `min_regions` boxes are left. The best `max_regions` of these are kept.

    `class-wise` (Caffe): NMS runs on the proposals in every class. The score of a proposal is its best one among the
    classes in which it survives. All proposals with at least `score_threshold` are kept, but at least `min_regions` and
    at most `max_regions`.
    """

    rule: Literal["best-class", "class-wise"] = "best-class"
    nms_iou: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """Thresholds of NMS. `class-wise` takes exactly one."""
    min_regions: int = 36
    max_regions: int = 36
    score_threshold: float = 0.2
    """For `class-wise` only. The programs of `best-class` have this option, too, but never read it."""
    box_kind: Literal["refined", "proposal"] = "refined"
    """The box that is stored. The feature always belongs to the proposal."""

    def __post_init__(self) -> None:
        check_values(self)
        check_range(self, 0, 1, "nms_iou", "score_threshold")
        check_range(self, 0, None, "min_regions")
        check_range(self, 1, None, "max_regions")
        if not self.nms_iou or (self.rule == "class-wise" and len(self.nms_iou) > 1):
            raise ConfigError(
                f"selection: nms_iou of {self.rule} cannot be {list(self.nms_iou)}: "
                "class-wise takes one threshold, best-class one or more"
            )


@dataclass(frozen=True, kw_only=True)
class VgC4Config(FolderConfig):
    """`config.json` of a `vg_c4` folder."""

    builder: Literal["vg_c4"] = "vg_c4"
    space: str = "vg_c4"
    """Name of the feature space. Weights from a different training, such as the original ones for 10 to 100 regions,
    make a different space: give it a new name."""
    labels: tuple[str, ...] = ()
    """Names of the objects; label i is the i-th name. The background is the last class and has no name."""
    attributes: tuple[str, ...] = ()
    architecture: Architecture = field(default_factory=Architecture)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    proposals: Proposals = field(default_factory=Proposals)
    selection: Selection = field(default_factory=Selection)

    @property
    def blocks(self) -> tuple[int, ...]:
        return self.architecture.blocks


class VgC4(FolderDetector[VgC4Network, VgC4Config]):
    """See `detector.Detector`."""

    config_class = VgC4Config
    stages = STAGES

    @staticmethod
    def empty(config: VgC4Config) -> VgC4Network:
        return VgC4Network(config.architecture, config.proposals)

    def _feature_size(self) -> int:
        return self.config.architecture.feature_size

    def recipe(self) -> dict[str, Any]:
        return {"pooled_from": "proposal"}

    @staticmethod
    def bfloat16_parts(network: VgC4Network) -> Sequence[Sequence[nn.Module]]:
        trunk = (network.conv1, network.layer1, network.layer2, network.layer3)
        return trunk, (network.rpn.conv,), (network.layer4,)

    def _detect(self, pixels_BHWC: Tensor, given: Sequence[np.ndarray] | None) -> list[Columns]:
        original = pixels_BHWC.shape[1], pixels_BHWC.shape[2]
        pixels_BCHW = preprocess(pixels_BHWC, self.config.preprocessing)
        size = pixels_BCHW.shape[2], pixels_BCHW.shape[3]
        maps = self._ready.trunk(pixels_BCHW)
        boxes: Sequence[np.ndarray | None] = [None] * len(maps) if given is None else given
        return [self._regions(map_CHW, size, original, of_one) for map_CHW, of_one in zip(maps, boxes, strict=True)]

    def _regions(
        self, map_CHW: Tensor, size: tuple[int, int], original: tuple[int, int], given: np.ndarray | None
    ) -> Columns:
        """Return the regions of one image, which has (H, W) `size` after the resize and `original` before it.

        Given boxes take the place of proposals. They are not refined and not clipped.
        """
        network = self._ready
        if given is None:
            regions = network.describe(map_CHW, network.propose(map_CHW, size))
            return _columns(regions, *select(regions, size, original, self.config.selection))
        boxes_R4 = torch.from_numpy(given).to(self.device)
        regions = network.describe(map_CHW, resize_boxes(boxes_R4, original, size))
        return _columns(regions, torch.arange(len(given), device=self.device), regions.scores, boxes_R4)


def preprocess(pixels_BHWC: Tensor, config: Preprocessing) -> Tensor:
    """Turn uint8 RGB [B, H, W, 3] into float32 [B, 3, H', W'], resized and normalised, on the same device."""
    # The memory layout decides the last bits of a feature, so it is fixed here.
    pixels_BCHW = pixels_BHWC.permute(0, 3, 1, 2).contiguous()
    if config.color_order == "BGR":
        pixels_BCHW = pixels_BCHW.flip(1)
    height, width = resized(pixels_BCHW.shape[2], pixels_BCHW.shape[3], config.short_side, config.long_side)
    if config.resize == "pillow":
        pixels_BCHW = pillow_bilinear(pixels_BCHW, height, width).float()
    else:
        pixels_BCHW = functional.interpolate(pixels_BCHW.float(), (height, width), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(values, device=pixels_BCHW.device)[:, None, None] for values in (config.mean, config.std))
    return (pixels_BCHW - mean) / std


def resized(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Return the new (H', W').

    All published programs share this rule: scale the short side, then apply the cap, then round halves up.
    """
    scale = short_side / min(height, width)
    sides = (short_side, scale * width) if height < width else (scale * height, short_side)
    shrink = min(1.0, long_side / max(sides))
    new_height, new_width = (max(int(side * shrink + 0.5), _SMALLEST) for side in sides)
    return new_height, new_width


def select(
    regions: Described, size: tuple[int, int], original: tuple[int, int], rule: Selection
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the proposals to keep as indices [R], by descending score, their scores [R], and their boxes [R, 4].

    The returned boxes are in pixels of the `original` (H, W).
    """
    refined_P4 = clip_boxes_to_image(regions.refined, size)
    if rule.rule == "best-class":
        scores_P = regions.scores
        for iou in rule.nms_iou:
            kept_R = nms(refined_P4, scores_P, iou)[: rule.max_regions]
            if len(kept_R) >= rule.min_regions:
                break
    else:
        # In Caffe the last pixel belongs to a box: a box of one pixel has x1 = x2. Adding 1 gives Caffe's overlaps.
        pixels_P4 = resize_boxes(regions.proposals, size, original) + regions.proposals.new_tensor([0, 0, 1, 1])
        scores_P = confidences(pixels_P4, regions.object_scores, rule.nms_iou[0], rule.max_regions)
        above = int((scores_P >= rule.score_threshold).sum())
        kept_R = scores_P.argsort(descending=True, stable=True)
        kept_R = kept_R[: min(max(above, rule.min_regions), rule.max_regions)]
    boxes_P4 = refined_P4 if rule.box_kind == "refined" else regions.proposals
    return kept_R, scores_P[kept_R], resize_boxes(boxes_P4[kept_R], size, original)


def _columns(regions: Described, kept_R: Tensor, scores_R: Tensor, boxes_R4: Tensor) -> Columns:
    found = boxes_R4, regions.labels[kept_R].to(torch.int16), scores_R, regions.features[kept_R]
    if regions.attributes is None or regions.attribute_scores is None:
        return found
    return *found, regions.attributes[kept_R].to(torch.int16), regions.attribute_scores[kept_R]
