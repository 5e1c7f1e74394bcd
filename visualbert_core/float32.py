"""The precision of float32 products: all 24 bits of the significand, whatever precision the process had set before.

The switch is torch.set_float32_matmul_precision. NVIDIA's container images lower it, and other code in the process may
do so too. Factors are then rounded to the 10 bits of TF32 or the 7 bits of bfloat16, and no fingerprint records it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

INGREDIENT = "features"


@contextmanager
def whole_float32() -> Iterator[None]:
    """Compute matrix products of float32 in float32 inside the context, and restore the setting afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
