"""What a generative model is asked about one example, and what it gives back.

The file of each form of example makes `Asked` and reads `Outcome`. These files know no network, so they run without
torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True, eq=False)
class Asked:
    """A prompt about some images. With continuations, the model scores each of them; without, it writes a text."""

    prompt: str
    images: tuple[np.ndarray, ...]  # uint8 [H, W, 3], RGB
    continuations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What the model gave for one `Asked`: a text, or the log-likelihood of each continuation."""

    text: str = ""
    """The text without the prompt. Tokens that mark places, such as <loc0012>, are in it."""
    cut: bool = False
    """Whether the text ended at the limit of its length and not by itself."""
    log_likelihoods: tuple[float, ...] = ()
    """For each continuation, the sum of the log-likelihoods of its tokens."""
    tokens: tuple[int, ...] = ()
    """For each continuation, the number of its tokens."""

    def probabilities(self, normalise: Literal["sum", "mean"]) -> tuple[float, ...]:
        """Return the probability of each continuation among all of them, from the sum or the mean over its tokens.

        The values are float32, as predictions keep them, so that an answer and the stored numbers agree.
        """
        if not self.log_likelihoods:
            return ()
        values = np.array(self.log_likelihoods)
        if normalise == "mean":
            values = values / np.maximum(self.tokens, 1)
        odds = np.exp(values - values.max())
        return tuple((odds / odds.sum()).astype(np.float32).tolist())
