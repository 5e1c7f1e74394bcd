"""What a user reads after a mistyped command: one line with a remedy, and exit code 2."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tyro
from conftest import ROOT

from visualbert_core.cli import COMMANDS, main
from visualbert_core.commands.declarations import flags, subcommands
from visualbert_core.errors import ConfigError

ALL = "--task vqa --split val --annotations A --features F --model M --out O"

MISTAKES = {
    # unknown flags
    f"evaluate {ALL} --shard-sise 4": "unknown flag '--shard-sise'; did you mean --shard-size?",
    f"evaluate {ALL} --shard-sise=4": "unknown flag '--shard-sise=4'; did you mean --shard-size?",
    # the typing error, not the flag --task that is missing because of it
    "evaluate --tsk vqa": "unknown flag '--tsk'; did you mean --task?",
    "store ls STORE --limt 3": "unknown flag '--limt'; did you mean --limit?",
    "train --lr 1": "unknown flag '--lr' (see `visualbert train --help`)",
    f"evaluate {ALL} --zzz": "unknown flag '--zzz' (see `visualbert evaluate --help`)",
    # missing flags and arguments
    "evaluate --task vqa --split val": "--annotations, --model, --out are missing",
    "compare RUN": "RUN_B is missing (see `visualbert compare --help`)",
    "store verify": "STORE is missing (see `visualbert store verify --help`)",
    # wrong types
    f"evaluate {ALL} --shard-size x": "--shard-size: expected int, found 'x'",
    f"evaluate {ALL} --shard_size=1.5": "--shard-size: expected int, found '1.5'",
    f"evaluate {ALL} --max-hours soon": "--max-hours: expected float, found 'soon'",
    "store canary STORE --images I --detector D -n x": "--number: expected int, found 'x'",
    f"evaluate {ALL} --visual wrong_image": "--visual: unknown 'wrong_image'; did you mean 'wrong-image'?",
    "convert detector vg IN OUT": "NAME: unknown 'vg'; known: detectron_fpn, pythia_fpn, ",
    f"evaluate {ALL} --preset x": "--preset: unknown 'x'; known: blip2-paper, hf-guide, lavis (",
    # words that are not flags
    f"evaluate {ALL} --json yes": "'yes' is one word too many: remove it",
    f"evaluate {ALL} --limit": "--limit has no value: add one after it",
    "store verfy STORE": "unknown 'verfy'; did you mean 'verify'?",
    "store": "visualbert store needs a subcommand: ls, info, name, verify, canary",
    "evalute": "unknown command 'evalute'; did you mean 'evaluate'?",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line(line: str, capfd: pytest.CaptureFixture[str]) -> None:
    """An error is our own line with the flag and the typed word, and nothing else is printed."""
    with pytest.raises(ConfigError, match=re.escape(MISTAKES[line])) as error:
        main(line.split())
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_file_is_no_folder_to_write_to(tmp_path: Path) -> None:
    """An --out that is a file, or lies where nothing can be written, is wrong input, exit code 2, and the line begins
    with its path."""
    (tmp_path / "out").write_text("")
    for out, why in ((str(tmp_path / "out"), "File exists"), ("/proc/x", "No such file or directory")):
        command = [sys.executable, "-m", "visualbert_core", "demo", "--out", out]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 2
        assert re.fullmatch(f"error: {out}\\S*: {why}: correct this and run the same line again\n", done.stderr)


def test_a_mistake_ends_with_two() -> None:
    """The process prints nothing on stdout and one line on stderr, and exits with code 2."""
    done = subprocess.run(
        [sys.executable, "-m", "visualbert_core", "score", "--tsk", "vqa"], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown flag '--tsk'; did you mean --task? (see `visualbert score --help`)\n"


def test_without_the_hook_tyro_speaks(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """A release of tyro without the private hook prints tyro's own box, and the exit code stays the same."""
    monkeypatch.delattr(tyro, "_errors")
    monkeypatch.setitem(sys.modules, "tyro._errors", None)
    with pytest.raises(SystemExit, match="2"):
        main(["score", "--task"])
    assert "Missing value for argument '--task'" in capfd.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_the_declarations_are_what_tyro_parses(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The flags in error messages and in the reference are exactly those that the parser takes."""
    command = importlib.import_module(f"visualbert_core.commands.{COMMANDS[name][0]}").Command
    for below, declaration in subcommands(command).items():
        with pytest.raises(SystemExit, match="0"):
            main([name, *filter(None, [below]), "--help"])
        shown = capfd.readouterr().out
        rows = "\n".join(re.findall(r"^│ (-.*?)(?:  |│)", shown, re.MULTILINE))
        declared = list(flags(declaration))
        names = {name for flag in declared for name in flag.names if name.startswith("-")}
        assert set(re.findall(r"(?<!\S)--?[a-z][a-z0-9-]*", rows)) - {"-h", "--help"} == names
        assert shown.count("(required)") == sum(
            flag.default is None and not flag.kind.endswith("…") for flag in declared
        )
