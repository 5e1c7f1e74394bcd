"""A Faster R-CNN (Ren et al. 2015) with under a million parameters, for small synthetic images.

It is built from torchvision's own classes: one map of stride 8, three anchor sizes, RoIAlign, and a box head of two
layers. The output of the second layer, fc7, is the feature of a region. With this detector the whole job runs from a
fresh clone. Real images need a published detector.
"""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign


def tiny_rcnn(num_classes: int, feature_size: int = 256, image_size: int = 224, roi_size: int = 5) -> FasterRCNN:
    """Return the untrained network. `num_classes` includes the background (class 0). fc7 has `feature_size` numbers.

    Images are resized to `image_size` pixels. A region is pooled to `roi_size` x `roi_size` cells.
    """
    backbone = TinyBackbone()
    return FasterRCNN(
        backbone,
        min_size=image_size,
        max_size=image_size,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
        rpn_anchor_generator=AnchorGenerator(((26, 42, 60),), ((0.8, 1.0, 1.25),)),
        rpn_batch_size_per_image=64,
        rpn_pre_nms_top_n_train=300,
        rpn_post_nms_top_n_train=60,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_test=40,
        box_batch_size_per_image=32,
        box_roi_pool=MultiScaleRoIAlign(["0"], roi_size, 2),
        box_head=TwoMLPHead(backbone.out_channels * roi_size**2, feature_size),
        box_predictor=FastRCNNPredictor(feature_size, num_classes),
    )


class TinyBackbone(nn.Module):
    """Three strided convolutions and four residual blocks; two blocks are dilated, so that a cell sees large objects.

    The input is [B, 3, H, W], the output [B, 64, H/8, W/8].
    """

    out_channels = 64

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _convolution(3, 16, stride=2),
            _convolution(16, 32, stride=2),
            _Residual(32),
            _convolution(32, 64, stride=2),
            _Residual(64),
            _Residual(64, dilation=2),
            _Residual(64, dilation=2),
            nn.Conv2d(64, self.out_channels, 1),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.layers(images)
        return features


class _Residual(nn.Module):
    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.first = _convolution(channels, channels, dilation=dilation)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.second(self.first(x)))


def _convolution(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
