"""Packs all texts about an image into one row, so that training computes the image once for all of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

HIDDEN = -1e4
"""What is added to an attention score where a token does not see another token."""
_WORD = re.compile(r"[a-z0-9]+|[.,?]")


@dataclass(frozen=True)
class PackedTexts:
    """The texts of each row one behind the other. Shapes: B rows, K texts a row, W tokens a row."""

    ids: Tensor
    """int [B, W]; 0 behind the last text."""
    text: Tensor
    """int [B, W]: the number of the text that a token belongs to; -1 behind the last text."""
    place: Tensor
    """int [B, W]: the place of a token in its text."""
    first: Tensor
    """int [B, K]: the place in the row where a text begins."""

    def sees(self) -> Tensor:
        """Return which token sees which, bool [B, W, W]: each sees its own text."""
        return (self.text[:, :, None] == self.text[:, None, :]) & (self.text >= 0)[:, None, :]


def pack(rows: Sequence[Sequence[Sequence[int]]]) -> PackedTexts:
    """Pack texts of token ids. Each row has the same number of texts."""
    text = [[number for number, ids in enumerate(row) for _ in ids] for row in rows]
    place = [[place for ids in row for place in range(len(ids))] for row in rows]
    first = [[sum(map(len, row[:number])) for number in range(len(row))] for row in rows]
    return PackedTexts(padded(rows, 0), _filled(text, -1), _filled(place, 0), torch.tensor(first))


def padded(rows: Sequence[Sequence[Sequence[int]]], fill: int) -> Tensor:
    """Return the values of all texts of a row, one behind the other, and `fill` behind them: int [B, W]."""
    return _filled([[value for values in row for value in values] for row in rows], fill)


def _filled(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *([fill] * (longest - len(row)))] for row in rows])


def split(text: str) -> list[str]:
    """Return the lower-cased words and marks of a text."""
    return _WORD.findall(text.lower())
