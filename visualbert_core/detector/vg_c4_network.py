"""The network of `vg_c4`: ResNet-C4 trunk, region proposals, res5 on pooled regions, heads for objects and attributes.

It is built from torchvision's bottlenecks and operators, and follows the Caffe network of bottom-up attention (Anderson
et al. 2018) where that differs:

- the stride of a stage is in the first 1 × 1 convolution of its first block;
- the first max pooling has no padding and rounds up;
- res5 has stride 1, and its 3 × 3 convolutions are dilated instead;
- regions are max-pooled (RoIPool), not aligned;
- the proposal head has 512 channels;
- the background is the last class, as in detectron2, to which the weights were converted.

The anchors are stored with the weights.

Shapes: B images, P proposals, A anchors in a cell, D feature size, C objects. Boxes are xyxy, in pixels of the resized
image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.resnet import Bottleneck
from torchvision.ops import clip_boxes_to_image, nms, roi_pool

from visualbert_core.config import check_range, check_values

STRIDE = 16
"""Pixels of the resized image per cell of the trunk's map."""
STAGES = ("layer1.", "layer2.", "layer3.", "layer4.")
"""How the names of the weights of res2, res3, res4 and res5 begin."""
POOLED = 14
"""Cells along each side of a pooled region."""
AT_ONCE_ON_CPU = 16
"""Regions that go through res5 together. With so few, a layer's output is still in the cache for the next layer."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes of the network. The defaults describe the published network."""

    blocks: tuple[int, ...] = (3, 4, 23, 3)
    """Bottlenecks of res2, res3, res4 and res5."""
    width: int = 64
    """Channels of the stem and of res2's bottlenecks. Each later stage has twice as many as the stage before."""
    rpn_channels: int = 512
    """Channels of the proposal head."""
    num_objects: int = 1600
    """Without the background."""
    num_attributes: int = 400
    """0 for weights without attributes (`faster_rcnn_from_caffe.pkl`)."""

    def __post_init__(self) -> None:
        check_range(self, 1, None, "blocks", "width", "rpn_channels", "num_objects")
        check_range(self, 0, None, "num_attributes")

    @property
    def feature_size(self) -> int:
        """Return D: the channels of res5."""
        return 32 * self.width


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """How the region proposal network makes boxes, and which of them become proposals."""

    anchor_sizes: tuple[float, ...] = (64.0, 128.0, 256.0, 512.0)
    """Square roots of the areas of anchors, in pixels. Once weights are loaded, sizes and ratios only say how many
    anchors there are, because the weights file holds the anchors themselves."""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height / width."""
    pre_nms: int = 6000
    """Boxes that enter NMS, the best ones."""
    nms_iou: float = 0.7
    post_nms: int = 300
    """Proposals that are kept after NMS, the best ones."""
    min_size: float = 0.0
    """A proposal must be wider and higher than this, in pixels."""

    def __post_init__(self) -> None:
        check_values(self)
        check_range(self, 0, None, "anchor_sizes", "anchor_ratios", "min_size")
        check_range(self, 1, None, "pre_nms", "post_nms")
        check_range(self, 0, 1, "nms_iou")


@dataclass(frozen=True)
class Described:
    """The network's answers for the proposals of one image."""

    proposals: Tensor  # [P, 4]
    refined: Tensor  # [P, 4], the proposals refined for their best class, not clipped
    features: Tensor  # [P, D]
    object_scores: Tensor  # [P, C] probabilities of the objects, without the background
    scores: Tensor  # [P] the best object score
    labels: Tensor  # [P] the object with that score
    attributes: Tensor | None  # [P] the best attribute
    attribute_scores: Tensor | None  # [P] its probability


class VgC4Network(nn.Module):
    """The network. It is untrained until weights are loaded into it. Use it in `eval()`."""

    cell_anchors: Tensor  # [A, 4] around (0, 0), the first corner of a cell

    def __init__(self, architecture: Architecture, proposals: Proposals) -> None:
        super().__init__()
        self.proposals = proposals
        width, (*blocks, last) = architecture.width, architecture.blocks
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks[0], stride=1)
        self.layer2 = _stage(4 * width, 2 * width, blocks[1], stride=2)
        self.layer3 = _stage(8 * width, 4 * width, blocks[2], stride=2)
        self.layer4 = _stage(16 * width, 8 * width, last, stride=1, dilation=2)
        self.register_buffer("cell_anchors", _cell_anchors(proposals))
        self.rpn = _ProposalHead(16 * width, architecture.rpn_channels, len(self.cell_anchors))
        self.heads = _Heads(architecture)
        # The deltas' weights of the published config.yaml, and detectron2's limit on the logarithm of a size.
        self._anchor_coder = BoxCoder((1.0, 1.0, 1.0, 1.0), math.log(1000 / 16))
        self._box_coder = BoxCoder((10.0, 10.0, 5.0, 5.0), math.log(1000 / 16))

    def trunk(self, pixels_BCHW: Tensor) -> Tensor:
        """Return res4's map [B, 16 × width, H / 16, W / 16] of normalised pixels."""
        x = functional.relu(self.bn1(self.conv1(pixels_BCHW)))
        # Caffe's pooling pads nothing here and rounds the size up; torchvision's ResNet pads one pixel and rounds down.
        x = functional.max_pool2d(x, kernel_size=3, stride=2, padding=0, ceil_mode=True)
        maps_BCHW: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return maps_BCHW

    def propose(self, map_CHW: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the proposals [P, 4] of the image with this map, by descending objectness.

        They are clipped to (H, W) `size`, the size of the resized image.
        """
        rule = self.proposals
        logits_N, deltas_N4 = self.rpn(map_CHW)
        scores_P, order_P = logits_N.sort(descending=True, stable=True)
        scores_P, order_P = scores_P[: rule.pre_nms], order_P[: rule.pre_nms]
        anchors_P4 = self._anchors(map_CHW.shape[1], map_CHW.shape[2])[order_P]
        boxes_P4: Tensor = clip_boxes_to_image(self._anchor_coder.decode_single(deltas_N4[order_P], anchors_P4), size)
        large_P = ((boxes_P4[:, 2:] - boxes_P4[:, :2]) > rule.min_size).all(1)
        boxes_P4, scores_P = boxes_P4[large_P], scores_P[large_P]
        return boxes_P4[nms(boxes_P4, scores_P, rule.nms_iou)[: rule.post_nms]]

    def describe(self, map_CHW: Tensor, boxes_P4: Tensor) -> Described:
        """Return the network's answers for boxes of the image with this map."""
        together = AT_ONCE_ON_CPU if map_CHW.device.type == "cpu" else max(1, len(boxes_P4))
        features_PD = torch.cat([self._features(map_CHW, some_P4) for some_P4 in torch.split(boxes_P4, together)])
        logits_PC, deltas_PC4, attribute_logits_PA = self.heads(features_PD)
        object_scores_PC = logits_PC.softmax(-1)[:, :-1]
        scores_P, labels_P = object_scores_PC.max(-1)
        deltas_P4 = deltas_PC4[torch.arange(len(labels_P), device=labels_P.device), labels_P]
        attribute_scores = attributes = None
        if attribute_logits_PA is not None:
            # The last logit is the attributes' background. The published programs drop it before the softmax. They drop
            # the objects' background only after it.
            attribute_scores, attributes = attribute_logits_PA[:, :-1].softmax(-1).max(-1)
        return Described(
            proposals=boxes_P4,
            refined=self._box_coder.decode_single(deltas_P4, boxes_P4),
            features=features_PD,
            object_scores=object_scores_PC,
            scores=scores_P,
            labels=labels_P,
            attributes=attributes,
            attribute_scores=attribute_scores,
        )

    def _features(self, map_CHW: Tensor, boxes_P4: Tensor) -> Tensor:
        pooled = roi_pool(map_CHW[None], [boxes_P4], POOLED, 1 / STRIDE)
        features_PD: Tensor = self.layer4(pooled).mean(dim=(2, 3))
        return features_PD

    def _anchors(self, height: int, width: int) -> Tensor:
        """Return the anchors of a map, [height × width × A, 4]; the anchors of a cell are adjacent.

        As in detectron2 with offset 0, they are centred on the corner of a cell, not on its middle.
        """
        y, x = (STRIDE * torch.arange(n, device=self.cell_anchors.device) for n in (height, width))
        y, x = torch.meshgrid(y, x, indexing="ij")
        return (torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4) + self.cell_anchors).reshape(-1, 4)


class _ProposalHead(nn.Module):
    """The head of the region proposal network, with the published names of its parts."""

    def __init__(self, inputs: int, channels: int, anchors: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, 3, padding=1)
        self.objectness_logits = nn.Conv2d(channels, anchors, 1)
        self.anchor_deltas = nn.Conv2d(channels, 4 * anchors, 1)

    def forward(self, map_CHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [N] and deltas [N, 4], in the order of `VgC4Network._anchors`."""
        hidden = functional.relu(self.conv(map_CHW[None]))
        logits_N = self.objectness_logits(hidden).permute(0, 2, 3, 1).flatten()
        return logits_N, self.anchor_deltas(hidden).permute(0, 2, 3, 1).reshape(-1, 4)


class _Heads(nn.Module):
    """The heads for objects, boxes and attributes, with the published names of their parts."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        size, objects, attributes = architecture.feature_size, architecture.num_objects, architecture.num_attributes
        self.cls_score = nn.Linear(size, objects + 1)
        self.bbox_pred = nn.Linear(size, 4 * objects)
        self.num_objects = objects
        self.has_attributes = attributes > 0
        if self.has_attributes:
            self.cls_embedding = nn.Embedding(objects + 1, size // 8)
            self.fc_attr = nn.Linear(size + size // 8, size // 4)
            self.attr_score = nn.Linear(size // 4, attributes + 1)

    def forward(self, features_PD: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return logits [P, C + 1], box deltas [P, C, 4] and attribute logits [P, attributes + 1].

        The attribute logits are None where the weights have no attributes.
        """
        logits_PC = self.cls_score(features_PD)
        deltas_PC4 = self.bbox_pred(features_PD).unflatten(1, (self.num_objects, 4))
        if not self.has_attributes:
            return logits_PC, deltas_PC4, None
        # As in the published programs, the best class may be the background here. It has an embedding, too.
        embedded = self.cls_embedding(logits_PC.argmax(-1))
        hidden = functional.relu(self.fc_attr(torch.cat([features_PD, embedded], dim=-1)))
        return logits_PC, deltas_PC4, self.attr_score(hidden)


def _stage(inputs: int, planes: int, blocks: int, stride: int, dilation: int = 1) -> nn.Sequential:
    """Build a stage of the ResNet, with its stride in the first 1 × 1 convolution of its first block."""
    outputs = planes * Bottleneck.expansion
    shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    first = Bottleneck(inputs, planes, downsample=shortcut, dilation=dilation)
    # torchvision's own ResNet has it in the 3 × 3 convolution.
    first.conv1.stride = (stride, stride)
    return nn.Sequential(first, *(Bottleneck(outputs, planes, dilation=dilation) for _ in range(blocks - 1)))


def _cell_anchors(rule: Proposals) -> Tensor:
    """Return the anchors [A, 4] around (0, 0), by size and then by ratio. Unlike Caffe's, they are not rounded."""
    anchors = []
    for size in rule.anchor_sizes:
        for ratio in rule.anchor_ratios:
            width = math.sqrt(size**2 / ratio)
            height = ratio * width
            anchors.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(anchors)
