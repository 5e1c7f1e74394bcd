"""Any torchvision Faster R-CNN as a region-feature detector: fc7 of its box head, with the box each feature belongs to.

torchvision's own `postprocess_detections` drops the index that ties a box to its proposal, so this file composes the
public parts instead: transform, backbone, rpn, roi_heads.box_roi_pool, box_head, box_predictor, box_coder.

A detector folder holds `config.json` (`DetectorConfig`) and `model.safetensors`. Decisions made here and nowhere else:
RGB in [0, 1], torchvision's resize and normalisation; the feature is pooled from the *proposal*; the stored box is that
proposal refined for its best class (`box_kind: refined`) or the proposal itself (`proposal`); one class-agnostic NMS on
the best class score.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import FrozenBatchNorm2d, clip_boxes_to_image, nms

from visualbert_core.detector import Detection
from visualbert_core.detector.folder import WEIGHTS_FILE, load_weights, read_folder, write_folder
from visualbert_core.detector.tiny_rcnn import tiny_rcnn
from visualbert_core.errors import CheckpointError
from visualbert_core.provenance import digest_file


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which proposals become regions: one class-agnostic NMS on the best-class score, then all over the threshold, but
    at least `min_regions`, where NMS leaves as many, and at most `max_regions`."""

    score_threshold: float = 0.2
    nms_iou: float = 0.5
    min_regions: int = 10
    max_regions: int = 100
    box_kind: Literal["refined", "proposal"] = "refined"


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """`config.json` of a detector folder."""

    builder: str
    """`tiny_rcnn`, or the name of a Faster R-CNN function in torchvision.models.detection."""
    space: str
    """Name of the feature space, by which checkpoints refuse features of another one."""
    builder_args: dict[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    """Class names, background first."""
    norm_eps: float | None = None
    """Epsilon of the batch norms, if not torchvision's default: its COCO_V1 weights of fasterrcnn_resnet50_fpn need 0,
    which torchvision sets only when it downloads them itself."""
    selection: Selection = field(default_factory=Selection)


class TorchvisionRCNN:
    """See `detector.Detector`."""

    def __init__(self, model: FasterRCNN, config: DetectorConfig, weights_digest: str, device: str | None) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.eval().to(self.device)
        self.config = config
        self.space = config.space
        self.feature_size: int = model.roi_heads.box_predictor.cls_score.in_features
        self._weights_digest = weights_digest

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | None = None) -> TorchvisionRCNN:
        """Open a detector folder. Raises CheckpointError naming what is missing or does not fit."""
        folder = Path(folder)
        config, state = read_folder(folder, DetectorConfig)
        model = build(config)
        load_weights(model, state, folder / WEIGHTS_FILE, f"builder {config.builder!r}")
        return cls(model, config, digest_file(folder / WEIGHTS_FILE), device)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the folder that `from_pretrained` reads, floating-point weights stored as `dtype`."""
        write_folder(Path(folder), self.config, self.model.state_dict(), dtype)

    def fingerprint(self) -> dict[str, Any]:
        """Everything that changes a feature (see `detector.Detector`)."""
        transform = self.model.transform
        return {
            "space": self.space,
            "feature_size": self.feature_size,
            "weights": self._weights_digest,
            "builder": self.config.builder,
            "builder_args": self.config.builder_args,
            "norm_eps": self.config.norm_eps,
            "selection": dataclasses.asdict(self.config.selection),
            "color_order": "RGB",
            "resize": {"rule": "torchvision bilinear", "min": list(transform.min_size), "max": transform.max_size},
            "mean": list(transform.image_mean),
            "std": list(transform.image_std),
            "pooled_from": "proposal",
            "nms": "class-agnostic",
            "proposals": self.model.rpn.post_nms_top_n(),
            "dtype": "float16",
            "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        }

    @torch.inference_mode()
    def detect(self, images: Sequence[np.ndarray], boxes: Sequence[np.ndarray] | None = None) -> list[Detection]:
        """See `detector.Detector`. Images of more than one shape are refused: padding would leak between them."""
        shapes = {image.shape for image in images}
        if len(shapes) != 1:
            raise ValueError(f"a batch holds images of one shape, found {sorted(shapes)}")
        height, width = images[0].shape[:2]
        pixels = [torch.from_numpy(image).to(self.device).permute(2, 0, 1).float().div_(255) for image in images]
        batch, _ = self.model.transform(pixels)
        maps = self._maps(batch)
        if boxes is None:
            proposals, _ = self.model.rpn(batch, maps)
        else:
            given = [torch.from_numpy(b).to(self.device) for b in boxes]
            sizes = batch.image_sizes
            proposals = [resize_boxes(b, (height, width), size) for b, size in zip(given, sizes, strict=True)]
        regions = self._regions(batch, maps, proposals, select=boxes is None)
        return [
            Detection(
                boxes=(resize_boxes(r.boxes, size, (height, width)).cpu().numpy() if boxes is None else boxes[i]),
                labels=r.labels.to(torch.int16).cpu().numpy(),
                scores=r.scores.cpu().numpy(),
                features=r.features.cpu().numpy(),
            )
            for i, (r, size) in enumerate(zip(regions, batch.image_sizes, strict=True))
        ]

    def _maps(self, batch: ImageList) -> dict[str, Tensor]:
        maps = self.model.backbone(batch.tensors)
        return OrderedDict([("0", maps)]) if isinstance(maps, Tensor) else maps

    def _regions(
        self, batch: ImageList, maps: dict[str, Tensor], proposals: list[Tensor], select: bool
    ) -> list[_Regions]:
        """Pool, classify and refine every proposal of the batch, then choose per image."""
        heads = self.model.roi_heads
        features_PD = heads.box_head(heads.box_roi_pool(maps, proposals, batch.image_sizes))
        logits_PC, deltas = heads.box_predictor(features_PD)
        scores_P, labels_P = logits_PC.float().softmax(-1)[:, 1:].max(-1)
        labels_P = labels_P + 1  # class 0 is the background
        refined_PC4 = heads.box_coder.decode(deltas.float(), proposals)
        refined_P4 = refined_PC4[torch.arange(len(labels_P), device=labels_P.device), labels_P]
        counts = [len(p) for p in proposals]
        columns = (torch.cat(proposals), refined_P4, labels_P, scores_P, features_PD)
        per_image = zip(*(column.split(counts) for column in columns), strict=True)
        return [
            self._choose(_Regions(labels, scores, features, proposal), refined, size, select)
            for (proposal, refined, labels, scores, features), size in zip(per_image, batch.image_sizes, strict=True)
        ]

    def _choose(self, regions: _Regions, refined: Tensor, size: tuple[int, int], select: bool) -> _Regions:
        if not select:
            return regions
        rule = self.config.selection
        refined = clip_boxes_to_image(refined, size)
        if rule.box_kind == "refined":
            regions = dataclasses.replace(regions, boxes=refined)
        order = nms(refined, regions.scores, rule.nms_iou)
        above = int((regions.scores[order] >= rule.score_threshold).sum())
        return regions[order[: min(max(above, rule.min_regions), rule.max_regions)]]


@dataclass(frozen=True)
class _Regions:
    """Regions of one image on the device: [R], [R], [R, D], [R, 4] in the resized image's pixels."""

    labels: Tensor
    scores: Tensor
    features: Tensor
    boxes: Tensor

    def __getitem__(self, index: Tensor) -> _Regions:
        return _Regions(self.labels[index], self.scores[index], self.features[index], self.boxes[index])


def build(config: DetectorConfig) -> FasterRCNN:
    """The untrained network a config names. Raises CheckpointError for an unknown builder or argument."""
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
    return model
