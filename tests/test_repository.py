"""What the repository promises beside its code: the README's commands, continuous integration, constraints."""

from __future__ import annotations

import re
import tomllib

import yaml
from conftest import ROOT

from visualbert_core.cli import COMMANDS
from visualbert_core.detector.torchvision_rcnn import DetectorConfig, build

README = (ROOT / "README.md").read_text()
FEATURES = (ROOT / "docs" / "features.md").read_text()


def test_ci_runs_the_readmes_commands_and_nothing_else() -> None:
    """Continuous integration runs the README's commands and no others."""
    commands = re.findall(r"^make \w+", README, re.MULTILINE)
    assert sorted(commands) == ["make demo", "make test"]
    lines = [line.strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]
    steps = [line for line in lines if line and not line.startswith(("#", "set ", "cd "))]
    assert steps == ["make test", "make demo"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{c.removeprefix('make ')}:", makefile, re.MULTILINE) for c in commands)


def test_the_readme_is_short() -> None:
    """The README is read to its end: at most 900 words, tables and commands included."""
    assert len(README.split()) <= 900


def test_every_file_that_the_readme_names_exists() -> None:
    """Links of the README and of every page have a target, and the paths of jobs exist."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
    for page in (*pages, *(ROOT / "docs").rglob("*.md")):
        text = page.read_text()
        links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
        assert not [link for link in links if link and not (page.parent / link).exists()], page
        assert not [name for name in re.findall(r"python (jobs/\w+\.py)", text) if not (ROOT / name).exists()], page
    assert len(re.findall(r"\]\(", README)) > 4


def test_every_command_of_the_pages_exists() -> None:
    """Each `visualbert NAME` on a page is a command of the program."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        named = re.findall(r"(?:^|`)visualbert ([a-z-]+)", page.read_text(), re.MULTILINE)
        assert set(named) <= set(COMMANDS), page


def test_pre_commit_runs_what_make_check_runs() -> None:
    """The pre-commit hooks run the same checks as `make check`."""
    makefile = (ROOT / "Makefile").read_text()
    check = re.search(r"^check:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert check is not None
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in check[1].splitlines()]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks] == commands


def test_every_data_file_of_the_wheel_exists() -> None:
    """Each pattern of package-data finds files, so that the wheel holds the demo's matrix and weights."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"]["visualbert_core"]
    assert not [pattern for pattern in patterns if not any((ROOT / "visualbert_core").glob(pattern))]


def test_the_pages_detector_is_one() -> None:
    """The config.json on the page builds a detector of torchvision."""
    import json

    from visualbert_core.config_mapping import from_mapping

    (text,) = re.findall(r"```json\s+(\{\"builder\".*?\})\s+```", FEATURES, re.DOTALL)
    model = build(from_mapping(DetectorConfig, json.loads(text), "features.md"))
    assert model.roi_heads.box_predictor.cls_score.out_features == 91


def test_constraints_are_names_and_versions_only() -> None:
    """The constraints are exact pins, without addresses, that cover every dependency."""
    lines = (ROOT / "constraints.txt").read_text().split()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    project = (ROOT / "pyproject.toml").read_text()
    needed = re.findall(r'"([a-z0-9-]+)(?:\[\w+\])?>=', project)
    assert len(needed) >= 12
    assert {name for name in needed if name != "setuptools"} <= pinned
