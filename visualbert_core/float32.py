"""The guard of float32: products are computed in all of their 24 bits, whatever the process was told before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

INGREDIENT = "features"


@contextmanager
def whole_float32() -> Iterator[None]:
    """Compute products of float32 in float32.

    NVIDIA's container images, and whoever lowers torch's precision, would have them rounded to TF32's ten bits or
    bfloat16's seven, and no fingerprint would say so.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
