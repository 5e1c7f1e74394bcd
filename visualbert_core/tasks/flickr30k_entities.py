"""Owns Flickr30K Entities: a model locates the phrases of a caption in the caption's image.

Paper: Plummer et al. 2015, arXiv:1505.04870. The dataset has no evaluator. Three protocols are in use; on one slice,
the same predictions differ by sixteen points. Each protocol judges every mention of a phrase that has a box. A
candidate is right where its IoU with a gold box is at least 0.5. The protocols differ in the gold box:

any-box   Any box of the phrase. BAN, VisualBERT and MDETR's "separate" use it. The tests compare it with
          `flickr_eval.py` of ashkamath/mdetr at ea09acc4.
merged    The smallest box around all boxes of the phrase. MDETR's "merged" is the same program.
plummer   The box of `merged`, but the IoU adds 1 to every side. The programs are `flickrPhraseLocalizationEval.m`,
          `getGTBox` and `getIOU.m` of BryanPlummer/pl-clc at 41ee4934. They compute top-1 and the upper bound
          ("Oracle"). Here, recall@5 and recall@10 are that upper bound over the first 5 and 10 candidates.

Gold boxes keep the 1-based coordinates of the XML under every protocol (see flickr30k_files.py). Candidates stay as
they are. A detector that counts pixels from 0 is therefore up to one pixel off in all of these programs, and
VisualBERT's published numbers were measured so. This file does not correct the offset, because a file of predictions
does not say how it counts. Shifting jittered gold boxes by one pixel moved recall@1 on the real val and test splits by
0.2 to 0.3 points.

One metric is not official: `pointing` asks whether the centre of the top-1 box is inside a gold box of the protocol.

A model that writes a box gives at most one candidate for each phrase. Its recall at 5 and 10 and its upper bound would
repeat recall@1, as if there were a ranking. So they have no value, and neither has chance.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from msgspec import Struct

from visualbert_core.errors import AnnotationError, InputError
from visualbert_core.metrics.boxes import to_xyxy
from visualbert_core.metrics.coverage import Lenient
from visualbert_core.metrics.recall import chance_recall, enclosing, hits, overlaps, points, recall
from visualbert_core.schema import Grounding, JudgedAnswer, Prediction, Score
from visualbert_core.tasks.base import Task
from visualbert_core.tasks.flickr30k_files import Caption, read_image, read_image_ids
from visualbert_core.tasks.predicted_boxes import Asked, check, ranked_boxes
from visualbert_core.tasks.reading import submission_records
from visualbert_core.tasks.shown import Published

SPLITS = ("test", "val", "train")
SIZES = {"test": 1_000, "val": 1_000, "train": 29_783}
"""Split → the number of images that its list names."""
PHRASES = {"test": 14_481, "val": 14_433, "train": 427_226}
"""Split → the number of phrases with a box, counted in the complete annotations. The literature has the same numbers
for test and val."""
RECALLS: dict[str, int | None] = {"recall@1": 1, "recall@5": 5, "recall@10": 10, "upper_bound": None}
"""Metric → the number of candidates that it looks at; None means all of them."""
UNRANKED = (
    "no phrase has a second box, so there is no ranking: recall@5, recall@10, upper_bound and chance are not given"
)
"""The warning for predictions with at most one box for each phrase."""


def _published() -> Iterator[Published]:
    source = "VisualBERT, arXiv:1908.03557, table 4"
    for split, values in (("val", (70.40, 84.49, 86.31, 86.97)), ("test", (71.33, 84.98, 86.51, 87.45))):
        yield Published("VisualBERT", split, dict(zip(RECALLS, values, strict=True)), source, "any-box")
    for network, value, page in (("MDETR-ENB5", 84.3, "MDETR"), ("GLIP-T", 85.7, "GLIP"), ("GLIP-L", 87.1, "GLIP")):
        yield Published(network, "test", {"recall@1": value}, f"project page of {page}", "any-box")
    yield Published("KOSMOS-2", "test", {"recall@1": 78.7}, "project page of KOSMOS-2", "not said", "boxes as text")


class LenientRecord(Struct):
    """Holds a record that MDETR's evaluator accepts."""

    image_id: str | int
    sentence_id: int | str  # from 0
    boxes: list[Any]  # for each boxed phrase, a ranked list of boxes


class ResultRecord(LenientRecord):
    """Holds a record of a submission."""

    sentence_id: int


class Flickr30kEntitiesTask(Task):
    """Represents one split of Flickr30K Entities.

    An answer holds, for each phrase, *all* candidate boxes of the image, best first. It must hold all of them, because
    `upper_bound` and `chance` measure the candidates. A model that writes its boxes gives one, or none.

    A phrase without candidates is a miss; MDETR's evaluator asserts that there are candidates. An inverted box is a
    miss, and so is a box without area.
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
    published = tuple(_published())
    lenient = Lenient(duplicate="first", unknown="ignore")

    def read(self) -> None:
        """Read {split}.txt. For each image in it, read the captions in Sentences/ and the boxes in Annotations/."""
        self._inclusive = self.protocol_key == "plummer"
        names = self.folder / f"{self.split}.txt"
        images = {image_id: read_image(self.folder, image_id) for image_id in read_image_ids(names)}
        parts = (("Sentences", ".txt"), ("Annotations", ".xml"))
        of_images = (self.folder / part / f"{image_id}{suffix}" for image_id in images for part, suffix in parts)
        self.files = (names, *of_images)
        self._sizes = {image_id: size for image_id, (_, size) in images.items() if size is not None}
        captions = {
            f"{image_id}/{index}": caption
            for image_id, (found, _) in images.items()
            for index, caption in enumerate(found)
        }
        self._items = {example_id: caption for example_id, caption in captions.items() if caption.mentions}
        self._unasked = captions.keys() - self._items.keys()
        if not self._items:
            raise AnnotationError(
                f"{self.folder}: no {self.split} caption has a phrase with a box; download the annotations again"
            )
        self.compare_size(images=len(images), phrases=sum(len(item.mentions) for item in self._items.values()))

    def examples(self) -> Iterator[Grounding]:
        """Yield the captions with a boxed phrase. The `example_id` is "<image id>/<sentence index from 0>"."""
        for example_id, item in self._items.items():
            phrases = tuple(mention.phrase for mention in item.mentions)
            yield Grounding(example_id, (item.image_id,), item.words, phrases)

    def score(self, predictions: Mapping[str, Prediction]) -> Iterator[Score]:
        """Yield recall@1, recall@5, recall@10, upper_bound and pointing of every phrase.

        Yield only recall@1 and pointing where no phrase has a second box. The unit is "<example_id>/<phrase index>".
        Raises InputError where an answer does not hold one list of finite boxes for each phrase.
        """
        recalls = RECALLS if _ranks(predictions.values()) else {self.headline: 1}
        for example_id, item in self._items.items():
            for index, (ranked, gold) in enumerate(self._phrases(predictions[example_id], item)):
                overlap = overlaps(ranked, gold, self._inclusive)
                values = {metric: recall(overlap, k) for metric, k in recalls.items()}
                values["pointing"] = float(points(ranked[:1], gold).any())
                groups = {"phrase type": item.mentions[index].types}
                sure = predictions[example_id].scores
                first = ranked[0].tolist() if len(ranked) else None
                judged = JudgedAnswer(example_id, first, sure[index] if sure else None, index)
                for metric, value in values.items():
                    # Only the headline, recall@1, judges the first box alone; the other metrics judge more boxes.
                    answer = judged if metric == self.headline else None
                    yield Score(f"{example_id}/{index}", metric, value, item.image_id, groups, answer)

    def chance(self, predictions: Mapping[str, Prediction]) -> dict[str, float]:
        """Return the expected scores of the same candidates in random order.

        The upper bound does not depend on the order, so it has no chance. No metric has a chance where no phrase has a
        second box.
        """
        if not _ranks(predictions.values()):
            return {}
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
        """Return, for each phrase, the gold boxes of the protocol, in the order of the file."""
        return [boxes.tolist() for boxes in self._gold(self._items[example_id])]

    def best(self, example_id: str) -> list[list[list[float]]]:
        """Return, for each phrase, the largest of its gold boxes. That box gets the highest value of every metric."""
        return [[max(boxes, key=lambda b: (b[2] - b[0]) * (b[3] - b[1]))] for boxes in self.gold(example_id)]

    def official(self, scores: Sequence[Score]) -> dict[str, float]:
        """Return what MDETR's `FlickrEvaluator` returns: fractions under "Recall@1_all", …, "Upper_bound_<category>".

        Under plummer, return what pl-clc's `evalAllCuesFlickr30K` prints: "Accuracy" and "Upper Bound" with six
        decimals. Metrics without scores are left out.
        """
        printed: dict[str, float] = {}
        for metric, k in RECALLS.items():
            values: defaultdict[str, list[float]] = defaultdict(list)
            for score in scores:
                if score.metric == metric:
                    for category in ("all", *score.groups["phrase type"]):
                        values[category].append(score.value)
            header = "Upper_bound" if k is None else f"Recall@{k}"
            printed |= {f"{header}_{category}": sum(hit) / len(hit) for category, hit in sorted(values.items())}
        if self.protocol_key != "plummer":
            return printed
        names = {"Accuracy": "Recall@1_all", "Upper Bound": "Upper_bound_all"}
        return {name: float(f"{printed[key]:f}") for name, key in names.items() if key in printed}

    def submission(self, predictions: Mapping[str, Prediction]) -> bytes:
        """Return a file in MDETR's form, one caption per line, in the order of the split. No server takes this file."""
        lines = []
        for example_id, item in self._items.items():
            boxes = [ranked.tolist() for ranked, _ in self._phrases(predictions[example_id], item)]
            sentence_id = int(example_id.rpartition("/")[2])
            lines.append(json.dumps({"image_id": item.image_id, "sentence_id": sentence_id, "boxes": boxes}))
        return ("[\n" + ",\n".join(lines) + "\n]\n").encode()

    def read_submission(self, path: Path, lenient: bool = False) -> list[Prediction]:
        """Read a JSON list of {"image_id": str or int, "sentence_id": int from 0, "boxes": […]}.

        "boxes" holds, for each boxed phrase, a ranked list of [x1, y1, x2, y2]. Other keys are ignored. A caption of
        the split without boxed phrases is dropped whatever its boxes are, as MDETR's evaluator drops it. With
        `lenient`, "sentence_id" may be a string. Boxes that are not finite are always refused, although that evaluator
        counts them as misses. Raises InputError that names the file and the record.
        """
        found: list[Prediction] = []
        records = submission_records(path, LenientRecord if lenient else ResultRecord)
        for number, record in enumerate(records, start=1):
            where, example_id = f"{path} record {number}", f"{record.image_id}/{record.sentence_id}"
            if not example_id.isprintable():
                raise InputError(f"{where}: {example_id!r} is not the id of a caption; correct the record")
            if example_id in self._unasked:
                continue
            item = self._items.get(example_id)
            if item is not None:
                ranked_boxes(record.boxes, len(item.mentions), f"{where} ({example_id})")
            found.append(Prediction(example_id, item.image_id if item else "", record.boxes, ()))
        return found

    def in_pixels(
        self, predictions: Sequence[Prediction], convention: str | None, believe: bool = False
    ) -> tuple[list[Prediction], list[str]]:
        """Return the predictions with boxes in pixels, and warnings about boxes that can only miss or have no ranking.

        The boxes are read by `convention`; None means undeclared. Raises InputError where the boxes look like another
        convention. With `believe`, boxes that are undeclared or declared as pixels ("xyxy") give a warning instead.
        """
        known = [(p, self._items[p.example_id]) for p in predictions if p.example_id in self._items]
        asked = [
            Asked(ranked, gold, self._size(item), item.image_id)
            for prediction, item in known
            for ranked, gold in self._phrases(prediction, item)
        ]
        try:
            said = check(asked, convention)
        except InputError as error:
            if not believe or convention not in (None, "xyxy"):
                raise
            said = [f"read as left, top, right, bottom in pixels nevertheless: {error}"]
        said += [] if _ranks(prediction for prediction, _ in known) else [UNRANKED]
        if convention in (None, "xyxy"):
            return list(predictions), said
        return [self._converted(prediction, convention) for prediction in predictions], said

    def _converted(self, prediction: Prediction, convention: str) -> Prediction:
        item = self._items.get(prediction.example_id)
        if item is None:
            return prediction
        phrases = self._phrases(prediction, item)
        answer = [to_xyxy(ranked, convention, *self._size(item)).tolist() for ranked, _ in phrases]
        return replace(prediction, answer=answer)

    def image_sizes(self) -> dict[str, tuple[int, int]]:
        return self._sizes

    def _size(self, item: Caption) -> tuple[float, float]:
        return self._sizes.get(item.image_id, (np.inf, np.inf))

    def _gold(self, item: Caption) -> list[np.ndarray]:
        boxes = [mention.boxes for mention in item.mentions]
        return boxes if self.protocol_key == "any-box" else list(map(enclosing, boxes))

    def _phrases(self, prediction: Prediction, item: Caption) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield, for each phrase, its ranked candidates [N, 4] and its gold boxes [M, 4]."""
        where = f"prediction of {prediction.example_id}"
        return zip(ranked_boxes(prediction.answer, len(item.mentions), where), self._gold(item), strict=True)


def _ranks(predictions: Iterable[Prediction]) -> bool:
    """Return whether some phrase has two boxes or more. Answers of a wrong form have no ranking."""
    answers = (p.answer for p in predictions if isinstance(p.answer, (list, tuple)))
    return any(isinstance(boxes, (list, tuple)) and len(boxes) > 1 for answer in answers for boxes in answer)
