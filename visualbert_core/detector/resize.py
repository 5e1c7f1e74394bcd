"""Pillow's bilinear resize (`PIL.Image.resize`), bit for bit, on any device. detectron2 and r2c resize with Pillow.

Pillow's filter widens as the image shrinks, and Pillow computes with fixed-point integers. At ordinary scales many
values lie exactly between two grey levels (at 3/5, a fifth of the pixels). So only the same integers give the same
image. The width is resized first, as Pillow did when the weights were published. Recent versions of Pillow resize the
height first where an image is twice as high as wide.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_BITS = 22  # bits after the binary point of a fixed-point weight, as in Pillow (PRECISION_BITS)


def pillow_bilinear(pixels_BCHW: Tensor, height: int, width: int) -> Tensor:
    """Resize uint8 [B, C, H, W] to uint8 [B, C, height, width], as `PIL.Image.resize(…, BILINEAR)` does."""
    for dim, size in ((3, width), (2, height)):
        if pixels_BCHW.shape[dim] != size:
            pixels_BCHW = _resized(pixels_BCHW, dim, size)
    return pixels_BCHW


def _resized(pixels_BCHW: Tensor, dim: int, size: int) -> Tensor:
    taps_KS, weights_KS = (torch.from_numpy(a).to(pixels_BCHW.device) for a in _filter(pixels_BCHW.shape[dim], size))
    shape = [-1 if axis == dim else 1 for axis in range(4)]
    total = torch.tensor(1 << (_BITS - 1), dtype=torch.int32, device=pixels_BCHW.device)  # a half: the shift rounds
    for taps_S, weights_S in zip(taps_KS, weights_KS, strict=True):
        total = total + pixels_BCHW.index_select(dim, taps_S).int() * weights_S.reshape(shape)
    return (total >> _BITS).to(torch.uint8)


@lru_cache(maxsize=256)
def _filter(before: int, after: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the K of `before` pixels that make each of `after` pixels, int64 [K, after], and their int32 weights.

    The steps follow `precompute_coeffs` in Pillow's `Resample.c`, with its rounding.
    """
    scale = before / after
    reach = max(scale, 1.0)  # the filter widens only where the image shrinks
    centres_S = (np.arange(after) + 0.5) * scale
    first_S = np.maximum((centres_S - reach + 0.5).astype(np.int64), 0)
    last_S = np.minimum((centres_S + reach + 0.5).astype(np.int64), before)
    taps_KS = first_S + np.arange(2 * int(np.ceil(reach)) + 1)[:, None]
    weights_KS = np.maximum(1 - np.abs((taps_KS - centres_S + 0.5) * (1 / reach)), 0) * (taps_KS < last_S)
    weights_KS /= weights_KS.sum(0)
    return np.minimum(taps_KS, before - 1), (0.5 + weights_KS * (1 << _BITS)).astype(np.int32)
