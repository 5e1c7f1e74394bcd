"""The shipped recipes open by name, hold the authors' numbers, and say where each number is from."""

from __future__ import annotations

import re
from typing import Any

import pytest
import tyro
import yaml

from visualbert_core.commands import train
from visualbert_core.commands.declarations import REGISTRY
from visualbert_core.errors import ConfigError
from visualbert_core.training import TrainConfig
from visualbert_core.training.recipe import PATHS, shipped

REQUIRED = ("annotations", "features", "model", "out")
TABLE = {
    # learning rate, batch, epochs, warm-up: configs/ of github.com/uclanlp/visualbert at 2a9e8bd58a20
    "authors-coco": (5e-5, 48, 10, 0.1),
    "authors-vqa-pre-training": (5e-5, 64, 10, 0.1),
    "authors-nlvr2-pre-training": (5e-5, 64, 10, 0.1),
    "authors-flickr30k-pre-training": (5e-5, 32, 10, 0.1),
    "authors-vcr-pre-training": (5e-5, 32, 1, 0.1879),
    "authors-vqa": (2e-5, 64, 10, 0.1),
    "authors-nlvr2": (2e-5, 64, 10, 0.1),
    "authors-vcr": (2e-5, 32, 8, 0.1),
    "authors-vcr-answers": (2e-5, 32, 8, 0.1),
    "authors-vcr-rationales": (2e-5, 32, 12, 0.1),
    "authors-flickr30k": (2e-5, 32, 5, 0.1),
}


def opened(name: str) -> TrainConfig:
    """Open a recipe as the command does, with the paths as flags."""
    words = [name, *(word for key in REQUIRED for word in (f"--{key}", "somewhere"))]
    options: dict[str, Any] = {"config": (tyro.conf.FlagCreatePairsOff,), "registry": REGISTRY}
    command: train.Command = tyro.cli(train.Command, args=words, default=train.defaults(words), **options)
    return command.training


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_opens_and_holds_the_authors_numbers(name: str) -> None:
    """Every key of the file reaches the training, no key is a path, and the numbers are the authors'."""
    config, written = opened(name), yaml.safe_load(shipped()[name].read_text())
    assert (config.learning_rate, config.batch_size, config.epochs, config.warmup) == TABLE[name]
    assert not written.keys() & set(PATHS)
    for key, value in written.items():
        held = getattr(config, key)
        assert held == (tuple(value) if isinstance(value, list) else type(held)(value)), key
    theirs = {"optimizer": "bertadam", "clip": "each", "epsilon": 1e-6, "planned_steps": "authors"}
    assert {key: getattr(config, key) for key in theirs} == theirs
    assert config.frozen == ("pooler",)


@pytest.mark.parametrize("name", shipped())
def test_every_number_of_a_recipe_has_its_source(name: str) -> None:
    """Each line with a number ends with a comment that names where the number is from."""
    lines = [line for line in shipped()[name].read_text().splitlines() if re.match(r"\w+: [-\d.]", line)]
    assert len(lines) >= 8
    for line in lines:
        assert re.search(r"# (paper|code|config|ours|BERT)", line), line


def test_no_recipe_is_missing() -> None:
    """The shipped recipes are the stages of the paper on the four benchmarks."""
    assert shipped().keys() == TABLE.keys()


def test_an_unknown_name_of_a_recipe_is_refused() -> None:
    """A word that is neither a file nor a recipe is refused, and the nearest name is offered."""
    with pytest.raises(ConfigError, match=r"'authors-vqq'; did you mean 'authors-vqa'\? \(shipped: .*authors-vcr"):
        train.defaults(["authors-vqq"])
