"""The feature space `r2c_resnet50` (512-d): it encodes the boxes, classes and outlines that VCR gives.

`visualbert-vcr*` reads this space. The network is `SimpleDetector` of github.com/rowanz/r2c (Zellers et al. 2019).
VisualBERT was trained end to end with it, so its weights are in the authors' `.th` files. The checkpoint converter
writes them as `detector.safetensors`. The network finds no objects. It computes the feature of a given region thus:

1. Resize the image into a letterbox of 768 x 384 pixels with Pillow's bilinear filter.
2. Take ResNet-50's map at stride 16, and pool the region with RoIAlign (7 x 7).
3. Add the encoded mask of the outline to the first 32 channels.
4. Apply the last stage of the ResNet, average, append an embedding of the class, and project to 512 numbers.

Region 0 is the whole image, with class 0.

Batch norms use their running statistics, as in the authors' fine-tuning (`freeze_detector: false`). Where the authors
froze the detector, in r2c and in VisualBERT's pre-training on VCR, its norms used the statistics of the current batch,
even in evaluation. Such features depend on the other images of a batch, so they cannot be reproduced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import roi_align

from visualbert_core.config import check_range, check_values
from visualbert_core.detector.base import Detection
from visualbert_core.detector.folder import LONGEST_SIDE, FolderConfig, FolderDetector, check_colours, load_weights
from visualbert_core.detector.inference import Columns, detect_in_slices
from visualbert_core.detector.resize import pillow_bilinear
from visualbert_core.detector.weight_loading import read_weights
from visualbert_core.errors import ConfigError
from visualbert_core.io.weights import unbuilt
from visualbert_core.provenance import digest_json
from visualbert_core.schema import GivenObjects, LabelNames

_COCO = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
CLASSES = tuple(name.replace(" ", "") for name in _COCO if name != "N/A")
"""Class names by label, background first: COCO's, in the spelling of `cocoontology.json`, a file of r2c."""

STRIDE = 16  # pixels per cell of the map from which regions are pooled
MASK_CHANNELS = 32  # channels of the pooled map to which the mask is added
CLASS_SIZE = 128  # length of the embedding of a class


@dataclass(frozen=True, kw_only=True)
class R2CConfig(FolderConfig):
    """`config.json`. The defaults are the published recipe."""

    builder: Literal["r2c_resnet50"] = "r2c_resnet50"
    space: str = "r2c_resnet50"
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    """Residual blocks of each stage."""
    feature_size: int = 512
    width: int = 768
    height: int = 384
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Red, green and blue, for pixels in [0, 1]. The margin of the letterbox is black. It is normalised, too."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    mask_size: int = 14
    """Points along each side of a box at which the mask is sampled."""

    def __post_init__(self) -> None:
        check_values(self)
        check_range(self, 1, None, "blocks", "feature_size")
        check_range(self, 1, LONGEST_SIDE, "width", "height")
        check_range(self, 2, 512, "mask_size")
        check_colours(self, "mean", "std")


@dataclass(frozen=True)
class _Window:
    """Where an image lies in the letterbox, in pixels. `scale` is pixels of the letterbox per pixel of the image."""

    left: int
    top: int
    width: int
    height: int
    scale: float


class R2CDetector(FolderDetector["R2CNetwork", R2CConfig]):
    """See `detector.Detector` and `detector.ObjectEncoder`.

    The score of a region is the probability of its given class, by the classifier with which r2c regularised training.
    """

    classes = CLASSES
    config_class = R2CConfig
    stages = ("backbone.4.", "backbone.5.", "backbone.6.", "after_roi_align.0.")

    @staticmethod
    def empty(config: R2CConfig) -> R2CNetwork:
        return R2CNetwork(config)

    def _feature_size(self) -> int:
        return self.config.feature_size

    @property
    def names(self) -> LabelNames:
        return LabelNames(self.classes)

    def recipe(self) -> dict[str, Any]:
        return {
            "classes": digest_json(CLASSES),
            "color_order": "RGB",
            "resize": "letterbox, Pillow bilinear",
            "batch_norm": "running statistics",
            "box_kind": "given",
        }

    @staticmethod
    def bfloat16_parts(network: R2CNetwork) -> Sequence[Sequence[nn.Module]]:
        return (network.backbone,), (network.after_roi_align,)

    def detect(self, images: Sequence[np.ndarray], boxes: Sequence[np.ndarray] | None = None) -> list[Detection]:
        """Encode boxes that have no class and no outline: with class 0 and a full mask, as r2c encodes the whole image.

        Raise ConfigError without boxes.
        """
        if boxes is None:
            raise ConfigError("r2c_resnet50 finds no objects, it encodes given ones: extract with --boxes beside")
        objects = [GivenObjects(b, np.zeros(len(b), np.int16), tuple((_corners(box),) for box in b)) for b in boxes]
        window = self._window(images[0].shape)
        scaled = [_scaled(b, window) for b in boxes]
        return detect_in_slices(self._detect, self.device, images, list(zip(objects, scaled, strict=True)))

    def encode(self, images: Sequence[np.ndarray], objects: Sequence[GivenObjects]) -> list[Detection]:
        """See `detector.ObjectEncoder`."""
        window = self._window(images[0].shape)
        boxes = [_scaled(given.boxes, window) for given in objects]
        for of_image in boxes:
            # As in r2c, region 0 is the window itself. Its sides are whole pixels, and scaled ones may not be.
            of_image[0] = (window.left, window.top, window.left + window.width, window.top + window.height)
        return detect_in_slices(self._detect, self.device, images, list(zip(objects, boxes, strict=True)))

    def _detect(self, pixels_BHWC: Tensor, given: Sequence[tuple[GivenObjects, np.ndarray]]) -> list[Columns]:
        """Return the regions of some images. `given` are their objects, and the boxes in pixels of the letterbox."""
        objects, boxes = zip(*given, strict=True)
        masks = np.concatenate([masks_of(each, self.config.mask_size) for each in objects])
        labels = torch.from_numpy(np.concatenate([each.labels for each in objects])).long().to(self.device)
        features, logits = self._ready(
            self._preprocess(pixels_BHWC),
            [torch.from_numpy(b.astype(np.float32)).to(self.device) for b in boxes],
            labels,
            torch.from_numpy(masks).to(self.device),
        )
        scores = logits.softmax(-1).gather(1, labels[:, None])[:, 0]
        counts = [len(each.boxes) for each in objects]
        per_image = zip(objects, features.split(counts), scores.split(counts), strict=True)
        return [(torch.from_numpy(o.boxes), torch.from_numpy(o.labels), s, f) for o, f, s in per_image]

    def _window(self, shape: Sequence[int]) -> _Window:
        """Return where an image of this shape, which begins with (H, W), lies in the letterbox."""
        height, width = shape[:2]
        scale = min(self.config.width / width, self.config.height / height)
        inner_width, inner_height = round(width * scale), round(height * scale)
        left, top = (self.config.width - inner_width) // 2, (self.config.height - inner_height) // 2
        return _Window(left, top, inner_width, inner_height, scale)

    def _preprocess(self, pixels_BHWC: Tensor) -> Tensor:
        """Turn uint8 RGB into float32 [B, 3, height, width], letterboxed and normalised."""
        window = self._window(pixels_BHWC.shape[1:])
        # A long and narrow image would shrink to a side of 0 pixels.
        height, width = max(1, window.height), max(1, window.width)
        inner_BCHW = pillow_bilinear(pixels_BHWC.permute(0, 3, 1, 2), height, width)
        right, bottom = self.config.width - window.left - width, self.config.height - window.top - height
        pixels_BCHW = pad(inner_BCHW, (window.left, right, window.top, bottom)).float().div_(255)
        mean, std = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (self.config.mean, self.config.std))
        return pixels_BCHW.sub_(mean).div_(std)


class R2CNetwork(nn.Module):
    """r2c's `SimpleDetector`, with the published names of its parts."""

    def __init__(self, config: R2CConfig) -> None:
        super().__init__()
        resnet = ResNet(Bottleneck, list(config.blocks))
        # r2c follows tf-faster-rcnn: a stage has its stride in the first 1x1 convolution, and the last stage has none.
        for stage in (resnet.layer2, resnet.layer3):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
        resnet.layer4[0].conv2.stride = resnet.layer4[0].downsample[0].stride = (1, 1)
        self.backbone = nn.Sequential(
            resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool, resnet.layer1, resnet.layer2, resnet.layer3
        )
        self.after_roi_align = nn.Sequential(resnet.layer4)
        self.mask_upsample = nn.Conv2d(1, MASK_CHANNELS, 3, stride=2, padding=1)
        self.object_embed = nn.Embedding(len(CLASSES), CLASS_SIZE)
        self.obj_downsample = nn.Sequential(
            nn.Dropout(0.1), nn.Linear(2048 + CLASS_SIZE, config.feature_size), nn.ReLU()
        )
        self.regularizing_predictor = nn.Linear(2048, len(CLASSES))
        self.roi_size = config.mask_size // 2

    def forward(
        self, pixels: Tensor, boxes: list[Tensor], labels_R: Tensor, masks_RMM: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return features [ΣR, D] and class logits [ΣR, 81] of the regions.

        Pixels are [B, 3, H, W], boxes [R, 4] for each image. Labels [ΣR] and masks [ΣR, M, M] run over all images.
        """
        # r2c's sampling ratio is 0: a cell of a region is sampled once for each cell of the map that it covers.
        regions = roi_align(self.backbone(pixels), boxes, self.roi_size, 1 / STRIDE, 0)
        # r2c centres the mask at zero before it encodes it.
        regions[:, :MASK_CHANNELS] += self.mask_upsample(masks_RMM[:, None] - 0.5)
        pooled = self.after_roi_align(regions).mean((2, 3))
        features: Tensor = self.obj_downsample(torch.cat([pooled, self.object_embed(labels_R)], -1))
        return features, self.regularizing_predictor(pooled)


def _scaled(boxes: np.ndarray, window: _Window) -> np.ndarray:
    """Turn boxes in pixels of the image into pixels of the letterbox, in float64."""
    moved: np.ndarray = boxes.astype(np.float64) * window.scale + np.array([window.left, window.top] * 2)
    return moved


def _corners(box: np.ndarray) -> np.ndarray:
    x1, y1, x2, y2 = box.tolist()
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])


def masks_of(given: GivenObjects, size: int) -> np.ndarray:
    """Return the masks float32 [R, size, size]: 1 where a point of the grid in a box lies in one of its polygons."""
    masks = np.zeros((len(given.boxes), size, size), np.float32)
    steps = (np.arange(size) + 0.5) / size
    for mask, (x1, y1, x2, y2), polygons in zip(masks, given.boxes.astype(np.float64), given.outlines, strict=True):
        xs, ys = np.meshgrid(x1 + steps * (x2 - x1), y1 + steps * (y2 - y1))
        for polygon in polygons:
            mask[inside(polygon, xs, ys)] = 1
    return masks


def inside(polygon: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Return which points lie in the polygon [N, 2], as bool in the shape of `xs`.

    A point is inside where a ray to the right crosses an odd number of sides. The last corner joins the first. A
    polygon of fewer than three corners holds no point.
    """
    odd = np.zeros(xs.shape, bool)
    if len(polygon) < 3:
        return odd
    for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        crosses = (y1 >= ys) != (y2 >= ys)
        # A product instead of a quotient, as in matplotlib, with which r2c makes its masks: a side may be almost level.
        odd ^= crosses & (((y2 - ys) * (x1 - x2) >= (x2 - xs) * (y1 - y2)) == (y2 >= ys))
    return odd


def convert(source: Path, config: R2CConfig | None = None) -> tuple[R2CDetector, list[str]]:
    """Return the detector in `detector.safetensors`, and notes on it. The checkpoint converter writes this file.

    Raise CheckpointError where the file is of another kind or holds another network.
    """
    config = config or R2CConfig()
    with unbuilt():
        network = R2CNetwork(config)
    state = {name.removeprefix("detector."): value for name, value in read_weights(source).items()}
    load_weights(network, state, source, "its network")
    return R2CDetector(network, config, "", "cpu"), [f"{config.feature_size}-d features; extract with --boxes beside"]
