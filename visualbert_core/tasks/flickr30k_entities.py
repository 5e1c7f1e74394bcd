"""Flickr30K Entities: locate the phrases of a caption in its image.

Paper: Plummer et al. 2015, arXiv:1505.04870. Files: {split}.txt (image ids), Sentences/<id>.txt (captions with marked
phrases), Annotations/<id>.xml (boxes). The dataset has no evaluator, and three protocols are in use, sixteen points
apart on one slice. This is ANY-BOX on the raw coordinates of the XML, that of BAN, of VisualBERT and of MDETR's
"separate", tested against the last (`flickr_eval.py`, github.com/ashkamath/mdetr at ea09acc4). Asked and scored are the
phrases with a box, every mention once; captions without such a phrase are no examples.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visualbert_core.errors import AnnotationError, InputError
from visualbert_core.metrics.recall import chance_recall, hits, recall
from visualbert_core.schema import Grounding, Phrase, Prediction, Score
from visualbert_core.tasks.reading import choose, read_text

SPLITS = ("test", "val", "train")
METRICS: dict[str, int | None] = {"recall@1": 1, "recall@5": 5, "recall@10": 10, "upper_bound": None}

PAPER_TABLE = "VisualBERT, arXiv:1908.03557, table 4"
PAPER = {
    "val": {"recall@1": 70.40, "recall@5": 84.49, "recall@10": 86.31, "upper_bound": 86.97},
    "test": {"recall@1": 71.33, "recall@5": 84.98, "recall@10": 86.51, "upper_bound": 87.45},
}


@dataclass(frozen=True, slots=True)
class _Mention:
    phrase: Phrase
    chain: str  # names the boxes of this entity in the XML; "0" is "not visual" and never has any
    types: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Item:
    image_id: str
    words: tuple[str, ...]
    mentions: tuple[_Mention, ...]
    boxes: tuple[np.ndarray, ...]  # of each mention: float64 [B, 4] xyxy, B >= 1, as the XML has them


class Flickr30kEntitiesTask:
    """One split of Flickr30K Entities. An answer is, per phrase, *all* candidate boxes of the image, best first:
    `upper_bound` and `chance` are about the candidates."""

    name = "flickr30k_entities"
    protocol = "Flickr30K Entities ANY-BOX, IoU ≥ 0.5 (BAN, VisualBERT, MDETR 'separate')"
    headline = "recall@1"

    def __init__(self, annotations: Path, split: str) -> None:
        """`annotations` is the folder of {split}.txt, Sentences/ and Annotations/.

        Raises ConfigError (split), AnnotationError (files).
        """
        self.split = choose("Flickr30K Entities split", split, SPLITS)
        self._root = Path(annotations)
        self._image_ids = _image_ids(self._root / f"{split}.txt")
        self._items = {
            f"{item.image_id}/{number}": item
            for image_id in self._image_ids
            for number, item in _captions(self._root, image_id)
        }
        if not self._items:
            raise AnnotationError(f"{self._root}: no {split} caption has a phrase with a box; nothing can be asked")

    def examples(self) -> Iterator[Grounding]:
        """Captions in file order; `example_id` is "<image id>/<sentence index from 0>"."""
        for example_id, item in self._items.items():
            phrases = tuple(mention.phrase for mention in item.mentions)
            yield Grounding(example_id, (item.image_id,), item.words, phrases)

    def expected(self) -> dict[str, str]:
        """<image id>/<sentence index> → image id."""
        return {example_id: item.image_id for example_id, item in self._items.items()}

    def score(self, predictions: Mapping[str, Prediction]) -> Iterator[Score]:
        """Every phrase's recall@1, recall@5, recall@10 and upper_bound, under "<example_id>/<phrase index>".

        A phrase without candidates is a miss. Raises InputError if an answer is not a list of finite boxes a phrase.
        """
        for example_id, item in self._items.items():
            for index, (mention, hit) in enumerate(
                zip(item.mentions, _hits(predictions[example_id], item), strict=True)
            ):
                groups = {"phrase type": mention.types}
                for metric, k in METRICS.items():
                    yield Score(f"{example_id}/{index}", metric, recall(hit, k), item.image_id, groups)

    def chance(self, predictions: Mapping[str, Prediction]) -> dict[str, float]:
        """Expected recall of the same candidates in random order. The upper bound knows no order: it has none."""
        every = [hit for example_id, item in self._items.items() for hit in _hits(predictions[example_id], item)]
        ranks = {metric: k for metric, k in METRICS.items() if k is not None}
        return {metric: 100 * sum(chance_recall(hit, k) for hit in every) / len(every) for metric, k in ranks.items()}

    def gold(self, example_id: str) -> list[list[list[float]]]:
        """Per phrase its boxes, in the file's order."""
        return [boxes.tolist() for boxes in self._items[example_id].boxes]

    def annotation_files(self) -> tuple[Path, ...]:
        """The split's list, then captions and boxes of every image."""
        folders = (("Sentences", ".txt"), ("Annotations", ".xml"))
        files = (self._root / name / f"{image_id}{suffix}" for image_id in self._image_ids for name, suffix in folders)
        return (self._root / f"{self.split}.txt", *files)


def _hits(prediction: Prediction, item: _Item) -> Iterator[np.ndarray]:
    """For each phrase, which of its ranked candidates are right: bool [N]."""
    answer, where = prediction.answer, f"prediction of {prediction.example_id}"
    if not isinstance(answer, (list, tuple)) or len(answer) != len(item.boxes):
        got = len(answer) if isinstance(answer, (list, tuple)) else type(answer).__name__
        raise InputError(
            f"{where}: {got} ranked lists for {len(item.boxes)} phrases; one list of boxes a phrase, in order"
        )
    for index, (ranked, gold) in enumerate(zip(answer, item.boxes, strict=True)):
        try:
            boxes = np.asarray(ranked, np.float64).reshape(len(ranked), 4)
        except (TypeError, ValueError):
            raise InputError(f"{where} phrase {index}: not a list of [x1, y1, x2, y2]") from None
        if not np.isfinite(boxes).all():
            raise InputError(f"{where} phrase {index}: a coordinate is not finite")
        yield hits(boxes, gold)


def _image_ids(path: Path) -> tuple[str, ...]:
    ids = tuple(read_text(path).split())
    if not ids:
        raise AnnotationError(f"{path}: no image ids; download it again")
    if len(set(ids)) < len(ids):
        twice = next(image_id for index, image_id in enumerate(ids) if image_id in ids[:index])
        raise AnnotationError(f"{path}: image id {twice} occurs twice; remove one of its lines")
    return ids


def _captions(root: Path, image_id: str) -> Iterator[tuple[int, _Item]]:
    """(index, caption) of each caption with a boxed phrase; as in the official parser, empty lines have no index."""
    boxes = _boxes(root / "Annotations" / f"{image_id}.xml")
    path = root / "Sentences" / f"{image_id}.txt"
    for number, line in enumerate(line for line in read_text(path).split("\n") if line):
        words, mentions = _parse(line, f"{path} sentence {number}")
        boxed = tuple(mention for mention in mentions if mention.chain in boxes)
        if boxed:
            yield number, _Item(image_id, words, boxed, tuple(boxes[mention.chain] for mention in boxed))


def _parse(line: str, where: str) -> tuple[tuple[str, ...], list[_Mention]]:
    """Words and mentions of a line such as "[/EN#1/people Two guys] wait .": [/EN#<chain>/<type>(/<type>) <words>]."""
    words: list[str] = []
    mentions: list[_Mention] = []
    opened: tuple[int, list[str]] | None = None  # start and tag of the phrase being read
    for token in line.split():
        if token.startswith("[/EN#"):
            if opened is not None:
                raise AnnotationError(f"{where}: {token} inside another phrase; download the file again")
            opened = (len(words), token.removeprefix("[/EN#").split("/"))
            continue
        closes = opened is not None and token.endswith("]")
        words.append(token[:-1] if closes else token)
        if opened is not None and closes:
            start, (chain, *types) = opened
            mentions.append(_Mention(Phrase(start, len(words), " ".join(words[start:])), chain, tuple(types)))
            opened = None
    if opened is not None:
        raise AnnotationError(f"{where}: a phrase is not closed by ']'; download the file again")
    return tuple(words), mentions


def _boxes(path: Path) -> dict[str, np.ndarray]:
    """chain → float64 [B, 4]; chains that are only flagged (`scene`, `nobndbox`) are absent."""
    try:
        objects = ET.fromstring(read_text(path)).findall("object")
        boxes: defaultdict[str, list[list[float]]] = defaultdict(list)
        for thing in objects:
            box = thing.find("bndbox")
            if box is not None:
                corners = [float(box.findtext(side, "")) for side in ("xmin", "ymin", "xmax", "ymax")]
                for name in thing.findall("name"):
                    boxes[name.text or ""].append(corners)
    except ET.ParseError as error:
        raise AnnotationError(f"{path}: not XML ({error}); truncated? download it again") from None
    except ValueError:
        raise AnnotationError(
            f"{path}: a bndbox lacks a number in xmin, ymin, xmax or ymax; download it again"
        ) from None
    return {chain: np.array(corners) for chain, corners in boxes.items()}
