"""Owns caption benchmarks: a model describes an image in one sentence, and people's captions judge it.

Official program: coco-caption (Chen et al. 2015, arXiv:1504.00325; PyPI pycocoevalcap 1.2). Tests compare tokens and
scores with its output. METEOR and SPICE are no metrics here, because they are Java programs. `metrics.java_captions`
runs them where the user has installed them.

The headline is CIDEr-D, which is shown times 100 as in the literature, so an image gets at most 1,000. It weighs words
by the references of the very set that is scored. So a score of a part of a set does not compare with a score of the
whole, and a breakdown keeps the weights of the whole. The interval also takes the weights as given.

coco-caption scores images in the order of the annotations, and so does this file. The order decides one thing: a
caption that ends in a single letter and a full stop (see `metrics.ptb_tokenizer`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from statistics import fmean
from typing import Any, ClassVar

import numpy as np

from visualbert_core.errors import AnnotationError, ConfigError
from visualbert_core.metrics.captions import CIDER_BEST, LONGEST, Cider, Tokens, bleu_counts, caption, rouge_l
from visualbert_core.metrics.java_captions import check_programs, java_scores
from visualbert_core.metrics.ptb_tokenizer import SHIFTING, tokenize
from visualbert_core.metrics.statistics import summarize
from visualbert_core.metrics.sums import FUNCTIONS
from visualbert_core.schema import Captioning, Counts, Example, JudgedAnswer, Prediction, Score
from visualbert_core.tasks.base import Task
from visualbert_core.tasks.captions_files import (
    TOKEN_FILE,
    CaptionRecord,
    Images,
    read_coco,
    read_karpathy,
    read_sentence_files,
    read_tokens,
)
from visualbert_core.tasks.flickr30k_files import read_image_ids
from visualbert_core.tasks.shown import Person, Published

NOCAPS = "nocaps_val_4500_captions.json"
KARPATHY = {"coco": "dataset_coco.json", "flickr30k": "dataset_flickr30k.json"}
SIZES = {
    "val2014": 40_504,
    "train2014": 82_783,
    "val2017": 5_000,
    "train2017": 118_287,
    "coco-test": 5_000,
    "coco-val": 5_000,
    "coco-train": 82_783,
    "coco-restval": 30_504,
    "flickr30k-test": 1_000,
    "flickr30k-val": 1_014,
    "flickr30k-train": 29_000,
    "nocaps-val": 4_500,
    "test": 1_000,
    "val": 1_000,
    "train": 29_783,
}
"""Split → the number of its images. The last three are of Flickr30K Entities.

val2014 and its like are COCO's own. coco-… and flickr30k-… are Karpathy's.
"""
OFFICIAL_NAMES = {"cider": "CIDEr", **{f"bleu-{n}": f"Bleu_{n}" for n in range(1, LONGEST + 1)}, "rouge-l": "ROUGE_L"}
"""Metric → its name in coco-caption."""


class CaptionsTask(Task):
    """Represents one split of a caption benchmark. An answer is a caption.

    test, val and train are splits of the user's own set, captions_{split}.json in COCO's form, or of Flickr30k, where
    {split}.txt lists image ids. The captions of Flickr30k come from results_20130124.token where it is there, and
    otherwise from Sentences/ of Flickr30K Entities, which are tokenised already. The protocol's name says so.
    """

    name, title = "captions", "Captions"
    form = Captioning
    splits = SIZES
    metrics = tuple(OFFICIAL_NAMES)
    metric_labels: ClassVar = {
        "cider": "CIDEr-D",
        "rouge-l": "ROUGE-L",
        **{f"bleu-{n}": f"BLEU-{n}" for n in range(1, LONGEST + 1)},
    }
    scales: ClassVar = {"cider": 100 * CIDER_BEST}
    protocols: ClassVar = {"coco-caption": "coco-caption (PTB tokenizer 3.4.1, BLEU, ROUGE-L, CIDEr-D of this set)"}
    sizes: ClassVar = {"images": SIZES}
    person_is = "each reference of an image, judged by the image's other references"
    guess = "a person's caption of another image"
    published = tuple(
        Published(
            network,
            "coco-test",
            percent,
            source,
            "coco-caption",
            "a photo of; 5 beams, 8 to 30 tokens",
            "fine-tuned on COCO, images of 364 pixels",
        )
        for network, percent, source in (
            (
                "BLIP-2 ViT-g OPT-2.7B",
                {"bleu-4": 43.7, "cider": 145.8},
                "BLIP-2, arXiv:2301.12597, as quoted by LAVIS",
            ),
            (
                "BLIP-2 ViT-g OPT-2.7B, released",
                {"bleu-4": 43.8, "rouge-l": 62.0, "cider": 146.1},
                "configurations of github.com/salesforce/LAVIS at 506965b",
            ),
        )
    )
    submission_name = "captions.json"
    result = CaptionRecord
    has_range = False

    def read(self) -> None:
        self.images = self._read_images()
        if not self.images:
            raise AnnotationError(f"{self.files[0]}: no image of this split; name the folder of the right data set")
        for name, image in self.images.items():
            if not image.captions:  # The official program would drop it unseen where its result is missing too.
                file = next((path for path in self.files[1:] if path.stem == name), self.files[-1])
                raise AnnotationError(
                    f"{file}: image {name} has no reference caption, so no score is defined; add one or remove the "
                    "image"
                )
        self.compare_size(images=len(self.images))
        if self.files[-1].parent.name == "Sentences":
            self.protocol += "; references of Sentences/, tokenised before"

    def _read_images(self) -> Images:
        """Return the images. Sets `files`."""
        data_set, _, part = self.split.partition("-")
        if part and data_set in KARPATHY:
            self.files = (self.folder / KARPATHY[data_set],)
            return read_karpathy(self.files[0], part)
        ids = self.folder / f"{self.split}.txt"
        coco = self.folder / (NOCAPS if data_set == "nocaps" else f"captions_{self.split}.json")
        if self.split not in ("test", "val", "train") or not ids.exists():
            self.files = (coco,)
            return read_coco(coco)
        if coco.exists():
            raise AnnotationError(
                f"{self.folder}: {coco.name} and {ids.name} are two data sets; put each into a folder of its own"
            )
        names = read_image_ids(ids)
        if (tokens := self.folder / TOKEN_FILE).exists():
            self.files = (ids, tokens)
            return read_tokens(tokens, names)
        self.files = (ids, *(self.folder / "Sentences" / f"{name}.txt" for name in names))
        return read_sentence_files(self.folder, names)

    def examples(self) -> Iterator[Captioning]:
        """Yield the images in file order. The `example_id` is the id in result files, as a string."""
        for example_id, image in self.images.items():
            yield Captioning(example_id, (image.image_id,))

    def lessons(self) -> Iterator[Captioning]:
        """Yield every caption of every image as an example of its own, as the field counts epochs.

        The `example_id` is "<id in result files>/<number of the caption from 0>".
        """
        for example_id, image in self.images.items():
            for number in range(len(image.captions)):
                yield Captioning(f"{example_id}/{number}", (image.image_id,))

    def target(self, example: Example, boxes: Sequence[np.ndarray]) -> str:
        """Return the caption of one of the `lessons`."""
        name, _, number = example.example_id.rpartition("/")
        return self.images[name].captions[int(number)]

    def references(self, example_id: str) -> tuple[str, ...]:
        return self.images[example_id].captions

    def score(self, predictions: Mapping[str, Prediction]) -> Iterator[Score]:
        """Yield CIDEr-D, BLEU-1 to BLEU-4 and ROUGE-L of every image. Raises InputError where an answer is no string.

        The value of BLEU is that of the image alone; its counts make the BLEU of the set.
        """
        judged = [self.judged(example, predictions[example.example_id]) for example in self.examples()]
        candidates = _tokens([each.answer for each in judged])
        yield from self._judge(candidates, self._references, judged)

    def _judge(
        self,
        candidates: Sequence[Tokens],
        references: Sequence[Sequence[Tokens]],
        judged: Sequence[JudgedAnswer] | None = None,
    ) -> Iterator[Score]:
        """Yield the scores of one candidate for each image, in the order of the split."""
        ciders = Cider(references).scores(candidates, references).tolist()
        counts = np.array([bleu_counts(*each) for each in zip(candidates, references, strict=True)])
        sums = {n: counts[:, [*range(n), *range(LONGEST, LONGEST + n), -2, -1]] for n in range(1, LONGEST + 1)}
        bleus = {n: FUNCTIONS["bleu"](found)[0].tolist() for n, found in sums.items()}
        for row, (example_id, image) in enumerate(self.images.items()):
            unit = partial(
                Score,
                example_id,
                cluster=image.image_id,
                groups={} if image.domain is None else {"domain": (image.domain,)},
            )
            yield unit("cider", ciders[row] / CIDER_BEST, judged=judged[row] if judged else None)
            for n in sums:
                yield unit(f"bleu-{n}", bleus[n][row], counts=Counts("bleu", tuple(sums[n][row].tolist())))
            yield unit("rouge-l", rouge_l(candidates[row], references[row]))

    @cached_property
    def _texts(self) -> list[list[str]]:
        """Return the tokenised references of each image, in the order of the split."""
        texts = iter(tokenize([text for image in self.images.values() for text in image.captions]))
        return [[next(texts) for _ in image.captions] for image in self.images.values()]

    @cached_property
    def _references(self) -> list[list[Tokens]]:
        return [list(map(caption, texts)) for texts in self._texts]

    def official(self, scores: Sequence[Score]) -> dict[str, Any]:
        """Return the corpus scores with the names of coco-caption: BLEU and ROUGE-L in [0, 1], CIDEr in [0, 10]."""
        metrics = summarize(scores, self.scales).metrics
        return {OFFICIAL_NAMES[name]: metric.value / 100 for name, metric in metrics.items()}

    def chance(self, predictions: Mapping[str, Prediction]) -> dict[str, float]:
        """Return what a person's caption of another image gets: the first reference of the image half a set away."""
        firsts = [captions[0] for captions in self._references]
        if len(firsts) < 2:
            return {}
        half = len(firsts) // 2
        return self._shown(firsts[half:] + firsts[:half], self._references)

    def person(self, predictions: Mapping[str, Prediction]) -> Person | None:
        """Return what a person gets: each reference of an image is judged by the others, and the mean is taken.

        In turn, the first, the second, … reference of every image is left out. In each turn, the same references judge
        the predictions, too. There are as many turns as the image with the fewest references allows. Return None where
        an image has a single reference.
        """
        turns = range(min(map(len, self._references)))
        if len(turns) < 2:
            return None
        given = _tokens([predictions[name].answer for name in self.images])
        persons, models = [], []
        for turn in turns:
            judges = [refs[:turn] + refs[turn + 1 :] for refs in self._references]
            persons.append(self._shown([refs[turn] for refs in self._references], judges))
            models.append(self._shown(given, judges))
        return Person(_means(persons), _means(models))

    def _shown(self, candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> dict[str, float]:
        summary = summarize(self._judge(candidates, references), self.scales)
        return {name: metric.value for name, metric in summary.metrics.items()}

    def beside(self, predictions: Mapping[str, Prediction]) -> dict[str, float]:
        """Return the mean number of words and how many captions differ: a short or general caption may score well."""
        captions = tokenize([predictions[name].answer for name in self.images])
        return {
            "words per caption": fmean(len(text.split()) for text in captions),
            "distinct captions": len(set(captions)),
        }

    def other_scorer(self, programs: Sequence[str]) -> Callable[[Mapping[str, Prediction]], dict[str, float]]:
        """Return the function that scores captions with METEOR and SPICE. Raises ConfigError where one is missing."""
        check_programs(programs)

        def scores(predictions: Mapping[str, Prediction]) -> dict[str, float]:
            given = tokenize([predictions[name].answer for name in self.images])
            references = dict(zip(self.images, self._texts, strict=True))
            return java_scores(programs, dict(zip(self.images, given, strict=True)), references)

        return scores

    def remarks(self, predictions: Mapping[str, Prediction]) -> list[str]:
        """Return warnings of a set with one image, of captions and references without a word, and of line breaks."""
        answers = [predictions[name].answer for name in self.images]
        references = [text for image in self.images.values() for text in image.captions]
        empty = sum(not text for text in tokenize(answers))
        wordless = sum(not text for texts in self._texts for text in texts)
        broken = [sum(bool(SHIFTING.search(text)) for text in texts) for texts in (answers, references)]
        found = []
        if len(answers) == 1:
            found += ["the set has one image: no word tells it from others, so CIDEr is 0 whatever the caption"]
        if empty:
            found += [f"{empty:,} of {len(answers):,} captions have no word: each gets 0"]
        if wordless:
            found += [f"{wordless:,} of {len(references):,} references have no word: no caption can agree with them"]
        if any(broken):
            found += [
                f"a line break in {broken[0]:,} of {len(answers):,} captions and {broken[1]:,} of {len(references):,} "
                "references is a space here; coco-caption would give all later captions to the wrong images: remove it "
                "before you compare with coco-caption"
            ]
        return found

    def gold(self, example_id: str) -> str:
        return self.images[example_id].captions[0]

    def worst(self, example_id: str) -> Any:
        """Raise ConfigError: no caption is the worst, because a longer one lowers the BLEU of the set further."""
        raise ConfigError(
            "captions: missing captions have no worst or best answer, so there is no range; caption every image and "
            "leave out --allow-partial"
        )

    def submission(self, predictions: Mapping[str, Prediction]) -> bytes:
        """Return a file in COCO's result form, in the order of the split."""
        records = [
            {"image_id": image.result_id, "caption": predictions[name].answer} for name, image in self.images.items()
        ]
        return json.dumps(records, ensure_ascii=False).encode()


def _means(turns: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {metric: fmean(values[metric] for values in turns) for metric in turns[0]}


def _tokens(texts: Sequence[str]) -> list[Tokens]:
    return [caption(text) for text in tokenize(texts)]
