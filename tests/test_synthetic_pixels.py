"""The models of pixels of the synthetic data: their training computes what evaluation computes, and the weights that
come along see their images.
"""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import ROOT
from safetensors.torch import load_file
from tolerances import relative

from visualbert_core.config import EvaluateConfig, PoolConfig, SyntheticConfig
from visualbert_core.engine.pool import Pool
from visualbert_core.evaluation.run import evaluate
from visualbert_core.models import load_model
from visualbert_core.models.captioner.training import caption_labels
from visualbert_core.models.generative.protocol import CHAT
from visualbert_core.nightly.matrix import load_matrix
from visualbert_core.provenance import digest_file
from visualbert_core.schema import Pixels, Prediction, Question, Statement
from visualbert_core.synthetic import (
    WEIGHTS,
    captions,
    train_captioner,
    train_generative,
    train_image_side,
    train_vilt,
)
from visualbert_core.synthetic import questions as ask
from visualbert_core.synthetic import references as refer
from visualbert_core.synthetic.files import make_synthetic
from visualbert_core.synthetic.language import vocabulary
from visualbert_core.synthetic.scenes import SIZE, Scene, Thing, make_scene
from visualbert_core.synthetic.train_image_side import pack
from visualbert_core.tasks import open_task

FOLDERS = {"vilt-vqa": 2_500_000, "vlm": 2_500_000, "captioner": 1_500_000}
"""Folder → the number of bytes that it stays under."""
SCENES = 48
TEST = 99  # the second number in the seed of a scene: neither training nor a validation file has it
PRODUCTS = 4 * train_vilt.LAYERS + 4


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene((2026, TEST, index)) for index in range(SCENES)]


def random_image_side() -> tuple[transformers.ViltModel, train_image_side.PatchLabels]:
    torch.manual_seed(0)
    vilt = transformers.ViltModel(train_image_side.config(len(vocabulary()), train_vilt.LAYERS))
    labels = train_image_side.PatchLabels()
    for parameter in itertools.chain(vilt.parameters(), labels.parameters()):
        torch.nn.init.normal_(parameter, std=0.1)
    return vilt.eval(), labels


def equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() <= relative(PRODUCTS) * expected.abs().max()


@torch.no_grad()
def test_vilt_is_trained_on_what_transformers_computes(scenes: list[Scene]) -> None:
    """The pooled vectors of the plain form are those of ViltModel, for texts of different lengths."""
    vilt, _ = random_image_side()
    pictures = train_image_side.pictures(scenes[:2])
    images = train_image_side.normalised(pictures.pixels)
    texts = pack([[train_vilt.encode("Is there a ball?")], [train_vilt.encode("What color is the small box?")]])
    found, _ = train_vilt.run(vilt, images, texts, packed=False)
    shown = vilt(input_ids=texts.ids, attention_mask=(texts.text >= 0).long(), pixel_values=images)
    equal(found[:, 0], shown.pooler_output)


@torch.no_grad()
def test_a_packed_question_sees_itself_and_the_image(scenes: list[Scene]) -> None:
    """Another text in the row changes no pooled vector, and a text alone in a packed row has the same one."""
    vilt, _ = random_image_side()
    images = train_image_side.normalised(train_image_side.pictures(scenes[:1]).pixels)
    first, second, third = map(train_vilt.encode, ("Is there a ball?", "How many boxes are there?", "the red moon"))
    pooled = [
        train_vilt.run(vilt, images, pack([row]), True)[0][0] for row in ([first, second], [first, third], [first])
    ]
    equal(pooled[0][0], pooled[2][0])
    equal(pooled[1][0], pooled[2][0])
    assert (pooled[0][1] - pooled[1][1]).abs().max() > 1e-3


@torch.no_grad()
def test_the_generative_model_is_trained_on_what_transformers_computes(scenes: list[Scene]) -> None:
    """Packed texts about two images have the last hidden states of LlavaModel for each text alone."""
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(train_generative.config()).eval()
    pairs = [(scenes[n].things, scenes[n + 1].things) for n in range(0, 2 * ask.PAIRS, 2)]
    asked = train_generative.statement_texts(np.random.default_rng(0), pairs)
    pixels = train_image_side.pictures(scenes[: 2 * ask.PAIRS]).pixels
    images = train_image_side.normalised(pixels)
    found = train_generative.run(model, train_generative.image_tokens(model, images), asked.texts)
    patches = train_image_side.GRID**2
    for row, number in ((0, 0), (3, 4)):
        mine = asked.texts.text[row] == number
        start, image = model.config.text_config.bos_token_id, model.config.image_token_id
        ids = [start, *([image] * 2 * patches), *asked.texts.ids[row, mine].tolist()]
        alone = model.model(input_ids=torch.tensor([ids]), pixel_values=images[2 * row : 2 * row + 2]).last_hidden_state
        equal(found[row, mine], alone[0, 1 + 2 * patches :])


@torch.no_grad()
def test_the_vision_tower_is_the_image_side(scenes: list[Scene]) -> None:
    """The SigLIP of the generative model gives what the image layers of ViLT gave."""
    vilt, labels = random_image_side()
    model = transformers.LlavaForConditionalGeneration(train_generative.config()).eval()
    train_generative.copy_image_side(vilt, labels, model.model.vision_tower)
    images = train_image_side.normalised(train_image_side.pictures(scenes[:2]).pixels)
    tower = model.model.vision_tower(images, output_hidden_states=True)
    equal(tower.hidden_states[-1], train_image_side.seen(vilt, images))


def test_words_start_where_the_image_side_tells_them() -> None:
    """The word of a colour and both forms of a shape start as the direction in which patches tell it, and queries as
    keys."""
    vilt, labels = random_image_side()
    trunk = train_vilt.ViltHeads(vilt, labels).vqa.vilt
    table = trunk.embeddings.text_embeddings.word_embeddings.weight
    rows = {word: table[vocabulary().index(word)] for word in ("red", "box", "boxes")}
    assert torch.cosine_similarity(rows["red"], labels.directions()["red"], dim=0).item() == pytest.approx(1)
    assert torch.equal(rows["box"], rows["boxes"])
    attention = trunk.encoder.layer[-1].attention.attention
    assert torch.equal(attention.query.weight, attention.key.weight)


def test_patches_are_labelled_with_what_covers_them() -> None:
    """A thing in a known box labels its patches, and moves with the image."""
    patch = train_image_side.PATCH * SIZE / train_image_side.SIDE
    thing = Thing("star", "blue", "large", (2 * patch, patch, 4 * patch, 4 * patch))
    still, moved = (
        train_image_side.patch_labels([[thing]], np.array([move])) for move in ((0, 0), (train_image_side.PATCH, 0))
    )
    grid = still.kinds[1].view(train_image_side.GRID, -1)
    rows, columns = np.nonzero(grid.numpy() >= 0)
    assert (set(rows.tolist()), set(columns.tolist())) == ({1, 2, 3}, {2, 3})
    assert np.argwhere(still.centre.view(grid.shape).numpy()).tolist() == [[2, 3]]
    assert still.place[2 * train_image_side.GRID + 3].tolist() == pytest.approx([-0.5, 0])
    assert np.argwhere(moved.centre.view(grid.shape).numpy()).tolist() == [[2, 4]]


def test_no_text_of_the_questions_is_unknown(scenes: list[Scene]) -> None:
    """Both tokenizers agree with the ids of training, and the default prompts of the generative model are a token each.

    The question and the sentence are words of the vocabulary.
    """
    vilt = transformers.AutoProcessor.from_pretrained(WEIGHTS / "vilt-vqa").tokenizer
    vlm = transformers.AutoProcessor.from_pretrained(WEIGHTS / "vlm").tokenizer
    rng = np.random.default_rng(0)
    for scene in scenes:
        text = ask.vqa_item(rng, scene.things).question
        assert vilt(text).input_ids == train_vilt.encode(text)
    for form, text in ((Question, "How many boxes are there?"), (Statement, "Both images contain a ball.")):
        ids = vlm(CHAT[form].prompt.replace("{}", text)).input_ids
        assert vlm.unk_token_id not in ids
        assert len(ids) == 7


def test_the_folders_are_small_and_complete() -> None:
    """Each folder is small, has a card, and opens without the network as a user's folder does."""
    for name, size in FOLDERS.items():
        folder = WEIGHTS / name
        assert sum(path.stat().st_size for path in folder.iterdir()) < size
        assert "seed 2026" in (folder / "README.md").read_text()
    network = transformers.AutoModelForImageTextToText.from_pretrained(
        WEIGHTS / "vlm", dtype="float32", local_files_only=True
    )
    assert network.dtype == torch.float32
    names = transformers.AutoConfig.from_pretrained(WEIGHTS / "vilt-vqa").id2label
    assert tuple(names.values()) == ask.ANSWERS


@pytest.mark.parametrize(("name", "floor"), [("vilt-vqa", 55), ("vlm", 50)])
def test_the_weights_see_their_images(scenes: list[Scene], name: str, floor: float) -> None:
    """The share of right answers about new scenes lies above a floor, and well above the share about wrong images."""
    model = load_model(WEIGHTS / name, Question, "cpu")
    images = [Pixels(str(index), scene.pixels, "") for index, scene in enumerate(scenes)]
    rng = np.random.default_rng(1)
    items = [(index, ask.vqa_item(rng, scenes[index].things)) for index in range(SCENES) for _ in range(4)]

    def share(shift: int) -> float:
        batch = [
            (Question(f"q{number}", (str(index),), item.question), (images[(index + shift) % SCENES],))
            for number, (index, item) in enumerate(items)
        ]
        found = model.predict(batch)
        right = [isinstance(a, Prediction) and a.answer == b.answer for a, (_, b) in zip(found, items, strict=True)]
        return 100 * float(np.mean(right))

    own, wrong = share(0), share(1)
    assert own > floor
    assert own > wrong + 10


def test_the_phrases_of_a_caption_are_judged() -> None:
    """Every phrase of a generated caption is true of its scene. A number must be exact, and an attribute must fit."""
    rng = np.random.default_rng(0)
    scenes = [make_scene((2026, TEST, index)) for index in range(8)]
    for scene in scenes:
        for _ in range(10):
            told = refer.caption(rng, scene.things)
            found = list(captions.phrases(" ".join(map(str, told)), scene.things))
            assert len(found) == sum(not isinstance(part, str) for part in told)
            assert all(phrase.true for phrase in found)
    things = [Thing("ball", "red", "small", (0, 0, 9, 9)), Thing("ball", "blue", "large", (50, 0, 90, 40))]
    text = "A red ball, the leftmost large box and the blue thing left of two balls and three things"
    judged = {text[each.start : each.end]: each.true for each in captions.phrases(text, things)}
    assert judged == {
        "A red ball": True,
        "the leftmost large box": False,
        "the blue thing": True,
        "two balls": True,
        "three things": False,
    }


def test_the_page_marks_what_is_true_of_the_scene(described: EvaluateConfig) -> None:
    """The marked words of a caption are the caption, and a reference has no false phrase."""
    task = open_task(captions.SceneCaptions.name, described.annotations, "val")
    for example_id in task.expected():
        (told, *_) = task.references(example_id)
        marked = task.marked(example_id, told)
        assert "".join(words.text for words in marked) == told
        assert {words.true for words in marked} <= {None, True}
    assert [words.true for words in task.marked(example_id, "seven small things, no things .")] == [None, False, None]


def test_the_captioner_is_trained_on_what_transformers_computes(scenes: list[Scene]) -> None:
    """The loss of several captions of an image is transformers' loss of each caption beside the image."""
    torch.manual_seed(0)
    model = transformers.VisionEncoderDecoderModel(train_captioner.config()).eval()
    images = train_image_side.normalised(train_image_side.pictures(scenes[:2]).pixels)
    told = train_captioner.captions(np.random.default_rng(0), [scene.things for scene in scenes[:2]])
    labels = caption_labels(train_captioner.tokenizer(), list(told))
    every = images.repeat_interleave(train_captioner.CAPTIONS, 0)
    equal(train_captioner.loss(model, images, labels), model(pixel_values=every, labels=labels).loss)


def test_the_captioner_learns_from_the_encoder_that_is_shipped(scenes: list[Scene]) -> None:
    """The encoder is rounded to float16 before the decoder learns and keeps its weights, and the shipped captioner sees
    as the shipped generative model does. So a shipped folder has all that its decoder learnt from."""
    torch.manual_seed(0)
    vilt, labels = transformers.ViltModel(train_image_side.config(50, 4)), train_image_side.PatchLabels()
    rounded = train_captioner.encoder_weights(vilt, labels)
    few = train_image_side.pictures(scenes[:4])
    trained = train_captioner.train_captioner(few, rounded, 0, 1).encoder.state_dict()
    assert all(torch.equal(trained[name], weight) for name, weight in rounded.items())
    assert all(torch.equal(weight.half().float(), weight) for weight in rounded.values())
    captioner, vlm = (load_file(WEIGHTS / name / "model.safetensors") for name in ("captioner", "vlm"))
    seen = {name.removeprefix("encoder."): w for name, w in captioner.items() if name.startswith("encoder.")}
    tower = {name.rpartition("vision_tower.")[2]: w for name, w in vlm.items() if "vision_tower." in name}
    assert seen.keys() == tower.keys() == rounded.keys()
    assert all(torch.equal(seen[name], tower[name]) for name in seen)


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> EvaluateConfig:
    """Return an evaluation of the captioner over a few synthetic images."""
    root = tmp_path_factory.mktemp("captions")
    few = SyntheticConfig(vqa_images=1, vcr_images=1, nlvr2_sets=1, flickr_images=24)
    folder = make_synthetic(root / "world", few) / "flickr30k"
    return EvaluateConfig(
        task=captions.SceneCaptions.name,
        split="val",
        annotations=folder,
        images=folder / "images",
        model=WEIGHTS / "captioner",
        out=root / "runs",
        shard_size=6,
    )


def test_the_captioner_says_what_it_sees(described: EvaluateConfig) -> None:
    """CIDEr and the share of true phrases lie above floors, and far above those with wrong images."""
    found = {}
    for visual in ("own", "wrong-image"):
        with Pool(PoolConfig(inline=True)) as pool:
            scores = evaluate(replace(described, visual=visual), pool).scores
        assert scores is not None
        found[visual] = scores["scores"]["cider"], scores["beside"][captions.TRUE_PHRASES]
    assert found["own"][0] > 90
    assert found["own"][1] > 75
    assert found["wrong-image"][0] < found["own"][0] - 50
    assert found["wrong-image"][1] < found["own"][1] - 40


KILLED = """
import os, signal
from pathlib import Path
from visualbert_core.config import EvaluateConfig, PoolConfig
from visualbert_core.engine import shards
from visualbert_core.engine.pool import Pool
from visualbert_core.evaluation.run import evaluate

left, real = [4], shards.publish

def publish(path, data):
    left[0] -= "predictions" in path.parts
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(path, data)

shards.publish = publish
with Pool(PoolConfig(inline=True)) as pool:
    evaluate(EvaluateConfig(**{values}), pool)
"""


def test_a_killed_evaluation_of_captions_ends_like_a_whole_one(described: EvaluateConfig, tmp_path: Path) -> None:
    """After SIGKILL between two shards, the same call writes the predictions and scores of a whole run, byte by
    byte."""
    digests = []
    for kill in (False, True):
        config = replace(described, out=tmp_path / str(kill))
        if kill:
            given = ("task", "split", "annotations", "images", "model", "out", "shard_size")
            values = "{" + ", ".join(f"{name!r}: {_code(getattr(config, name))}" for name in given) + "}"
            code = KILLED.replace("{values}", values)
            ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
            assert ended.returncode == -signal.SIGKILL, ended.stderr
        with Pool(PoolConfig(inline=True)) as pool:
            folder = evaluate(config, pool).folder
        parts = (path for path in sorted((folder / "predictions").rglob("*")) if path.is_file())
        files = [*parts, folder / "scores.json"]
        digests.append({str(path.relative_to(folder)): digest_file(path) for path in files})
    assert len(digests[0]) > 4
    assert digests[0] == digests[1]


def _code(value: Any) -> str:
    return f"Path({str(value)!r})" if isinstance(value, Path) else repr(value)


def test_the_matrix_of_families_is_valid() -> None:
    """jobs/families.yaml mixes regions and pixels over the same images, and its models exist."""
    config = load_matrix(ROOT / "jobs" / "families.yaml", {})
    assert all((cell.model / "config.json").exists() for cell in config.cells)
    readers: dict[Path, set[bool]] = {}
    for corpus in config.corpora.values():
        readers.setdefault(Path(str(corpus.images)), set()).add(corpus.detector is None)
    assert [found for found in readers.values() if found == {True, False}] == [{True, False}] * 2
