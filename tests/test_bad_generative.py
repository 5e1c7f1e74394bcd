"""Wrong folders, settings and images of a generative model, at the command line. Each ends in one clear line."""

from __future__ import annotations

import builtins
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import transformers
from conftest import ROOT, SmallNight, run_here
from generative_folders import write_blip2, write_llava, write_paligemma, write_qwen
from PIL import Image
from vilt_folders import write_vilt

REGIONS = ROOT / "visualbert_core" / "synthetic" / "weights" / "visualbert-vqa"
PLACES = {
    "vqa": ("val", "vqa", "vqa/val2014"),
    "vcr": ("val", "vcr", "vcr/vcr1images"),
    "nlvr2": ("dev", "nlvr2", "nlvr2/images"),
    "flickr30k_entities": ("val", "flickr30k", "flickr30k/images"),
}


@dataclass(frozen=True)
class Place:
    """The checkpoints, and the world that they are asked about."""

    models: Path
    night: Path

    def run(self, out: Path, model: Path | str, *words: str, task: str = "vqa", images: Any = True) -> tuple[int, str]:
        """Run `visualbert evaluate` and return its exit code and what it says on stderr. `images` may be a folder."""
        split, annotations, folder = PLACES[task]
        world = self.night / "synthetic"
        line = ["--task", task, "--split", split, "--annotations", world / annotations, "--out", out, "--inline"]
        line += ["--model", self.models / model, "--shard-size", "5", *words]
        if images:
            line += ["--images", world / folder if images is True else images]
        done = run_here(ROOT / "jobs" / "evaluate.py", *line)
        return done.returncode, done.stderr

    def refused(self, out: Path, model: Path | str, *words: str, **where: Any) -> str:
        """Return the only line that a refused evaluation says."""
        code, said = self.run(out, model, *words, **where)
        lines = [line for line in said.splitlines() if not re.match(r"\w+ \w+: \d+ of \d+", line)]  # the progress
        assert (code, len(lines)) == (2, 1), said
        return lines[0]

    def store(self, corpus: str) -> str:
        (found,) = (self.night / "features" / corpus).iterdir()
        return str(found)


@pytest.fixture(scope="module")
def place(small_night: SmallNight, tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("bad")
    writers = {"llava": write_llava, "blip2": write_blip2, "paligemma": write_paligemma, "qwen": write_qwen}
    for name, write in (writers | {"vilt": write_vilt}).items():
        write(root / name)
    write_llava(root / "no-template", chat=False)
    write_blip2(root / "no-queries", queries=None)
    return Place(root, small_night.out)


@pytest.mark.parametrize(
    ("model", "words", "task", "said"),
    [
        (REGIONS, "", "vqa", "reads region features, but .* is a corpus of images: name a feature store instead"),
        (REGIONS, "--visual none", "vqa", "none of a grey image: visual none is for models that read pixels"),
        ("no-template", "", "vqa", "a prompt with an image, without a chat template"),
        ("no-queries", "", "vqa", "0 image tokens into a prompt of 1 images, so the images would be ignored"),
        ("llava", "--prompt What?", "vqa", r"prompt is 'What\?': it must hold {} once"),
        ("llava", "--prompt=", "vqa", "prompt is empty"),
        ("llava", "--preset lavis", "nlvr2", "preset lavis is for questions"),
        ("llava", "--answer-by generate", "vcr", "a MultipleChoice is answered by likelihood; leave it out"),
        ("blip2", "", "nlvr2", "set pair stitched to show both"),
        ("blip2", "", "flickr30k_entities", "no box format is known for models of type blip-2"),
        ("llava", "--box-format qwen2.5-vl", "flickr30k_entities", "does not say how it resizes"),
        ("paligemma", "--answer-by likelihood", "flickr30k_entities", "name the store beside the images"),
        ("llava", "--people drawn", "vqa", "people has no effect where a Question is answered by generate"),
        ("llava", "--pair stitched", "vqa", "pair has no effect"),
        ("llava", "--box-format paligemma", "vqa", "box_format has no effect"),
        ("llava", "--normalise sum", "vqa", "normalise has no effect"),
        ("llava", "--beams 3", "nlvr2", "beams has no effect where a Statement is answered by likelihood"),
        ("paligemma", "--post first-line", "flickr30k_entities", "post has no effect"),
        ("llava", "--length-penalty 2", "vqa", "length_penalty has no effect on a greedy search"),
        ("blip2", f"--prompt {'red_' * 60}{{}} --max-new-tokens 60 --strict-length", "vqa", "the network reads 64"),
        ("nothing", "", "vqa", "no such checkpoint folder"),
    ],
)
def test_what_does_not_fit_is_one_line(
    place: Place, tmp_path: Path, model: Path | str, words: str, task: str, said: str
) -> None:
    """A setting, a model or a baseline that cannot be has exit code 2, and a line that says what is wrong."""
    more = ("--features", place.store("vqa-val2014")) if "none" in words else ()
    line = place.refused(tmp_path, model, *words.split(), *more, task=task, images=not more)
    assert re.search(said, line), line


def test_a_store_for_a_model_that_reads_pixels(place: Place, tmp_path: Path) -> None:
    """A store alone, and a store beside the images where no region is scored, are refused."""
    store = ("--features", place.store("vqa-val2014"))
    assert "name the corpus of images instead (--images" in place.refused(tmp_path, "llava", *store, images=False)
    assert "reads pixels only: leave out features" in place.refused(tmp_path, "llava", *store)


def changed(folder: Path, to: Path, file: str = "config.json", **changes: Any) -> Path:
    copied = shutil.copytree(folder, to)
    held = json.loads((copied / file).read_text())
    inner = {name: held[name] | value for name, value in changes.items() if isinstance(value, dict) and name in held}
    (copied / file).write_text(json.dumps(held | changes | inner))
    return copied


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "nope"}, "no model of type 'nope'.*known beside those of transformers: "),
        ({"auto_map": {"AutoModel": "mine.Model"}}, "needs code from its folder to be run, which is never done"),
        ({"text_config": {"num_hidden_layers": 3}}, "the weights lack .*layers.2"),
        ({"text_config": {"num_hidden_layers": 1}}, "the weights have more layers than config.json says: .*layers.1"),
        ({"text_config": {"intermediate_size": 48}}, r"other sizes than config.json says: .*\[32, 64\] and not"),
    ],
)
def test_a_folder_that_is_not_what_its_config_says(
    place: Place, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    """Unknown types, own code, and weights of another network are named; a layer too many would be left out silently
    by transformers."""
    folder = changed(place.models / "llava", tmp_path / "changed", **changes)
    line = place.refused(tmp_path / "out", folder)
    assert re.search(said, line), line
    assert len(line) < 700


def test_code_beside_a_processor_never_runs(place: Place, tmp_path: Path) -> None:
    """A processor and a tokenizer of the folder's own are not imported; those of transformers are used."""
    mine = {"AutoProcessor": "mine.Processor", "AutoTokenizer": ["mine.Tokenizer", None]}
    folder = changed(place.models / "llava", tmp_path / "mine", "processor_config.json", auto_map=mine)
    (folder / "mine.py").write_text("raise SystemExit('this ran')")
    code, said = place.run(tmp_path / "out", folder, "--max-new-tokens", "2")
    assert (code, "this ran" in said) == (0, False)


@pytest.mark.parametrize("model", ["llava", "vilt"])
def test_without_transformers(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    """Where transformers is not installed, the line names the extra."""
    real = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name.partition(".")[0] == "transformers":
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *arguments, **named)

    for name in [
        name for name in sys.modules if name.startswith(("transformers.models.auto", "visualbert_core.models.vilt"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    line = place.refused(tmp_path, model)
    assert "not installed: pip install 'visualbert-core[transformers]'" in line


def worlds_images(place: Place, to: Path, change: Callable[[Path], None]) -> Path:
    """Copy the images of the questions and change the first."""
    images = shutil.copytree(place.night / "synthetic" / "vqa" / "val2014", to)
    change(min(images.iterdir()))
    return images


def thin(path: Path) -> None:
    Image.new("RGB", (1200, 3), (9, 200, 3)).save(path)


def grey(path: Path) -> None:
    with Image.open(path) as picture:
        picture.convert("L").save(path)


def alpha(path: Path) -> None:
    with Image.open(path) as picture:
        picture.convert("RGBA").save(path.with_suffix(".png"))
    path.unlink()


def test_a_thin_image_is_a_failure_row(place: Place, tmp_path: Path) -> None:
    """An image that Qwen's image processor refuses fails alone: the other questions are answered, and there is no
    score. Before, the whole shard failed."""
    images = worlds_images(place, tmp_path / "images", thin)
    code, said = place.run(tmp_path / "out", "qwen", "--max-new-tokens", "2", images=images)
    assert code == 3
    assert "44 predictions for 48 examples" in said
    assert re.search(r"the processor refuses image '\w+' of 1200×3 pixels: absolute aspect ratio", said)


@pytest.mark.parametrize("change", [grey, alpha])
def test_grey_and_alpha_images_are_images(place: Place, tmp_path: Path, change: Callable[[Path], None]) -> None:
    """An image without colours and one with an alpha channel are shown as RGB."""
    images = worlds_images(place, tmp_path / "images", change)
    for model in ("qwen", "paligemma"):
        code, said = place.run(tmp_path / "out", model, "--max-new-tokens", "2", images=images)
        assert code == 0, said


def test_a_prompt_that_is_too_long_has_no_score(place: Place, tmp_path: Path) -> None:
    """Without strict_length, prompts longer than the positions are failure rows, which are counted."""
    code, said = place.run(tmp_path, "blip2", "--max-new-tokens", "60")
    assert code == 3
    assert re.search(r"0 predictions for 48 examples: 48 missing .* the network reads 64", said)


def test_a_model_that_writes_nothing_has_a_score(place: Place, tmp_path: Path) -> None:
    """Empty texts are answers, wrong and unparsed: the run is complete."""
    folder = shutil.copytree(place.models / "llava", tmp_path / "empty")
    network = transformers.LlavaForConditionalGeneration.from_pretrained(folder)
    network.model.language_model.norm.weight.data.zero_()  # so every token is equally likely, and the first is taken
    network.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    code, said = place.run(tmp_path / "out", folder)
    assert code == 0, said
    (scores,) = (tmp_path / "out").glob("*/scores.json")
    assert json.loads(scores.read_text())["generated"] == {"texts": 48, "unparsed": 48, "cut": 0}
