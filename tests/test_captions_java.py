"""METEOR and SPICE: what is missing is one line, and the package is called as its own program calls it.

No Java runs here. A stand-in has the two classes of pycocoevalcap, and an empty file is java.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from captions_golden import coco_folder
from PIL import Image as Pillow
from pixel_model import install, write_checkpoint

from visualbert_core.cli import main
from visualbert_core.errors import ConfigError, InputError
from visualbert_core.tasks import Task
from visualbert_core.tasks.captions import CaptionsTask


class Plain(CaptionsTask):
    """A benchmark that no Java program scores."""

    splits = CaptionsTask.splits
    other_scorer = Task.other_scorer


METEOR = """
class Meteor:
    def compute_score(self, gts, res):
        assert res == {str(number): [f"a dog {number}"] for number in range(3)}
        assert gts == {str(number): [f"a dog {number}", "do n't"] for number in range(3)}
        return 0.25, [0.25] * len(gts)
"""
SAME_LENGTH = """
class Meteor:
    def compute_score(self, gts, res):
        (words,) = {len(text.split()) for (text,) in res.values()}
        return words / 100, []
"""
SPICE = """
class Spice:
    def __init__(self):
        print("Downloading")

    def compute_score(self, gts, res):
        import numpy
        return numpy.float64(0.125), [{"All": {"f": 0.125}}] * len(gts)
"""


@pytest.fixture
def line(tmp_path: Path) -> list[str]:
    """Return the command that scores three captions of three images with two references each."""
    images = [{"id": number} for number in range(3)]
    said = [{"image_id": number, "caption": text} for number in range(3) for text in (f"A dog, {number}.", "DON'T")]
    coco_folder(tmp_path, {"images": images, "annotations": said}, "val")
    (tmp_path / "captions.json").write_text(json.dumps([each for each in said if "dog" in each["caption"]]))
    return [
        *("score", "--task", "captions", "--split", "val", "--annotations", str(tmp_path)),
        *("--predictions", str(tmp_path / "captions.json")),
    ]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a stand-in of the package and of java first, and return the folder of the package."""
    for name, text in (("meteor", METEOR), ("spice", SPICE)):
        folder = tmp_path / "path" / "pycocoevalcap" / name
        folder.mkdir(parents=True)
        (folder / f"{name}.py").write_text(text)
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.touch(mode=0o755)
    for loaded in [name for name in sys.modules if name.partition(".")[0] == "pycocoevalcap"]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setenv("PATH", str(java.parent))
    monkeypatch.syspath_prepend(tmp_path / "path")
    return tmp_path / "path" / "pycocoevalcap"


def test_scores_of_java_programs_stand_below(
    line: list[str], package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The programs get tokenised captions in the form of coco-caption; scores are named "(Java)" and no metric."""
    assert main([*line, "--java", "meteor", "spice"]) == 0
    printed = capsys.readouterr()
    assert "METEOR (Java): 25.00\nSPICE (Java): 12.50" in printed.out
    assert "Downloading" in printed.err
    assert main([*line, "--java", "meteor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["java"] == {"METEOR (Java)": 25.0}
    assert document["headline"] == "cider"
    assert "METEOR" not in str(document["scores"])


@pytest.mark.parametrize("error", ["OSError('no network')", "ValueError('empty')"])
def test_a_program_that_fails_is_one_line(line: list[str], package: Path, error: str) -> None:
    """A program that cannot download or ends early is an error that names the program and what to do."""
    (package / "spice" / "spice.py").write_text(f"class Spice:\n    def __init__(self):\n        raise {error}\n")
    with pytest.raises(InputError, match=r"SPICE \(Java\): the program of pycocoevalcap failed: .*; leave spice out"):
        main([*line, "--java", "spice"])


def test_what_is_not_installed_is_one_line(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without Java and the package, the line names both and how to get them. Scores without --java need neither."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    both = r"^--java meteor: install Java \(for example .*\) and pycocoevalcap \(pip install pycocoevalcap\)$"
    with pytest.raises(ConfigError, match=both):
        main([*line, "--java", "meteor"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--java", "bleu"], "--java bleu: no such program; known: meteor, spice"),
        (["--java", "meteor", "--allow-partial"], "--allow-partial and --java exclude each other"),
    ],
)
def test_flags_that_do_not_fit(line: list[str], package: Path, flags: list[str], words: str) -> None:
    """An unknown program and a range are refused."""
    with pytest.raises(ConfigError, match=words):
        main([*line, *flags])


def test_an_evaluation_prints_them_and_keeps_its_files(
    line: list[str], package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`evaluate --java` gives the captions of the run to the program. A finished run may be asked again, and its files
    stay as they are."""
    (package / "meteor" / "meteor.py").write_text(SAME_LENGTH)
    for number in range(3):
        Pillow.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    monkeypatch.syspath_prepend(install(tmp_path / "families"))
    model = write_checkpoint(tmp_path / "model", 0)
    evaluate = ["evaluate", *line[1:7], "--images", str(tmp_path / "*.png"), "--model", str(model), "--inline", "--out"]
    assert main([*evaluate, str(tmp_path / "runs")]) == 0
    (scores,) = (tmp_path / "runs").glob("*/scores.json")
    before = scores.read_bytes()
    assert "METEOR" not in capsys.readouterr().out
    assert main([*evaluate, str(tmp_path / "runs"), "--java", "meteor"]) == 0
    assert "METEOR (Java): 10.00" in capsys.readouterr().out  # "there is a … thing next to a small square" has 10 words
    assert scores.read_bytes() == before


def test_an_evaluation_needs_the_programs_before_it_starts(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`evaluate --java` fails before a model is opened. A benchmark without Java programs and --limit are refused."""
    monkeypatch.setenv("PATH", str(tmp_path))
    about = [*line[1:7], "--images", str(tmp_path), "--model", str(tmp_path), "--out", str(tmp_path / "runs")]
    with pytest.raises(ConfigError, match="install Java"):
        main(["evaluate", *about, "--java", "meteor"])
    with pytest.raises(ConfigError, match=r"--java meteor: .* is scored without Java; leave the flag out"):
        main(["evaluate", "--task", f"{__name__}:Plain", *about[2:], "--java", "meteor"])
    with pytest.raises(ConfigError, match="--java needs a score"):
        main(["evaluate", *about, "--java", "meteor", "--limit", "3"])
    assert not (tmp_path / "runs").exists()
