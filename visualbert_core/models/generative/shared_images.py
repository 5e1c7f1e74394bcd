"""Encodes an image once where several rows of a batch show it, such as the questions about one image.

transformers encodes the image of each row. Here hooks around the image encoder give it each image once, and copy its
output to the rows. A row has one image, or as many patches as its image has (Qwen). An encoder that gets anything else
is left alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_ENCODERS = ("vision_model", "vision_tower", "visual")
"""The names of image encoders in the networks of transformers."""


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
