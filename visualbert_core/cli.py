"""The program `visualbert`: every job of the project is a subcommand, which this file finds by its name.

Each command is a file of `commands/`. It is imported when it is asked for, so that `--help` imports neither torch nor
Ray. tyro (github.com/brentyi/tyro) makes flags and help from the dataclasses there and in `config.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import tyro

from visualbert_core import __version__
from visualbert_core.commands.declarations import REGISTRY
from visualbert_core.commands.usage import complaints
from visualbert_core.config import nearest
from visualbert_core.errors import ConfigError, end
from visualbert_core.printable import say

INGREDIENT = None

COMMANDS = {
    "demo": ("demo", "the whole job over small synthetic scenes"),
    "extract": ("extract", "images → feature store"),
    "import": ("import_features", "features that others extracted → feature store"),
    "store": ("store", "ls, info, name, verify, canary: look into a feature store"),
    "evaluate": ("evaluate", "a checkpoint on one split of a benchmark → run folder"),
    "ask": ("ask", "a question about one image → the answers of a model"),
    "train": ("train", "a recipe → checkpoints, trained from a feature store"),
    "score": ("score", "predictions of any system → the official score"),
    "compare": ("compare", "two run folders → what changed, and because of what"),
    "nightly": ("nightly", "a matrix of models × tasks × splits → report, gate, history"),
    "import-annotations": ("import_annotations", "a Hugging Face dataset → a benchmark's official files"),
    "convert": ("convert", "detector, checkpoint, bert: published weights → a folder"),
    "make-captioner": ("make_captioner", "an image encoder and a text decoder → a captioner"),
}
"""Name of a command → its module in `commands/`, and what the command does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name (default: the arguments of the process), and return its exit code.

    Raise ConfigError for an unknown command, and for flags that the command does not have or cannot read.
    """
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ("",)
    if name in ("", "-h", "--help"):
        say("usage: visualbert COMMAND …     (visualbert COMMAND --help says more)")
        say()
        for each, (_, does) in COMMANDS.items():
            say(f"  {each:<20}{does}")
        return 0 if name else 2
    if name == "--version":
        say(__version__)
        return 0
    if name not in COMMANDS:
        raise ConfigError(f"unknown command {name!r}{nearest(name, COMMANDS)}")
    module = import_module(f"visualbert_core.commands.{COMMANDS[name][0]}")
    with complaints(module.Command, rest):
        options: dict[str, Any] = {"config": (tyro.conf.FlagCreatePairsOff,), "registry": REGISTRY}
        if hasattr(module, "defaults"):  # a command that reads its defaults from a file
            options["default"] = module.defaults(rest)
        command = tyro.cli(module.Command, args=rest, prog=f"visualbert {name}", **options)
    code: int = command.run()
    return code


def entry() -> NoReturn:
    """Run the program `visualbert`, and exit with the code of its command."""
    end(main)
