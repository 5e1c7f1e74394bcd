"""What a person types: one file a command of `visualbert`, which `cli.py` finds by name.

A command is a frozen dataclass: its docstring is the help, its fields are the flags, their docstrings say what the
flags mean, and `run` does the work and returns the exit code. Fields that are configurations of `config.py` are flags
of the same names, so each default and each sentence of help stands once, for YAML, Python and the command line.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from visualbert_core.storage import absolute

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

INGREDIENT = None

T = TypeVar("T")
Config = TypeVar("Config", bound="DataclassInstance")

Flat = Annotated[T, tyro.conf.arg(name="")]
"""A configuration whose fields are flags of the command itself."""


def absolute_paths(config: Config) -> Config:
    """The configuration with its paths absolute, as a worker's working folder is another one."""
    values: dict[str, Any] = {field.name: getattr(config, field.name) for field in fields(config)}
    return replace(config, **{name: absolute(value) for name, value in values.items() if isinstance(value, Path)})
