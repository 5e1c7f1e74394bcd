"""Prepares a detector's network for inference. In float32 the answers change by about 1e-6 of their scale at most.

This file owns the steps that all detectors share, between the loaded weights and the answers:

    folded norms     in inference a batch norm is one factor and one sum per channel; the convolution before takes both
    channels last    oneDNN and cuDNN convolve fastest in this memory order
    bfloat16         on request, in the parts that a detector names; everything between these parts stays float32
    no TF32          on a GPU, TF32 would cut the mantissa of float32 to ten bits
    one at a time    on a CPU, each image of a batch goes through the network alone: a batch is slower there, because
                     its maps do not fit into the cache, and its size would change the last bits of a feature

The loaded network itself stays unchanged on the CPU, because `save_pretrained` writes it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d

from visualbert_core.detector.base import Detection
from visualbert_core.float32 import whole_float32

PRECISIONS = ("float32", "bfloat16")

Columns = Sequence[Tensor | None]
"""The fields of the `Detection` of one image, in their order, on the device."""

Network = TypeVar("Network", bound=nn.Module)


def prepare(network: Network, device: torch.device) -> Network:
    """Copy the network to `device`, for inference only: norms folded, weights channels last."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    _fold(network)
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def cast_to_bfloat16(first: nn.Module, *rest: nn.Module) -> None:
    """Make modules that run one after another compute in bfloat16.

    The input of the first module is rounded. The output of the last module is float32 again.
    """
    for module in (first, *rest):
        module.to(torch.bfloat16)
    first.register_forward_pre_hook(lambda _, arguments: _cast(arguments, torch.bfloat16))
    (first, *rest)[-1].register_forward_hook(lambda _, arguments, answer: _cast(answer, torch.float32))


def detect_in_slices(
    detect: Callable[[Tensor, Any], Sequence[Columns]],
    device: torch.device,
    images: Sequence[np.ndarray],
    given: Sequence[Any] | None,
) -> list[Detection]:
    """Call `detect` with the pixels of some images, uint8 [B, H, W, 3] on the device, and with their part of `given`.

    A slice is the whole batch on a GPU, and one image on a CPU. Raise ValueError for images of different shapes.
    """
    # On GPUs with TF32, cuDNN by default rounds the inputs of a convolution to ten bits. No fingerprint would show it.
    with whole_float32(), torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        pixels_BHWC = _upload(images, device)
        step = 1 if device.type == "cpu" else len(images)
        parts = [slice(first, first + step) for first in range(0, len(images), step)]
        return _detections([row for part in parts for row in detect(pixels_BHWC[part], given and given[part])])


def _upload(images: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Copy the images to the device. The CPU does not wait for the copy."""
    # Images of different shapes would need padding, and padding changes the features near it.
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise ValueError(f"a batch must hold images of one shape, found {sorted(shapes)}: group images by shape")
    # Only from pinned memory does a copy run beside the CPU.
    batch = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, pin_memory=device.type == "cuda")
    np.stack(images, out=batch.numpy())
    return batch.to(device, non_blocking=True)


def _detections(found: Sequence[Columns]) -> list[Detection]:
    """Copy the columns of each image from the device into a `Detection`."""
    # All copies start before the CPU waits, so that it waits once for a batch.
    copies = [[None if t is None else t.to("cpu", non_blocking=True) for t in columns] for columns in found]
    for device in {t.device for columns in found for t in columns if t is not None and t.is_cuda}:
        torch.cuda.current_stream(device).synchronize()  # the tensors' device need not be torch's current device
    arrays: list[list[Any]] = [[None if t is None else t.numpy() for t in columns] for columns in copies]
    return [Detection(*columns) for columns in arrays]


def _fold(module: nn.Module) -> None:
    """Fold every batch norm that comes directly after a convolution among the parts of a module. Keep any other norm.

    In the networks of torchvision and of this package, such a norm always reads the output of that convolution.
    """
    before: nn.Module | None = None
    for name, part in module.named_children():
        if isinstance(part, nn.BatchNorm2d | FrozenBatchNorm2d) and isinstance(before, nn.Conv2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            before.weight, before.bias = fuse_conv_bn_weights(
                *(before.weight, before.bias, part.running_mean, part.running_var),
                *(part.eps, part.weight, part.bias),
            )
            setattr(module, name, nn.Identity())
        else:
            _fold(part)
        before = part


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return type(value)((key, _cast(part, dtype)) for key, part in value.items())
    return type(value)(_cast(part, dtype) for part in value) if isinstance(value, list | tuple) else value
