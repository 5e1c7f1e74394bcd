"""What a generative model is asked about one example, and what it gives back.

The file of each form of example makes `Asked` and reads `Outcome`. These files know no network, so they run without
torch. `sentence` joins the words of a benchmark for a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

_NO_SPACE_BEFORE = re.compile(r" ([.,?!;:]|n't\b|['’](?:s|t|re|m|ll|ve|d)\b)")
_SPLIT_ENDING = re.compile(r" (['’]) (s|t|re|m|ll|ve|d)\b")  # VCR splits some endings twice: Casey ' s


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


def sentence(words: Iterable[str]) -> str:
    """Return words as people write them. Benchmarks split off endings: "Casey 's hat ." becomes "Casey's hat."."""
    return _NO_SPACE_BEFORE.sub(r"\1", _SPLIT_ENDING.sub(r"\1\2", " ".join(words)))
