"""Text and regions → sequences of tokens, by default in the layout of the authors: recipe "original".

Owns the token layout, the visual token types and the choice of regions for the four tasks. All are token for token
those of the authors' code (https://github.com/uclanlp/visualbert, `dataloaders/`; VCR names from
https://github.com/rowanz/r2c). The examples in the transformers documentation use another layout. With that layout the
published checkpoints lose accuracy (https://github.com/huggingface/transformers/issues/17360). The authors' layout is:

    VQA v2               [CLS] question ? [MASK] [SEP]     regions, type 0            the head reads [MASK]
    VCR                  [CLS] context [SEP] choice [SEP]  whole image + mentioned    four sequences; aligned; type 0
    NLVR2                [CLS] sentence [SEP]              left type 0, right type 1  one sequence
    Flickr30K Entities   [CLS] caption [SEP]               regions, type 0            a phrase is its last word piece

Recipe "hf-docs" is the layout of those examples, for comparison only. It differs in these points only:

    VQA v2               [CLS] raw question [SEP]          type 1                     the head reads the last piece
    VCR                  tags by class name ("person")     type 1                     not aligned
    NLVR2                                                  left and right type 1
    Flickr30K Entities                                     type 1

The last piece of a question is often "?".
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import singledispatchmethod
from pathlib import Path
from threading import get_ident

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor

from visualbert_core.errors import CheckpointError
from visualbert_core.io import lfs
from visualbert_core.io.documents import brief
from visualbert_core.schema import Example, Grounding, MultipleChoice, Phrase, Question, Regions, Statement
from visualbert_core.schema import Token as MixedToken

VOCAB_FILE = "vocab.txt"
RECIPES = ("original", "hf-docs")
MAX_TOKENS = 128
NLVR2_REGIONS_PER_IMAGE = 144
GEOMETRY_SIZE = 6
PLAIN_BOXES = (0.0, 1.0)
# The names that R2C gives to people. 'Peyton' is there twice; `fix_quirks` removes one.
NEUTRAL_NAMES = (
    *("Casey", "Riley", "Jessie", "Jackie", "Avery", "Jaime", "Peyton", "Kerry"),
    *("Jody", "Kendall", "Peyton", "Skyler", "Frankie", "Pat", "Quinn"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One sequence before it joins a batch, with T tokens and V regions.

    Sequences about the same image share one array object in `images`. A batch then sends and projects it only once.
    """

    input_ids: list[int]  # T
    token_type_ids: list[int]  # T
    images: tuple[np.ndarray, ...]  # for each image, all of its features: float [R, D]
    rows: np.ndarray  # int64 [V], the rows in the concatenated features of the images
    visual_types: np.ndarray  # int64 [V]
    mentions: tuple[tuple[int, ...], ...] | None = None  # VCR: for each region, the text positions that name it
    phrases: tuple[int, ...] | None = None  # Flickr30K Entities: for each phrase, the text position of its query

    @property
    def features(self) -> np.ndarray:
        """Return a copy of the features of the regions: float [V, D]."""
        return np.asarray(np.concatenate(self.images)[self.rows])


def check_sizes(features: Iterable[np.ndarray]) -> None:
    sizes = {each.shape[1] for each in features}
    if len(sizes) > 1:
        raise ValueError(f"a batch needs one feature size, got {sorted(sizes)}")


def alignment(sequences: Sequence[Encoded]) -> Tensor:
    """Return for each region of a batch the text positions that name it, padded with -1: long [V, A], A at least 1."""
    mentions = [positions for sequence in sequences for positions in sequence.mentions or ()]
    longest = max([1, *map(len, mentions)])
    rows = [[*positions, *[-1] * (longest - len(positions))] for positions in mentions]
    return torch.tensor(rows, dtype=torch.long).view(len(rows), longest)


class InputEncoder:
    """Encodes examples of every task with one vocabulary. Raises CheckpointError if `vocab` is not a BERT vocabulary.

    `max_length` is the longest text in tokens, with [CLS] and [SEP]. `num_positions` is the size of the position table.
    `box_geometry` appends [x1/W, y1/H, x2/W, y2/H, w/W, h/H] to every feature, and `box_range` stretches these numbers
    from [0, 1] to another range. `feature_scale` multiplies the features. `recipe` is one of RECIPES (ValueError
    otherwise); the head of this file describes them.

    The authors' code has four bugs. The published weights were trained with them, so recipe "original" keeps them.
    `fix_quirks` removes them. It is for weights that were trained without these bugs. It changes:

        person names (VCR)     the count of people goes on in a choice, so no new person is "Casey" again; 14 names
        alignment (VCR)        a region is aligned with the positions of all word pieces of a mention, not with the
                               number of its word
        truncation (VCR)       cuts the end of the context, then the end of the choice, instead of its front
        phrases (Flickr30K)    a phrase is queried at its own position, not at the first occurrence of the same words
    """

    def __init__(
        self,
        vocab: str | Path,
        *,
        max_length: int = MAX_TOKENS,
        num_positions: int = 512,
        box_geometry: bool = False,
        box_range: tuple[float, float] = PLAIN_BOXES,
        feature_scale: float = 1.0,
        recipe: str = "original",
        fix_quirks: bool = False,
    ) -> None:
        if recipe not in RECIPES:
            raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, got {recipe!r}")
        if fix_quirks and recipe != "original":
            raise ValueError(f"fix_quirks belongs to recipe original, got {recipe!r}")
        self._pieces = _WordPieces(Path(vocab))
        self.vocab_size = len(self._pieces.ids)
        self.max_length = min(max_length, num_positions)
        self._cls, self._sep, self.mask = (self._pieces.ids[token] for token in ("[CLS]", "[SEP]", "[MASK]"))
        self.ends = (self._cls, self._sep)
        self.num_positions = num_positions
        self._box_geometry, self._box_range, self._feature_scale = box_geometry, box_range, feature_scale
        self._original, self._fix_quirks = recipe == "original", fix_quirks
        self._names = tuple(dict.fromkeys(NEUTRAL_NAMES)) if fix_quirks else NEUTRAL_NAMES
        # By thread: if threads shared it, their turns would decide how often a batch holds an image, and with that the
        # last bits of a training.
        self._last_features: dict[int, tuple[Regions, np.ndarray]] = {}

    @singledispatchmethod
    def encode(self, example: Example, regions: Sequence[Regions]) -> Encoded | tuple[Encoded, ...]:
        """Encode an example and the regions of its images. Multiple choice gives one sequence for each choice."""
        raise TypeError(f"no layout for {type(example).__name__}")

    def sequences(self, example: Example, regions: Sequence[Regions]) -> tuple[Encoded, ...]:
        """Encode an example as `encode` does, and return a single sequence in a tuple, too."""
        encoded = self.encode(example, regions)
        return encoded if isinstance(encoded, tuple) else (encoded,)

    @encode.register
    def question(self, example: Question, regions: Sequence[Regions]) -> Encoded:
        """Encode a VQA v2 question. One of more than 124 word pieces loses "? [MASK]", as in the authors' training."""
        if self._original:
            pieces = [*self._pieces.of(pythia_tokens(example.text)), *self._pieces["?"], self.mask]
        else:
            pieces = self._pieces.of(example.text.split(" "))
        return self._single(pieces, regions[:1])

    @encode.register
    def statement(self, example: Statement, regions: Sequence[Regions]) -> Encoded:
        """Encode an NLVR2 statement with the first 144 regions of each image.

        The authors' training has the same limit. The visual type says which image a region comes from.
        """
        return self._single(self._pieces.of(example.text.split(" ")), regions, limit=NLVR2_REGIONS_PER_IMAGE)

    @encode.register
    def grounding(self, example: Grounding, regions: Sequence[Regions]) -> Encoded:
        """Encode a Flickr30K Entities caption. A phrase is queried at the last word piece of its first occurrence.

        So a phrase that occurs twice in a caption is queried twice at the same position, as in the authors' code. This
        affects 0.4 % of the phrases.
        """
        ids: list[int] = []
        ends = []  # for each word, the position of its last piece; [CLS] is position 0
        for word in example.words:
            ids += self._pieces[word]
            ends.append(len(ids))
        last = self.max_length - 2
        phrases = []
        for phrase in example.phrases:
            stop = phrase.stop if self._fix_quirks else _first_stop(example.words, phrase)
            phrases.append(min(ends[stop - 1], last))
        return replace(self._single(ids, regions[:1]), phrases=tuple(phrases))

    @encode.register
    def multiple_choice(self, example: MultipleChoice, regions: Sequence[Regions]) -> tuple[Encoded, ...]:
        """Encode a VCR example as one sequence for each choice.

        Question → answer and question + answer → rationale have the same layout. An object without a row in the store
        gets no region. A region is aligned with the numbers of the *words* that name it, not with word pieces, so
        positions are wrong after a split word. The published weights were trained with this bug.
        """
        image = regions[0]
        # Row 0 is the whole image; object i has row i + 1.
        rows = [row for row in (0, *(i + 1 for i in sorted(example.mentioned))) if row < image.num_regions]
        images, types = (self._features(image),), self._visual_types(len(rows))
        names: dict[int, str] = {}
        whole = self._named(example.context, example.objects, names)
        sequences = []
        for choice in example.choices:
            # A copy: the names that one choice introduces must not reach the next choice.
            context, text = self._cut(whole, self._named(choice, example.objects, dict(names)))
            ids, token_types = self._pair(context.ids, text.ids)
            mentions = self._mentions(context, text, rows) if self._original else None
            sequences.append(Encoded(ids, token_types, images, np.array(rows, np.int64), types, mentions=mentions))
        return tuple(sequences)

    def words(self, text: str) -> list[int]:
        """Return the word pieces of a text that has spaces between its words."""
        return self._pieces.of(text.split(" "))

    def told(self, example: Question, answer: Sequence[str], regions: Sequence[Regions]) -> Encoded:
        """Return [CLS] question ? answer [SEP] for pre-training. `answer` holds its words, or its letters."""
        return self._single(self._pieces.of([*pythia_tokens(example.text), "?", *answer]), regions[:1])

    def pair(self, first: list[int], second: list[int], regions: Regions) -> Encoded:
        """Return [CLS] first [SEP] second [SEP] with all regions of one image. An empty second text has no [SEP]."""
        return self._over(self._pair(first, second), [regions])

    def _cut(self, context: _Text, choice: _Text) -> tuple[_Text, _Text]:
        """Cut the two texts so that together they fit into the longest sequence."""
        room = self.max_length - 3
        if self._fix_quirks:
            choice = choice.cut(stop=room)
            return context.cut(stop=room - len(choice.ids)), choice
        # The authors meant to shorten the context too, but their code only ever cuts the front of the choice.
        context = context.cut(stop=room)
        return context, choice.cut(start=max(0, len(context.ids) + len(choice.ids) - room))

    def _mentions(self, context: _Text, choice: _Text, rows: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Return for each region the text positions with which its feature is aligned."""
        find = _Text.piece_mentions if self._fix_quirks else _Text.word_mentions
        of_row = defaultdict(list)
        for index, position in find(context, 1) + find(choice, len(context.ids) + 2):
            if position < self.num_positions:
                of_row[index + 1].append(position)
        return tuple(tuple(of_row[row]) for row in rows)

    def _single(self, pieces: list[int], regions: Sequence[Regions], limit: int | None = None) -> Encoded:
        """Return [CLS] pieces [SEP], cut at the end, with the first `limit` regions of each image."""
        return self._over(self._pair(pieces[: self.max_length - 2], []), regions, limit)

    def _over(self, text: tuple[list[int], list[int]], regions: Sequence[Regions], limit: int | None = None) -> Encoded:
        images = tuple(map(self._features, regions))
        starts = np.cumsum([0, *map(len, images)])
        kept = [np.arange(start, start + len(image[:limit])) for start, image in zip(starts, images, strict=False)]
        return Encoded(*text, images, np.concatenate(kept), self._visual_types(*map(len, kept)))

    def _pair(self, first: list[int], second: list[int]) -> tuple[list[int], list[int]]:
        """Return [CLS] first [SEP] with token type 0, then second [SEP] with type 1 unless `second` is empty."""
        tail = [*second, self._sep] if second else []
        return [self._cls, *first, self._sep, *tail], [0] * (len(first) + 2) + [1] * len(tail)

    def _visual_types(self, *lengths: int) -> np.ndarray:
        """Return the visual types of images with these numbers of regions: the image's number, or 1 in "hf-docs"."""
        return np.repeat(np.arange(len(lengths)) if self._original else np.ones(len(lengths), np.int64), lengths)

    def _features(self, image: Regions) -> np.ndarray:
        """Return the scaled features of an image, with the box numbers if `box_geometry` is set: float [R, D]."""
        if not self._box_geometry and self._feature_scale == 1:
            return image.features
        # Examples of one image follow each other, and `Encoded` promises that they share one array.
        last, features = self._last_features.get(get_ident(), (None, image.features))
        if last is not image:
            features = np.multiply(image.features, self._feature_scale, dtype=np.float32)
            if self._box_geometry:
                features = np.hstack((features, self._box_numbers(image)))
            self._last_features[get_ident()] = image, features
        return features

    def _box_numbers(self, image: Regions) -> np.ndarray:
        """Return six numbers for each box, stretched to the range: float32 [R, 6]."""
        corners = image.boxes / np.array([image.width, image.height] * 2, dtype=np.float32)
        low, high = self._box_range
        return np.asarray(low + (high - low) * np.hstack((corners, corners[:, 2:] - corners[:, :2])))

    def _named(self, tokens: Iterable[MixedToken], objects: Sequence[str], names: dict[int, str]) -> _Text:
        """Spell out the object tags of a text, and enter the words chosen into `names`.

        People get neutral names in the order of their first mention. Other objects get the name of their class. In
        "hf-docs" people get the name of their class too.
        """
        words: list[str] = []
        tags: list[tuple[int, int]] = []
        # R2C restarts its count of people in every text. A person who first appears in a choice is "Casey", even if the
        # context already has a Casey.
        people = sum(objects[index] == "person" for index in names) if self._fix_quirks else 0
        for token in tokens:
            if isinstance(token, str):
                words.append(token)
                continue
            for index in token:
                if index not in names:
                    is_person = self._original and objects[index] == "person"
                    names[index] = self._names[people % len(self._names)] if is_person else objects[index]
                    people += is_person
                tags.append((index, len(words)))
                words.append(names[index])
        word_of = [number for number, word in enumerate(words) for _ in self._pieces[word]]
        return _Text(self._pieces.of(words), word_of, tags)


@dataclass(frozen=True, slots=True)
class _Text:
    """The word pieces of a text, the word number of each piece, and (object, word number) of every tag."""

    ids: list[int]
    word_of: list[int]
    tags: list[tuple[int, int]]

    def cut(self, start: int = 0, stop: int | None = None) -> _Text:
        return _Text(self.ids[start:stop], self.word_of[start:stop], self.tags)

    def word_mentions(self, offset: int) -> list[tuple[int, int]]:
        """Return (object, word number + offset) for every tag with at least one piece left after the cut."""
        left = set(self.word_of)
        return [(index, number + offset) for index, number in self.tags if number in left]

    def piece_mentions(self, offset: int) -> list[tuple[int, int]]:
        """Return (object, position + offset) for every piece of a tag that is left after the cut."""
        places = list(enumerate(self.word_of, offset))
        return [(index, place) for index, tag in self.tags for place, number in places if number == tag]


class _WordPieces(dict[str, tuple[int, ...]]):
    """Word → ids of its pieces. Each word is tokenised once, because texts repeat few words.

    This is exact: BERT splits a text at spaces before it looks for pieces.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        vocab = _vocabulary(path)
        lacking = [token for token in ("[UNK]", "[CLS]", "[SEP]", "[MASK]") if token not in vocab]
        if lacking:
            raise CheckpointError(f"{path}: not a BERT vocabulary: {', '.join(lacking)} missing")
        self.ids = vocab
        self._tokenizer = Tokenizer(WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
        self._tokenizer.normalizer = BertNormalizer(lowercase=True)
        self._tokenizer.pre_tokenizer = BertPreTokenizer()

    def __missing__(self, word: str) -> tuple[int, ...]:
        pieces = self[word] = tuple(self._tokenizer.encode(word, add_special_tokens=False).ids)
        return pieces

    def of(self, words: Iterable[str]) -> list[int]:
        return [piece for word in words for piece in self[word]]


def _vocabulary(path: Path) -> dict[str, int]:
    """Read word piece → line number, from 0, without blank lines at the end. Raise CheckpointError if one repeats."""
    lines = [line.rstrip() for line in read_lines(path)]
    while lines and not lines[-1]:
        lines.pop()
    vocab = {piece: number for number, piece in enumerate(lines)}
    if len(vocab) < len(lines):
        raise CheckpointError(f"{path}: {repeated(lines)}: not the vocabulary that the weights were trained with")
    return vocab


def read_lines(path: Path) -> list[str]:
    """Read the lines of a UTF-8 text file. Raise CheckpointError naming the file if it cannot be read.

    Editors save such files with or without a byte order mark, and with either line ending. All are accepted.
    """
    if lfs.is_pointer_file(path):
        raise CheckpointError(f"{path}: {lfs.REASON}")
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None


def repeated(lines: Sequence[str]) -> str | None:
    """Return a message about the first line that repeats an earlier line; None if all lines differ."""
    first: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if (earlier := first.setdefault(line, number)) != number:
            return f"line {number} is {brief(line)}, as is line {earlier}"
    return None


def pythia_tokens(question: str) -> list[str]:
    """Split a question as Pythia's image database does: lower case, no "," or "?", split around non-word characters."""
    text = question.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return [word for part in re.split(r"(\W+)", text) if (word := part.strip())]


def _first_stop(words: Sequence[str], phrase: Phrase) -> int:
    """Return the index after the first occurrence of the words of a phrase."""
    size = phrase.stop - phrase.start
    named = words[phrase.start : phrase.stop]
    return next(stop for stop in range(size, len(words) + 1) if words[stop - size : stop] == named)
