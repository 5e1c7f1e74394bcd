"""The pure halves of generative models for VCR and Flickr30K Entities: prompts, marks on images, and what texts and
likelihoods become.

Golden values are made by hand; the docstrings hold the arithmetic. Box formats are also compared with the processors of
transformers. The data of the evaluations are small synthetic worlds.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from visualbert_core.config import AnsweringConfig, EvaluateConfig, PoolConfig, SyntheticConfig
from visualbert_core.engine.pool import Pool
from visualbert_core.errors import ConfigError, CoverageError, InputError
from visualbert_core.evaluation.run import evaluate
from visualbert_core.evaluation.run_folder import Run
from visualbert_core.evaluation.worker import read_predictions
from visualbert_core.models import ReadsPixels
from visualbert_core.models.generative import multiple_choice
from visualbert_core.models.generative.asked import Asked, Outcome
from visualbert_core.models.generative.multiple_choice import COLOURS, NAMES, Settings
from visualbert_core.schema import Example, MultipleChoice, Pixels, Prediction
from visualbert_core.synthetic.files import make_synthetic

INLINE = PoolConfig(inline=True)

NAMED, DRAWN = Settings(), Settings(people="drawn")
OBJECTS = ("person", "cup", "person", "cup")
CHOICES: tuple[tuple[Any, ...], ...] = (((0,), "sits", "."), ((2, 0), "do", "n't", "."), ((1,), "'s", "."), ("No", "."))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a small synthetic world with six images for VCR and six for Flickr30K Entities."""
    config = SyntheticConfig(vqa_images=1, vcr_images=6, nlvr2_sets=1, flickr_images=6)
    return make_synthetic(tmp_path_factory.mktemp("forms") / "world", config)


def example(**changes: Any) -> MultipleChoice:
    fields: dict[str, Any] = {
        "example_id": "val-1/answer",
        "image_ids": ("i",),
        "objects": OBJECTS,
        "context": ("Why", "is", (2,), "near", (1, 3), "?"),
        "choices": CHOICES,
        "mentioned": (0, 1, 2, 3),
    }
    return MultipleChoice(**fields | changes)


def picture(boxes: Sequence[Sequence[float]] | None = None, size: tuple[int, int] = (100, 60)) -> Pixels:
    """Make a picture of (width, height) in one grey, with the whole image as row 0 of its boxes."""
    rgb = np.full((size[1], size[0], 3), 100, np.uint8)
    rgb.setflags(write=False)
    return Pixels("i", rgb, "", None if boxes is None else np.array([[0, 0, *size], *boxes], np.float32))


BOXES = [[10, 10, 40, 50], [50, 10, 70, 30], [60, 5, 95, 55], [0, 0, 8, 8]]


# ---------------------------------------------------------------------------------------------------------------------
# VCR: text.


def test_people_have_neutral_names() -> None:
    """People are Casey and Riley in the order of the objects, in the context and in every choice. Other objects have
    the name of their class, and a choice follows as a continuation."""
    (asked,) = multiple_choice.ask(example(), (picture(BOXES),), NAMED)
    assert asked.prompt == "Why is Riley near cup and cup?"
    assert asked.continuations == ("Casey sits.", "Riley and Casey don't.", "cup's.", "No.")


def test_drawn_objects_have_colours_in_the_prompt() -> None:
    """The prompt tells the colour of every box, people first, and numbers objects of one class, so that each name
    stands for one box. The template is around both."""
    settings = Settings(prompt="Question: {} Answer:", people="drawn")
    (asked,) = multiple_choice.ask(example(), (picture(BOXES),), settings)
    assert asked.prompt == (
        "Question: Casey is in the red box, Riley is in the green box, cup 1 is in the blue box and cup 2 is in the "
        "yellow box. Why is Riley near cup 1 and cup 2? Answer:"
    )
    assert asked.continuations[2] == "cup 1's."


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (("Is", (0,), "'", "s", "dog", "here", "?"), "Is Casey's dog here?"),
        (("They", "'re", ",", "we", "think", ",", "old", "."), "They're, we think, old."),
        (("She", "ca", "n't", "!"), "She can't!"),
        (("Does", "it", "say", "'", "stop", "'", "?"), "Does it say ' stop '?"),
        (("a", "{}", "b", "\\1"), "a {} b \\1"),
        ((), ""),
    ],
)
def test_words_become_a_sentence(tokens: tuple[Any, ...], text: str) -> None:
    """Punctuation and endings join their word, quotation marks stay as they are, and no text is a pattern."""
    (asked,) = multiple_choice.ask(example(context=tokens), (picture(),), Settings(prompt="<{}>"))
    assert asked.prompt == f"<{text}>"


def test_more_people_than_names_and_colours() -> None:
    """The fifteenth person has a number, and only as many objects as there are colours have a box."""
    crowd = example(objects=("person",) * 16, context=((14,), "?"), choices=CHOICES[3:], mentioned=tuple(range(16)))
    boxes = [[4 * i, 0, 4 * i + 3, 60] for i in range(16)]
    (asked,) = multiple_choice.ask(crowd, (picture(boxes),), DRAWN)
    assert asked.prompt.endswith("person 15?")
    assert asked.prompt.count(" box") == len(COLOURS) == 12
    assert asked.prompt.split(" is in")[0] == NAMES[0]
    assert (asked.images[0][:, 4 * 12 :] == 100).all()


def test_protocol_says_how_choices_are_asked() -> None:
    """Prompt, normalisation and people are in the printed protocol."""
    assert NAMED.protocol == '"{}", choice-mean, people named'
    assert Settings("Q: {}", "sum", "drawn").protocol == '"Q: {}", choice-sum, people drawn'


def test_settings_of_the_user() -> None:
    """What the user does not set is "{}", the mean, and names. Written answers are refused in one line."""
    assert multiple_choice.settings_of(AnsweringConfig()) == NAMED
    chosen = AnsweringConfig(prompt="Q: {}", normalise="sum", people="drawn", answer_by="likelihood")
    assert multiple_choice.settings_of(chosen) == Settings("Q: {}", "sum", "drawn")
    with pytest.raises(ConfigError, match="answer_by generate: a written answer gives no score"):
        multiple_choice.settings_of(AnsweringConfig(answer_by="generate"))


# ---------------------------------------------------------------------------------------------------------------------
# VCR: boxes on the image.


def test_boxes_are_drawn_in_their_colours() -> None:
    """A box has a line of its colour, 2 pixels wide in a small image, and a fill of 15 % of its colour: grey 100 under
    red is 0.85 · 100 + 0.15 · 255 = 123.25 in the first channel and 85 in the others. Pixels outside stay."""
    shown = picture(BOXES)
    (asked,) = multiple_choice.ask(example(), (shown,), DRAWN)
    (image,) = asked.images
    assert image.dtype == np.uint8
    assert (image[10, 10:40] == COLOURS["red"]).all()
    assert (image[10:50, 39] == COLOURS["red"]).all()
    assert image[12, 12].tolist() == [123, 85, 85]
    assert image[30, 45].tolist() == [100, 100, 100]
    assert (shown.rgb == 100).all()


def test_a_small_box_is_over_a_large_one() -> None:
    """Where boxes cover each other, the smaller one is drawn last, so that its line is whole."""
    (asked,) = multiple_choice.ask(example(), (picture(BOXES),), DRAWN)
    assert (asked.images[0][10:30, 69] == COLOURS["blue"]).all()


def test_boxes_are_cut_to_the_image() -> None:
    """A box that reaches outside is drawn as far as the image goes, and one that lies outside is not drawn."""
    boxes = [[-5, -5, 30, 30], [200, 200, 300, 300], [90, 50, 120, 90], [0, 59.6, 100, 60]]
    (asked,) = multiple_choice.ask(example(), (picture(boxes),), DRAWN)
    assert (asked.images[0][0, :30] == COLOURS["red"]).all()
    assert asked.images[0].shape == (60, 100, 3)


@pytest.mark.parametrize("settings", [NAMED, DRAWN])
def test_without_boxes_nothing_is_drawn(settings: Settings) -> None:
    """A wrong or grey image comes without boxes. It stays as it is, and the text is the text over the own image."""
    bare, own = (multiple_choice.ask(example(), (picture(each),), settings)[0] for each in (None, BOXES))
    assert (bare.images[0] == 100).all()
    assert (bare.prompt, bare.continuations) == (own.prompt, own.continuations)
    assert (own.images[0] == 100).all() == (settings is NAMED)


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        (picture(BOXES[:3]), "are 3, and object 3 has none"),
        (
            Pixels("i", np.zeros((30, 50, 3), np.uint8), "", picture(BOXES).boxes),
            "are of 100 × 60 pixels, and the image has 50 × 30",
        ),
    ],
)
def test_boxes_of_another_release(shown: Pixels, message: str) -> None:
    """An object without a box, and boxes of an image of another size, are one line that names example and image."""
    with pytest.raises(InputError, match=f"val-1/answer: the boxes in the JSON file beside image 'i' {message}"):
        multiple_choice.ask(example(), (shown,), DRAWN)


# ---------------------------------------------------------------------------------------------------------------------
# VCR: the answer.


def test_the_mean_does_not_punish_length() -> None:
    """Log-likelihoods −6 over 2 tokens and −8 over 4 have the means −3 and −2. The sum takes the first choice, the mean
    the second, with the probability 1 / (1 + e^−1 + 2 · e^−3) where the others have −5."""
    outcome = Outcome(log_likelihoods=(-6.0, -8.0, -20.0, -20.0), tokens=(2, 4, 4, 4))
    answer, scores, generated = multiple_choice.read(example(), (), [outcome], NAMED)
    assert (answer, generated) == (1, ())
    assert scores[1] == pytest.approx(1 / (1 + math.exp(-1) + 2 * math.exp(-3)))
    assert sum(scores) == pytest.approx(1)
    assert multiple_choice.read(example(), (), [outcome], Settings(normalise="sum"))[0] == 0


def test_ties_and_empty_choices() -> None:
    """The lowest index wins a tie, also one that exists in float32 only, and a choice without tokens does no harm."""
    near = Outcome(log_likelihoods=(-2.0, -1.0, -1.0 + 1e-12, 0.0), tokens=(1, 1, 1, 0))
    assert multiple_choice.read(example(), (), [near], NAMED)[0] == 3
    tied = Outcome(log_likelihoods=(-2.0, -1.0, -1.0 + 1e-12, -3.0), tokens=(1, 1, 1, 1))
    answer, scores, _ = multiple_choice.read(example(), (), [tied], NAMED)
    assert (answer, scores[1]) == (1, scores[2])


# ---------------------------------------------------------------------------------------------------------------------
# VCR: whole evaluations.


class Chooser:
    """Stands in for a network: the log-likelihood of a choice comes from its text and from the pixels."""

    forms = frozenset({MultipleChoice})
    name = "Chooser"
    seen: list[tuple[MultipleChoice, Pixels, Asked]]

    def __init__(self, settings: Settings) -> None:
        self.settings, self.protocol, self.seen = settings, settings.protocol, []
        self.reads = ReadsPixels(boxes="beside" if settings.people == "drawn" else "none")

    def fingerprint(self) -> dict[str, Any]:
        return {"class": "Chooser", "protocol": self.protocol}

    def predict(self, batch: Sequence[tuple[Example, tuple[Pixels, ...]]]) -> list[Prediction]:
        return [self._answer(each, pictures) for each, pictures in batch]

    def _answer(self, each: Example, pictures: tuple[Pixels, ...]) -> Prediction:
        assert isinstance(each, MultipleChoice)
        (asked,) = multiple_choice.ask(each, pictures, self.settings)
        self.seen.append((each, pictures[0], asked))
        image = zlib.crc32(asked.images[0].tobytes())
        sums = tuple(-float((zlib.crc32(text.encode()) + image) % 100) for text in asked.continuations)
        outcome = Outcome(log_likelihoods=sums, tokens=tuple(len(text.split()) for text in asked.continuations))
        answer, scores, generated = multiple_choice.read(each, pictures, [outcome], self.settings)
        return Prediction(each.example_id, each.image_ids[0], answer, scores, generated)


def evaluated(model: Any, world: Path, out: Path, task: str, **changes: Any) -> Run:
    """Evaluate a stand-in in this process."""
    config = EvaluateConfig(**{"task": task, "split": "val", "model": out / "model", "out": out, **changes})
    with Pool(INLINE) as pool:
        return evaluate(config, pool, lambda *_: model)


def vcr(model: Any, world: Path, out: Path, **changes: Any) -> Run:
    places = {"annotations": world / "vcr", "images": world / "vcr" / "vcr1images"}
    return evaluated(model, world, out, "vcr", **places | changes)


def test_drawn_boxes_come_from_the_file_beside_the_image(world: Path, tmp_path: Path) -> None:
    """Over the synthetic world, the pixels under the line of every mentioned object have its colour, the run is
    complete, and the provenance names the boxes."""
    model = Chooser(DRAWN)
    run = vcr(model, world, tmp_path)
    assert run.scores is not None
    assert run.scores["answering"] == DRAWN.protocol
    assert set(run.record["provenance"]["images"]) == {"count", "digest", "boxes"}
    assert len(model.seen) == 24
    for each, shown, asked in model.seen:
        assert shown.boxes is not None
        assert len(shown.boxes) == len(each.objects) + 1
        areas = (shown.boxes[1:, 2:] - shown.boxes[1:, :2]).prod(axis=1)
        smallest = min(each.mentioned, key=lambda index: areas[index])
        left, top, right, _ = np.round(shown.boxes[smallest + 1]).astype(int)
        colour = list(COLOURS.values())[each.mentioned.index(smallest)]
        assert (asked.images[0][top, left:right] == colour).all()


def test_baselines_have_no_boxes(world: Path, tmp_path: Path) -> None:
    """A wrong image is another image without marks, a grey one has none either, and the text is the same."""
    texts = []
    for visual in ("own", "wrong-image", "none"):
        model = Chooser(DRAWN)
        run = vcr(model, world, tmp_path, visual=visual)
        assert ("boxes" in run.record["provenance"]["images"]) == (visual == "own")
        texts.append({each.example_id: (asked.prompt, asked.continuations) for each, _, asked in model.seen})
        for each, shown, asked in model.seen:
            assert (shown.image_id == each.image_ids[0]) == (visual != "wrong-image")
            assert np.array_equal(asked.images[0], shown.rgb) == (visual != "own")
    assert texts[0] == texts[1] == texts[2]


def test_other_boxes_are_another_run(world: Path, tmp_path: Path) -> None:
    """The boxes are an ingredient of a run that draws them, and of no other run."""
    copied = shutil.copytree(world, tmp_path / "world")
    for settings in (NAMED, DRAWN):
        vcr(Chooser(settings), copied, tmp_path / settings.people)
    file = next(copied.glob("vcr/vcr1images/world/*.json"))
    record = json.loads(file.read_text())
    record["boxes"][0][0] += 1
    file.write_text(json.dumps(record))
    vcr(Chooser(NAMED), copied, tmp_path / "named")
    with pytest.raises(InputError, match=r"other ingredients \(images"):
        vcr(Chooser(DRAWN), copied, tmp_path / "drawn")


def test_an_image_without_boxes_is_a_failure(world: Path, tmp_path: Path) -> None:
    """Where the JSON file is missing, the examples of the image fail with the reason, and there is no score. A model
    that only names people does not need the file."""
    copied = shutil.copytree(world, tmp_path / "world")
    next(copied.glob("vcr/vcr1images/world/*.json")).unlink()
    vcr(Chooser(NAMED), copied, tmp_path / "named")
    with pytest.raises(CoverageError, match=r"4 missing .*json is missing: it must hold the boxes of its image"):
        vcr(Chooser(DRAWN), copied, tmp_path / "drawn")
    _, failures = read_predictions(tmp_path / "drawn" / "model__vcr__val" / "predictions")
    assert {(failure.stage, failure.error) for failure in failures} == {("images", "FileNotFoundError")}


def test_the_leaderboard_file_is_complete(world: Path, tmp_path: Path) -> None:
    """On an unlabelled split the likelihoods fill all 20 numbers of every record, and the largest is the answer."""
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    lines = (world / "vcr" / "val.jsonl").read_text().replace('"val-', '"test-').splitlines()
    records = [json.loads(line) for line in lines]
    kept = [{key: value for key, value in each.items() if not key.endswith("_label")} for each in records]
    (annotations / "test.jsonl").write_text("".join(json.dumps(each) + "\n" for each in kept))
    run = vcr(Chooser(NAMED), world, tmp_path, split="test", annotations=annotations)
    rows = list(csv.DictReader((run.folder / "submission.csv").open()))
    predictions = {each.example_id: each for each in read_predictions(run.folder / "predictions")[0]}
    assert [row["annot_id"] for row in rows] == [each["annot_id"] for each in records]
    for row in rows:
        for part, block in (("answer", "answer"), ("rationale/2", "rationale_conditioned_on_a2")):
            numbers = [float(row[f"{block}_{i}"]) for i in range(4)]
            assert sum(numbers) == pytest.approx(1, abs=1e-6)
            assert numbers.index(max(numbers)) == predictions[f"{row['annot_id']}/{part}"].answer
    assert len(rows[0]) == 21
