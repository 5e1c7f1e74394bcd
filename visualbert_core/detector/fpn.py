"""The feature spaces `pythia_fpn` and `detectron_fpn`: fc6 of a Faster R-CNN with a feature pyramid (Lin et al. 2017).

`pythia_fpn` (2048-d, 100 regions) is the space of `visualbert-vqa*`. The network is the ResNeXt-101-64x4d of
github.com/meetshah1995/vqa-maskrcnn-benchmark, trained on Visual Genome. The recipe is MMF's `extract_features_vmb.py`.

`detectron_fpn` (1024-d, 150 regions, of which VisualBERT uses 144) is the space of `visualbert-nlvr2*`. The network is
Mask R-CNN R-101-FPN_2x (model 35861858) of Detectron (Caffe2), trained on COCO. The recipe is VisualBERT's
`extract_image_features_nlvr.py`.

The two programs differ only in the numbers of `FPNConfig`. Both do the following:

- pixels: BGR minus the mean, OpenCV's bilinear resize, padding to a multiple of 32;
- boxes: the last pixel belongs to the box, so a side is x2 - x1 + 1; proposals are clipped to the *padded* image;
- regions: a region is a proposal, not a refined box. Its confidence is its best score among the classes in which
  non-maximum suppression (NMS) keeps it. The most confident proposals become regions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, nms
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from visualbert_core.config import check_range, check_values
from visualbert_core.detector.class_nms import confidences
from visualbert_core.detector.folder import LONGEST_SIDE, FolderConfig, FolderDetector, check_colours
from visualbert_core.detector.inference import Columns
from visualbert_core.detector.roi_align import pool_levels

STRIDES = (4, 8, 16, 32, 64)  # pixels per cell of each level; regions are pooled from the first four levels
ANCHOR_SIZES = (32, 64, 128, 256, 512)
ASPECT_RATIOS = (0.5, 1.0, 2.0)
LARGEST_LOG_SCALE = math.log(1000 / 16)  # Detectron's BBOX_XFORM_CLIP: the logarithm of a size cannot overflow `exp`
PAD_TO = 32
ROI_SIZE, ROI_SAMPLES = 7, 2
CANONICAL_SIZE, CANONICAL_LEVEL = 224, 4  # equation 1 of the FPN paper


@dataclass(frozen=True, kw_only=True)
class FPNConfig(FolderConfig):
    """`config.json` of both spaces. The defaults are the recipe of `pythia_fpn`. `DETECTRON` is the other recipe."""

    builder: Literal["pythia_fpn", "detectron_fpn"] = "pythia_fpn"
    space: str = "pythia_fpn"
    labels: tuple[str, ...] = ()
    """Class names, background first. Pythia's weights file has no names."""

    blocks: tuple[int, ...] = (3, 4, 23, 3)
    """Residual blocks of each stage."""
    groups: int = 64
    group_width: int = 4
    stride_in_1x1: bool = False
    """Whether a stage halves its map in the first 1x1 convolution (the original ResNet), not in the 3x3 convolution."""
    pyramid_size: int = 512
    """Channels of every level."""
    feature_size: int = 2048
    num_classes: int = 1601
    """Includes the background, class 0."""

    min_size: int = 800
    max_size: int = 1333
    mean: tuple[float, ...] = (102.9801, 115.9465, 122.7717)
    """Blue, green, red."""

    pre_nms_top_n: int = 1000
    """Anchors of each level that become boxes. Pythia's fork has training files with 6,000 here, and with 1,000 and
    2,000 in the next two fields. The file that its extraction script names has 1,000 three times, as Detectron has."""
    post_nms_top_n: int = 1000
    """Proposals of each level."""
    num_proposals: int = 1000
    """Proposals of all levels together."""
    proposal_nms_iou: float = 0.7
    min_proposal_size: float = 0.0
    """Shortest side of a proposal, in pixels of the resized image."""

    layer: Literal["fc6", "fc7"] = "fc6"
    nms_iou: float = 0.5
    """IoU above which NMS suppresses, within each class."""
    num_regions: int = 100

    def __post_init__(self) -> None:
        check_values(self)
        check_range(self, 1, None, "blocks", "groups", "group_width", "pyramid_size", "feature_size", "num_classes")
        check_range(self, 1, LONGEST_SIDE, "min_size", "max_size")
        check_range(self, 1, None, "pre_nms_top_n", "post_nms_top_n", "num_proposals", "num_regions")
        check_range(self, 0, 1, "proposal_nms_iou", "nms_iou")
        check_range(self, 0, None, "min_proposal_size")
        check_colours(self, "mean")


PYTHIA = FPNConfig()
# torchvision counts by COCO's ids and has "N/A" where an id is unused. Detectron numbers the 80 classes without gaps.
_COCO = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
DETECTRON = FPNConfig(
    builder="detectron_fpn",
    space="detectron_fpn",
    labels=tuple(name for name in _COCO if name != "N/A"),
    groups=1,
    group_width=64,
    stride_in_1x1=True,
    pyramid_size=256,
    feature_size=1024,
    num_classes=81,
    min_proposal_size=1.0,  # Detectron's GenerateProposalsOp asks for at least one pixel "to avoid numerical issues"
    num_regions=150,
)


class FPNDetector(FolderDetector["FPNNetwork", FPNConfig]):
    """See `detector.Detector`. Class 0 is the background, and no region has this label."""

    config_class = FPNConfig
    stages = ("body.layer1.", "body.layer2.", "body.layer3.", "body.layer4.")

    @staticmethod
    def empty(config: FPNConfig) -> FPNNetwork:
        return FPNNetwork(config)

    def _feature_size(self) -> int:
        return self.config.feature_size

    def recipe(self) -> dict[str, Any]:
        return {
            "color_order": "BGR",
            "resize": "bilinear as cv2.resize, pixel values float32",
            "pad_to": PAD_TO,
            "box_kind": "proposal",
            "proposals_clipped_to": "the padded image",
            "nms": "class-wise",
        }

    @staticmethod
    def bfloat16_parts(network: FPNNetwork) -> Sequence[Sequence[nn.Module]]:
        body = network.body
        trunk = (body.conv1, body.layer1, body.layer2, body.layer3, body.layer4, network.fpn)
        return trunk, (network.rpn.conv,), (network.fc6,), (network.fc7,)

    def _detect(self, pixels_BHWC: Tensor, given: Sequence[np.ndarray] | None) -> list[Columns]:
        scale = resize_scale(pixels_BHWC.shape[1:3], self.config)
        batch = self._preprocess(pixels_BHWC, scale)
        maps = self._ready.maps(batch)
        if given is None:
            proposals = self._proposals(maps, (batch.shape[2], batch.shape[3]))
        else:
            boxes = [torch.from_numpy(boxes).to(self.device).float() for boxes in given]
            proposals = [boxes_R4 * scale for boxes_R4 in boxes]
        features, logits = self._ready.regions(maps[:4], proposals, self.config.layer)
        counts = [len(p) for p in proposals]
        scores = torch.split(logits.softmax(-1), counts)
        per_image = zip(proposals, torch.split(features, counts), scores, strict=True)
        if given is None:
            return [self._select(p / scale, f, s) for p, f, s in per_image]
        return [_columns(b, s[:, 1:].amax(1), f, s) for b, (_, f, s) in zip(boxes, per_image, strict=True)]

    def _preprocess(self, pixels_BHWC: Tensor, scale: float) -> Tensor:
        """Turn uint8 RGB into float32 [B, 3, H, W]: BGR minus the mean, resized, and padded with zeros."""
        mean = torch.tensor(self.config.mean, device=pixels_BHWC.device)
        # The mean goes first, and the resize works on floats, as in both programs: no value is rounded to a grey level.
        pixels = resize((pixels_BHWC.flip(3).float() - mean).permute(0, 3, 1, 2), scale)
        height, width = pixels.shape[2:]
        return pad(pixels, (0, -width % PAD_TO, 0, -height % PAD_TO))

    def _proposals(self, maps: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """Return the proposals of each image, best first: float32 [P, 4] in pixels of the resized image.

        `size` is the (H, W) of the padded batch. Both programs clip proposals to it, and not to the image inside.
        """
        logits, deltas = self._ready.rpn(list(maps))
        levels = []
        for logits_BAHW, deltas_BDHW, stride, side in zip(logits, deltas, STRIDES, ANCHOR_SIZES, strict=True):
            batch, _, height, width = logits_BAHW.shape
            anchors_N4 = anchors(height, width, stride, side).to(self.device)
            deltas_BN4 = deltas_BDHW.view(batch, -1, 4, height, width).permute(0, 3, 4, 1, 2).reshape(batch, -1, 4)
            # The programs rank probabilities, not logits: in float32 large logits become one probability, and so a tie.
            scores_BN = logits_BAHW.permute(0, 2, 3, 1).reshape(batch, -1).sigmoid()
            top = scores_BN.topk(min(self.config.pre_nms_top_n, scores_BN.shape[1]), dim=1)
            levels.append(
                [
                    self._of_level(clip(decode(deltas_N4[chosen], anchors_N4[chosen]), size), scores)
                    for deltas_N4, chosen, scores in zip(deltas_BN4, top.indices, top.values, strict=True)
                ]
            )
        return [self._of_all_levels(image) for image in zip(*levels, strict=True)]

    def _of_level(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return the proposals of one level and their scores, best first."""
        long_enough = (boxes[:, 2:] - boxes[:, :2] + 1 >= self.config.min_proposal_size).all(1)
        boxes, scores = boxes[long_enough], scores[long_enough]
        keep = nms(half_open(boxes), scores, self.config.proposal_nms_iou)[: self.config.post_nms_top_n]
        return boxes[keep], scores[keep]

    def _of_all_levels(self, levels: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the best proposals of all levels; there is no NMS between levels."""
        boxes, scores = (torch.cat(column) for column in zip(*levels, strict=True))
        best: Tensor = boxes[scores.topk(min(self.config.num_proposals, len(scores))).indices]
        return best

    def _select(self, boxes: Tensor, features: Tensor, scores: Tensor) -> Columns:
        """Choose the regions among proposals [P, 4], in pixels of the image that came in."""
        wanted = self.config.num_regions
        confidence = confidences(half_open(boxes), scores[:, 1:], self.config.nms_iou, wanted)
        order = confidence.sort(descending=True, stable=True).indices[:wanted]
        return _columns(boxes[order], confidence[order], features[order], scores[order])


def _columns(boxes: Tensor, confidence: Tensor, features: Tensor, scores: Tensor) -> Columns:
    # As in MMF's program, the label is the most probable class, even where NMS suppressed the proposal in that class.
    labels = scores[:, 1:].argmax(1) + 1
    return boxes, labels.to(torch.int16), confidence, features


# ---------------------------------------------------------------------------------------------------------------------
# the network


class FPNNetwork(nn.Module):
    """ResNet body, feature pyramid, proposal head, and the two layers fc6 and fc7 with class logits.

    It has no box regression, because a region is a proposal.
    """

    def __init__(self, config: FPNConfig) -> None:
        super().__init__()
        self.body = ResNet(
            Bottleneck,
            list(config.blocks),
            groups=config.groups,
            width_per_group=config.group_width,
            # maskrcnn-benchmark's frozen norm adds no epsilon to the variance; Detectron's has no variance at all.
            norm_layer=partial(FrozenBatchNorm2d, eps=0.0),
        )
        self.body.fc = nn.Identity()
        if config.stride_in_1x1:
            # torchvision's ResNet has the stride in the 3x3 convolution; Detectron's R-101 was trained with the other.
            for stage in (self.body.layer2, self.body.layer3, self.body.layer4):
                stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
        width = config.pyramid_size
        self.fpn = FeaturePyramidNetwork([256, 512, 1024, 2048], width, LastLevelMaxPool())
        self.rpn = RPNHead(width, len(ASPECT_RATIOS))
        self.fc6 = nn.Linear(width * ROI_SIZE**2, config.feature_size)
        self.fc7 = nn.Linear(config.feature_size, config.feature_size)
        self.cls_score = nn.Linear(config.feature_size, config.num_classes)

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """Return the five levels, [B, C, H / stride, W / stride], of pixels [B, 3, H, W]."""
        body = self.body
        x = body.maxpool(body.relu(body.bn1(body.conv1(pixels))))
        stages = {}
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = stages[name] = getattr(body, name)(x)
        return list(self.fpn(stages).values())

    def regions(self, maps: Sequence[Tensor], boxes: list[Tensor], layer: str) -> tuple[Tensor, Tensor]:
        """Return features [ΣR, D] after ReLU, and class logits [ΣR, classes].

        `boxes` are [R, 4] for each image, in pixels of the resized image. `layer` names the feature, fc6 or fc7.
        """
        fc6 = torch.relu(self.fc6(pool(maps, boxes).flatten(1)))
        fc7 = torch.relu(self.fc7(fc6))
        return (fc6 if layer == "fc6" else fc7), self.cls_score(fc7)


def pool(maps: Sequence[Tensor], boxes: list[Tensor]) -> Tensor:
    """Pool every box from the level that suits its size. Return [ΣR, C, 7, 7]."""
    every = torch.cat(boxes)
    sides = every[:, 2:] - every[:, :2] + 1
    # An inverted box has no size. It is pooled from the finest level.
    size = sides.prod(1).clamp(min=0).sqrt()
    # The programs add the epsilon inside the logarithm. torchvision adds it outside, so its pooler is not used here.
    level = torch.floor(CANONICAL_LEVEL + torch.log2(size / CANONICAL_SIZE + 1e-6)).clamp(2, 5).long() - 2
    return pool_levels(maps, boxes, level, [1 / stride for stride in STRIDES[:4]], ROI_SIZE, ROI_SAMPLES)


# ---------------------------------------------------------------------------------------------------------------------
# boxes: xyxy in pixels of the resized image. As in Fast R-CNN, the last pixel belongs to a box: a side is x2 - x1 + 1
# long. torchvision's boxes are half-open: a side is x2 - x1 long.


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


# ---------------------------------------------------------------------------------------------------------------------
# pixels


def resize_scale(shape: Sequence[int], config: FPNConfig) -> float:
    """Return the scale of an image of (H, W): the short side becomes `min_size`, the long side at most `max_size`.

    The long side is compared after rounding: 1333.3 pixels still count as 1333, as in both programs.
    """
    scale = config.min_size / min(shape)
    return config.max_size / max(shape) if round(scale * max(shape)) > config.max_size else scale


def resize(pixels_BCHW: Tensor, scale: float) -> Tensor:
    """Resize as `cv2.resize(…, fx=scale, fy=scale)` does, with bilinear interpolation.

    OpenCV steps by exactly 1 / scale, in double precision. torch steps by the ratio of the rounded sizes instead, which
    changes pixels by whole grey levels.
    """
    left, right, weight = _taps(pixels_BCHW.shape[-1], scale, pixels_BCHW.device)
    pixels_BCHW = torch.lerp(pixels_BCHW[..., left], pixels_BCHW[..., right], weight)
    above, below, weight = _taps(pixels_BCHW.shape[-2], scale, pixels_BCHW.device)
    return torch.lerp(pixels_BCHW[..., above, :], pixels_BCHW[..., below, :], weight[:, None])


def _taps(size: int, scale: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two of `size` places that each new place lies between, and the weight of the second."""
    at = (torch.arange(max(1, round(size * scale)), dtype=torch.float64) + 0.5) / scale - 0.5
    at = at.clamp(0, size - 1)
    low = at.floor().long()
    high = (low + 1).clamp(max=size - 1)
    return low.to(device), high.to(device), (at - low).float().to(device)
