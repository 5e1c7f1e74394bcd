"""Finds a benchmark by its name: a word for the benchmarks of this package, module:Class for any other benchmark.

A name module:Class says where the code is. So it needs no registration, and it means the same in every process.
"""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from visualbert_core.config import nearest
from visualbert_core.errors import ConfigError
from visualbert_core.tasks.base import Task
from visualbert_core.tasks.caption_pairs import CaptionPairs
from visualbert_core.tasks.example_source import ExampleSource
from visualbert_core.tasks.joined_splits import PLUS, JoinedSplits

TASKS = {
    "vqa": "visualbert_core.tasks.vqa:VqaTask",
    "vcr": "visualbert_core.tasks.vcr:VcrTask",
    "nlvr2": "visualbert_core.tasks.nlvr2:Nlvr2Task",
    "flickr30k_entities": "visualbert_core.tasks.flickr30k_entities:Flickr30kEntitiesTask",
    "captions": "visualbert_core.tasks.captions:CaptionsTask",
}

# `Task` declares these class attributes without a default. Python checks abstract methods, but not these.
_DECLARED = ("form", "splits", "metrics", "protocols")


def open_task(name: str, annotations: Path, split: str, protocol: str | None = None) -> Task:
    """Read a split of a benchmark from the folder of its official files, to be scored under one of its protocols.

    Raises ConfigError for an unknown task, split or protocol, AnnotationError for files that are missing or malformed.
    """
    return find_task(name)(annotations, split, protocol)


def open_lessons(name: str, annotations: Path, split: str) -> Task | ExampleSource | JoinedSplits:
    """Read a split to train on: a benchmark under its default protocol, "caption-pairs", or an ExampleSource.

    A split such as "train+val" is all examples of both. Raises ConfigError for an unknown name or split, for a split
    that is named twice, and for one without public labels to learn.
    """
    names = split.split(PLUS)
    if len(set(names)) < len(names):
        raise ConfigError(f"split {split!r} names a split twice: name each once")
    if name == CaptionPairs.name:
        return CaptionPairs(annotations, *names)
    found = _imported(name)
    if isinstance(found, type) and issubclass(found, ExampleSource):
        if found.name != name:
            raise ConfigError(f"task {name}: the name of this class is {found.name}; use that name")
        if inspect.isabstract(found):
            raise ConfigError(f"task {name}: the class lacks {', '.join(sorted(found.__abstractmethods__))}")
        return found(annotations, split)
    tasks = [open_task(name, annotations, each) for each in names]
    for task in tasks:
        if not task.labelled:
            raise ConfigError(
                f"{name} {task.split} has no public labels, so nothing can be learnt from it: train on another split"
            )
    return tasks[0] if len(tasks) == 1 else JoinedSplits(tasks)


def find_task(name: str) -> type[Task]:
    """Import the class of a benchmark. A module may lie in the working folder, as for `python -m`.

    Raises ConfigError where no benchmark has the name, or where its class lacks a required member.
    """
    found = _imported(name)
    module, _, attribute = name.partition(":")
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise ConfigError(
            f"task {name}: {module} has no class {attribute!r} that derives from visualbert_core.tasks.Task"
        )
    if found.name != name:
        raise ConfigError(f"task {name}: the name of this class is {found.name}; use that name")
    lacking = [member for member in _DECLARED if not hasattr(found, member)]
    lacking += sorted(found.__abstractmethods__) if inspect.isabstract(found) else []
    if lacking:
        raise ConfigError(f"task {name}: the class lacks {', '.join(lacking)}; add them, every Task needs them")
    return found


def title_of(name: str) -> str:
    """Return the name of a benchmark in a title: its word, or the title of a class whose name is a module and a class.

    Raises ConfigError where the module cannot be imported.
    """
    return str(getattr(_imported(name), "title", name)) if ":" in name else name


def _imported(name: str) -> Any:
    """Return what a name means, or None where its module has no such member."""
    if name not in TASKS and ":" not in name:
        raise ConfigError(f"unknown task {name!r}{nearest(name, TASKS)} (or name one of your own as module:Class)")
    module, _, attribute = TASKS.get(name, name).partition(":")
    # An installed program does not search the working folder. It goes last, so that no file there can hide a library.
    if name not in TASKS and (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        return getattr(import_module(module), attribute, None)
    except (ImportError, ValueError) as error:  # An empty module name gives a ValueError.
        raise ConfigError(f"task {name}: module {module!r} cannot be imported: {error}") from None
