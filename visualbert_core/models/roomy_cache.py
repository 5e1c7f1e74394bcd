"""Keeps the keys and values of a text that is being written in tensors with room for the new tokens.

transformers joins the old keys and the new ones to a new tensor, at every token and in every layer. This copies all of
them, and needs the memory twice. Here each layer has one tensor, and a new token is written into it. The values are the
same bits.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """The keys and values of one layer: [batch, heads, tokens, size], the first part of tensors with more room."""

    def __init__(self, new_tokens: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._new_tokens = new_tokens
        self._room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens, and return all that there are."""
        begin = self.get_seq_length()
        end = begin + key_states.shape[2]
        if self._room is None:
            self.lazy_initialization(key_states, value_states)
            self._room = (self._with_room(key_states), self._with_room(value_states))
        keys, values = self._room
        keys[:, :, begin:end], values[:, :, begin:end] = key_states, value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def _with_room(self, states: Tensor) -> Tensor:
        batch, heads, tokens, size = states.shape
        return states.new_empty(batch, heads, tokens + self._new_tokens, size)


def roomy_cache(network: Any, new_tokens: int) -> DynamicCache | None:
    """Return a cache for a greedy search of at most `new_tokens` tokens.

    Return None for a network that needs another kind of cache, such as one with sliding windows, with a state in place
    of keys, or with an encoder.
    """
    config = network.config.get_text_config(decoder=True)
    if network.config.is_encoder_decoder or config.is_encoder_decoder or not network._supports_default_dynamic_cache():
        return None
    cache = DynamicCache(config=config)
    if not cache.layers or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    cache.layers = [RoomyLayer(new_tokens) for _ in cache.layers]
    return cache
