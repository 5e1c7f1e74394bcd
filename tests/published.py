"""Random weights and images that any machine can make again. The golden features were computed from them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch

SCALES = {
    "stem.conv1": 0.01,
    "bn3.weight": 0.4,
    "fpn_layer": 0.5,
    "rpn.head.cls_logits.w": 0.6,
    "rpn.head.bbox_pred.w": 0.2,
    "cls_score.weight": 1.5,
    "obj_downsample.1.weight": 1.5,
}
"""Factors by a part of the parameter's name. They keep the activations of random networks in a sensible range."""


def random_tensor(name: str, shape: Sequence[int]) -> torch.Tensor:
    """Return random float32 weights. The name's CRC-32 is the seed, and the name's ending sets the distribution."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        values = random.uniform(0.5, 1.5, shape)
    elif name.endswith(("running_mean", "bias")):
        values = random.uniform(-0.1, 0.1, shape)
    elif len(shape) == 1:
        values = random.uniform(0.5, 1, shape)
    else:
        values = random.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5
    for part, scale in SCALES.items():
        if part in name:
            values = values * scale
    return torch.from_numpy(np.asarray(values, np.float32))


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """Return a uint8 [height, width, 3] image of random tiles of 8 × 8 pixels."""
    # NumPy keeps the stream of RandomState for ever (NEP 19), and not that of default_rng.
    tiles = np.random.RandomState(seed).randint(0, 256, (height // 8 + 2, width // 8 + 2, 3))
    return np.kron(tiles, np.ones((8, 8, 1)))[:height, :width].astype(np.uint8)
