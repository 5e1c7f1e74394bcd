"""`vg_c4`: bottom-up attention's Faster R-CNN, ResNet-101-C4, for 1,600 objects and 400 attributes of Visual Genome.

Anderson et al. 2018 (https://github.com/peteanderson80/bottom-up-attention, Caffe), whose weights run in
https://github.com/airsplay/py-bottom-up-attention (detectron2) and, as `unc-nlp/frcnn-vg-finetuned`, in Hugging Face's
research project visual_bert. The feature of a region is the mean of res5 over its *proposal*; its box is that proposal
refined for its best class. `vg_c4_network.py` has the network, this file the recipe: what goes in and what is kept.

The defaults of `VgC4Config` are py-bottom-up-attention's script for COCO: 36 regions at 600 × 1000 pixels. Two others:

- Hugging Face's: `resize="interpolate"`, the rest from the `config.yaml` beside its weights (`convert` reads it);
- the original 10 to 100 regions: `Selection(rule="class-wise", box_kind="proposal", nms_iou=(0.3,), min_regions=10,
  max_regions=100)` and its own weights. Caffe's proposals lie on a grid of whole pixels, so boxes differ slightly.

Where no threshold of `nms_iou` leaves `min_regions` boxes, Hugging Face's code returns the boxes of the image before,
or crashes on the first; here the last threshold's are kept, as in py-bottom-up-attention.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
import torchvision
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import clip_boxes_to_image, nms

from visualbert_core.config import check_range, check_values
from visualbert_core.detector.base import Detection
from visualbert_core.detector.class_nms import confidences
from visualbert_core.detector.folder import LONGEST_SIDE, FolderDetector, check_blocks, check_colours
from visualbert_core.detector.inference import (
    batch_slices,
    cast_to_bfloat16,
    detections,
    in_fingerprint,
    inference_mode,
    prepare,
    upload,
)
from visualbert_core.detector.resize import pillow_bilinear
from visualbert_core.detector.vg_c4_network import Architecture, Described, Proposals, VgC4Network
from visualbert_core.errors import ConfigError
from visualbert_core.io.weights import Shapes, blocks, unbuilt
from visualbert_core.schema import LabelNames

_Columns = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]  # of a `Detection`

_SMALLEST = 3  # pixels; of a shorter side the max pooling without padding leaves nothing


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """uint8 RGB → what the network was trained on."""

    color_order: Literal["BGR", "RGB"] = "BGR"
    mean: tuple[float, ...] = (102.9801, 115.9465, 122.7717)
    """In `color_order`, of 0 … 255."""
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    short_side: int = 600
    long_side: int = 1000
    """Cap, in pixels: where the longer side would exceed it, it is this long and the shorter side less."""
    resize: Literal["pillow", "interpolate"] = "pillow"
    """Bilinear with half-pixel centres. `pillow`: its filter widens as the image shrinks, and levels are whole
    (detectron2). `interpolate`: torch's function of that name, two pixels wide at any scale (Hugging Face)."""

    def __post_init__(self) -> None:
        check_values(self)
        check_range(self, 1, LONGEST_SIDE, "short_side", "long_side")
        check_colours(self, "mean", "std")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which proposals become regions.

    `best-class` (py-bottom-up-attention, Hugging Face): one suppression over all classes, of the boxes refined for each
    proposal's best class, at each threshold of `nms_iou` until `min_regions` are left; the best `max_regions` of them.
    `class-wise` (Caffe): proposals are suppressed in every class by itself and keep the best score that survives; all
    at or over `score_threshold`, but at least `min_regions` and at most `max_regions`.
    """

    rule: Literal["best-class", "class-wise"] = "best-class"
    nms_iou: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """`class-wise` has one."""
    min_regions: int = 36
    max_regions: int = 36
    score_threshold: float = 0.2
    """Of `class-wise`; the other programs have the option and never read it."""
    box_kind: Literal["refined", "proposal"] = "refined"
    """The box that is stored; the feature is the proposal's either way."""

    def __post_init__(self) -> None:
        check_values(self)
        check_range(self, 0, 1, "nms_iou", "score_threshold")
        check_range(self, 0, None, "min_regions")
        check_range(self, 1, None, "max_regions")
        if not self.nms_iou or (self.rule == "class-wise" and len(self.nms_iou) > 1):
            raise ConfigError(f"selection: nms_iou of {self.rule} cannot be {list(self.nms_iou)}")


@dataclass(frozen=True, kw_only=True)
class VgC4Config:
    """`config.json` of a `vg_c4` folder."""

    builder: Literal["vg_c4"] = "vg_c4"
    space: str = "vg_c4"
    """Name of the feature space. Weights of another training, such as the original for 10 to 100 regions, are another
    space: rename it."""
    labels: tuple[str, ...] = ()
    """Names of the objects; label i is the i-th (the background comes last and has none)."""
    attributes: tuple[str, ...] = ()
    architecture: Architecture = field(default_factory=Architecture)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    proposals: Proposals = field(default_factory=Proposals)
    selection: Selection = field(default_factory=Selection)


class VgC4(FolderDetector[VgC4Network, VgC4Config]):
    """See `detector.Detector`."""

    config_class = VgC4Config

    @staticmethod
    def empty(config: VgC4Config) -> VgC4Network:
        with unbuilt():
            return VgC4Network(config.architecture, config.proposals)

    @classmethod
    def check_sizes(cls, config: VgC4Config, held: Shapes) -> None:
        check_blocks(config.architecture.blocks, blocks(held, *(f"layer{stage}." for stage in (1, 2, 3, 4))))

    def _feature_size(self) -> int:
        return self.config.architecture.feature_size

    @property
    def names(self) -> LabelNames:
        return LabelNames(self.config.labels, self.config.attributes)

    def fingerprint(self) -> dict[str, Any]:
        """Everything that changes a feature (see `detector.Detector`)."""
        config = dataclasses.asdict(self.config)
        for names in ("labels", "attributes"):
            del config[names]
        return (
            config
            | in_fingerprint(self.precision)
            | {
                "feature_size": self.feature_size,
                "weights": self._weights_digest,
                "pooled_from": "proposal",
                "dtype": "float16",
                "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
            }
        )

    @inference_mode
    def detect(self, images: Sequence[np.ndarray], boxes: Sequence[np.ndarray] | None = None) -> list[Detection]:
        """See `detector.Detector`. Images of more than one shape are refused: padding would leak between them.

        Given boxes are pooled in place of proposals, neither refined nor clipped.
        """
        pixels_BHWC = upload(images, self.device)
        original = pixels_BHWC.shape[1], pixels_BHWC.shape[2]
        pixels_BCHW = preprocess(pixels_BHWC, self.config.preprocessing)
        size = pixels_BCHW.shape[2], pixels_BCHW.shape[3]
        some = batch_slices(len(images), self.device)
        maps = [map_CHW for part in some for map_CHW in self._ready.trunk(pixels_BCHW[part])]
        given: Sequence[np.ndarray | None] = [None] * len(images) if boxes is None else boxes
        return detections([self._detect(m, size, original, b) for m, b in zip(maps, given, strict=True)])

    @cached_property
    def _ready(self) -> VgC4Network:
        network = prepare(self.model, self.device)
        if self.precision == "bfloat16":
            cast_to_bfloat16(network.conv1, network.layer1, network.layer2, network.layer3)
            cast_to_bfloat16(network.rpn.conv)
            cast_to_bfloat16(network.layer4)
        return network

    def _detect(
        self, map_CHW: Tensor, size: tuple[int, int], original: tuple[int, int], given: np.ndarray | None
    ) -> _Columns:
        network = self._ready
        if given is None:
            regions = network.describe(map_CHW, network.propose(map_CHW, size))
            return _columns(regions, *select(regions, size, original, self.config.selection))
        boxes_R4 = torch.from_numpy(given).to(self.device)
        regions = network.describe(map_CHW, resize_boxes(boxes_R4, original, size))
        return _columns(regions, torch.arange(len(given), device=self.device), regions.scores, boxes_R4)


def preprocess(pixels_BHWC: Tensor, config: Preprocessing) -> Tensor:
    """uint8 RGB of one shape → [B, 3, H', W'] float32, resized and normalised on the device it is on."""
    pixels_BCHW = pixels_BHWC.permute(0, 3, 1, 2).contiguous()  # the layout decides the features' last bits
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
    """(H', W') by the rule that all published programs share: short side first, then the cap, then rounded half up."""
    scale = short_side / min(height, width)
    sides = (short_side, scale * width) if height < width else (scale * height, short_side)
    shrink = min(1.0, long_side / max(sides))
    new_height, new_width = (max(int(side * shrink + 0.5), _SMALLEST) for side in sides)
    return new_height, new_width


def select(
    regions: Described, size: tuple[int, int], original: tuple[int, int], rule: Selection
) -> tuple[Tensor, Tensor, Tensor]:
    """The proposals to keep, [R] by descending score; those scores, [R]; and their boxes, [R, 4] in original pixels."""
    refined_P4 = clip_boxes_to_image(regions.refined, size)
    if rule.rule == "best-class":
        scores_P = regions.scores
        for iou in rule.nms_iou:
            kept_R = nms(refined_P4, scores_P, iou)[: rule.max_regions]
            if len(kept_R) >= rule.min_regions:
                break
    else:
        # Caffe's boxes are of whole pixels: a box of one pixel has x1 = x2, here as in its areas and overlaps.
        pixels_P4 = resize_boxes(regions.proposals, size, original) + regions.proposals.new_tensor([0, 0, 1, 1])
        scores_P = confidences(pixels_P4, regions.object_scores, rule.nms_iou[0], rule.max_regions)
        above = int((scores_P >= rule.score_threshold).sum())
        kept_R = scores_P.argsort(descending=True, stable=True)
        kept_R = kept_R[: min(max(above, rule.min_regions), rule.max_regions)]
    boxes_P4 = refined_P4 if rule.box_kind == "refined" else regions.proposals
    return kept_R, scores_P[kept_R], resize_boxes(boxes_P4[kept_R], size, original)


def _columns(regions: Described, kept_R: Tensor, scores_R: Tensor, boxes_R4: Tensor) -> _Columns:
    attributes = attribute_scores = None
    if regions.attributes is not None and regions.attribute_scores is not None:
        attributes = regions.attributes[kept_R].to(torch.int16)
        attribute_scores = regions.attribute_scores[kept_R]
    labels = regions.labels[kept_R].to(torch.int16)
    return boxes_R4, labels, scores_R, regions.features[kept_R], attributes, attribute_scores
