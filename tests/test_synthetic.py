"""The synthetic data: official files, texts that do not give the answers away, and small weights that describe
themselves.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SmallNight
from PIL import Image
from safetensors.torch import load_file

from visualbert_core.config import SyntheticConfig
from visualbert_core.errors import ConfigError
from visualbert_core.models.visualbert.inputs import InputEncoder
from visualbert_core.schema import Grounding, MultipleChoice, Question, Regions, Statement
from visualbert_core.synthetic import questions as ask
from visualbert_core.synthetic import references as refer
from visualbert_core.synthetic import train
from visualbert_core.synthetic.files import VALIDATION, make_synthetic
from visualbert_core.synthetic.language import Description, vocabulary
from visualbert_core.synthetic.scenes import COLORS, SHAPES, SIZE, Scene, Thing, make_scene
from visualbert_core.synthetic.train_detector import HELD_OUT, LABELS, TRAIN, label_of
from visualbert_core.synthetic.training_files import recipe
from visualbert_core.tasks import open_task

WEIGHTS = ROOT / "visualbert_core" / "synthetic" / "weights"
TINY = SyntheticConfig(seed=3, vqa_images=3, vcr_images=3, nlvr2_sets=1, flickr_images=2)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene((23, index), min_things=4) for index in range(40)]


def test_a_seed_is_a_world(tmp_path: Path) -> None:
    """A seed always writes the same bytes, another seed writes others, and finished data is not written again."""

    def tree(root: Path) -> dict[str, bytes]:
        return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    first = make_synthetic(tmp_path / "a", TINY)
    times = {p: p.stat().st_mtime_ns for p in first.rglob("*")}
    assert tree(make_synthetic(tmp_path / "b", TINY)) == tree(first)
    make_synthetic(first, TINY)
    assert {p: p.stat().st_mtime_ns for p in first.rglob("*")} == times
    other = SyntheticConfig(**{**vars(TINY), "seed": 4})
    before = tree(first)
    assert (
        tree(make_synthetic(first, other))["vqa/val2014/COCO_val2014_000000000001.jpg"]
        != before["vqa/val2014/COCO_val2014_000000000001.jpg"]
    )


def test_a_folder_that_is_no_world_is_left_alone(tmp_path: Path) -> None:
    """A folder of the user's own files is refused and not changed."""
    (tmp_path / "synthetic").mkdir()
    (tmp_path / "synthetic" / "mine.txt").touch()
    with pytest.raises(ConfigError, match="synthetic exists and holds no synthetic data: choose another `out`"):
        make_synthetic(tmp_path / "synthetic", TINY)
    assert [path.name for path in (tmp_path / "synthetic").iterdir()] == ["mine.txt"]


def test_pictures_have_the_names_and_bytes_of_the_official_sets(small_night: SmallNight) -> None:
    """A .jpg is JPEG, a .png is PNG, and the images on the disk are exactly those that the annotations name."""
    world = small_night.out / "synthetic"
    formats = {p.suffix: Image.open(p).format for p in world.rglob("*") if p.suffix in (".jpg", ".png")}
    assert formats == {".jpg": "JPEG", ".png": "PNG"}
    for name, split, folder in (
        ("vqa", "val", "vqa"),
        ("vcr", "val", "vcr"),
        ("nlvr2", "dev", "nlvr2"),
        ("flickr30k_entities", "val", "flickr30k"),
    ):
        on_disk = {p.stem for p in (world / folder).rglob("*") if p.suffix in (".jpg", ".png")}
        asked = {i for example in open_task(name, world / folder, split).examples() for i in example.image_ids}
        assert asked == on_disk


def test_training_and_validation_never_share_a_scene() -> None:
    """Seeds of the training set and of the validation set differ in their second number, so their scenes differ."""
    assert len({TRAIN, HELD_OUT, VALIDATION}) == 3
    train, validation = make_scene((1, TRAIN, 0, 0)), make_scene((1, VALIDATION, 0, 0))
    assert train.things != validation.things


def test_boxes_are_tight(scenes: list[Scene]) -> None:
    """A box lies inside the image and has its object's size, and its pixels have the object's colour."""
    for scene in scenes:
        for thing in scene.things:
            x0, y0, x1, y1 = thing.box
            assert 0 <= x0 < x1 <= SIZE
            assert 0 <= y0 < y1 <= SIZE
            assert (max(x1 - x0, y1 - y0) > 36) == (thing.size == "large")
            inside = scene.pixels[int(y0) : int(y1), int(x0) : int(x1)].astype(float)
            near = np.abs(inside - COLORS[thing.color]).sum(-1) < 110
            assert near.mean() > 0.15, thing


def test_a_class_is_a_shape_in_a_color() -> None:
    """The 64 pairs of shape and colour and the background have one label each."""
    things = [Thing(shape, color, "small", (0, 0, 1, 1)) for shape in SHAPES for color in COLORS]
    assert sorted(label_of(thing) for thing in things) == list(range(1, 65))
    assert len(LABELS) == 65


def test_nlvr2_sentences_are_true_of_half_of_their_pairs(scenes: list[Scene]) -> None:
    """Each sentence is true for half of its pairs, so a model that ignores the images scores like a coin."""
    rng = np.random.default_rng(0)
    pairs = [(scenes[2 * i].things, scenes[2 * i + 1].things) for i in range(ask.PAIRS)]
    items = [item for item in (ask.nlvr2_item(rng, pairs) for _ in range(200)) if item]
    assert len(items) > 50
    assert all(sum(item.labels) == 2 for item in items)
    assert len({item.family for item in items}) == 7


def test_vcr_choices_do_not_give_the_answer_away(scenes: list[Scene]) -> None:
    """Right choices are equally frequent in each place, and sizes and colours form a grid in which no choice stands
    out."""
    rng = np.random.default_rng(0)
    items = [refer.vcr_item(rng, scenes[n % len(scenes)].things) for n in range(800)]
    for labels in (Counter(i.answer_label for i in items), Counter(i.rationale_label for i in items)):
        assert min(labels.values()) > 150
    for item in items:
        assert len(set(item.answers)) == len(set(item.rationales)) == 4
        sizes, colors = Counter(r[5] for r in item.rationales), Counter(r[9] for r in item.rationales)
        assert set(sizes.values()) == set(colors.values()) == {2}


def test_answers_are_right(scenes: list[Scene]) -> None:
    """For every description in a question, the answers about number and existence agree with the scene."""
    rng = np.random.default_rng(0)
    checked = Counter[str]()
    words = {Description(s, c, h).words(plural=True): Description(s, c, h) for s, c, h in _attributes()}
    single = {d.words(): d for d in words.values()}
    for number in range(600):
        things = scenes[number % len(scenes)].things
        item = ask.vqa_item(rng, things)
        if item.question_type == "how many":
            phrase = item.question.removeprefix("How many ").removesuffix(" are there?")
            assert item.answer == str(len(words[phrase].find(things)))
        elif item.question_type == "is there a":
            phrase = item.question.removeprefix("Is there a ").removesuffix("?")
            assert item.answer == ("yes" if single[phrase].find(things) else "no")
        checked[item.question_type] += 1
    assert checked["how many"] > 50
    assert checked["is there a"] > 50
    assert set(checked) <= {"is the", "are the", "how many", "is there a"} | {
        f"what {a} is the" for a in ("color", "shape", "size")
    } | {f"what is the {a} of the" for a in ("color", "shape")}


def test_captions_name_each_phrase_once(scenes: list[Scene]) -> None:
    """A phrase occurs once in a caption, because a second occurrence would be queried at the first one's place."""
    rng = np.random.default_rng(0)
    for number in range(400):
        made = refer.caption(rng, scenes[number % len(scenes)].things)
        texts = [part.words for part in made if isinstance(part, refer.CaptionPhrase)]
        assert texts
        assert len(set(texts)) == len(texts)


def test_the_vocabulary_has_every_word(small_night: SmallNight, tmp_path: Path) -> None:
    """No text of the synthetic data needs [UNK]. Two words are missing on purpose, so that word pieces occur."""
    path = tmp_path / "vocab.txt"
    path.write_text("".join(f"{word}\n" for word in vocabulary()))
    encoder, words = InputEncoder(path), vocabulary()
    empty = Regions("", 1, 1, *(np.zeros((1, *rest), np.float32) for rest in ((4,), (), (), (2,))), image_digest="")
    world = small_night.out / "synthetic"
    seen = set()
    for name, split, folder in (("vqa", "val", "vqa"), ("vcr", "val", "vcr"), ("nlvr2", "dev", "nlvr2")):
        for example in open_task(name, world / folder, split).examples():
            assert isinstance(example, (Question, MultipleChoice, Statement, Grounding))
            encoded = encoder.encode(example, [empty] * len(example.image_ids))
            for sequence in encoded if isinstance(encoded, tuple) else (encoded,):
                seen |= {words[piece] for piece in sequence.input_ids}
    for grounding in open_task("flickr30k_entities", world / "flickr30k", "val").examples():
        seen |= {words[piece] for piece in encoder.encode(grounding, [empty]).input_ids}  # type: ignore[union-attr]
    assert "[UNK]" not in seen
    # the pieces of "does" and "at"
    assert {piece for piece in seen if piece.startswith("##")} == {"##o", "##e", "##s", "##t"}


def test_the_weights_are_small_and_say_what_they_are() -> None:
    """The five folders of regions are under 5 MB in all, and every folder has a card; each VisualBERT names its feature
    space and its answers."""
    regions = [WEIGHTS / "detector", *WEIGHTS.glob("visualbert-*")]
    assert sum(p.stat().st_size for folder in regions for p in folder.iterdir()) < 5_000_000
    folders = sorted(p.name for p in WEIGHTS.iterdir())
    assert folders == [
        "captioner",
        "detector",
        "vilt-vqa",
        *(f"visualbert-{t}" for t in ("flickr30k", "nlvr2", "vcr", "vqa")),
        "vlm",
    ]
    space = json.loads((WEIGHTS / "detector" / "config.json").read_text())["space"]
    for folder in WEIGHTS.iterdir():
        assert "seed 2026" in (folder / "README.md").read_text()
        if folder.name.startswith("visualbert"):
            assert json.loads((folder / "visualbert_core.json").read_text())["feature_space"] == space
    assert (WEIGHTS / "visualbert-vqa" / "answers.txt").read_text().split() == list(ask.ANSWERS)


def _attributes() -> list[tuple[str | None, str | None, str | None]]:
    return [(s, c, h) for s in (None, "small", "large") for c in (None, *COLORS) for h in (None, *SHAPES)]


def test_the_recipe_runs_from_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training module, at a tiny size, writes the eight checkpoint folders that open, with their scores."""
    for name, value in {
        "SCENES": 60,
        "VISUALBERT_SCENES": 60,
        "HELD_OUT_SCENES": 4,
        "DETECTOR_STEPS": 2,
        "recipe": partial(recipe, steps=8, save_every=8),
        "IMAGE_CYCLES": (2, 1),
        "PACKED_STEPS": 2,
        "PLAIN_STEPS": 2,
        "GENERATIVE_STEPS": 3,
        "CAPTIONER_STEPS": 2,
        "SyntheticConfig": lambda: TINY,
    }.items():
        monkeypatch.setattr(train, name, value)
    monkeypatch.setattr("sys.argv", ["train", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")])
    train.main()
    for committed in WEIGHTS.iterdir():
        made = tmp_path / "out" / committed.name
        assert {p.name for p in made.iterdir()} == {p.name for p in committed.iterdir()}
        tensors = [load_file(folder / "model.safetensors") for folder in (made, committed)]
        assert {k: (v.shape, v.dtype) for k, v in tensors[0].items()} == {
            k: (v.shape, v.dtype) for k, v in tensors[1].items()
        }
        assert "in percent" in (made / "README.md").read_text()
