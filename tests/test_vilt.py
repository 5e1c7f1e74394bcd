"""ViLT: its logits are those of transformers, its answers do not depend on the batch, and faulty folders are refused.

The weights are random, because no published weights are at hand. transformers takes the patches in a random order, so
its own logits move by up to 1.6e-6 of the largest from call to call. Here it takes them in order. Two float32 networks
still differ by rounding, and how much depends on the CPU. So `as_exact` compares both with the same network in float64.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from conftest import SmallNight, markers_of, parts_of
from safetensors.torch import load_file, save_file
from tolerances import ROUNDING, SHALLOW, close, relative
from vilt_folders import ANSWERS, TINY, write_vilt

from visualbert_core.config import AnsweringConfig, EvaluateConfig, PoolConfig
from visualbert_core.engine.pool import Pool
from visualbert_core.errors import CheckpointError, ConfigError, CoverageError
from visualbert_core.evaluation.invariance_check import check_invariance
from visualbert_core.evaluation.run import evaluate
from visualbert_core.evaluation.worker import read_predictions
from visualbert_core.models import GivesAttentions, GivesLogits, load_model
from visualbert_core.models.vilt.network import passes
from visualbert_core.models.vilt.predictor import CLASSES
from visualbert_core.schema import Example, Failure, Grounding, Pixels, Prediction, Question, Statement

SHAPES = {"square": (80, 80), "wide": (60, 150), "tall": (150, 60), "small": (9, 11), "large": (300, 420)}
TEXTS = ("is it red ?", "what is the cat left of ?", "the cat", "is the red cat left of it ?")
Batch = list[tuple[Example, tuple[Pixels, ...]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vilt(tmp_path_factory.mktemp("vilt") / "vilt")


@pytest.fixture(scope="module")
def pair_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vilt(tmp_path_factory.mktemp("vilt") / "pair", "ViltForImagesAndTextClassification")


def image(name: str, shape: tuple[int, int]) -> Pixels:
    rng = np.random.default_rng(len(name) + shape[0] * 1000 + shape[1])
    return Pixels(name, rng.integers(0, 256, (*shape, 3), dtype=np.uint8), "")


IMAGES = {name: image(name, shape) for name, shape in SHAPES.items()}


def questions(count: int = 64) -> Batch:
    """Return questions about the images in turn, with texts of different lengths."""
    names = list(IMAGES)
    found: Batch = []
    for number in range(count):
        shown = IMAGES[names[number // 3 % len(names)]]
        found.append((Question(f"q{number}", (shown.image_id,), TEXTS[number % len(TEXTS)]), (shown,)))
    return found


def statements() -> Batch:
    pairs = [("square", "wide"), ("tall", "large"), ("wide", "wide")]
    return [
        (Statement(f"s{number}", (left, right), TEXTS[number]), (IMAGES[left], IMAGES[right]))
        for number, (left, right) in enumerate(pairs)
    ]


def logits_of(model: Any, batch: Sequence[Any]) -> np.ndarray:
    return np.stack([each[1] for each in model.examine(batch)])


def theirs(folder: Path, kind: str, batch: Batch, dtype: torch.dtype = torch.float32, **settings: Any) -> np.ndarray:
    """Return the logits of transformers, one example at a time, with the processor of the folder."""
    network = getattr(transformers, kind).from_pretrained(folder, dtype=dtype).eval()
    processor = transformers.ViltProcessor.from_pretrained(folder)
    found = []
    for example, images in batch:
        inputs = processor(
            images=[each.rgb for each in images],
            text=example.text,  # type: ignore[union-attr]
            return_tensors="pt",
            input_data_format="channels_last",
            **settings,
        )
        inputs["pixel_values"] = inputs.pixel_values.to(dtype)
        if len(images) == 2:
            inputs["pixel_values"], inputs["pixel_mask"] = inputs.pixel_values[None], inputs.pixel_mask[None]
        with torch.inference_mode(), mock.patch.object(torch, "multinomial", in_order):
            found.append(network(**inputs).logits[0].numpy())
    return np.stack(found)


def in_order(weights: torch.Tensor, count: int, replacement: bool = False) -> torch.Tensor:
    """Return the first `count` patches in place of `torch.multinomial`, which draws them at random."""
    return torch.arange(count) % len(weights)


FARTHER = 4.0
"""How many times farther from float64 our logits may be than those of transformers. 0.7 to 1.5 were seen, for tiny
networks and for 2 and 12 layers of B/32, on one CPU with AVX-512."""


def as_exact(folder: Path, form: type[Example], batch: Batch) -> None:
    """Assert that our logits are those of the network, and as exact as those of transformers.

    Distances to float64 are root mean squares over all logits, as shares of the largest logit. One rounding is added,
    for a CPU on which transformers happens to be exact.
    """
    kind = CLASSES[form]
    exact = theirs(folder, kind, batch, torch.float64)
    size = np.abs(exact).max()
    own, other = (
        np.sqrt(np.square(found - exact).mean()) / size
        for found in (logits_of(load_model(folder, form, "cpu"), batch), theirs(folder, kind, batch))
    )
    assert max(own, other) <= relative(SHALLOW)
    assert own <= FARTHER * other + ROUNDING, f"{own:.1e} from float64, and transformers {other:.1e}"


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_transformers(folder: Path, shape: str) -> None:
    """A square, a wide, a tall, a small and a large image give transformers' logits for every question."""
    batch: Batch = [(Question(f"q{number}", (shape,), text), (IMAGES[shape],)) for number, text in enumerate(TEXTS)]
    as_exact(folder, Question, batch)


def test_logits_of_the_published_width(tmp_path: Path) -> None:
    """Two layers of the width, patches and positions of ViLT-B/32 give transformers' logits for images of
    each shape."""
    sizes = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "initializer_range": 0.02}
    published = write_vilt(tmp_path / "b32", sides=384, image_size=384, patch_size=32, **sizes)
    batch: Batch = [(Question(name, (name,), TEXTS[1]), (shown,)) for name, shown in IMAGES.items()]
    as_exact(published, Question, batch)
    assert load_model(published, Question, "cpu").name == "ViLT"


def test_pairs_have_the_logits_of_transformers(pair_folder: Path) -> None:
    """A statement about two images of different shapes gives the logits of transformers, which pads both to one shape.
    The scores are the softmax, False first."""
    model = load_model(pair_folder, Statement, "cpu")
    expected = theirs(pair_folder, "ViltForImagesAndTextClassification", statements())
    as_exact(pair_folder, Statement, statements())
    for prediction, row in zip(model.predict(statements()), expected, strict=True):
        assert isinstance(prediction, Prediction)
        powers = np.exp(row - row.max())
        np.testing.assert_allclose(prediction.scores, powers / powers.sum(), atol=1e-5)
        assert prediction.answer == ("False", "True")[int(row.argmax())]


def test_names_of_the_labels_decide_the_truth(tmp_path: Path) -> None:
    """Where id2label calls the first logit True, the answers turn around."""
    labels = {0: "True", 1: "False"}
    kind = "ViltForImagesAndTextClassification"
    plain = load_model(write_vilt(tmp_path / "plain", kind), Statement, "cpu").predict(statements())
    turned = load_model(write_vilt(tmp_path / "turned", kind, id2label=labels), Statement, "cpu").predict(statements())
    for one, other in zip(plain, turned, strict=True):
        assert isinstance(one, Prediction)
        assert isinstance(other, Prediction)
        assert one.answer != other.answer
        np.testing.assert_allclose(one.scores, other.scores[::-1], atol=1e-6)


def test_repetition_gives_equal_bits(folder: Path) -> None:
    """The same batch gives the same bits again, whatever the global random generator holds."""
    model = load_model(folder, Question, "cpu")
    first = logits_of(model, questions())
    torch.manual_seed(1)
    assert (logits_of(model, questions()) == first).all()


def test_answers_alone_are_those_of_batches(folder: Path) -> None:
    """64 questions over images of five shapes have the same answers alone and in batches of 1 to 64."""
    model = load_model(folder, Question, "cpu")
    batch = questions()
    alone = [model.predict([each])[0].answer for each in batch]  # type: ignore[union-attr]
    assert len(set(alone)) > 1
    for size in (7, 64):
        found = [p for start in range(0, 64, size) for p in model.predict(batch[start : start + size])]
        assert [p.answer for p in found] == alone  # type: ignore[union-attr]
    expected = logits_of(model, batch)
    np.testing.assert_allclose(
        np.stack([logits_of(model, [each])[0] for each in batch]),
        expected,
        rtol=0,
        atol=relative(SHALLOW) * np.abs(expected).max(),
    )


def test_an_answer_needs_its_image(folder: Path) -> None:
    """The image decides: the same question about another image has other logits."""
    model = load_model(folder, Question, "cpu")
    pair: Batch = [(Question("q", (name,), TEXTS[0]), (IMAGES[name],)) for name in ("square", "wide")]
    one, other = logits_of(model, pair)
    assert np.abs(one - other).max() > 1e-2


def test_answers_and_scores(folder: Path) -> None:
    """The answer is the name of the largest logit, and its score the sigmoid, as in the removed pipeline."""
    model = load_model(folder, Question, "cpu")
    for prediction, logits in model.examine(questions(8)):  # type: ignore[attr-defined]
        best = int(logits.argmax())
        assert prediction.answer == ANSWERS[best]
        np.testing.assert_allclose(prediction.scores, [1 / (1 + np.exp(-logits[best]))], rtol=1e-5)


def test_passes_waste_little() -> None:
    """Every sequence is in one pass, and no sequence of a pass is more than a sixteenth longer than its shortest."""
    lengths = [100, 10, 105, 106, 107, 11, 200]
    found = list(passes(lengths))
    assert sorted(row for rows in found for row in rows) == list(range(7))
    assert [[lengths[row] for row in rows] for rows in found] == [[10], [11], [100, 105, 106], [107], [200]]


def test_attentions(folder: Path, pair_folder: Path) -> None:
    """Attention weights have the text, the class token and the patches as positions; rows sum to one; a pair has two
    sequences."""
    model = load_model(folder, Question, "cpu")
    assert isinstance(model, GivesAttentions)
    assert isinstance(model, GivesLogits)
    (weights,) = model.attend(questions(1))[0]
    length = len(TEXTS[0].split()) + 2 + 1 + 4 * 4  # the square image becomes 64 × 64 pixels
    assert weights.shape == (TINY["num_hidden_layers"], TINY["num_attention_heads"], length, length)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    model = load_model(pair_folder, Statement, "cpu")
    assert isinstance(model, GivesAttentions)
    assert len(model.attend(statements())[0]) == 2


def test_long_texts_are_cut_and_counted(folder: Path) -> None:
    """A text of more word pieces than positions is cut as the tokenizer cuts it, and the prediction says so. Under
    strict_length it is an error that names the example."""
    long, short = (" ".join(["red"] * count) for count in (60, 5))
    batch: Batch = [(Question(text[:1] + str(len(text)), ("wide",), text), (IMAGES["wide"],)) for text in (long, short)]
    found = load_model(folder, Question, "cpu").examine(batch)  # type: ignore[attr-defined]
    assert [prediction.input_cut for prediction, _ in found] == [True, False]
    expected = theirs(folder, "ViltForQuestionAnswering", batch[:1], truncation=True, max_length=40)
    close(found[0][1], expected[0], SHALLOW)
    strict = load_model(folder, Question, "cpu", "float32", AnsweringConfig(strict_length=True))
    with pytest.raises(ConfigError, match=r"r239: its text has 62 word pieces, and ViLT reads 40"):
        strict.predict(batch)


def test_a_thin_image_fails_alone(folder: Path) -> None:
    """An image whose side would be rounded to no patch is a failure row; the others of its batch are answered."""
    thin = image("thin", (8, 400))
    batch = [*questions(2), (Question("thin", ("thin",), TEXTS[0]), (thin,))]
    found = load_model(folder, Question, "cpu").predict(batch)
    assert [type(each) for each in found] == [Prediction, Prediction, Failure]
    assert found[2].message == (  # type: ignore[union-attr]
        "image 'thin': 400×8 pixels are too thin for ViLT: resized, the shorter side would have less than one patch"
    )
    assert isinstance(load_model(folder, Question, "cpu").predict(batch[2:])[0], Failure)


def test_nan_weights_give_failures(folder: Path, tmp_path: Path) -> None:
    """Logits that are not finite are failures, not answers."""
    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["classifier.3.bias"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    assert all(isinstance(each, Failure) for each in load_model(broken, Question, "cpu").predict(questions(2)))


def test_half_precision_answers(folder: Path) -> None:
    """A float16 folder computes in the precision that is asked for, and not in its own."""
    full = logits_of(load_model(folder, Question, "cpu"), questions(8))
    for precision in ("bfloat16", "float16"):
        found = logits_of(load_model(folder, Question, "cpu", precision), questions(8))
        assert found.dtype == np.float32
        assert 0 < np.abs(found - full).max() < 0.1 * np.abs(full).max()


# ---------------------------------------------------------------------------------------------------------------------
# evaluation


def vqa_config(night: SmallNight, model: Path, out: Path, **changes: Any) -> EvaluateConfig:
    world = night.out / "synthetic"
    settings: dict[str, Any] = {"task": "vqa", "split": "val", "annotations": world / "vqa", "model": model, "out": out}
    settings |= {"images": world / "vqa" / "val2014", "batch_size": 7, "shard_size": 5}
    return EvaluateConfig(**(settings | changes))


def evaluated(config: EvaluateConfig) -> Path:
    with Pool(PoolConfig(inline=True)) as pool:
        return evaluate(config, pool).folder


def test_a_run_that_ended_at_any_shard_is_byte_identical(small_night: SmallNight, folder: Path, tmp_path: Path) -> None:
    """Whichever marker was the last one before the end, the same call gives the bytes of a run without an end."""
    whole = evaluated(vqa_config(small_night, folder, tmp_path / "whole"))
    cut = evaluated(vqa_config(small_night, folder, tmp_path / "cut"))
    markers = markers_of(cut)
    assert len(markers) > 2
    for kept in range(len(markers)):
        for path in (*markers[kept:], cut / "predictions" / "manifest.json", cut / "scores.json"):
            path.unlink()
        assert evaluated(vqa_config(small_night, folder, tmp_path / "cut")) == cut
        assert parts_of(cut) == parts_of(whole)


def test_no_image_is_a_grey_image(small_night: SmallNight, folder: Path, tmp_path: Path) -> None:
    """Without an image, all questions of the same words about images of one size have one answer; with their own images
    they do not."""
    answers = {}
    for visual in ("own", "none"):
        run = evaluated(vqa_config(small_night, folder, tmp_path, visual=visual))
        found, _ = read_predictions(run / "predictions")
        answers[visual] = {p.example_id: (p.answer, round(p.scores[0], 4)) for p in found}
    assert len(set(answers["none"].values())) < len(set(answers["own"].values()))
    assert json.loads((run / "scores.json").read_text())["visual"] == "none"


def test_invariance_check_passes(small_night: SmallNight, folder: Path, tmp_path: Path) -> None:
    """The check compares logits and finds no changed answer."""
    found = check_invariance(vqa_config(small_night, folder, tmp_path), PoolConfig(inline=True), examples=20)
    assert (found.compared, found.changed) == ("logits", ())


def test_a_thin_image_leaves_no_score(small_night: SmallNight, folder: Path, tmp_path: Path) -> None:
    """A failure row leaves the split incomplete: there is no score over the rest, and the line names the image."""
    from PIL import Image

    images = shutil.copytree(small_night.out / "synthetic" / "vqa" / "val2014", tmp_path / "images")
    victim = sorted(images.iterdir())[0]
    Image.new("RGB", (400, 4)).save(victim)
    with pytest.raises(CoverageError, match=f"{victim.stem}.*too thin|size"):
        evaluated(vqa_config(small_night, folder, tmp_path / "out", images=images))


# ---------------------------------------------------------------------------------------------------------------------
# faulty folders


def changed_config(folder: Path, to: Path, **changes: Any) -> Path:
    copied = shutil.copytree(folder, to)
    path = copied / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return copied


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_image_length": 8}, "max_image_length is 8: the network would read a random part of each image"),
        ({"id2label": {"0": "yes", "1": "no", "2": "yes", "3": "red", "4": "cat"}}, "'yes' is the name of two answers"),
        ({"id2label": {str(n): f"LABEL_{n}" for n in range(5)}}, "id2label does not name the 5 answers"),
        ({"architectures": ["ViltForMaskedLM"]}, "a Question needs a ViltForQuestionAnswering"),
        ({"auto_map": {"AutoModel": "mine.py"}}, "needs code from its folder to be run"),
        ({"model_type": "vilt2"}, "no model of type 'vilt2'.*did you mean 'vilt'"),
        ({"num_hidden_layers": 3}, "the weights lack .*layer.2.*not a checkpoint of ViltForQuestionAnswering"),
    ],
)
def test_faulty_configurations_are_refused(folder: Path, tmp_path: Path, changes: Any, words: str) -> None:
    """A configuration that would change answers silently is one line that names the file or the weights."""
    with pytest.raises(CheckpointError, match=words):
        load_model(changed_config(folder, tmp_path / "changed", **changes), Question, "cpu")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "processor_config.json"])
def test_missing_files_are_named(folder: Path, tmp_path: Path, name: str) -> None:
    """A folder without one of its files is refused in one line that names the folder."""
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / name).unlink()
    with pytest.raises(CheckpointError, match="broken") as caught:
        load_model(broken, Question, "cpu")
    assert "\n" not in str(caught.value)


def test_other_forms_and_settings_are_refused(folder: Path, pair_folder: Path) -> None:
    """A form without a ViLT head, a head for another form, a prompt and an unknown precision are one line each."""
    with pytest.raises(CheckpointError, match="ViLT answers Question, Statement and not Grounding"):
        load_model(folder, Grounding, "cpu")
    with pytest.raises(CheckpointError, match="a Question needs a ViltForQuestionAnswering"):
        load_model(pair_folder, Question, "cpu")
    with pytest.raises(ConfigError, match="prompt: this model has no such setting"):
        load_model(folder, Question, "cpu", "float32", AnsweringConfig(prompt="Q: {}"))
    with pytest.raises(ConfigError, match="unknown precision 'int8'"):
        load_model(folder, Question, "cpu", "int8")


def test_fingerprint_names_every_file(folder: Path, tmp_path: Path) -> None:
    """A change of the tokenizer or of the image processor is another fingerprint."""
    found = load_model(folder, Question, "cpu").fingerprint()
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= found["files"].keys()
    other = shutil.copytree(folder, tmp_path / "other")
    path = other / "processor_config.json"
    path.write_text(path.read_text().replace('"shortest_edge": 64', '"shortest_edge": 80'))
    assert load_model(other, Question, "cpu").fingerprint() != found
