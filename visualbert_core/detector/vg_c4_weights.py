"""Converts the published weights of `vg_c4` into `VgC4`: it knows their keys, and Hugging Face's `config.yaml`.

It reads `pytorch_model.bin` of `unc-nlp/frcnn-vg-finetuned` and the `.pkl` files of py-bottom-up-attention. Both have
the same keys. These files may lie beside the weights:

- `config.yaml`, the recipe. Without it the recipe is py-bottom-up-attention's, but Hugging Face's file gets Hugging
  Face's resize;
- `objects_vocab.txt` and `attributes_vocab.txt`, the names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from visualbert_core.config_mapping import from_mapping
from visualbert_core.detector.folder import load_weights
from visualbert_core.detector.vg_c4 import Preprocessing, VgC4, VgC4Config
from visualbert_core.detector.vg_c4_network import STAGES, Architecture, VgC4Network
from visualbert_core.detector.weight_loading import find, read_weights
from visualbert_core.errors import CheckpointError, ConfigError
from visualbert_core.io import lfs
from visualbert_core.io.documents import read_yaml
from visualbert_core.io.weights import blocks

# The first two names are Hugging Face's, the others py-bottom-up-attention's.
_FILES = (
    "pytorch_model.bin",
    "model.safetensors",
    "faster_rcnn_from_caffe_attr.pkl",
    "faster_rcnn_from_caffe_attr_original.pkl",
    "faster_rcnn_from_caffe.pkl",
)
# Patterns of detectron2's names, and what takes their place.
_KEYS = (
    (r"backbone\.stem\.", ""),
    (r"backbone\.res([2-4])\.", lambda found: f"layer{int(found[1]) - 1}."),
    (r"roi_heads\.res5\.", "layer4."),
    (r"roi_heads\.box_predictor\.", "heads."),
    (r"proposal_generator\.rpn_head\.", "rpn."),
    (r"proposal_generator\.anchor_generator\.cell_anchors\.0$", "cell_anchors"),
    (r"conv(\d)\.norm\.", r"bn\1."),
    (r"shortcut\.norm\.", "downsample.1."),
    (r"shortcut\.", "downsample.0."),
)
_FIXED = {
    "model.max_pool": True,
    "resnets.stride_in_1x1": True,
    "resnets.num_groups": 1,
    "rpn.bbox_reg_weights": [1.0, 1.0, 1.0, 1.0],
    "anchor_generator.offset": 0.0,
    "roi_box_head.res5halve": False,
    "roi_box_head.pooler_resolution": 14,
    "roi_box_head.cls_agnostic_bbox_reg": False,
    "roi_box_head.bbox_reg_weights": [10.0, 10.0, 5.0, 5.0],
    "size_divisibility": 0,
}
"""Keys of `config.yaml` and the values for which `VgC4Network` is built. Any other value is refused."""


def convert(source: Path) -> tuple[VgC4, list[str]]:
    """Return the detector in the file or folder `source`, and notes on it.

    Raise CheckpointError where a file cannot be read or belongs to another network.
    """
    path = find(source, _FILES)
    state = network_names(read_weights(path, under="model"))
    beside, notes = path.parent / "config.yaml", []
    if beside.is_file():
        config = read_recipe(beside)
        notes.append(f"recipe of {beside}")
    else:
        config = VgC4Config(preprocessing=Preprocessing(resize="pillow" if path.suffix == ".pkl" else "interpolate"))
        resize = config.preprocessing.resize
        notes.append(f"no config.yaml beside it: recipe of py-bottom-up-attention's COCO script, resize {resize}")
    config = replace(
        config,
        architecture=_architecture(state, path),
        labels=_names(path.parent / "objects_vocab.txt"),
        attributes=_names(path.parent / "attributes_vocab.txt"),
    )
    network = VgC4Network(config.architecture, config.proposals)
    # Not every published file holds the anchors.
    state.setdefault("cell_anchors", network.cell_anchors)
    load_weights(network, state, path, "vg_c4")
    sizes, rule, how = config.architecture, config.selection, config.preprocessing
    notes += [
        f"{sizes.num_objects} objects and {sizes.num_attributes} attributes, {sizes.feature_size}-d features",
        f"{rule.min_regions} to {rule.max_regions} regions at {how.short_side} × {how.long_side} pixels, "
        f"{how.color_order}; config.json has the recipe",
    ]
    return VgC4(network, config, "", "cpu"), notes


def network_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with the names of `VgC4Network` instead of the published ones."""
    renamed = {}
    for key, value in state.items():
        for pattern, name in _KEYS:
            key = re.sub(pattern, name, key)
        renamed[key] = value
    return renamed


def read_recipe(path: Path) -> VgC4Config:
    """Read Hugging Face's `config.yaml`.

    Raise CheckpointError where a key is missing, or where its value belongs to another network.
    """

    def value(name: str) -> Any:
        found: Any = tree
        for part in name.split("."):
            if not isinstance(found, dict) or part not in found:
                raise CheckpointError(f"{path}: {name} is missing")
            found = found[part]
        return found

    try:
        tree = _lower(read_yaml(path))
        for name, expected in _FIXED.items():
            found = list(value(name)) if isinstance(expected, list) else value(name)
            if found != expected:
                raise CheckpointError(f"{path}: {name} is {found!r}; this network is built for {expected!r}")
        thresholds = value("roi_heads.nms_thresh_test")
        recipe = {
            "preprocessing": {
                # `input.format` is not read, because Hugging Face's code does not follow it. With "RGB" that code
                # crashes. With "BGR" it reads images from a URL as BGR, as in training, but local files as RGB
                # (github.com/huggingface/transformers issues 8333 and 19601).
                "color_order": "BGR",
                "mean": value("model.pixel_mean"),
                "std": value("model.pixel_std"),
                "short_side": value("input.min_size_test"),
                "long_side": value("input.max_size_test"),
                "resize": "interpolate",
            },
            "proposals": {
                "anchor_sizes": value("anchor_generator.sizes")[0],
                "anchor_ratios": value("anchor_generator.aspect_ratios")[0],
                "pre_nms": value("rpn.pre_nms_topk_test"),
                "post_nms": value("rpn.post_nms_topk_test"),
                "nms_iou": value("rpn.nms_thresh"),
                "min_size": value("proposal_generator.min_size"),
            },
            "selection": {
                "nms_iou": thresholds if isinstance(thresholds, list) else [thresholds],
                "min_regions": value("min_detections"),
                "max_regions": value("max_detections"),
            },
        }
        return from_mapping(VgC4Config, recipe, where=str(path))
    except (ConfigError, TypeError, LookupError) as error:
        raise CheckpointError(f"{path}: {error}" if not isinstance(error, ConfigError) else str(error)) from None


def _lower(tree: Any) -> Any:
    """Return the tree with keys in lower case, because Hugging Face's reader ignores case."""
    return {str(key).lower(): _lower(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def _architecture(state: Mapping[str, Tensor], path: Path) -> Architecture:
    """Read the sizes of the network from the shapes of its tensors."""
    rows = {}
    for key in ("conv1.weight", "rpn.conv.weight", "heads.cls_score.weight"):
        if key not in state or state[key].dim() == 0:
            raise CheckpointError(f"{path}: not a Faster R-CNN of bottom-up attention: {key} is missing")
        rows[key] = len(state[key])
    return Architecture(
        blocks=blocks(state, *STAGES),
        width=rows["conv1.weight"],
        rpn_channels=rows["rpn.conv.weight"],
        num_objects=rows["heads.cls_score.weight"] - 1,
        num_attributes=len(state["heads.attr_score.weight"]) - 1 if "heads.attr_score.weight" in state else 0,
    )


def _names(path: Path) -> tuple[str, ...]:
    """Read the first synonym of each line. Return no names where the file does not exist."""
    if not path.is_file():
        return ()
    if lfs.is_pointer_file(path):
        raise CheckpointError(f"{path}: {lfs.REASON}")
    return tuple(line.split(",")[0].strip().lower() for line in path.read_text(encoding="utf-8").splitlines())
