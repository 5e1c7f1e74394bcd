"""A GPU for machines without one. CPU tensors say that they are on another device and refuse what a GPU would refuse.

It shows errors that a CPU hides: operations between devices, NumPy arrays on a GPU's memory, copies that are read
before they arrive, memory that is read before it is written, and synchronisation while a CUDA graph is recorded. The
CPU computes all values. Only a real GPU can show kernels, speed and the last bits of a result. Like torch's
FakeTensorMode, it consists of a dispatch mode and a tensor subclass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda:1")  # not the current device, so that code which forgets the device fails
BETWEEN = ("aten::copy_", "aten::_to_copy", "aten::to", "aten::index", "aten::index_put_")  # these may take CPU tensors
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "torchvision::nms")


class OnGPU(Tensor):
    """A tensor that reports `DEVICE`. Its data are in `held`, on the CPU. Only the mode below may read them."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls: type[OnGPU], held: Tensor) -> OnGPU:
        like = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = Tensor._make_wrapper_subclass(cls, held.shape, device=DEVICE, **like)
        made.held = held
        return made

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, **_: object) -> str:
        return f"OnGPU({list(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, *_: object) -> Any:
        raise AssertionError(f"{function} without its mode")


def held(value: Any) -> Any:
    return value.held if isinstance(value, OnGPU) else value


class PretendGPU(TorchDispatchMode):
    """The dispatch mode that sees every operation. `recording` is True while a CUDA graph is recorded."""

    recording = False

    def __init__(self) -> None:
        super().__init__()
        self.on_their_way: list[tuple[Tensor, Tensor]] = []

    def stream(self, device: torch.device | None = None) -> Any:
        """Stand in for `torch.cuda.current_stream`. To synchronise the stream of `DEVICE` completes the pending
        copies."""
        return SimpleNamespace(synchronize=self.arrive if device == DEVICE else lambda: None)

    def arrive(self) -> None:
        for target, source in self.on_their_way:
            target.copy_(source)
        self.on_their_way.clear()

    def __torch_dispatch__(self, function: Any, _: object, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        name, leaves = function._schema.name, tree_leaves((args, kwargs or {}))
        if name == "aten::_has_compatible_shallow_copy_type":
            return False
        device = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
        here = [leaf for leaf in leaves if isinstance(leaf, OnGPU)]
        there = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, OnGPU)]
        stays = bool(here) if device is None else device == DEVICE
        moves = (here and there) if name == "aten::copy_" else stays != bool(here) and (here or there)
        if here and any(tensor.dim() for tensor in there):
            assert name in BETWEEN, f"{function} of tensors on two devices"
            assert isinstance(args[0], OnGPU) or name == "aten::copy_", f"{function} of CPU data by a GPU's index"
        assert not (self.recording and (moves or (here and name in WAITS))), f"{function} while a graph is recorded"

        def to_cpu(value: Any) -> Any:
            return torch.device("cpu") if isinstance(value, torch.device) else held(value)

        kwargs = {key: to_cpu(value) for key, value in (kwargs or {}).items() if key != "pin_memory"}
        answer = function(*tree_map(to_cpu, args), **tree_map(to_cpu, kwargs))
        # Fresh GPU memory holds arbitrary values. NaN shows a read before the first write.
        if name.startswith(("aten::empty", "aten::new_empty")) and answer.is_floating_point():
            answer.fill_(torch.nan)
        # A copy that does not block has not arrived yet. The caller sees 99 until it synchronises the stream.
        if here and not stays and kwargs.get("non_blocking"):
            self.on_their_way.append((torch.full_like(answer, 99), answer))
            return self.on_their_way[-1][0]
        returns = function._schema.returns
        if returns and returns[0].alias_info is not None and returns[0].alias_info.is_write:
            return args[0]
        return tree_map(lambda t: OnGPU(t) if isinstance(t, Tensor) else t, answer) if stays else answer


@contextmanager
def pretend_gpu() -> Iterator[PretendGPU]:
    """Make `DEVICE` usable inside the block."""
    mode, attention = PretendGPU(), functional.scaled_dot_product_attention

    def attend(*states: Tensor, dropout_p: float = 0.0) -> Tensor:
        answer = attention(*map(held, states), dropout_p=dropout_p)
        return OnGPU(answer) if isinstance(states[0], OnGPU) else answer

    replaced: dict[Any, dict[str, Callable[..., Any]]] = {
        torch: {"inference_mode": torch.no_grad, "_has_compatible_shallow_copy_type": lambda *_: False},
        torch.cuda: {
            "_lazy_init": lambda: None,
            "current_stream": mode.stream,
            "device": lambda _: nullcontext(),
            "get_device_capability": lambda _: (9, 0),
        },
        Tensor: {"pin_memory": lambda tensor: tensor.clone()},
        functional: {"scaled_dot_product_attention": attend},
    }
    torch._C._ensureCUDADeviceGuardSet()  # torch's FakeTensorMode makes this call and the next one, too
    torch._C._set_only_lift_cpu_tensors(True)
    patches = [patch.multiple(where, **what) for where, what in replaced.items()]
    try:
        for each in patches:
            each.start()
        with mode:
            yield mode
    finally:
        for each in patches:
            each.stop()
        torch._C._set_only_lift_cpu_tensors(False)
