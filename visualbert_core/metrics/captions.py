"""BLEU-1 to BLEU-4, ROUGE-L and CIDEr-D of captions, as the official program of COCO captions computes them.

BLEU: Papineni et al. 2002. ROUGE-L: Lin 2004. CIDEr-D: Vedantam et al. 2015, arXiv:1411.5726. The official program
(coco-caption, Chen et al. 2015, arXiv:1504.00325; PyPI pycocoevalcap 1.2) decides every detail here. Tests compare this
file with its output. Captions come in as `ptb_tokenizer.tokenize` returns them: tokens joined by one space.

BLEU is not a mean over images. It is a function of sums over all images, so each image has counts, which are summed
(`metrics.sums`). CIDEr weighs a word by how few images mention it. So one image more changes the score of every image.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

LONGEST = 4
"""The longest n-grams that BLEU and CIDEr count, in words."""
CIDER_BEST = 10.0
"""The highest CIDEr-D of an image, which only a caption equal to all its references gets."""
_BETA = 1.2
_SIGMA = 6.0

Ngrams = Counter[tuple[str, ...]]


@dataclass(frozen=True)
class Tokens:
    """One caption: its n-grams with their counts, its number of words, and its words for ROUGE-L.

    A token may hold a no-break space ("2 1/2"). BLEU and CIDEr split it there and ROUGE-L does not, as in the official
    program. There, too, an empty caption is one empty word for ROUGE-L.
    """

    ngrams: Ngrams
    length: int
    words: tuple[str, ...]


def caption(text: str) -> Tokens:
    """Count the n-grams of a tokenised caption."""
    words = text.split()
    ngrams: Ngrams = Counter()
    for n in range(1, LONGEST + 1):
        ngrams.update(zip(*(words[start:] for start in range(n)), strict=False))
    return Tokens(ngrams, len(words), tuple(text.split(" ")))


# ---------------------------------------------------------------------------------------------------------------------
# BLEU


def bleu_counts(candidate: Tokens, references: Sequence[Tokens]) -> np.ndarray:
    """Return the counts of one image that BLEU sums: float64 [10].

    They are the n-grams of the candidate that a reference has, for n from 1 to 4; all its n-grams, for n from 1 to 4;
    its words; and the words of the reference with the closest length, or of the shorter one where two are as close.
    """
    matches = [0] * LONGEST
    for ngram, count in candidate.ngrams.items():
        matches[len(ngram) - 1] += min(count, max(each.ngrams.get(ngram, 0) for each in references))
    guesses = [max(0, candidate.length - n) for n in range(LONGEST)]
    closest = min((abs(each.length - candidate.length), each.length) for each in references)[1]
    return np.array([*matches, *guesses, candidate.length, closest], np.float64)


# ---------------------------------------------------------------------------------------------------------------------
# ROUGE-L


def rouge_l(candidate: Tokens, references: Sequence[Tokens]) -> float:
    """Return ROUGE-L of one image, in [0, 1].

    The best precision and the best recall may come from different references.
    """
    common = [longest_common(candidate.words, reference.words) for reference in references]
    precision = max(common) / len(candidate.words)
    recall = max(found / len(each.words) for found, each in zip(common, references, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence.

    A row of the usual table is one integer with a bit for each word of `first` (Hyyrö 2004).
    """
    places: dict[str, int] = {}
    for at, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << at
    whole = (1 << len(first)) - 1
    row = whole
    for word in second:
        found = row & places.get(word, 0)
        row = ((row + found) | (row - found)) & whole
    return len(first) - row.bit_count()


# ---------------------------------------------------------------------------------------------------------------------
# CIDEr-D


@dataclass(frozen=True)
class _Weighed:
    """A caption with the weights of its n-grams. `norms` has an element for each n from 1 to 4."""

    weights: dict[tuple[str, ...], float]
    norms: tuple[float, ...]
    bigrams: int


class Cider:
    """CIDEr-D with the word frequencies of one set of references."""

    def __init__(self, references: Sequence[Sequence[Tokens]]) -> None:
        """Count in how many of the images each n-gram is mentioned. `references` has the captions of each image."""
        images = Counter(chain.from_iterable(set().union(*(each.ngrams for each in found)) for found in references))
        self._unseen = math.log(len(references))
        self._weight = {ngram: self._unseen - math.log(count) for ngram, count in images.items()}

    def scores(self, candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> np.ndarray:
        """Return CIDEr-D of each image, float64 in [0, 10]. With a single image, each score is 0."""
        found = []
        for candidate, of_image in zip(map(self._weigh, candidates), references, strict=True):
            similar = sum(_similar(self._weigh(each), candidate) for each in of_image)
            found.append(CIDER_BEST * similar / len(of_image))
        return np.array(found)

    def _weigh(self, tokens: Tokens) -> _Weighed:
        """Weigh each n-gram by its count and by the logarithm of the share of images that mention it."""
        weights, squares = {}, [0.0] * LONGEST
        for ngram, count in tokens.ngrams.items():
            weight = count * self._weight.get(ngram, self._unseen)
            weights[ngram] = weight
            squares[len(ngram) - 1] += weight**2
        return _Weighed(weights, tuple(map(math.sqrt, squares)), max(0, tokens.length - 1))


def _similar(reference: _Weighed, candidate: _Weighed) -> float:
    """Return the mean cosine over n from 1 to 4, in [0, 1]; repeated words and other lengths lower it."""
    products = [0.0] * LONGEST
    for ngram, weight in candidate.weights.items():
        other = reference.weights.get(ngram)
        if other is not None:
            products[len(ngram) - 1] += min(weight, other) * other
    total = 0.0
    for product, one, two in zip(products, candidate.norms, reference.norms, strict=True):
        total += product / (one * two) if one and two else product
    # The official program takes the number of bigrams for the length of a caption.
    difference = candidate.bigrams - reference.bigrams
    return total / LONGEST * math.exp(-(difference**2) / (2 * _SIGMA**2))
