"""A checkpoint folder behind the Model contract: its answers, and the folders that it refuses to open.

Networks are tiny and random. A test that needs a certain answer sets the head's bias, so that the prediction is known.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tolerances import SHALLOW, likely

from visualbert_core.errors import CheckpointError
from visualbert_core.models import NOT_FINITE, GivesAttentions, load_model
from visualbert_core.models.visualbert import VisualBertConfig
from visualbert_core.models.visualbert.checkpoint.metadata import FORMS, CheckpointMetadata
from visualbert_core.models.visualbert.checkpoint.pretrained import Pretrained
from visualbert_core.models.visualbert.heads import collate
from visualbert_core.models.visualbert.inputs import InputEncoder
from visualbert_core.models.visualbert.predictor import NETWORKS, VisualBertPredictor
from visualbert_core.schema import (
    Example,
    Failure,
    Grounding,
    MultipleChoice,
    Phrase,
    Prediction,
    Question,
    Regions,
    Statement,
)

ANSWERS = ("<unk>", "0", "blue", "red", "yes")
VOCAB = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", ".", *"abcdefghijklmnop")
SIZE = 6  # numbers per feature
Item = tuple[Example, tuple[Regions, ...]]


def regions(count: int, seed: int = 0, size: int = SIZE) -> Regions:
    rng = np.random.default_rng([count, seed])
    corners = rng.uniform(0, 50, (count, 2))
    boxes = np.concatenate((corners, corners + rng.uniform(1, 50, (count, 2))), 1).astype(np.float32)
    features = rng.normal(size=(count, size)).astype(np.float16)
    return Regions(f"i{seed}", 100, 120, boxes, np.zeros(count, np.int16), np.ones(count, np.float32), features, "")


def batch(task: str, size: int = SIZE) -> list[Item]:
    """Make examples of very different lengths and numbers of regions."""
    short, long = regions(1, 1, size), regions(12, 2, size)
    if task == "vqa":
        return [(Question("q1", ("i1",), "a"), (short,)), (Question("q2", ("i2",), "a b c d e f g h i j?"), (long,))]
    if task == "nlvr2":
        return [
            (Statement("s1", ("i1", "i2"), "a b"), (short, long)),
            (Statement("s2", ("i2", "i1"), "a b c d e f g h"), (long, short)),
            (Statement("s3", ("i1", "i1"), "p"), (short, short)),
        ]
    if task == "vcr":
        objects = ("person", "b", "person", "c")
        texts = ((0,), "a"), ("b", (1, 2), "c", "d", "e"), ("d",), ((3,), "p", "o")
        return [
            (MultipleChoice("m1", ("i1",), objects, ("a", (0,), "?"), texts, (0, 1, 2, 3)), (short,)),
            (MultipleChoice("m2", ("i2",), objects, ("a",) * 9, texts, (0, 1, 2, 3)), (long,)),
        ]
    words = ("a", "b", "c", "d", "e")
    return [
        (Grounding("g1", ("i1",), words, (Phrase(0, 2, "a b"), Phrase(3, 4, "d"))), (short,)),
        (Grounding("g2", ("i2",), ("p", *words, *words), (Phrase(1, 3, "a b"),)), (long,)),
    ]


def write(folder: Path, task: str, sidecar: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Write a complete checkpoint folder with random weights; `changes` are entries of its config."""
    torch.manual_seed(4)
    sizes: dict[str, Any] = {
        "vocab_size": len(VOCAB),
        "hidden_size": 16,
        "visual_embedding_dim": SIZE,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 48,
        "num_labels": len(ANSWERS) if task == "vqa" else 2,
        "initializer_range": 0.3,
    }
    NETWORKS[FORMS[task]](VisualBertConfig(**{**sizes, **changes})).save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in VOCAB))
    if task == "vqa":
        (folder / "answers.txt").write_text("".join(f"{answer}\n" for answer in ANSWERS))
    if sidecar is not None:
        (folder / "visualbert_core.json").write_text(json.dumps(sidecar))
    return folder


def edited(folder: Path, task: str, edit: Callable[[Any], None]) -> Path:
    """Change a saved network in place."""
    network = NETWORKS[FORMS[task]].from_pretrained(folder)
    with torch.no_grad():
        edit(network)
    network.save_pretrained(folder)
    return folder


def open_cpu(folder: Path, task: str) -> VisualBertPredictor:
    return VisualBertPredictor.from_pretrained(folder, FORMS[task], device="cpu")


def logits_of(folder: Path, task: str, items: list[Item]) -> np.ndarray:
    """Return the head's own logits, to compare the decoded answers with."""
    encoder, network = (
        InputEncoder(folder / "vocab.txt", num_positions=48),
        NETWORKS[FORMS[task]].from_pretrained(folder),
    )
    with torch.inference_mode():
        found: np.ndarray = network(**collate([encoder.encode(*item) for item in items])).logits.numpy()
    return found


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


# ---------------------------------------------------------------------------------------------------------------------
# answers


@pytest.mark.parametrize("task", FORMS)
def test_predictions_name_their_examples(tmp_path: Path, task: str) -> None:
    """Predictions come in order, one per example, with its id and its first image; an empty batch gives none."""
    items = batch(task)
    model = load_model(write(tmp_path, task), FORMS[task], device="cpu")
    found = model.predict(items)
    assert [(p.example_id, p.image_id) for p in found] == [(e.example_id, e.image_ids[0]) for e, _ in items]
    assert all(0 <= score <= 1 for prediction in found for score in prediction.scores)
    assert model.predict([]) == []


@pytest.mark.parametrize("task", FORMS)
def test_batch_mates_do_not_matter(tmp_path: Path, task: str) -> None:
    """An example has the same answer and scores alone and padded beside longer ones, in any order."""
    model = open_cpu(write(tmp_path, task), task)
    items = batch(task)
    together, reverse = model.predict(items), model.predict(items[::-1])[::-1]
    for item, one, other in zip(items, together, reverse, strict=True):
        (alone,) = model.predict([item])
        for found in (one, other):
            assert found.answer == alone.answer
            likely(found.scores, alone.scores, SHALLOW)


@pytest.mark.parametrize("task", FORMS)
def test_answers_use_image_and_text(tmp_path: Path, task: str) -> None:
    """Other regions or another text change the scores, so both reach the network."""
    model = open_cpu(write(tmp_path, task), task)
    example, images = batch(task)[1]
    other_text = batch(task)[0][0]
    other_images = tuple(regions(image.num_regions, 9) for image in images)
    first, image, text = model.predict([(example, images), (example, other_images), (other_text, images)])
    assert np.abs(np.subtract(first.scores, image.scores)).max() > 1e-4
    assert np.abs(np.subtract(first.scores[:1], text.scores[:1])).max() > 1e-4


def test_vqa_answer_is_the_likeliest_known_one(tmp_path: Path) -> None:
    """<unk> is never the answer, however likely, and the probability is taken among the answers that may be given."""
    folder = write(tmp_path, "vqa")
    edited(folder, "vqa", lambda network: network.cls.bias.copy_(torch.tensor([50.0, 0, 0, 5, 0])))
    items = batch("vqa")
    logits = logits_of(folder, "vqa", items)
    assert set(logits.argmax(1)) == {0}
    for prediction, row in zip(open_cpu(folder, "vqa").predict(items), logits, strict=True):
        assert prediction.answer == ANSWERS[1 + row[1:].argmax()] == "red"
        likely(prediction.scores, (softmax(row[1:]).max(),), SHALLOW)


def test_vcr_answer_is_the_likeliest_choice(tmp_path: Path) -> None:
    """The answer is the index of the best choice, and the scores are the four probabilities."""
    folder = write(tmp_path, "vcr")
    items = batch("vcr")
    logits = logits_of(folder, "vcr", items)
    for prediction, row in zip(open_cpu(folder, "vcr").predict(items), logits, strict=True):
        assert prediction.answer == row.argmax()
        likely(prediction.scores, softmax(row), SHALLOW)


@pytest.mark.parametrize(("bias", "answer"), [((9.0, 0.0), "False"), ((0.0, 9.0), "True"), ((0.0, 0.0), "False")])
def test_nlvr2_index_1_is_true(tmp_path: Path, bias: tuple[float, float], answer: str) -> None:
    """Index 1 of the head is True, a tie gives the lower index, and scores are [p(False), p(True)]."""

    def blind(network: Any) -> None:
        network.cls.weight.zero_()
        network.cls.bias.copy_(torch.tensor(bias))

    folder = edited(write(tmp_path, "nlvr2"), "nlvr2", blind)
    for prediction in open_cpu(folder, "nlvr2").predict(batch("nlvr2")):
        assert prediction.answer == answer
        assert prediction.scores == pytest.approx(softmax(np.array(bias)).tolist())


def test_grounding_ranks_every_box(tmp_path: Path) -> None:
    """Each phrase gets all boxes of its image, likeliest first, to two decimals, and the probability of the first
    box."""
    folder = write(tmp_path, "flickr30k_entities")
    items = batch("flickr30k_entities")
    logits = logits_of(folder, "flickr30k_entities", items)
    for (example, (image,)), prediction, rows in zip(
        items, open_cpu(folder, "flickr30k_entities").predict(items), logits, strict=True
    ):
        assert isinstance(example, Grounding)
        assert len(prediction.answer) == len(prediction.scores) == len(example.phrases)
        for ranked, score, row in zip(prediction.answer, prediction.scores, rows, strict=False):
            visible = row[: image.num_regions]
            order = sorted(range(len(visible)), key=lambda index: -visible[index])
            expected = image.boxes.astype(float)[order]
            assert np.abs(np.array(ranked) - expected).max() <= 0.005 + 1e-9
            assert ranked == [[round(number, 2) for number in box] for box in ranked]
            likely(score, softmax(visible).max(), SHALLOW)


def test_grounding_ties_keep_the_detectors_order(tmp_path: Path) -> None:
    """Equal logits rank boxes by index, and an image without regions gives no boxes with probability 0."""

    def indifferent(network: Any) -> None:
        network.attention.key.weight.zero_()

    task = "flickr30k_entities"
    model = open_cpu(edited(write(tmp_path, task), task, indifferent), task)
    example, (image,) = batch(task)[1]
    tied, nothing = model.predict([(example, (image,)), (example, (regions(0),))])
    assert np.abs(np.array(tied.answer[0]) - image.boxes).max() <= 0.005 + 1e-6
    assert tied.scores == pytest.approx((1 / 12,))
    assert (nothing.answer, nothing.scores) == ([[]], (0.0,))


def test_predictions_are_json(tmp_path: Path) -> None:
    """Answers and scores of all tasks are plain JSON values, because the prediction file stores them."""
    for task in FORMS:
        folder = tmp_path / task
        for prediction in open_cpu(write(folder, task), task).predict(batch(task)):
            assert isinstance(prediction, Prediction)
            assert json.loads(json.dumps(prediction.answer)) == prediction.answer
            assert all(type(score) is float for score in prediction.scores)


def test_box_geometry_comes_from_the_boxes(tmp_path: Path) -> None:
    """A checkpoint with geometry takes six numbers fewer from the store, and a moved box changes its scores."""
    task = "flickr30k_entities"
    model = open_cpu(write(tmp_path, task, {"box_geometry": True}, visual_embedding_dim=SIZE + 6), task)
    assert model.reads.size == SIZE
    example, (image,) = batch(task)[1]
    moved = Regions(
        "i", 100, 120, image.boxes[::-1].copy(), image.labels, image.scores, image.features, image.image_digest
    )
    here, there = model.predict([(example, (image,)), (example, (moved,))])
    assert abs(here.scores[0] - there.scores[0]) > 1e-4


def test_scaled_inputs_are_a_change_of_the_projection(tmp_path: Path) -> None:
    """A network that reads boxes from -4 to 4 and a quarter of the features scores as one whose projection does so with
    plain inputs. The fingerprint names both, and neither where it is plain, so older fingerprints stay."""
    task, about = "flickr30k_entities", {"box_geometry": True}
    scaled = about | {"box_range": [-4, 4], "feature_scale": 0.25}
    folder = write(tmp_path, task, scaled, visual_embedding_dim=SIZE + 6)
    after = open_cpu(folder, task)
    (folder / "visualbert_core.json").write_text(json.dumps(about | {"box_range": [0.0, 1], "feature_scale": 1.0}))
    before = open_cpu(folder, task)
    example = batch(task)[1]
    assert abs(before.predict([example])[0].scores[0] - after.predict([example])[0].scores[0]) > 1e-4

    def fold(network: Any) -> None:
        projection = network.visual_bert.embeddings.visual_projection
        projection.bias.sub_(4 * projection.weight[:, SIZE:].sum(1))
        projection.weight[:, SIZE:].mul_(8)
        projection.weight[:, :SIZE].mul_(0.25)

    edited(folder, task, fold)
    (folded,), (found,) = (model.predict([example]) for model in (open_cpu(folder, task), after))
    assert folded.scores == pytest.approx(found.scores, rel=1e-4)
    assert (after.fingerprint()["box_range"], after.fingerprint()["feature_scale"]) == ([-4, 4], 0.25)
    assert before.fingerprint().keys() == after.fingerprint().keys() - {"box_range", "feature_scale"}


# ---------------------------------------------------------------------------------------------------------------------
# the folder


def test_fingerprint_says_what_changes_a_prediction(tmp_path: Path) -> None:
    """The fingerprint has an entry each for weights, config, vocabulary, answers and sidecar, and only the changed
    entry differs."""
    folder = write(tmp_path, "vqa", {"task": "vqa", "feature_space": "space"})
    before = open_cpu(folder, "vqa").fingerprint()
    assert json.loads(json.dumps(before)) == before
    assert (before["class"], before["recipe"]) == ("VisualBertForQuestionAnswering", "original")
    assert open_cpu(folder, "vqa").reads.space == "space"
    edited(folder, "vqa", lambda network: network.cls.bias.add_(1))
    weights = open_cpu(folder, "vqa").fingerprint()
    assert {key for key in before if before[key] != weights[key]} == {"weights"}
    (folder / "answers.txt").write_text("<unk>\n0\nblue\nyes\nred\n")
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in (*VOCAB[:-2], VOCAB[-1], VOCAB[-2])))
    after = open_cpu(folder, "vqa").fingerprint()
    assert {key for key in weights if weights[key] != after[key]} == {"answers", "vocab"}


def test_a_folder_without_sidecar_has_defaults(tmp_path: Path) -> None:
    """A published checkpoint has no sidecar and gets the defaults: original recipe, no feature space, no geometry."""
    model = open_cpu(write(tmp_path, "nlvr2"), "nlvr2")
    assert (model.reads.size, model.reads.space) == (SIZE, None)
    assert (model.fingerprint()["recipe"], model.fingerprint()["box_geometry"]) == ("original", False)
    assert model.fingerprint()["fix_quirks"] is False


@pytest.mark.parametrize("task", FORMS)
def test_the_recipe_reaches_the_network(tmp_path: Path, task: str) -> None:
    """The sidecar's recipe "hf-docs" changes every task's scores, and only its entry in the fingerprint differs."""
    folder = write(tmp_path, task)
    before = open_cpu(folder, task)
    CheckpointMetadata(recipe="hf-docs").save(folder)
    after = open_cpu(folder, task)
    (one,), (other,) = (model.predict(batch(task)[1:2]) for model in (before, after))
    assert np.abs(np.subtract(one.scores, other.scores)).max() > 1e-4
    assert moved(before, after) == {"recipe"}


@pytest.mark.parametrize(("task", "changes"), [("vqa", False), ("vcr", True), ("flickr30k_entities", True)])
def test_fixed_quirks_reach_the_network(tmp_path: Path, task: str, changes: bool) -> None:
    """The sidecar's `fix_quirks` changes the scores where there is a quirk, and only its entry in the fingerprint
    differs."""
    folder = write(tmp_path, task)
    before = open_cpu(folder, task)
    CheckpointMetadata(fix_quirks=True).save(folder)
    after = open_cpu(folder, task)
    example, images = batch(task)[1]
    if isinstance(example, Grounding):
        # asks for the second "a b" of the caption, which the quirk queries at the first
        example = replace(example, phrases=(Phrase(6, 8, "a b"),))
    if isinstance(example, MultipleChoice):
        # puts a mention after a word of three pieces, which the quirk counts as one
        example = replace(example, context=("a.b", (0,)))
    (one,), (other,) = (model.predict([(example, images)]) for model in (before, after))
    assert (np.abs(np.subtract(one.scores, other.scores)).max() > 1e-4) == changes
    assert moved(before, after) == {"fix_quirks"}


def moved(before: VisualBertPredictor, after: VisualBertPredictor) -> set[str]:
    """Return the keys whose fingerprints differ."""
    one, other = before.fingerprint(), after.fingerprint()
    return {key for key in one.keys() | other.keys() if one[key] != other[key]}


@pytest.mark.parametrize(
    ("sidecar", "says"),
    [
        ({"feature_spce": "x"}, "unknown key 'feature_spce'; did you mean 'feature_space'"),
        ({"feature_space": ""}, "feature_space: is empty"),
        ({"box_geometry": "yes"}, "box_geometry: 'yes' has the wrong type"),
        ({"box_geometry": True, "box_range": 8}, "box_range: 8 has the wrong type"),
        ({"box_geometry": True, "box_range": [4, -4]}, r"box_range: must be two numbers, the smaller one first, got"),
        ({"box_geometry": True, "box_range": [0, True]}, "box_range: must be two numbers"),
        ({"box_range": [-4, 4]}, "box_range: needs box_geometry"),
        ({"feature_scale": 0.0}, "feature_scale: must be above 0, got 0"),
        ({"recipe": "hf-doc"}, "recipe: unknown name 'hf-doc'; did you mean 'hf-docs'"),
        ({"fix_quirks": 1}, "fix_quirks: 1 has the wrong type"),
        ({"recipe": "hf-docs", "fix_quirks": True}, "fix_quirks: belongs to recipe original, not to hf-docs"),
        ({"task": "vcr"}, "trained for vcr, so it answers MultipleChoice and not Statement"),
        ([], "must be an object"),
    ],
)
def test_a_bad_sidecar(tmp_path: Path, sidecar: Any, says: str) -> None:
    """An unknown key, a wrong type or another task in the sidecar is refused."""
    with pytest.raises(CheckpointError, match=says):
        open_cpu(write(tmp_path, "nlvr2", sidecar), "nlvr2")


def test_answers_in_the_config(tmp_path: Path) -> None:
    """Without answers.txt the names in id2label are the answers, and <unk> is masked at any index."""
    folder = write(tmp_path, "vqa", num_labels=3, id2label=("red", "<unk>", "blue"))
    (folder / "answers.txt").unlink()
    edited(folder, "vqa", lambda network: network.cls.bias.copy_(torch.tensor([0, 50.0, 20.0])))
    assert {p.answer for p in open_cpu(folder, "vqa").predict(batch("vqa"))} == {"blue"}


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        (None, r"the answers are missing: add answers\.txt, or name them in id2label of config\.json"),
        (("<unk>", "yes"), r"answers\.txt: 2 answers, but config\.json has 5 labels"),
        (("", "0", "blue", "red", "yes"), r"answers\.txt: line 1 must be <unk>, got ''"),
    ],
)
def test_bad_answers(tmp_path: Path, answers: tuple[str, ...] | None, says: str) -> None:
    """Missing answers, too few, or LXMERT's list of the same length in another order are refused and never decoded."""
    folder = write(tmp_path, "vqa")
    (folder / "answers.txt").unlink()
    if answers:
        (folder / "answers.txt").write_text("".join(f"{answer}\n" for answer in answers))
    with pytest.raises(CheckpointError, match=says):
        open_cpu(folder, "vqa")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("name", ["answers.txt", "vocab.txt"])
def test_lists_as_other_editors_save_them(tmp_path: Path, name: str, end: bytes, mark: bytes) -> None:
    """A byte order mark and Windows line ends are not part of an answer or of a word piece."""
    folder = write(tmp_path, "vqa")
    right = open_cpu(folder, "vqa").predict(batch("vqa"))
    (folder / name).write_bytes(mark + (folder / name).read_bytes().replace(b"\n", end))
    assert open_cpu(folder, "vqa").predict(batch("vqa")) == right


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda lines: lines[:-1], r"vocab\.txt: 22 word pieces, but config\.json has vocab_size 23"),
        (lambda lines: [*lines, "surplus"], r"vocab\.txt: 24 word pieces, but config\.json has vocab_size 23"),
        (lambda lines: [*lines[:-1], lines[4]], r"vocab\.txt: line 23 is '.*', as is line 5"),
        (lambda lines: [*lines, lines[4]], r"vocab\.txt: line 24 is '.*', as is line 5"),
        (lambda lines: [*lines[:7], "", "", *lines[7:]], r"vocab\.txt: line 9 is '', as is line 8"),
    ],
)
def test_a_vocabulary_of_other_weights(tmp_path: Path, change: Callable[[list[str]], list[str]], says: str) -> None:
    """A vocabulary with too few lines, too many lines or a double line is refused, because later words would get wrong
    vectors."""
    folder = write(tmp_path, "nlvr2")
    path = folder / "vocab.txt"
    path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))
    with pytest.raises(CheckpointError, match=says) as caught:
        open_cpu(folder, "nlvr2")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rows", [64, 128])
def test_a_padded_word_table(tmp_path: Path, caplog: pytest.LogCaptureFixture, rows: int) -> None:
    """A word table padded to whole blocks for a GPU is accepted with a log line, and any other length is refused."""
    folder = write(tmp_path / "padded", "nlvr2", vocab_size=rows)
    open_cpu(folder, "nlvr2").predict(batch("nlvr2"))
    assert f"vocab.txt: 23 word pieces, padded to {rows} rows in the weights" in caplog.text
    with pytest.raises(CheckpointError, match=r"23 word pieces, but config\.json has vocab_size 65"):
        open_cpu(write(tmp_path / "other", "nlvr2", vocab_size=65), "nlvr2")


def test_endings_of_lines_are_no_words(tmp_path: Path) -> None:
    """Windows line ends, a missing last line end and blank lines at the end change no answer."""
    folder = write(tmp_path, "nlvr2")
    expected = open_cpu(folder, "nlvr2").predict(batch("nlvr2"))
    text = (folder / "vocab.txt").read_text()
    for other in (text.replace("\n", "\r\n"), text.rstrip("\n"), text + "\n\n"):
        (folder / "vocab.txt").write_bytes(other.encode())
        assert open_cpu(folder, "nlvr2").predict(batch("nlvr2")) == expected


@pytest.mark.parametrize("where", ["answers.txt", "config.json"])
def test_an_answer_that_stands_twice(tmp_path: Path, where: str) -> None:
    """An answer that occurs twice is refused with both lines, because it shows that two lists are mixed up."""
    names = ("<unk>", "yes", "no", "yes", "red")
    folder = write(tmp_path, "vqa", num_labels=5, **({"id2label": names} if where == "config.json" else {}))
    (folder / "answers.txt").write_text("\n".join(names))
    if where == "config.json":
        (folder / "answers.txt").unlink()
    with pytest.raises(CheckpointError, match=rf"{where}: .*line 4 is 'yes', as is line 2"):
        open_cpu(folder, "vqa")


# ---------------------------------------------------------------------------------------------------------------------
# values that are not numbers


def spoiled(item: Item, value: float) -> Item:
    """Return the same example with `value` once in its regions."""
    example, images = item
    features = images[0].features.copy()
    features[0, 0] = value
    return example, (replace(images[0], features=features), *images[1:])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("task", FORMS)
def test_features_that_are_no_numbers(tmp_path: Path, task: str, value: float) -> None:
    """An example with NaN features fails by name, and the others of its batch keep their answers to the bit."""
    model, items = open_cpu(write(tmp_path, task), task), [*batch(task), *batch(task)]
    expected = model.predict(items)
    found = model.predict([*items[:1], spoiled(items[1], value), *items[2:]])
    assert found[1] == Failure(items[1][0].example_id, "predict", "NotFinite", NOT_FINITE)
    assert [found[0], *found[2:]] == [expected[0], *expected[2:]]
    logits = model.examine([items[0], spoiled(items[1], value)])
    assert isinstance(logits[0], tuple)
    assert isinstance(logits[1], Failure)


@pytest.mark.parametrize("task", FORMS)
def test_weights_that_are_no_numbers(tmp_path: Path, task: str) -> None:
    """Every example fails where a weight that all answers use is NaN, and nothing is answered."""

    def spoil(network: Any) -> None:
        network.visual_bert.encoder.layer[0].output.LayerNorm.bias[0] = float("nan")

    found = open_cpu(edited(write(tmp_path, task), task, spoil), task).predict(batch(task))
    assert found
    assert all(isinstance(each, Failure) and each.error == "NotFinite" for each in found)


def test_what_is_never_answered_may_be_no_number(tmp_path: Path) -> None:
    """<unk> is masked, so a NaN in its logit changes no answer."""
    folder = write(tmp_path, "vqa")
    expected = open_cpu(folder, "vqa").predict(batch("vqa"))
    edited(folder, "vqa", lambda network: network.cls.bias.__setitem__(0, float("nan")))
    assert open_cpu(folder, "vqa").predict(batch("vqa")) == expected


@pytest.mark.parametrize("task", FORMS)
def test_features_of_another_size(tmp_path: Path, task: str) -> None:
    """Features that the projection cannot take are refused in one line with both sizes."""
    model = open_cpu(write(tmp_path, task), task)
    assert model.reads.size == SIZE
    with pytest.raises(CheckpointError, match="needs 6-d features, the store holds 9-d") as caught:
        model.predict(batch(task, size=9))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.txt"])
def test_an_incomplete_folder(tmp_path: Path, name: str) -> None:
    """Every file that the folder needs is named when it is missing."""
    folder = write(tmp_path, "vcr")
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        open_cpu(folder, "vcr")


def test_what_is_not_a_checkpoint_of_the_task(tmp_path: Path) -> None:
    """The weights of another network, an unknown form, a missing folder and too large a vocabulary each have an
    error."""
    folder = write(tmp_path / "vqa", "vqa")
    with pytest.raises(CheckpointError, match="num_labels: a Statement needs 2, got 5"):
        open_cpu(folder, "nlvr2")
    with pytest.raises(CheckpointError, match=r"cls\.weight \[5, 16\] instead of \[1, 16\]"):
        open_cpu(folder, "vcr")
    with pytest.raises(CheckpointError, match=r"VisualBERT answers .* and not int"):
        VisualBertPredictor.from_pretrained(folder, int, device="cpu")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        open_cpu(tmp_path / "absent", "vqa")
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in (*VOCAB, "surplus")))
    with pytest.raises(CheckpointError, match=r"vocab\.txt: 24 word pieces, but config\.json has vocab_size 23"):
        open_cpu(folder, "vqa")


@pytest.mark.parametrize("task", FORMS)
def test_what_the_heads_attend_to(tmp_path: Path, task: str) -> None:
    """Every sequence has attention over its own tokens and regions, equal to the head's own; rows sum to 1."""
    folder, items = write(tmp_path, task), batch(task)[:2]
    model = open_cpu(folder, task)
    assert isinstance(model, GivesAttentions)
    encoder = InputEncoder(folder / "vocab.txt", num_positions=48)
    for (example, regions), found in zip(items, model.attend(items), strict=True):
        encoded = encoder.encode(example, regions)
        sequences = encoded if isinstance(encoded, tuple) else (encoded,)
        for sequence, weights in zip(sequences, found, strict=True):
            length = len(sequence.input_ids) + len(sequence.rows)
            assert weights.shape[2:] == (length, length)
            np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
        if len(sequences) == 1:
            head = NETWORKS[FORMS[task]].from_pretrained(folder).eval()
            with torch.inference_mode():
                whole = head(**collate([encoded]), output_attentions=True).attentions
            np.testing.assert_allclose(found[0], torch.cat(whole).numpy(), rtol=1e-4, atol=1e-6)


def test_another_form_of_example(tmp_path: Path) -> None:
    """A question for a VCR model is a TypeError, because it is a programming error."""
    model = open_cpu(write(tmp_path, "vcr"), "vcr")
    with pytest.raises(TypeError, match="answers a MultipleChoice, got a Question"):
        model.predict(batch("vqa"))


def test_half_precision_weights_predict_in_float32(tmp_path: Path) -> None:
    """A float16 checkpoint computes in float32, and its answers stay close."""
    folder = write(tmp_path, "nlvr2")
    exact = open_cpu(folder, "nlvr2").predict(batch("nlvr2"))
    network: Pretrained = NETWORKS[Statement].from_pretrained(folder)
    network.save_pretrained(folder, dtype=torch.float16)
    model = open_cpu(folder, "nlvr2")
    again = NETWORKS[Statement].from_pretrained(folder)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    for one, other in zip(exact, model.predict(batch("nlvr2")), strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-2)
