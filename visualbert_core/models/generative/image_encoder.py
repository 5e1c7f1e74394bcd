"""Makes the image encoders of transformers faster. Their values stay the same up to rounding.

Shared images   transformers encodes the image of each row of a batch. Several questions about one image are rows with
                equal images. Hooks around the image encoder give it each image once, and copy its output to the rows.
                A row has one image, or as many patches as its image has (Qwen). An encoder that gets anything else is
                left alone.
Patches         The image processors of Qwen cut the patches. The kernel of their Conv3d covers exactly one patch, so
                the convolution is a product of matrices. PyTorch computes it one patch after the other, which takes a
                CPU about four times as long. vLLM takes the product, too (`_forward_mulmat` of its `Conv3dLayer`).
Unread layers   LLaVA reads the output of the last layer but one (Liu et al. 2023, arXiv:2304.08485, section 4.1).
                transformers computes the last layer all the same. Here it does nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_ENCODERS = ("vision_model", "vision_tower", "visual")
"""The names of image encoders in the networks of transformers."""
_LLAVA = ("llava", "llava_next")
"""Model types that read of their image encoder the layers in `vision_feature_layer`, and nothing else."""


class SharedImages:
    """The hooks of one network."""

    def __init__(self) -> None:
        self._row_of: list[int] = []
        self._first: list[int] = []
        self._sizes: set[tuple[int, ...]] = set()

    def attach(self, network: Any) -> None:
        """Add the hooks to the image encoder, where the network has one under a known name."""
        found = (module for name, module in network.named_modules() if name.rpartition(".")[2] in _ENCODERS)
        encoder = next(found, None)
        if encoder is not None:
            encoder.register_forward_pre_hook(self._before, with_kwargs=True)
            encoder.register_forward_hook(self._after)

    @contextmanager
    def shared(self, shown: Sequence[Hashable], sizes: set[tuple[int, ...]]) -> Iterator[None]:
        """Inside the context, the rows of a batch show these images; rows with equal values share an image.

        `sizes` has, for each tensor of images in the batch, how much of it belongs to each row.
        """
        places: dict[Hashable, int] = {}
        row_of = [places.setdefault(each, len(places)) for each in shown]
        if len(places) < len(shown):
            self._row_of, self._sizes = row_of, sizes
            self._first = [row_of.index(place) for place in range(len(places))]
        try:
            yield
        finally:
            self._row_of, self._first, self._sizes = [], [], set()

    def _before(self, _: Any, values: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # Other arguments, such as flags, pass as they are.
        return tuple(map(self._unique, values)), {name: self._unique(value) for name, value in named.items()}

    def _unique(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim < 2:
            return value
        for sizes in self._sizes:
            if sum(sizes) == len(value):
                parts = torch.split(value, list(sizes))
                return torch.cat([parts[row] for row in self._first])
        return value

    def _after(self, _: Any, values: Any, output: Any) -> Any:
        return self._spread(output) if self._sizes else output

    def _spread(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._spread_tensor(value)
        if isinstance(value, tuple):
            return tuple(map(self._spread, value))
        if hasattr(value, "items"):  # a ModelOutput
            return type(value)(**{name: self._spread(each) for name, each in value.items()})
        return value

    def _spread_tensor(self, value: Tensor) -> Tensor:
        for sizes in self._sizes:
            own = [sizes[row] for row in self._first]
            merged = sum(own) // len(value) if len(value) else 0  # Qwen merges several patches into one output
            if merged and merged * len(value) == sum(own) and all(size % merged == 0 for size in own):
                parts = torch.split(value, [size // merged for size in own])
                return torch.cat([parts[place] for place in self._row_of])
        return value


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


def leave_out_unread_layers(network: Any) -> None:
    """Let the layers of LLaVA's image encoder behind the last one that is read return what they get."""
    if network.config.model_type not in _LLAVA:
        return
    read = network.config.vision_feature_layer
    read = [read] if isinstance(read, int) else read
    towers = (module for name, module in network.named_modules() if name.rpartition(".")[2] == "vision_tower")
    layers = getattr(getattr(next(towers, None), "encoder", None), "layers", ())
    # Number 0 is what enters the first layer, and -1 is what leaves the last one.
    last = max((each if each >= 0 else len(layers) + 1 + each for each in read), default=len(layers))
    for layer in layers[last:]:
        # transformers finds the outputs of layers by their class, so the class stays its parent.
        layer.__class__ = type(f"Unread{type(layer).__name__}", (type(layer),), {"forward": _unchanged})


def _unchanged(self: nn.Module, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states
