"""A family of models from outside the package: one file and one entry point, as docs/how-to/model.md shows them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import ROOT, SmallNight, run_here

FILE = ROOT / "examples" / "own_family.py"
PAGE = (ROOT / "docs" / "how-to" / "model.md").read_text()


def test_the_page_shows_the_file() -> None:
    """The page has the example as it is."""
    assert f"```python\n{FILE.read_text()}```" in PAGE


def test_every_command_finds_the_family(
    small_night: SmallNight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the page's line as the metadata of an installed package, `visualbert evaluate` opens the folder that the
    script wrote, and gives the script's score. Without it, the model type is unknown."""
    world = small_night.out / "synthetic" / "vqa"
    script = run_here(FILE, world, world / "val2014", tmp_path / "colours", tmp_path / "script")
    assert script.returncode == 0, script.stderr
    line = ["--task", "vqa", "--split", "val", "--annotations", world, "--images", world / "val2014"]
    line += ["--model", tmp_path / "colours", "--out", tmp_path / "command", "--inline", "--json"]
    unknown = run_here(ROOT / "jobs" / "evaluate.py", *line)
    assert unknown.returncode == 2
    assert "no model of type 'mean_colour'" in unknown.stderr
    (group, entry) = re.findall(r"```toml\n\[project\.entry-points\.\"(.*)\"\]\n(.*)\n```", PAGE)[0]
    info = tmp_path / "site" / "colours-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: colours\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry.replace(chr(34), '')}\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.syspath_prepend(FILE.parent)
    known = run_here(ROOT / "jobs" / "evaluate.py", *line)
    assert known.returncode == 0, known.stderr
    assert str(json.loads(known.stdout)["scores"]) in script.stdout
