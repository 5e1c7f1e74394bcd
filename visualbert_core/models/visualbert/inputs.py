"""Text and regions → sequences of tokens, by default laid out as the authors trained: recipe "original".

Owns the token layout, the visual token types and the choice of regions of the four tasks, token for token as in the
authors' code (https://github.com/uclanlp/visualbert, `dataloaders/`; VCR naming from https://github.com/rowanz/r2c).
It differs from the examples in the transformers documentation, with which the published checkpoints lose accuracy:

    VQA v2               [CLS] question ? [MASK] [SEP]     regions, type 0            the head reads [MASK]
    VCR                  [CLS] context [SEP] choice [SEP]  whole image + mentioned    four sequences; aligned; type 0
    NLVR2                [CLS] sentence [SEP]              left type 0, right type 1  one sequence
    Flickr30K Entities   [CLS] caption [SEP]               regions, type 0            a phrase is its last word piece

Recipe "hf-docs" is what those examples show, for comparison only. It differs in this and in nothing else:

    VQA v2               [CLS] raw question [SEP]          type 1                     read at the last piece, often "?"
    VCR                  tags by class name ("person")     type 1                     not aligned
    NLVR2                                                  left and right type 1
    Flickr30K Entities                                     type 1
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import singledispatchmethod
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from visualbert_core.errors import CheckpointError
from visualbert_core.io import lfs
from visualbert_core.io.documents import brief
from visualbert_core.schema import Example, Grounding, MultipleChoice, Question, Regions, Statement
from visualbert_core.schema import Token as MixedToken

VOCAB_FILE = "vocab.txt"
RECIPES = ("original", "hf-docs")
MAX_TOKENS = 128
NLVR2_REGIONS_PER_IMAGE = 144
GEOMETRY_SIZE = 6
# R2C's names for people; 'Peyton' stands there twice, which `fix_quirks` undoes.
NEUTRAL_NAMES = (
    *("Casey", "Riley", "Jessie", "Jackie", "Avery", "Jaime", "Peyton", "Kerry"),
    *("Jody", "Kendall", "Peyton", "Skyler", "Frankie", "Pat", "Quinn"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One sequence before it joins a batch: T tokens, V regions.

    Sequences about one image hold the very same array in `images`, so that a batch needs to send and project it once.
    """

    input_ids: list[int]  # T
    token_type_ids: list[int]  # T
    images: tuple[np.ndarray, ...]  # per image, float [R, D]: all of its features
    rows: np.ndarray  # int64 [V], rows of the images' features one after the other
    visual_types: np.ndarray  # int64 [V]
    mentions: tuple[tuple[int, ...], ...] | None = None  # VCR: per region, the text positions that name it
    phrases: tuple[int, ...] | None = None  # Flickr30K Entities: per phrase, the text position it is queried at

    @property
    def features(self) -> np.ndarray:
        """The sequence's regions: float [V, D], a copy."""
        return np.asarray(np.concatenate(self.images)[self.rows])


class InputEncoder:
    """Encodes examples of every task with one vocabulary. Raises CheckpointError if `vocab` is not BERT's.

    `max_length` is the longest text in tokens ([CLS] and [SEP] counted); `num_positions` the size of the position
    table; with `box_geometry` every feature is followed by [x1/W, y1/H, x2/W, y2/H, w/W, h/H]. `recipe` is one of
    RECIPES (ValueError otherwise; see the module).

    Published weights were trained with four bugs of the authors' code, and "original" keeps them. `fix_quirks` is for
    weights trained with it, and turns them off:

        person names (VCR)     go on in a choice, so that no new person is "Casey" again; 14 names, 'Peyton' once
        alignment (VCR)        holds the positions of all word pieces of a mention, not the number of its word
        truncation (VCR)       takes from the end of the context, then from the end of the choice, not from its front
        phrases (Flickr30K)    are queried where they stand, not at the first occurrence of the same words
    """

    def __init__(
        self,
        vocab: str | Path,
        *,
        max_length: int = MAX_TOKENS,
        num_positions: int = 512,
        box_geometry: bool = False,
        recipe: str = "original",
        fix_quirks: bool = False,
    ) -> None:
        if recipe not in RECIPES:
            raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, got {recipe!r}")
        if fix_quirks and recipe != "original":
            raise ValueError(f"fix_quirks belongs to recipe original, got {recipe!r}")
        self._pieces = _WordPieces(Path(vocab))
        self.vocab_size = self._pieces.size
        self._cls, self._sep, self._mask = (self._pieces.special(token) for token in ("[CLS]", "[SEP]", "[MASK]"))
        self._max_length = min(max_length, num_positions)
        self._num_positions = num_positions
        self._box_geometry = box_geometry
        self._original, self._fix_quirks = recipe == "original", fix_quirks
        self._names = tuple(dict.fromkeys(NEUTRAL_NAMES)) if fix_quirks else NEUTRAL_NAMES
        self._last_features: tuple[Regions | None, np.ndarray] = (None, np.empty(0))

    @singledispatchmethod
    def encode(self, example: Example, regions: Sequence[Regions]) -> Encoded | tuple[Encoded, ...]:
        """The sequence of an example and the regions of its images; for multiple choice, one sequence per choice."""
        raise TypeError(f"no layout for {type(example).__name__}")

    @encode.register
    def question(self, example: Question, regions: Sequence[Regions]) -> Encoded:
        """VQA v2. A question of more than 124 word pieces loses "? [MASK]", as it did in training."""
        if self._original:
            pieces = [*self._pieces.of(pythia_tokens(example.text)), *self._pieces["?"], self._mask]
        else:
            pieces = self._pieces.of(example.text.split(" "))
        return self._single(pieces, regions[:1])

    @encode.register
    def statement(self, example: Statement, regions: Sequence[Regions]) -> Encoded:
        """NLVR2. Of each image the first 144 regions are used; the type says which image a region is of."""
        return self._single(self._pieces.of(example.text.split(" ")), regions, limit=NLVR2_REGIONS_PER_IMAGE)

    @encode.register
    def grounding(self, example: Grounding, regions: Sequence[Regions]) -> Encoded:
        """Flickr30K Entities. A phrase is queried at the last word piece of its first occurrence in the caption: a
        phrase that stands there twice is asked for twice at the same place, as the authors do (0.4 % of the phrases).
        """
        ids: list[int] = []
        ends = []  # per word, the position of its last piece once [CLS] stands in front
        for word in example.words:
            ids += self._pieces[word]
            ends.append(len(ids))
        last = self._max_length - 2
        phrases = []
        for phrase in example.phrases:
            stop = phrase.stop
            if not self._fix_quirks:
                stop = _first_stop(example.words, example.words[phrase.start : phrase.stop])
            phrases.append(min(ends[stop - 1], last))
        return self._single(ids, regions[:1], phrases=tuple(phrases))

    @encode.register
    def multiple_choice(self, example: MultipleChoice, regions: Sequence[Regions]) -> tuple[Encoded, ...]:
        """VCR, question → answer and question + answer → rationale alike: one sequence per choice.

        An object without a row in the store has no region. A region is aligned with the *word* indices that name it,
        not with word pieces, so that positions drift behind a split word: a quirk the weights were trained with.
        """
        image = regions[0]
        rows = [row for row in (0, *(i + 1 for i in sorted(example.mentioned))) if row < image.num_regions]
        images, types = (self._features(image),), self._visual_types(len(rows))
        names: dict[int, str] = {}
        whole = self._named(example.context, example.objects, names)
        sequences = []
        for choice in example.choices:
            # A copy: no choice may learn the names that another one gave.
            context, text = self._cut(whole, self._named(choice, example.objects, dict(names)))
            ids, token_types = self._pair(context.ids, text.ids)
            mentions = self._mentions(context, text, rows) if self._original else None
            sequences.append(Encoded(ids, token_types, images, np.array(rows, np.int64), types, mentions=mentions))
        return tuple(sequences)

    def _cut(self, context: _Text, choice: _Text) -> tuple[_Text, _Text]:
        """What is left of two texts that share the limit."""
        room = self._max_length - 3
        if self._fix_quirks:
            choice = choice.cut(stop=room)
            return context.cut(stop=room - len(choice.ids)), choice
        # The authors meant to shorten the context too; their code only ever takes from the front of the choice.
        context = context.cut(stop=room)
        return context, choice.cut(start=max(0, len(context.ids) + len(choice.ids) - room))

    def _mentions(self, context: _Text, choice: _Text, rows: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Per region, the positions its feature is aligned with."""
        find = _Text.piece_mentions if self._fix_quirks else _Text.word_mentions
        of_row = defaultdict(list)
        for index, position in find(context, 1) + find(choice, len(context.ids) + 2):
            if position < self._num_positions:
                of_row[index + 1].append(position)
        return tuple(tuple(of_row[row]) for row in rows)

    def _single(
        self,
        pieces: list[int],
        regions: Sequence[Regions],
        limit: int | None = None,
        phrases: tuple[int, ...] | None = None,
    ) -> Encoded:
        """[CLS] pieces [SEP], cut at the end, with the first `limit` regions of each image."""
        ids, token_types = self._pair(pieces[: self._max_length - 2], [])
        images = tuple(map(self._features, regions))
        starts = np.cumsum([0, *map(len, images)])
        kept = [np.arange(start, start + len(image[:limit])) for start, image in zip(starts, images, strict=False)]
        types = self._visual_types(*map(len, kept))
        return Encoded(ids, token_types, images, np.concatenate(kept), types, phrases=phrases)

    def _pair(self, first: list[int], second: list[int]) -> tuple[list[int], list[int]]:
        """[CLS] first [SEP] and, if there is anything in it, second [SEP]; with token types 0 and 1."""
        tail = [*second, self._sep] if second else []
        return [self._cls, *first, self._sep, *tail], [0] * (len(first) + 2) + [1] * len(tail)

    def _visual_types(self, *lengths: int) -> np.ndarray:
        """The types of the regions of images with so many: which image it is, but 1 everywhere in "hf-docs"."""
        return np.repeat(np.arange(len(lengths)) if self._original else np.ones(len(lengths), np.int64), lengths)

    def _features(self, image: Regions) -> np.ndarray:
        if not self._box_geometry:
            return image.features
        # Examples of an image follow each other: they are to share one array here too.
        last, features = self._last_features
        if last is not image:
            corners = image.boxes / np.array([image.width, image.height] * 2, dtype=np.float32)
            sides = corners[:, 2:] - corners[:, :2]
            features = np.concatenate((image.features, corners, sides), axis=1, dtype=np.float32)
            self._last_features = image, features
        return features

    def _named(self, tokens: Iterable[MixedToken], objects: Sequence[str], names: dict[int, str]) -> _Text:
        """Spell out object tags: people get neutral names in order of first mention, other objects their class; in
        "hf-docs" people too."""
        words: list[str] = []
        tags: list[tuple[int, int]] = []
        # Trap: R2C restarts its count in every text, so a person first mentioned in a choice is again "Casey", even
        # where the context has a Casey already.
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
    """Word pieces, the number of the word each comes from, and (object, word number) of every tag."""

    ids: list[int]
    word_of: list[int]
    tags: list[tuple[int, int]]

    def cut(self, start: int = 0, stop: int | None = None) -> _Text:
        return _Text(self.ids[start:stop], self.word_of[start:stop], self.tags)

    def word_mentions(self, offset: int) -> list[tuple[int, int]]:
        """(object, word number + offset) of the tags of which a piece is left."""
        left = set(self.word_of)
        return [(index, number + offset) for index, number in self.tags if number in left]

    def piece_mentions(self, offset: int) -> list[tuple[int, int]]:
        """(object, position + offset) of every piece that is left of a tag."""
        places = list(enumerate(self.word_of, offset))
        return [(index, place) for index, tag in self.tags for place, number in places if number == tag]


class _WordPieces(dict[str, tuple[int, ...]]):
    """word → ids of its pieces, computed once a word: texts repeat few words (BERT splits on spaces first)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        vocab = _vocabulary(path)
        lacking = [token for token in ("[UNK]", "[CLS]", "[SEP]", "[MASK]") if token not in vocab]
        if lacking:
            raise CheckpointError(f"{path}: not a BERT vocabulary: {', '.join(lacking)} missing")
        self._ids = vocab
        self.size = len(vocab)
        self._tokenizer = Tokenizer(WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
        self._tokenizer.normalizer = BertNormalizer(lowercase=True)
        self._tokenizer.pre_tokenizer = BertPreTokenizer()

    def __missing__(self, word: str) -> tuple[int, ...]:
        pieces = self[word] = tuple(self._tokenizer.encode(word, add_special_tokens=False).ids)
        return pieces

    def of(self, words: Iterable[str]) -> list[int]:
        return [piece for word in words for piece in self[word]]

    def special(self, token: str) -> int:
        return self._ids[token]


def _vocabulary(path: Path) -> dict[str, int]:
    """Word piece → its line, from 0. Blank lines at the end of the file do not count. Raises CheckpointError."""
    lines = [line.rstrip() for line in read_lines(path)]
    while lines and not lines[-1]:
        lines.pop()
    vocab = {piece: number for number, piece in enumerate(lines)}
    if len(vocab) < len(lines):
        raise CheckpointError(f"{path}: {repeated(lines)}: not the vocabulary that the weights were trained with")
    return vocab


def read_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8, as any editor saves it: with or without a byte order mark, and with either
    ending of lines. Raises CheckpointError naming a file that cannot be read."""
    if lfs.is_pointer_file(path):
        raise CheckpointError(f"{path}: {lfs.REASON}")
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None


def repeated(lines: Sequence[str]) -> str | None:
    """What to say of lines of which one stands there twice."""
    first: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if (earlier := first.setdefault(line, number)) != number:
            return f"line {number} is {brief(line)}, as is line {earlier}"
    return None


def pythia_tokens(question: str) -> list[str]:
    """A question as Pythia's image database stores it: lower case, without "," and "?", split around non-words."""
    text = question.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return [word for part in re.split(r"(\W+)", text) if (word := part.strip())]


def _first_stop(words: Sequence[str], phrase: Sequence[str]) -> int:
    """Index after the first occurrence of `phrase` in `words`."""
    size = len(phrase)
    starts = (start for start in range(len(words)) if words[start : start + size] == phrase)
    return next(starts) + size
