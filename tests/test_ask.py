"""A question to one model about one image: the answers, their order, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pixel_model
import pytest
from conftest import ROOT, SmallNight
from PIL import Image

import visualbert_core
from visualbert_core import FeatureStore, ask, load_detector, load_model
from visualbert_core.cli import main
from visualbert_core.detector import Detection
from visualbert_core.errors import InputError
from visualbert_core.evaluation import ask as asking
from visualbert_core.models import NOT_FINITE
from visualbert_core.schema import Failure, Generated, Prediction, Question, Statement

WEIGHTS = ROOT / "visualbert_core" / "synthetic" / "weights"
VQA, NLVR2, DETECTOR = WEIGHTS / "visualbert-vqa", WEIGHTS / "visualbert-nlvr2", WEIGHTS / "detector"
QUESTION = "how many circles are there?"


@pytest.fixture
def image(small_night: SmallNight) -> Path:
    return small_night.out / "synthetic" / "vqa" / "val2014" / "COCO_val2014_000000000001.jpg"


@pytest.fixture
def store(small_night: SmallNight) -> FeatureStore:
    (folder,) = (small_night.out / "features" / "vqa-val2014").iterdir()
    return FeatureStore.open(folder)


@pytest.fixture
def brightness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the checkpoint of a model that reads pixels and gives no logits."""
    monkeypatch.syspath_prepend(pixel_model.install(tmp_path / "packages"))
    return pixel_model.write_checkpoint(tmp_path / "brightness", shift=0)


def test_the_first_answer_is_the_prediction(image: Path, store: FeatureStore) -> None:
    """A classifier's answers come in falling order with their probabilities. The first is what evaluation predicts."""
    answers = ask(VQA, image.stem, QUESTION, top_k=5, features=store)
    model = load_model(VQA, Question, "cpu")
    (prediction,) = model.predict([(Question("1", (image.stem,), QUESTION), (store.fetch(image.stem),))])
    assert isinstance(prediction, Prediction)
    assert (answers[0].answer, answers[0].score) == (prediction.answer, prediction.scores[0])
    scores = [each.score or 0.0 for each in answers]
    assert scores == sorted(scores, reverse=True)
    assert len({each.answer for each in answers}) == 5


def test_all_answers_are_ranked_but_the_unknown_one(image: Path, store: FeatureStore) -> None:
    """A request for more answers than there are gives every answer once, without <unk>; their scores sum to 1."""
    answers = ask(VQA, image.stem, QUESTION, top_k=1000, features=store)
    listed = (VQA / "answers.txt").read_text().split("\n")[:-1]
    assert sorted(each.answer for each in answers) == sorted(set(listed) - {"<unk>"})
    assert sum(each.score or 0.0 for each in answers) == pytest.approx(1)


def test_the_detector_gives_what_the_store_holds(image: Path, store: FeatureStore) -> None:
    """A detector that runs on the image leads to the same answers as the store that it has filled."""
    assert ask(VQA, image, QUESTION, detector=DETECTOR) == ask(VQA, image.stem, QUESTION, features=store.folder)


def test_open_models_and_images_are_asked_too(image: Path) -> None:
    """An open model, an open detector and an image of Pillow give the answers of the three files."""
    model, detector = load_model(VQA, Question), load_detector(DETECTOR)
    with Image.open(image) as picture:
        assert ask(model, picture, QUESTION, detector=detector) == ask(VQA, image, QUESTION, detector=DETECTOR)


def test_two_images_ask_a_statement(small_night: SmallNight) -> None:
    """A statement about a pair is answered by both truth values with their scores; the pair has an order."""
    folder = small_night.out / "synthetic" / "nlvr2" / "images" / "dev"
    left, right = sorted(folder.iterdir())[:2]
    text = "the left image has a circle and the right image has none"
    answers = ask(NLVR2, (left, right), text, detector=DETECTOR)
    assert sorted(each.answer for each in answers) == ["False", "True"]
    assert sum(each.score or 0.0 for each in answers) == pytest.approx(1)
    assert (answers[0].score or 0) > (answers[1].score or 0)
    assert ask(NLVR2, (right, left), text, detector=DETECTOR) != answers
    assert ask(NLVR2, (left, right), text, top_k=1, detector=DETECTOR) == answers[:1]


def test_a_model_that_reads_pixels_gets_the_image(image: Path, brightness: Path) -> None:
    """A model without logits gives the one answer that it predicts, from the pixels that the file decodes to."""
    mean = np.asarray(Image.open(image).convert("RGB")).mean()
    level = int(mean)
    (only,) = ask(brightness, image, QUESTION)
    assert (only.answer, only.score) == (("yes", "no", "2", "red")[level % 4], level % 10 / 10)
    both = [each.answer for each in ask(brightness, [image, image], "a statement")]
    assert both == (["True", "False"] if int(2 * mean) % 2 == 0 else ["False", "True"])


def test_a_text_without_an_answer_is_shown() -> None:
    """Where a model has written a text in which no answer was found, the text itself is shown, without a score."""
    wrote = Prediction("1", "1", "", (), (Generated("I cannot tell.", parsed=False),))
    (shown,) = asking._said(Statement("1", ("1", "2"), "a statement"), wrote)
    assert (shown.answer, shown.score) == ("I cannot tell.", None)


def test_the_command_prints_a_line_for_each_answer(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints what the function returns, as lines and as JSON."""
    words = ["ask", "--model", str(VQA), "--image", str(image), "--detector", str(DETECTOR), QUESTION]
    assert main([*words, "--top-k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main([*words, "--top-k", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["question"] == QUESTION
    assert lines == [f"{each['score']:<9.3g} {each['answer']}" for each in document["answers"]]
    assert len(lines) == 2


def test_asking_imports_no_ray() -> None:
    """A process that asks does not even import Ray."""
    code = "import sys, visualbert_core.evaluation.ask; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


IMAGE = {"image": "IMAGE"}
PNG = ROOT / "docs" / "report.png"
REFUSED = {
    "no such image": ({"image": "nowhere.jpg", "detector": DETECTOR}, r"nowhere\.jpg: no such image"),
    "no image": ({"image": ROOT / "README.md", "detector": DETECTOR}, r"cannot be read: README\.md is not an image"),
    "a folder": ({"image": ROOT / "tests", "detector": DETECTOR}, r"cannot be read: tests is a folder"),
    "no detector": (IMAGE, r"reads region features: name either the detector .*--detector"),
    "both": ({**IMAGE, "detector": DETECTOR, "features": "STORE"}, r"reads region features: name either"),
    "other space": ({**IMAGE, "detector": "OTHER"}, r"trained on features of .* has features of 'elsewhere'"),
    "not in the store": ({"image": "nobody", "features": "STORE"}, r"image 'nobody' is not in"),
    "no question": ({**IMAGE, "question": "  ", "detector": DETECTOR}, "the question is empty"),
    "no answers": ({**IMAGE, "top_k": 0, "detector": DETECTOR}, "top_k is 0: it must be at least 1"),
    "no images": ({"image": (), "detector": DETECTOR}, "no images: give one"),
    "three images": ({"image": ("a", "b", "c"), "detector": DETECTOR}, "3 images: give one"),
    "a pair": (
        {"image": (ROOT / "docs" / "report.png",) * 2, "detector": DETECTOR},
        "answers Question and not Statement",
    ),
    "no model": ({**IMAGE, "model": "nothing"}, "nothing: no such checkpoint folder"),
    "a prompt": (
        {**IMAGE, "detector": DETECTOR, "answering": visualbert_core.config.AnsweringConfig(prompt="Q: {}")},
        "prompt: this model has no such setting",
    ),
    "pixels and a detector": ({**IMAGE, "model": "BRIGHTNESS", "detector": DETECTOR}, "reads the image itself"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_asked_is_one_line(
    case: str, image: Path, store: FeatureStore, brightness: Path, tmp_path: Path
) -> None:
    """Each mistake raises an input error of one line that names it."""
    given, message = REFUSED[case]
    other = tmp_path / "other"
    other.mkdir()
    config = json.loads((DETECTOR / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"space": "elsewhere"}))
    (other / "model.safetensors").symlink_to(DETECTOR / "model.safetensors")
    places = {"IMAGE": image, "STORE": store.folder, "OTHER": other, "BRIGHTNESS": brightness}
    arguments = {"model": VQA, "question": QUESTION} | given
    arguments = {key: places.get(value, value) if isinstance(value, str) else value for key, value in arguments.items()}
    with pytest.raises(InputError, match=message) as error:
        ask(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_an_open_model_keeps_its_settings(image: Path) -> None:
    """A precision for a model that is already open would have no effect, so it is refused."""
    with pytest.raises(InputError, match="VisualBertPredictor is open: give precision"):
        ask(load_model(VQA, Question), image, QUESTION, detector=DETECTOR, precision="bfloat16")


def test_numbers_that_are_not_finite_give_no_answer(image: Path, brightness: Path) -> None:
    """Where a detector or a model has no finite number to show, there is an error that says so and no answer."""

    class Overflowing:
        feature_size, space = load_detector(DETECTOR).feature_size, load_detector(DETECTOR).space

        def detect(self, images: Sequence[np.ndarray]) -> list[Detection]:
            (found,) = load_detector(DETECTOR).detect(images)
            return [replace(found, features=np.full_like(found.features, np.nan))]

    class Undecided(pixel_model.BrightnessModel):
        def predict(self, batch: Any) -> list[Any]:
            return [Failure("1", "predict", "NotFinite", NOT_FINITE)]

    detector: Any = Overflowing()
    with pytest.raises(InputError, match=r"COCO_.*: the detector's features hold NaN or infinity"):
        ask(VQA, image, QUESTION, detector=detector)
    with pytest.raises(InputError, match="no answer: the model's scores hold NaN"):
        ask(Undecided(0), image, QUESTION)
