"""Configuration: a mistake in a YAML file, a JSON file or a flag ends in one line before anything runs."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from visualbert_core.cli import main
from visualbert_core.config import DriftConfig, EvaluateConfig, ExtractConfig, NightlyConfig
from visualbert_core.config_mapping import from_mapping
from visualbert_core.errors import ConfigError
from visualbert_core.io.documents import read_json, read_yaml
from visualbert_core.io.locations import absolute
from visualbert_core.nightly.matrix import load_matrix
from visualbert_core.synthetic import DEMO

ROOT = Path(__file__).parents[1]
MATRIX: dict[str, Any] = {
    "name": "night",
    "out": "out",
    "corpora": {"coco": {"images": "val2014", "detector": "detector"}},
    "cells": [
        {"task": "vqa", "split": "val", "annotations": "vqa", "corpus": "coco", "model": "m", "floors": {"a": 1}},
    ],
}


NAN, INF = float("nan"), float("inf")


def cell(**changes: Any) -> dict[str, Any]:
    """Return the entry `cells` of a matrix, in which the only cell has these keys changed."""
    return {"cells": [MATRIX["cells"][0] | changes]}


def test_a_matrix_becomes_nested_dataclasses() -> None:
    """Paths, tuples, nested mappings and defaults arrive with their declared types."""
    config = from_mapping(NightlyConfig, MATRIX, "m.yaml")
    assert config.corpora["coco"].images == Path("val2014")
    assert config.corpora["coco"].boxes == "none"
    assert config.cells[0].floors == {"a": 1.0}
    assert isinstance(config.cells[0].floors["a"], float)
    assert config.pool.workers is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corpra": {}}, "m.yaml: unknown key 'corpra'; did you mean 'corpora'?"),
        ({"name": 3}, "m.yaml: name: expected str, found 3"),
        ({"pool": {"workers": True}}, "m.yaml: pool: workers: expected int, found True"),
        ({"pool": {"worker": 2}}, "m.yaml: pool: unknown key 'worker'; did you mean 'workers'?"),
        ({"cells": {}}, "m.yaml: cells: expected list, found {}"),
        ({"corpora": {"a": {"images": "a", "detector": "b", "boxes": "given"}}}, "corpora.a: boxes: 'given' is not"),
        ({"synthetic": {"sed": 1}}, "m.yaml: synthetic: unknown key 'sed'; did you mean 'seed'?"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], message: str) -> None:
    """The message names the file, the key, and the nearest known key."""
    with pytest.raises(ConfigError) as raised:
        from_mapping(NightlyConfig, MATRIX | change, "m.yaml")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_key_is_named() -> None:
    """The message names the first missing key that has no default."""
    with pytest.raises(ConfigError, match="run: missing key 'split'"):
        from_mapping(EvaluateConfig, {"task": "vqa"}, "run")


@pytest.mark.parametrize(("text", "message"), [("a: [1", "not valid YAML"), ("\tx: 1", "not valid YAML")])
def test_broken_yaml_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    """The YAML parser's long complaint becomes one line with the path."""
    path = tmp_path / "m.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as raised:
        read_yaml(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_broken_json_names_its_line(tmp_path: Path) -> None:
    """The message for a truncated JSON file names the line of the fault."""
    path = tmp_path / "config.json"
    path.write_text('{"a": 1,\n "b"')
    with pytest.raises(ConfigError, match=r"not valid JSON.*line 2"):
        read_json(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", "b.c: the key stands in line 3 and again in line 5"),
        ("cells:\n- {task: vqa, task: vcr}\n", "cells[0].task: the key stands twice in line 2"),
        ("a: &x {q: 1}\nb: {<<: *x, r: 1, r: 2}", "b.r: the key stands twice in line 2"),
        ("max_hours: .nan", "max_hours: nan is not a finite number"),
        ("cells: [{floors: {accuracy: -.inf}}]", "cells[0].floors.accuracy: -inf is not a finite number"),
        ("seed: " + "9" * 5000, "an integer of thousands of digits"),
        ("seed: 0x" + "f" * 5000, "seed: an integer of 6,021 digits"),
        (
            "cells:\n- floors:\n    accuracy: 1:30\n",
            "cells[0].floors.accuracy: YAML reads 1:30 in line 3 as 90 (base 60): ",
        ),
        ("- -2:0.5\n", "[0]: YAML reads -2:0.5 in line 1 as -120.5 (base 60): "),
        ("drops: {1:30: 1}", "drops.1:30: YAML reads 1:30 in line 1 as 90 (base 60): "),
        ("a: 1\nseed: 010\n", "seed: YAML reads 010 in line 2 as 8 (base 8): "),
        ("night: 2026-13-01", "month must be in 1..12"),
        ("[" * 100_000, "lists or mappings are nested more than 64 deep"),
        ("- " * 5000 + "a", "lists or mappings are nested more than 64 deep"),
        ("a: " + "{a: " * 80 + "1" + "}" * 80, "lists or mappings are nested more than 64 deep"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n", "a Git LFS pointer"),
    ],
)
def test_yaml_that_cannot_be_meant(tmp_path: Path, text: str, message: str) -> None:
    """YAML that the parser would accept silently, or that would hang or crash it, is refused at once, in one line with
    the file and the key."""
    path = tmp_path / "m.yaml"
    path.write_text(text)
    start = time.monotonic()
    with pytest.raises(ConfigError) as raised:
        read_yaml(path)
    assert time.monotonic() - start < 2
    assert str(raised.value).startswith(f"{path}: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,\n "b": {"c": 1,\n "c": 2}}', "b.c: the key stands in line 2 and again in line 3"),
        ('{"a": 1,\t"a": 2}', "the key 'a' stands twice"),
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": [1, 1e999]}', "a[1]: inf is not a finite number"),
        ('{"a": ' + "9" * 5000 + "}", "an integer of thousands of digits"),
        ('{"a": ' + "9" * 30 + "}", "a: an integer of"),
        ("[" * 100_000, "lists or mappings are nested more than 64 deep"),
        ('{"a":' * 80 + "1" + "}" * 80, "lists or mappings are nested more than 64 deep"),
        (r'{"a": "\ud800"}', "a: '\\ud800' holds half a character"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n", "a Git LFS pointer"),
    ],
)
def test_json_that_cannot_be_meant(tmp_path: Path, text: str, message: str) -> None:
    """The same holds for JSON, in which jobs read the configuration of a checkpoint."""
    path = tmp_path / "config.json"
    path.write_text(text)
    start = time.monotonic()
    with pytest.raises(ConfigError) as raised:
        read_json(path)
    assert time.monotonic() - start < 2
    assert str(raised.value).startswith(f"{path}: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'1:30'", "1:30"),
        ("90", 90),
        ("007", 7),
        ("0x10", 16),
        ("1_000", 1000),
        ("00", 0),
        ("0.5", 0.5),
        ("a:30", "a:30"),
    ],
)
def test_numbers_that_yaml_reads_as_people_do(text: str, value: object, tmp_path: Path) -> None:
    """Quoted text, other notations of a number, and leading zeros without effect are accepted."""
    path = tmp_path / "m.yaml"
    path.write_text(f"night: {text}\n")
    assert read_yaml(path) == {"night": value}


def test_what_yaml_merges_may_be_said_anew(tmp_path: Path) -> None:
    """A merge key repeats a mapping with one value changed, and does not count as a key that stands twice."""
    path = tmp_path / "m.yaml"
    path.write_text("a: &a {task: vqa, split: val}\nb: {<<: *a, split: test}\n")
    assert read_yaml(path)["b"] == {"task": "vqa", "split": "test"}


def test_aliases_that_multiply_are_quoted_briefly(tmp_path: Path) -> None:
    """A few aliases that stand for a billion values are refused by their type, without being written out."""
    path = tmp_path / "m.yaml"
    rows = ["x0: &x0 [a, a, a, a, a, a, a, a, a]"]
    rows += [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]" for i in range(1, 12)]
    path.write_text("\n".join([*rows, "name: *x11"]))
    values = {"name": read_yaml(path)["name"]}
    with pytest.raises(ConfigError, match="name: expected str") as raised:
        from_mapping(NightlyConfig, MATRIX | values, "m.yaml")
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("task: vqa", "task: vqa2", "unknown task 'vqa2'; did you mean 'vqa'"),
        ("corpus: vqa-val2014", "corpus: vqa-val", "unknown corpus 'vqa-val'; did you mean 'vqa-val2014'?"),
        ("examples: 10", "exmaples: 10", "unknown key 'exmaples'; did you mean 'examples'?"),
    ],
)
def test_a_matrix_is_checked_before_it_runs(tmp_path: Path, old: str, new: str, message: str) -> None:
    """An unknown task, corpus or key ends the job before it reads an image."""
    path = tmp_path / "demo.yaml"
    path.write_text(DEMO.read_text().replace(old, new))
    with pytest.raises(ConfigError) as raised:
        load_matrix(path, {})
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": {"workers": 0}}, "m.yaml: pool: workers is 0: it must be at least 1"),
        ({"pool": {"threads_per_worker": 0}}, "m.yaml: pool: threads_per_worker is 0: it must be at least 1"),
        ({"pool": {"gpus_per_worker": -0.5}}, "m.yaml: pool: gpus_per_worker is -0.5: it must be at least 0"),
        ({"limit": -1}, "m.yaml: limit is -1: it must be at least 1"),
        ({"synthetic": {"vqa_images": 0}}, "m.yaml: synthetic: vqa_images is 0: it must be at least 1"),
        ({"gate": {"power": 1.5}}, "m.yaml: gate: power is 1.5: it must be between 0 and 1"),
        ({"gate": {"drop": NAN}}, "m.yaml: gate: drop is nan: it must be above 0 points and at most 100"),
        ({"gate": {"drop": 101}}, "m.yaml: gate: drop is 101.0: it must be above 0 points and at most 100"),
        ({"gpu_hour": INF}, "m.yaml: gpu_hour is inf: it must be a finite number"),
        ({"pool": {"max_hours": NAN}}, "m.yaml: pool: max_hours is nan: it must be a finite number"),
        ({"pool": {"start_timeout": INF}}, "m.yaml: pool: start_timeout is inf: it must be a finite number"),
        ({"synthetic": {"seed": -1}}, "m.yaml: synthetic: seed is -1: it must be at least 0"),
        ({"data": "a\0b"}, r"m.yaml: data is 'a\x00b': a name or path cannot hold a NUL"),
        ({"trackers": ["a\0b"]}, r"m.yaml: trackers is 'a\x00b': a name or path cannot hold a NUL"),
        (
            {"name": "a\x1b[2J"},
            r"m.yaml: 'a\x1b[2J' cannot name a folder: begin with a letter or digit, use no slash and no control "
            "character",
        ),
        (cell(floors={"accuracy": 1001}), "m.yaml: cells[0]: floors.accuracy is 1001.0: it must be at most 1000"),
        (cell(floors={"accuracy": -1}), "m.yaml: cells[0]: floors.accuracy is -1.0: it must be at least 0"),
        (cell(floors={"accuracy": NAN}), "m.yaml: cells[0]: floors.accuracy is nan: it must be a finite number"),
        (cell(wrong_image={"a": [9, 3]}), "m.yaml: cells[0]: wrong_image.a: expected [low, high], found [9.0, 3.0]"),
        (cell(wrong_image={"a": [9]}), "m.yaml: cells[0]: wrong_image.a: expected [low, high], found [9.0]"),
        (cell(wrong_image={"a": [0, 2000]}), "m.yaml: cells[0]: wrong_image.a is 2000.0: it must be at most 1000"),
        (cell(drops={"a": 0}), "m.yaml: cells[0]: drops.a is 0: it must be above 0 points"),
        (cell(split="val\0"), r"m.yaml: cells[0]: split is 'val\x00': a name or path cannot hold a NUL"),
        (cell(feature_space=""), "m.yaml: cells[0]: feature_space is empty: it must be a name"),
        ({"night": " "}, "m.yaml: night is empty: it must be a name"),
        (
            {"corpora": {1: MATRIX["corpora"]["coco"], "1": MATRIX["corpora"]["coco"]}},
            "m.yaml: corpora: two keys are spelt alike: 1, '1': rename one",
        ),
    ],
)
def test_numbers_that_cannot_be(change: dict[str, Any], message: str) -> None:
    """A number that would stop the run or silently leave out images is refused, and the message names its key."""
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        from_mapping(NightlyConfig, MATRIX | change, "m.yaml")


def test_numbers_of_a_command_line_that_cannot_be() -> None:
    """Impossible numbers are refused on the command line and in Python too, where no file is named: a limit of -1 must
    not drop the last image."""
    path = Path("x")
    for number in ("nan", "inf", "-1"):
        for name in ("gpus_per_worker", "max_hours", "shard_timeout"):
            with pytest.raises(ConfigError, match=f"^{name} is "):
                main(["extract", "--images=x", "--detector=x", "--out=x", f"--{name.replace('_', '-')}={number}"])
    for wrong in ({"limit": -1}, {"batch_size": 0}, {"shard_size": 0}, {"max_failures": -1}):
        with pytest.raises(ConfigError, match=f"^{next(iter(wrong))} is "):
            ExtractConfig(images=path, detector=path, out=path, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^canary is "):
        DriftConfig(canary=0)


@pytest.mark.parametrize(
    ("line", "key"),
    [
        (
            "evaluate --task=vqa --split=val --annotations=x --features=x --model=x --out=x --feature-space=",
            "feature_space",
        ),
        ("extract --images=x --detector=x --out=x --corpus=", "corpus"),
        ("import bua-tsv x --out=x --space=", "space"),
        ("convert checkpoint x y --feature-space=", "feature_space"),
    ],
)
def test_names_that_are_empty(line: str, key: str) -> None:
    """An empty name is refused, because a shell makes one of a variable that is not set."""
    with pytest.raises(ConfigError, match=f"^{key} is empty: it must be a name$"):
        main(line.split())


@pytest.mark.parametrize("name", ["../out", "/abs", ".hidden", "a/b"])
def test_a_corpus_lies_below_its_root(name: str) -> None:
    """A corpus's name must name one folder below --out."""
    path = Path("x")
    with pytest.raises(ConfigError, match="cannot name a folder"):
        ExtractConfig(images=path, detector=path, out=path, corpus=name)


def test_home_is_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ~ in a file, or in quotes on a command line, means the home folder."""
    monkeypatch.setenv("HOME", "/home/me")
    assert from_mapping(NightlyConfig, MATRIX | {"out": "~/x"}, "m.yaml").out == Path("/home/me/x")
    assert absolute("~/x") == Path("/home/me/x")


def test_the_demo_is_a_valid_matrix(tmp_path: Path) -> None:
    """Flags replace keys of the YAML file, and every path becomes absolute, because workers run in another folder."""
    config = load_matrix(DEMO, {"out": str(tmp_path)})
    assert config.data == tmp_path / "synthetic"
    paths = [config.out, *(c.images for c in config.corpora.values()), *(c.annotations for c in config.cells)]
    assert all(path.is_absolute() for path in paths)
    assert all(str(path).startswith(str(tmp_path)) for path in paths)
