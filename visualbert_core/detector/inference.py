"""A detector's network made ready to answer, without a change in what it answers (float32: to about 1e-6 of its scale).

Owns what all detectors do alike between the loaded weights and the first image:

    folded norms     a batch norm at rest is a factor and a sum per channel: they go into the convolution before it
    channels last    the memory order in which oneDNN and cuDNN convolve fastest
    bfloat16         on request, for the parts that a detector names; what lies between them stays float32
    no TF32          on a GPU, where float32 would else be ten bits
    one at a time    on a CPU, where images in a batch push each other out of the cache and out of their last bits

The network that was loaded stays as it is, on the CPU: it is what `save_pretrained` writes.
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
    """Decorate the method that a detector answers with: it computes without gradients, and float32 is float32.

    On GPUs that have TF32, cuDNN rounds what it convolves to ten bits, which no fingerprint would say.
    """

    @wraps(method)
    def answer(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        with whole_float32(), torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return method(*args, **kwargs)

    return answer


def validate_precision(precision: str) -> str:
    """`precision` itself. Raises ConfigError for one that is none of PRECISIONS."""
    if precision not in PRECISIONS:
        raise ConfigError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    return precision


def in_fingerprint(precision: str) -> dict[str, str]:
    """What a fingerprint says of it. float32 goes unnamed, as in stores from before there was a choice."""
    return {} if precision == "float32" else {"precision": precision}


def prepare(network: Network, device: torch.device) -> Network:
    """A copy on `device` for inference only: norms folded, weights channels last."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    _fold(network)
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def cast_to_bfloat16(first: nn.Module, *rest: nn.Module) -> None:
    """Have modules that are called one after the other compute in bfloat16: what enters the first is rounded, what
    leaves the last is float32 again."""
    for module in (first, *rest):
        module.to(torch.bfloat16)
    first.register_forward_pre_hook(lambda _, arguments: _cast(arguments, torch.bfloat16))
    (first, *rest)[-1].register_forward_hook(lambda _, arguments, answer: _cast(answer, torch.float32))


def upload(images: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """uint8 images of one shape → [B, H, W, 3] on the device, in one copy that the CPU does not wait for.

    Raises ValueError for images of more than one shape: padding would leak between them.
    """
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise ValueError(f"a batch holds images of one shape, found {sorted(shapes)}")
    batch = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, pin_memory=device.type == "cuda")
    np.stack(images, out=batch.numpy())
    return batch.to(device, non_blocking=True)


def batch_slices(count: int, device: torch.device) -> list[slice]:
    """Which of `count` images go through a network together: all on a GPU, each by itself on a CPU."""
    return [slice(n, n + 1) for n in range(count)] if device.type == "cpu" else [slice(0, count)]


def detections(found: Sequence[Sequence[Tensor | None]]) -> list[Detection]:
    """The columns of each image's `Detection`, in its order, from the device. All copies go out together, so that the
    CPU waits once a batch."""
    copies = [[None if t is None else t.to("cpu", non_blocking=True) for t in columns] for columns in found]
    for device in {t.device for columns in found for t in columns if t is not None and t.is_cuda}:
        torch.cuda.current_stream(device).synchronize()  # of their device, which need not be the current one
    arrays: list[list[Any]] = [[None if t is None else t.numpy() for t in columns] for columns in copies]
    return [Detection(*columns) for columns in arrays]


def _fold(module: nn.Module) -> None:
    """Fold every norm that directly follows its convolution in the order of a module's parts, as all of torchvision's
    and ours do; any other stays."""
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
