"""The reference pages agree with the code."""

from __future__ import annotations

import runpy
from dataclasses import fields

import pytest
from conftest import ROOT

import visualbert_core
from visualbert_core.cli import COMMANDS
from visualbert_core.config import CellConfig, CorpusConfig, NightlyConfig

FOLDER = ROOT / "docs" / "reference"


@pytest.mark.parametrize("page", ["commands", "matrix", "api"])
def test_the_reference_is_current(page: str) -> None:
    """The pages contain every current flag, default, signature and sentence of help."""
    made = runpy.run_path(str(FOLDER / "generate.py"))[page]()
    again = f"docs/reference/{page}.md is not what the code says: run `python docs/reference/generate.py`"
    assert (FOLDER / f"{page}.md").read_text() == made, again


def test_the_reference_is_whole() -> None:
    """Every command, every public name, and every flag with a sentence is on the pages."""
    commands, matrix, api = ((FOLDER / f"{page}.md").read_text() for page in ("commands", "matrix", "api"))
    assert all(f"\n## visualbert {name}" in commands for name in COMMANDS)
    assert not [line for line in commands.splitlines() if line.startswith("| `") and line.endswith("|  |")]
    assert all(
        f"| `{each.name}` |" in matrix for kind in (NightlyConfig, CellConfig, CorpusConfig) for each in fields(kind)
    )
    assert all(f"\n## {name}\n" in api for name in visualbert_core.__all__)
