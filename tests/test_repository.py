"""What the repository promises beside its code: the README's commands, continuous integration, constraints."""

from __future__ import annotations

import re

from conftest import ROOT

from visualbert_core.detector.torchvision_rcnn import DetectorConfig, build

README = (ROOT / "README.md").read_text()


def test_ci_runs_the_readmes_commands_and_nothing_else() -> None:
    """What passes in CI is what a person types."""
    commands = re.findall(r"^make \w+", README, re.MULTILINE)
    assert sorted(commands) == ["make demo", "make test"]
    lines = [line.strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]
    steps = [line for line in lines if line and not line.startswith(("#", "set ", "cd "))]
    assert steps == ["make test", "make demo"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{c.removeprefix('make ')}:", makefile, re.MULTILINE) for c in commands)


def test_every_file_that_the_readme_names_exists() -> None:
    """Links and job paths in the README lead somewhere."""
    named = re.findall(r"\]\(([^)]+)\)", README) + re.findall(r"python (jobs/\w+\.py)", README)
    assert len(named) > 4
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_readmes_detector_is_one() -> None:
    """The config.json shown there builds a detector of torchvision."""
    import json

    from visualbert_core.config import from_mapping

    (text,) = re.findall(r"```json\s+(\{\"builder\".*?\})\s+```", README, re.DOTALL)
    model = build(from_mapping(DetectorConfig, json.loads(text), "README.md"))
    assert model.roi_heads.box_predictor.cls_score.out_features == 91


def test_constraints_are_names_and_versions_only() -> None:
    """Exact pins that cover every dependency, without an address in them."""
    lines = (ROOT / "constraints.txt").read_text().split()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    project = (ROOT / "pyproject.toml").read_text()
    needed = re.findall(r'"([a-z0-9-]+)(?:\[\w+\])?>=', project)
    assert len(needed) >= 12
    assert {name for name in needed if name != "setuptools"} <= pinned
