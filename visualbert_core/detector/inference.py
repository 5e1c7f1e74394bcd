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
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d

from visualbert_core.detector.base import Detection
from visualbert_core.errors import ConfigError
from visualbert_core.float32 import whole_float32

PRECISIONS = ("float32", "bfloat16")

Network = TypeVar("Network", bound=nn.Module)
Given = ParamSpec("Given")
Found = TypeVar("Found")


def inference_mode(method: Callable[Given, Found]) -> Callable[Given, Found]:
    """Decorate the method with which a detector answers: no gradients, and float32 keeps its full precision.

    On GPUs with TF32, cuDNN by default rounds the inputs of a convolution to ten bits. No fingerprint would show that.
    """

    @wraps(method)
    def answer(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        with whole_float32(), torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return method(*args, **kwargs)

    return answer


def validate_precision(precision: str) -> str:
    """Return `precision`. Raise ConfigError where it is not one of PRECISIONS."""
    if precision not in PRECISIONS:
        raise ConfigError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    return precision


def in_fingerprint(precision: str) -> dict[str, str]:
    """Return the entry for the fingerprint.

    float32 has no entry, so that stores from before bfloat16 keep their fingerprint.
    """
    return {} if precision == "float32" else {"precision": precision}


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


def upload(images: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Copy uint8 images of one shape to the device, as [B, H, W, 3]. The CPU does not wait for the copy.

    Raise ValueError for images of different shapes. They would need padding, and padding changes the features near it.
    """
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise ValueError(f"a batch must hold images of one shape, found {sorted(shapes)}: group images by shape")
    # Only from pinned memory does a copy run beside the CPU.
    batch = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, pin_memory=device.type == "cuda")
    np.stack(images, out=batch.numpy())
    return batch.to(device, non_blocking=True)


def batch_slices(count: int, device: torch.device) -> list[slice]:
    """Return which of `count` images go through the network together: all on a GPU, one at a time on a CPU."""
    return [slice(n, n + 1) for n in range(count)] if device.type == "cpu" else [slice(0, count)]


def detections(found: Sequence[Sequence[Tensor | None]]) -> list[Detection]:
    """Copy the columns of each image from the device into a `Detection`. `found` has them in the order of its fields.

    All copies start before the CPU waits, so that it waits once for a batch.
    """
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
    if isinstance(value, list | tuple):
        return type(value)(_cast(part, dtype) for part in value)
    return value
