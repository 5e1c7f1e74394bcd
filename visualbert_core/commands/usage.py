"""Errors in the flags that a user typed, as one line that says what to do.

tyro (github.com/brentyi/tyro) prints a box of up to thirty lines. This file replaces the box through `tyro._errors`,
which is not part of tyro's public API. A release of tyro without it prints the box.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from visualbert_core.commands.declarations import flags, subcommands
from visualbert_core.config import nearest
from visualbert_core.errors import ConfigError


@contextmanager
def complaints(command: Any, words: Sequence[str]) -> Iterator[None]:
    """Raise ConfigError where tyro.cli, called inside, refuses the words for this command."""
    try:
        from tyro import _errors
    except ImportError:
        yield
        return

    def refuse(event: _errors.ParseErrorEvent) -> None:
        raise ConfigError(f"{_complaint(event, command, words)} (see `{_where(event.prog, command, words)} --help`)")

    with _errors.on_parse_error(refuse):
        yield


def _complaint(event: Any, command: Any, words: Sequence[str]) -> str:
    """Return what is wrong. Report an unknown flag before a missing flag, because it is often that flag, misspelt."""
    if unknown := getattr(event, "tokens", None) or getattr(event, "unrecognized_tokens", None):
        return _unknown(unknown[0], command, words)
    match type(event).__name__:
        case "MissingArgs":
            names = [_name(each.arg) for each in event.missing_arguments]
            return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} missing"
        case "MissingSubcommand":
            return f"{event.prog} needs a subcommand: {', '.join(event.subcommand_spec.parser_from_name)}"
        case "InvalidChoice":
            # tyro gives the choices of a flag that may be left out in the order of a set, with None among them.
            known = sorted(set(event.choices) - {"None"})
            return f"{_name(event.argument)}: unknown {event.value!r}{nearest(event.value, known)}"
        case "BadValue":
            return f"{_name(event.argument)} has no value: add one after it"
    argument = getattr(event, "argument", None)
    if argument is None:
        return f"these flags cannot be used: {getattr(event, 'message', type(event).__name__)}"
    kind = str(argument.lowered.metavar).removeprefix("{None}|").lower()
    return f"{_name(argument)}: expected {kind}, found {_value(argument, words)!r}"


def _where(prog: str, command: Any, words: Sequence[str]) -> str:
    """Return the name of the program and its subcommand. tyro adds the subcommand for some mistakes only."""
    below = words[0] if words and words[0] in subcommands(command) else ""
    return prog if not below or prog.endswith(f" {below}") else f"{prog} {below}"


def _unknown(word: str, command: Any, words: Sequence[str]) -> str:
    below = subcommands(command)
    if "" not in below and word == words[0]:
        return f"unknown {word!r}{nearest(word, below)}"
    if not word.startswith("-"):
        return f"{word!r} is one word too many: remove it"
    # Without the dashes: they alone would make --part look like --lr.
    known = {name.lstrip("-"): name for each in below.values() for flag in flags(each) for name in flag.names}
    close = difflib.get_close_matches(word.partition("=")[0].lstrip("-"), known, n=1)
    return f"unknown flag {word!r}" + (f"; did you mean {known[close[0]]}?" if close else "")


def _name(argument: Any) -> str:
    if not argument.is_positional():
        return str(argument.lowered.name_or_flags[-1])
    metavar = str(argument.lowered.metavar)
    return str(argument.display_name()).upper() if metavar.startswith("{") else metavar  # not a list of all choices


def _value(argument: Any, words: Sequence[str]) -> str:
    """Return the last value that the user gave to a flag."""
    value = ""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        name, equals, attached = word.partition("=")
        if name.replace("_", "-") in argument.lowered.name_or_flags:
            value = attached if equals else after
    return value
