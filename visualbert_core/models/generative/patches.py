"""Embeds patches by one matrix product where a network of transformers has a convolution for it.

The image processors of Qwen cut the patches. The kernel of their Conv3d covers exactly one patch, so the convolution is
a product of matrices. PyTorch computes it one patch after the other, which takes a CPU about four times as long. vLLM
takes the product, too (`_forward_mulmat` of its `Conv3dLayer`).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class PatchProduct(nn.Conv3d):
    """A Conv3d that gives equal values up to rounding, and is fast where its input [N, C, T, H, W] is one kernel."""

    def forward(self, patches: Tensor) -> Tensor:
        """Return [N, outputs, 1, 1, 1] for patches of the size of the kernel, and what Conv3d gives for others."""
        if tuple(patches.shape[2:]) != self.kernel_size or self.groups != 1 or any(map(bool, self.padding)):
            return super().forward(patches)
        return functional.linear(patches.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None, None]


def embed_by_products(network: nn.Module) -> None:
    """Let every Conv3d of a network be a `PatchProduct`. Its weights stay where they are."""
    for module in network.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = PatchProduct
