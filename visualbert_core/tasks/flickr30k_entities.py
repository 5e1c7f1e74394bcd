"""Flickr30K Entities: locate the phrases of a caption in its image.

Paper: Plummer et al. 2015, arXiv:1505.04870. The dataset has no evaluator and three protocols are in use, sixteen
points apart on one slice; all ask the phrases that have a box, every mention once, and ask IoU >= 0.5 of a box:

any-box   with any box of the phrase: BAN, VisualBERT, MDETR's "separate" (`flickr_eval.py` of ashkamath/mdetr at
          ea09acc4, against which it is tested).
merged    with the smallest box around them all: MDETR's "merged", the same program.
plummer   the same, with 1 added to every side in the IoU: `flickrPhraseLocalizationEval.m`, `getGTBox` and `getIOU.m`
          of BryanPlummer/pl-clc at 41ee4934. That program knows top-1 and the upper bound ("Oracle"); recall@5 and
          recall@10 are its upper bound of the first 5 and 10 candidates.

Coordinates: gold boxes are those of the XML, 1-based, under every protocol (see flickr30k_files.py), and candidates are
taken as they come. A detector that counts pixels from 0 is thus up to one pixel off, in all of these programs: what was
published for VisualBERT was measured so. It is not corrected here, because a file does not say how it counts; shifting
jittered gold boxes by one pixel moved recall@1 on the real val and test splits by 0.2 to 0.3 points.

Beyond the official metrics, `pointing`: is the centre of the top-1 box inside a box that the protocol judges by?
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from visualbert_core.errors import AnnotationError, InputError
from visualbert_core.metrics.boxes import to_xyxy
from visualbert_core.metrics.coverage import Lenient
from visualbert_core.metrics.recall import chance_recall, enclosing, hits, overlaps, points, recall
from visualbert_core.schema import Grounding, JudgedAnswer, Prediction, Score
from visualbert_core.tasks.base import Paper, Task
from visualbert_core.tasks.flickr30k_files import Caption, read_image, read_image_ids
from visualbert_core.tasks.predicted_boxes import Asked, check, ranked_boxes
from visualbert_core.tasks.submissions import submission_records

SPLITS = ("test", "val", "train")
SIZES = {"test": 1_000, "val": 1_000, "train": 29_783}
"""Images that each split's list names."""
PHRASES = {"test": 14_481, "val": 14_433, "train": 427_226}
"""Phrases with a box, counted over the complete annotations; the literature has the same numbers of test and val."""
RECALLS: dict[str, int | None] = {"recall@1": 1, "recall@5": 5, "recall@10": 10, "upper_bound": None}


class Flickr30kEntitiesTask(Task):
    """One split of Flickr30K Entities. An answer is, per phrase, *all* candidate boxes of the image, best first:
    `upper_bound` and `chance` are about the candidates.

    A phrase without candidates is a miss (MDETR's evaluator asserts that there are some), and so is an inverted box or
    one without area.
    """

    name, title = "flickr30k_entities", "Flickr30K Entities"
    form = Grounding
    splits = SPLITS
    metrics = (*RECALLS, "pointing")
    metric_labels: ClassVar = {"upper_bound": "upper bound"}
    protocols: ClassVar = {
        "any-box": "Flickr30K Entities ANY-BOX, IoU ≥ 0.5 (BAN, VisualBERT, MDETR 'separate')",
        "merged": "Flickr30K Entities MERGED boxes, IoU ≥ 0.5 (MDETR 'merged')",
        "plummer": "Flickr30K Entities enclosing box, IoU ≥ 0.5 with + 1 a side (Plummer et al., pl-clc)",
    }
    sizes: ClassVar = {"images": SIZES, "phrases": PHRASES}
    guess = "the same candidate boxes in random order"
    paper = Paper(
        "VisualBERT, arXiv:1908.03557, table 4",
        {
            "val": {"recall@1": 70.40, "recall@5": 84.49, "recall@10": 86.31, "upper_bound": 86.97},
            "test": {"recall@1": 71.33, "recall@5": 84.98, "recall@10": 86.51, "upper_bound": 87.45},
        },
    )
    lenient = Lenient(duplicate="first", unknown="ignore")

    def read(self) -> None:
        """Read {split}.txt and, of each image in it, the captions in Sentences/ and the boxes in Annotations/."""
        self._inclusive = self.protocol_key == "plummer"
        names = self.folder / f"{self.split}.txt"
        images = {image_id: read_image(self.folder, image_id) for image_id in read_image_ids(names)}
        parts = (("Sentences", ".txt"), ("Annotations", ".xml"))
        of_images = (self.folder / part / f"{image_id}{suffix}" for image_id in images for part, suffix in parts)
        self.files = (names, *of_images)
        self._sizes = {image_id: image.size for image_id, image in images.items() if image.size is not None}
        captions = {
            f"{image_id}/{index}": caption
            for image_id, image in images.items()
            for index, caption in enumerate(image.captions)
        }
        self._items = {example_id: caption for example_id, caption in captions.items() if caption.mentions}
        self._unasked = captions.keys() - self._items.keys()
        if not self._items:
            raise AnnotationError(
                f"{self.folder}: no {self.split} caption has a phrase with a box; nothing can be asked"
            )
        self.compare_size(images=len(images), phrases=sum(len(item.mentions) for item in self._items.values()))

    def examples(self) -> Iterator[Grounding]:
        """Captions with a boxed phrase, in file order; `example_id` is "<image id>/<sentence index from 0>"."""
        for example_id, item in self._items.items():
            phrases = tuple(mention.phrase for mention in item.mentions)
            yield Grounding(example_id, (item.image_id,), item.words, phrases)

    def expected(self) -> dict[str, str]:
        """<image id>/<sentence index> → image id."""
        return {example_id: item.image_id for example_id, item in self._items.items()}

    def score(self, predictions: Mapping[str, Prediction]) -> Iterator[Score]:
        """Every phrase's recall@1, recall@5, recall@10, upper_bound and pointing, under "<example_id>/<phrase index>".

        Raises InputError if an answer is not a list of finite boxes a phrase.
        """
        for example_id, item in self._items.items():
            for index, (ranked, gold) in enumerate(self._phrases(predictions[example_id], item)):
                overlap = overlaps(ranked, gold, self._inclusive)
                values = {metric: recall(overlap, k) for metric, k in RECALLS.items()}
                values["pointing"] = float(points(ranked[:1], gold).any())
                groups = {"phrase type": item.mentions[index].types}
                sure = predictions[example_id].scores
                first = ranked[0].tolist() if len(ranked) else None
                judged = JudgedAnswer(example_id, first, sure[index] if sure else None, index)
                for metric, value in values.items():
                    of = judged if metric == self.headline else None  # the other metrics judge more than the first box
                    yield Score(f"{example_id}/{index}", metric, value, item.image_id, groups, of)

    def chance(self, predictions: Mapping[str, Prediction]) -> dict[str, float]:
        """Expected scores of the same candidates in random order. The upper bound knows no order: it has none."""
        totals: defaultdict[str, float] = defaultdict(float)
        count = 0
        for example_id, item in self._items.items():
            for ranked, gold in self._phrases(predictions[example_id], item):
                hit = hits(ranked, gold, self._inclusive)
                for metric, k in RECALLS.items():
                    if k is not None:
                        totals[metric] += chance_recall(hit, k)
                totals["pointing"] += chance_recall(points(ranked, gold), 1)
                count += 1
        return {metric: 100 * total / count for metric, total in totals.items()}

    def gold(self, example_id: str) -> list[list[list[float]]]:
        """Per phrase the boxes that the protocol judges by, in the file's order."""
        return [boxes.tolist() for boxes in self._gold(self._items[example_id])]

    def best(self, example_id: str) -> list[list[list[float]]]:
        """Per phrase the largest of its gold boxes: found, and pointed at, under every metric."""
        return [[max(boxes, key=_area)] for boxes in self.gold(example_id)]

    def official(self, scores: Sequence[Score]) -> dict[str, float]:
        """As MDETR's `FlickrEvaluator` returns it: fractions under "Recall@1_all", …, "Upper_bound_<category>".

        Under plummer as pl-clc's `evalAllCuesFlickr30K` prints it: "Accuracy" and "Upper Bound", six decimals.
        """
        printed: dict[str, float] = {}
        for metric, k in RECALLS.items():
            values: defaultdict[str, list[float]] = defaultdict(list)
            for score in scores:
                if score.metric == metric:
                    for category in ("all", *score.groups["phrase type"]):
                        values[category].append(score.value)
            header = "Upper_bound" if k is None else f"Recall@{k}"
            printed |= {f"{header}_{category}": sum(of) / len(of) for category, of in sorted(values.items())}
        if self.protocol_key != "plummer":
            return printed
        names = {"Accuracy": "Recall@1_all", "Upper Bound": "Upper_bound_all"}
        return {name: float(f"{printed[key]:f}") for name, key in names.items()}

    def submission(self, predictions: Mapping[str, Prediction]) -> bytes:
        """MDETR's form, the captions in the split's order, one a line. There is no server that takes it.

        Raises InputError if a caption has no prediction or one that cannot be scored.
        """
        lines = []
        for example_id, item in self._items.items():
            if example_id not in predictions:
                raise InputError(f"no prediction of {example_id}; a submission needs one for every caption")
            boxes = [ranked.tolist() for ranked, _ in self._phrases(predictions[example_id], item)]
            sentence_id = int(example_id.rpartition("/")[2])
            lines.append(json.dumps({"image_id": item.image_id, "sentence_id": sentence_id, "boxes": boxes}))
        return ("[\n" + ",\n".join(lines) + "\n]\n").encode()

    def read_submission(self, path: Path, lenient: bool = False) -> list[Prediction]:
        """Predictions of a JSON list of {"image_id": str or int, "sentence_id": int from 0, "boxes": [per boxed phrase:
        ranked list of [x1, y1, x2, y2]]}; other keys are ignored.

        A caption of the split without boxed phrases is dropped, whatever its boxes, as by MDETR's evaluator. `lenient`
        takes a "sentence_id" that is a string, too. Boxes that are not finite are refused always: that evaluator then
        counts a miss. Raises InputError naming file and record.
        """
        found: list[Prediction] = []
        for number, record in enumerate(submission_records(path), start=1):
            where = f"{path} record {number}"
            example_id, boxes = _record(record, where, (int, str) if lenient else (int,))
            if example_id in self._unasked:
                continue
            item = self._items.get(example_id)
            if item is not None:
                ranked_boxes(boxes, len(item.mentions), f"{where} ({example_id})")
            found.append(Prediction(example_id, item.image_id if item else "", boxes, ()))
        return found

    def in_pixels(
        self, predictions: Sequence[Prediction], convention: str | None, believe: bool = False
    ) -> tuple[list[Prediction], list[str]]:
        """The predictions with boxes as `score` judges them, read as `convention` (None: undeclared); and what must be
        said: boxes that can only miss. Raises InputError where the boxes look like another convention; those in
        undeclared pixels, or called so, are let through if one is to `believe` them, with a line."""
        known = [(p, self._items[p.example_id]) for p in predictions if p.example_id in self._items]
        asked = [
            Asked(ranked, gold, self._sizes.get(item.image_id, (np.inf, np.inf)), item.image_id)
            for prediction, item in known
            for ranked, gold in self._phrases(prediction, item)
        ]
        try:
            said = check(asked, convention)
        except InputError as error:
            if not believe or convention not in (None, "xyxy"):
                raise
            said = [f"taken for left, top, right, bottom in pixels all the same: {error}"]
        if convention in (None, "xyxy"):
            return list(predictions), said
        return [self._converted(prediction, convention) for prediction in predictions], said

    def _converted(self, prediction: Prediction, convention: str) -> Prediction:
        item = self._items.get(prediction.example_id)
        if item is None:
            return prediction
        size = self._sizes.get(item.image_id, (np.inf, np.inf))
        answer = [to_xyxy(ranked, convention, *size).tolist() for ranked, _ in self._phrases(prediction, item)]
        return replace(prediction, answer=answer)

    def image_sizes(self) -> dict[str, tuple[int, int]]:
        """What the XML says of each image, where it does."""
        return self._sizes

    def _gold(self, item: Caption) -> tuple[np.ndarray, ...]:
        return item.boxes if self.protocol_key == "any-box" else tuple(map(enclosing, item.boxes))

    def _phrases(self, prediction: Prediction, item: Caption) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each phrase, its ranked candidates [N, 4] and its gold boxes [M, 4]."""
        where = f"prediction of {prediction.example_id}"
        return zip(ranked_boxes(prediction.answer, len(item.boxes), where), self._gold(item), strict=True)


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _record(record: Any, where: str, sentence_types: tuple[type, ...]) -> tuple[str, list[Any]]:
    """Example id and boxes of one record of a submission."""
    if not isinstance(record, dict):
        raise InputError(f"{where}: {type(record).__name__}, not an object with image_id, sentence_id and boxes")
    kinds = {"image_id": (str, int), "sentence_id": sentence_types, "boxes": (list,)}
    for key, types in kinds.items():
        if key not in record:
            raise InputError(f"{where}: no {key!r}; a record has image_id, sentence_id and boxes")
        if not isinstance(record[key], types) or isinstance(record[key], bool):
            names = " or ".join(kind.__name__ for kind in types)
            raise InputError(f"{where}: {key!r} is {type(record[key]).__name__}, not {names}")
    example_id = f"{record['image_id']}/{record['sentence_id']}"
    if not example_id.isprintable():
        raise InputError(f"{where}: {example_id!r} is not the id of a caption")
    return example_id, record["boxes"]
