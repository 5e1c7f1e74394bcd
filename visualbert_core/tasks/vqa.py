"""Owns VQA v2: a model answers an open question about one image, and ten annotators' answers judge it.

Paper: Goyal et al. 2017, arXiv:1612.00837. Official program: `VQAEval` (github.com/GT-Vision-Lab/VQA at a013f004). Its
score of a question is in `metrics.accuracy`.

The files keep their official names. v2_OpenEnded_mscoco_*_questions.json holds the questions of a split. Train and val
also have v2_mscoco_*_annotations.json; the test sets have no public answers. The file
v2_mscoco_*_complementary_pairs.json is optional.

A complementary pair holds two questions with the same words about two images, so that the answers differ. The measure
comes from Zhang et al. 2018, arXiv:1802.05766 (eval-acc.py of github.com/Cyanogenoid/vqa-counting at 4042b129): a pair
is worth 1 if both answers have full marks, and otherwise 0. A pair belongs to a group if both questions belong to it.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from msgspec import Struct

from visualbert_core.errors import AnnotationError, InputError
from visualbert_core.metrics.accuracy import official_percent
from visualbert_core.metrics.coverage import Lenient
from visualbert_core.schema import Example, JudgedAnswer, Prediction, Question, Score
from visualbert_core.tasks.base import Task
from visualbert_core.tasks.shown import Published
from visualbert_core.tasks.vqa_files import Labels, not_in, read_labels, read_questions

SUBSETS = {"val": "val2014", "train": "train2014", "test": "test2015", "test-dev": "test-dev2015"}

ALWAYS = "always-normalise"
SIZES = {"val": 214_354, "train": 443_757, "test": 447_793, "test-dev": 107_394}
"""Split → the number of its questions, by visualqa.org.

The file of test-dev was not available for a count, so its number is less certain.
"""


_SHORT, _BEAMS = '"Question: {} Short answer:"', "generate, 5 beams, length penalty"
_SHORT_CLEANED = f"{_SHORT}, question cleaned as in LAVIS"
BLIP2_ASKED = {
    "OPT": f'blip2-paper: "Question: {{}} Answer:", {_BEAMS} -1, at most 10 new tokens, raw',
    "FlanT5": f"blip2-paper: {_SHORT}, {_BEAMS} -1, at most 10 new tokens, raw",
}
"""Language model → how the paper of BLIP-2 asks (section 4.1), as `Model.protocol` of that preset prints it."""
LAVIS_ASKED = {
    name: f"lavis: {_SHORT_CLEANED}, {_BEAMS} {exponent}, at least 1 and at most 10 new tokens, raw"
    for name, exponent in (("OPT", 0), ("FlanT5", -1))
}
"""The same for LAVIS, the program of BLIP-2's authors, whose evaluation does not ask as the paper does."""


def _published() -> Iterator[Published]:
    """Yield the published numbers. Numbers whose source does not say how they came about are left out."""
    visualbert, vilt = "VisualBERT, arXiv:1908.03557, table 1", "ViLT, arXiv:2102.03334, table 2"
    yield Published("VisualBERT", "test-dev", {"accuracy": 70.80}, visualbert, "official")
    yield Published("VisualBERT", "test-std", {"accuracy": 71.00}, visualbert, "official")
    note = "trained on train and val less 1,000 images"
    yield Published("ViLT-B/32", "test-dev", {"accuracy": 71.26}, vilt, "official", note=f"{note}; mean of three")
    yield Published("ViLT-B/32, 100k steps", "test-dev", {"accuracy": 70.33}, vilt, "official", note=note)
    released = "EVAL.md of github.com/dandelin/ViLT at 762fd39"
    yield Published("ViLT-B/32, released", "test-dev", {"accuracy": 71.32}, released, "official", note=note)
    paper = "BLIP-2, arXiv:2301.12597, table 2"
    for network, val, test_dev in (
        ("ViT-g OPT-2.7B", 53.5, 52.3),
        ("ViT-g OPT-6.7B", 54.3, 52.6),
        ("ViT-g FlanT5-XL", 63.1, 63.0),
        ("ViT-g FlanT5-XXL", 65.2, 65.0),
        ("ViT-L OPT-2.7B", 50.1, 49.7),
        ("ViT-L FlanT5-XL", 62.6, 62.3),
    ):
        asked = BLIP2_ASKED["OPT" if "OPT" in network else "FlanT5"]
        for split, value in (("val", val), ("test-dev", test_dev)):
            yield Published(f"BLIP-2 {network}", split, {"accuracy": value}, paper, "official", asked, "zero-shot")
    lavis, scorer = "configurations of github.com/salesforce/LAVIS at 506965b", "LAVIS's vqa_eval.py"
    for network, kind, value in (("OPT-2.7B", "OPT", 51.88), ("FlanT5-XL", "FlanT5", 63.13)):
        asked = LAVIS_ASKED[kind]
        yield Published(f"BLIP-2 ViT-g {network}", "val", {"accuracy": value}, lavis, scorer, asked, "zero-shot")
    ranked, thread = "rank of 128 candidate answers", "BLIP, as quoted in github.com/salesforce/BLIP, issue 59"
    yield Published("BLIP base", "test-dev", {"accuracy": 78.25}, thread, "official", ranked, "fine-tuned")
    note = "fine-tuned on train and val"
    for network, value in (("PaliGemma 224", 83.19), ("PaliGemma 448", 85.64)):
        page = "PaliGemma's project page"
        yield Published(network, "test-std", {"accuracy": value}, page, "official", "answer en {}", note)


class ResultRecord(Struct):
    """Holds a record of the list that EvalAI takes.

    VQAEval is not lenient with a record: an id that is a string fails an assertion, and an answer that is not a string
    raises an error.
    """

    question_id: int
    answer: str


class VqaTask(Task):
    """Represents one split of VQA v2. An answer is a string. The score is the soft accuracy of each question.

    The files are mapped into memory and read into columns. Opening the 443,757 questions of train takes four seconds on
    one core, and at most 290 MB beside the mapped files (measured on synthetic files of 392 MB with 100,000 different
    answers).
    """

    name, title = "vqa", "VQA"
    form = Question
    splits, unlabelled = SUBSETS, ("test", "test-dev")
    metrics = ("accuracy", "pair_accuracy")
    protocols: ClassVar = {
        "official": "VQA v2 official (VQAEval, leave-one-out)",
        ALWAYS: "VQA v2 with both sides always normalised (lmms-eval, leave-one-out)",
    }
    """The protocols differ in which answers they normalise.

    VQAEval normalises only where a question's ten answers differ. lmms-eval (vqav2_process_results, 75571cfe)
    normalises every answer; its normaliser differs from VQAEval's in one rule, on answers such as "1,,000". MMF
    (vqa_evalai_accuracy at b0ffc7fb) normalises every answer too, but first it drops commas and question marks and
    splits off 's. The rule of MMF is not offered here.
    """
    sizes: ClassVar = {"questions": SIZES}
    guess = "the commonest answer of each question type"
    published = tuple(_published())
    result = ResultRecord
    lenient = Lenient(duplicate="last", unknown="refuse")

    def read(self) -> None:
        """Read the questions. For a labelled split, read the annotations, and the complementary pairs if they exist."""
        subset = SUBSETS[self.split]
        annotations = self.folder / f"v2_mscoco_{subset}_annotations.json"
        pairs = self.folder / f"v2_mscoco_{subset}_complementary_pairs.json"
        self.files = (_questions_file(self.folder, self.split),)
        self._questions = read_questions(self.files[0], subset)
        if self.labelled:
            self.files += (annotations, pairs) if pairs.exists() else (annotations,)
            self._labels = read_labels(self.files, self._questions, subset, self.protocol_key == ALWAYS)
        self.compare_size(questions=len(self._questions.rows))

    def examples(self) -> Iterator[Question]:
        """Yield the questions in file order. The `example_id` is the question_id as a string."""
        columns = self._questions
        for example_id, image_id, text in zip(columns.rows, columns.image_ids, columns.texts, strict=True):
            yield Question(example_id, (image_id,), text)

    def expected(self) -> dict[str, str]:
        return dict(zip(self._questions.rows, self._questions.image_ids, strict=True))

    def score(self, predictions: Mapping[str, Prediction]) -> Iterator[Score]:
        """Yield "accuracy" of every question, then "pair_accuracy" of every pair if the file of pairs exists.

        The cluster of a pair is the image of its first question. Raises InputError where an answer is not a string,
        ConfigError on an unlabelled split.
        """
        labels, questions = self._judged, self._questions
        values = labels.answers.values([_answer(predictions, example_id) for example_id in questions.rows]).tolist()
        columns = zip(questions.rows, values, questions.image_ids, labels.groups, strict=True)
        for example_id, value, image_id, groups in columns:
            given = predictions[example_id]
            judged = JudgedAnswer(example_id, given.answer, given.scores[0] if given.scores else None)
            yield Score(example_id, "accuracy", value, image_id, groups, judged)
        for pair, value in zip(labels.pairs, self._pair_values(values), strict=True):
            first, second = (questions.rows[example_id] for example_id in pair)
            # Sorting gives the shared groups a fixed order, because a set has none.
            shared = labels.groups[first].items() & labels.groups[second].items()
            yield Score("+".join(pair), "pair_accuracy", value, questions.image_ids[first], dict(sorted(shared)))

    def official(self, scores: Sequence[Score]) -> dict[str, Any]:
        """Return what VQAEval reports: percent with two decimals, where halves are rounded away from zero.

        The sums follow the order of the annotations as VQAEval's do, because the order can change the last digit.
        """
        by_id = {score.unit_id: score for score in scores if score.metric == "accuracy"}
        ordered = [by_id[example_id] for example_id in self._judged.order if example_id in by_id]
        report: dict[str, Any] = {"overall": official_percent(score.value for score in ordered)}
        for key, kind in (("perQuestionType", "question type"), ("perAnswerType", "answer type")):
            values: defaultdict[str, list[float]] = defaultdict(list)
            for score in ordered:
                values[score.groups[kind][0]].append(score.value)
            report[key] = {group: official_percent(values[group]) for group in sorted(values)}
        return report

    def chance(self, predictions: Mapping[str, Prediction]) -> dict[str, float]:
        """Return the percent of a blind guesser: it gives the commonest answer of each question type *on this split*.

        The count uses `multiple_choice_answer`, or the commonest raw answer where a record lacks that key. The guesser
        sees the gold answers of the split, so a guesser that was trained on another split would get a little less.
        """
        labels = self._judged
        types = [groups["question type"][0] for groups in labels.groups]
        by_type: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for question_type, answer in zip(types, labels.common, strict=True):
            by_type[question_type][answer] += 1
        guess = {question_type: answers.most_common(1)[0][0] for question_type, answers in by_type.items()}
        return self._percent(labels.answers.values([guess[question_type] for question_type in types]).tolist())

    def other_protocols(self, predictions: Mapping[str, Prediction]) -> dict[str, dict[str, float]]:
        labels, always = self._judged, self.protocol_key == ALWAYS
        answers = [_answer(predictions, example_id) for example_id in self._questions.rows]
        values = labels.answers.values(answers, always_normalise=not always).tolist()
        return {"official" if always else ALWAYS: self._percent(values)}

    def target(self, example: Example, boxes: Sequence[np.ndarray]) -> dict[str, float]:
        """Return answer → its weight, in the words of the annotators: 0.3 for each vote, at most 1.

        The weights of a question may sum to 3. This is the rule of Pythia and of VisualBERT's authors.
        """
        records = self._judged.answers[self._questions.rows[example.example_id]]
        return soft_answers([record["answer"] for record in records])

    def told(self, example: Example, draws: random.Random) -> str:
        """Return the answer of one annotator, drawn anew at each visit, so that answers come by their votes."""
        records = self._judged.answers[self._questions.rows[example.example_id]]
        return str(draws.choice(records)["answer"])

    def gold(self, example_id: str) -> str:
        """Return the commonest answer of the annotators, in the words of the file."""
        return self._judged.common[self._questions.rows[example_id]]

    def best(self, example_id: str) -> str:
        return self._judged.answers.best(self._questions.rows[example_id])

    def worst(self, example_id: str) -> str:
        """Return a string that no annotator of the split wrote, so its score is 0."""
        return self._judged.answers.unmatched_answer

    def submission(self, predictions: Mapping[str, Prediction]) -> bytes:
        """Return EvalAI's file: a JSON list of {"question_id": int, "answer": str} in the order of the questions.

        EvalAI takes one file for test-dev and test-standard, and requires every question of test2015 in it. So the
        submission of "test-dev" has all questions of test2015, with "" for the questions that are not in test-dev. For
        that, the file of test2015 must lie in the same folder. Raises InputError where it does not.
        """
        asked = self._questions.rows
        order = self._test_questions() if self.split == "test-dev" else asked
        records = [
            {"question_id": int(name), "answer": _answer(predictions, name) if name in asked else ""} for name in order
        ]
        return json.dumps(records).encode()

    def _test_questions(self) -> dict[str, int]:
        path, asked = _questions_file(self.folder, "test"), self._questions
        required = f"EvalAI requires all {SIZES['test']:,} questions of test2015"
        if not path.exists():
            raise InputError(
                f"no submission of test-dev alone: {required} in its test-dev phase too; run the split test and submit "
                f"its file, or put {path.name} into {self.folder} and run the same line again"
            )
        whole = read_questions(path, SUBSETS["test"])
        there = dict(zip(whole.rows, zip(whole.image_ids, whole.texts, strict=True), strict=True))
        for example_id, *question in zip(asked.rows, asked.image_ids, asked.texts, strict=True):
            if example_id not in there:
                raise not_in(self.files[0], example_id, path)
            if there[example_id] != tuple(question):
                raise AnnotationError(
                    f"{self.files[0]}: question_id {example_id} has another image or other words in {path.name}; "
                    "take both files from one release"
                )
        if self.subset is None and len(there) != SIZES["test"]:
            raise InputError(
                f"no submission: {required}, but {path} has {len(there):,}; download it again and run the same line "
                "again"
            )
        return whole.rows

    @property
    def _judged(self) -> Labels:
        self.need_labels()
        return self._labels

    def _percent(self, values: Sequence[float]) -> dict[str, float]:
        """Return every metric over the values of all questions."""
        units = {"accuracy": values, "pair_accuracy": self._pair_values(values)}
        return {metric: 100 * sum(values) / len(values) for metric, values in units.items() if values}

    def _pair_values(self, values: Sequence[float]) -> list[float]:
        rows = self._questions.rows
        return [float(values[rows[first]] == values[rows[second]] == 1.0) for first, second in self._judged.pairs]


def soft_answers(answers: Sequence[str]) -> dict[str, float]:
    """Return answer → min(0.3 × votes, 1). Answers are compared as they are: no case or punctuation is changed."""
    return {answer: min(0.3 * votes, 1.0) for answer, votes in Counter(answers).items()}


def _answer(predictions: Mapping[str, Prediction], example_id: str) -> str:
    answer = predictions[example_id].answer
    if not isinstance(answer, str):
        raise InputError(f"prediction of question {example_id}: answer {answer!r} is not a string")
    return answer


def _questions_file(folder: Path, split: str) -> Path:
    return folder / f"v2_OpenEnded_mscoco_{SUBSETS[split]}_questions.json"
