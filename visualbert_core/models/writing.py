"""Writes texts with a network of transformers, with every setting named that could change a token.

A folder's own generation settings never decide: its `generation_config.json` may hold sampling, a penalty or a ban on
repetition, which transformers applies silently. Only the numbers of special tokens are taken from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visualbert_core.float32 import whole_float32
from visualbert_core.models.generative.protocol import Decoding

SPECIAL = ("bos_token_id", "eos_token_id", "decoder_start_token_id", "forced_bos_token_id")
"""The special tokens of a folder's generation settings that are kept. The padding token comes beside them."""


@dataclass(frozen=True)
class Written:
    """The tokens of one text."""

    ids: tuple[int, ...]
    """The tokens behind the prompt or the start token, up to the end token."""
    cut: bool
    """Whether the text ended at the limit of its length and not by itself."""
    probability: float | None
    """The probability of the text where the search was greedy, and None for a search with beams. NaN where the network
    gave NaN."""


@torch.inference_mode()
def write(
    network: Any, batch: Mapping[str, Tensor], special: Mapping[str, Any], decoding: Decoding, start: int
) -> list[Written]:
    """Return a text for each row of a batch, whose tensors are the arguments of `generate`.

    `special` has the numbers of the special tokens by their names in GenerationConfig, with a list of end tokens. A row
    of the output begins with `start` tokens that are not of the text.
    """
    import transformers

    from visualbert_core.models.roomy_cache import roomy_cache  # behind the check that transformers is installed

    new_settings = transformers.GenerationConfig
    settings: Any = new_settings(**special, **decoding.settings())  # type: ignore[no-untyped-call]
    for module in network.modules():
        if hasattr(module, "generation_config"):
            module.generation_config = settings  # BLIP-2 takes those of its language model and not its own
    steps = _Steps(decoding.beams)
    processors = transformers.LogitsProcessorList([steps])
    # A search with beams puts the rows of a cache in another order at every token.
    cache = roomy_cache(network, decoding.max_new_tokens) if decoding.beams == 1 else None
    with whole_float32():
        tokens = network.generate(
            **batch, generation_config=settings, logits_processor=processors, past_key_values=cache
        )
    found = []
    for row, ids in enumerate(tokens[:, start:].tolist()):
        length = next((at for at, token in enumerate(ids) if token in special["eos_token_id"]), len(ids))
        ended = length < len(ids) or len(ids) < decoding.max_new_tokens
        found.append(Written(tuple(ids[:length]), not ended, steps.probability(row, length + ended)))
    return found


class _Steps:
    """Keeps the log-probability of the likeliest token of each step, which is the token that a greedy search takes."""

    def __init__(self, beams: int) -> None:
        self._beams = beams
        self._steps: list[list[float]] = []

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        self._steps.append((scores.amax(-1) - scores.logsumexp(-1)).tolist())
        return scores

    def probability(self, row: int, length: int) -> float | None:
        """Return the probability of the first `length` tokens of a row, as `Written` has it."""
        if self._beams == 1:
            return float(torch.tensor([step[row] for step in self._steps[:length]], dtype=torch.float64).sum().exp())
        own = slice(row * self._beams, (row + 1) * self._beams)
        broken = torch.tensor([step[own] for step in self._steps]).isnan().any()
        return float("nan") if broken else None
