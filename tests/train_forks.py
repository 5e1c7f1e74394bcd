"""Train by recipes, with kills at random points: every round is a fork that ends itself by SIGKILL.

    python train_forks.py JOBS.json

JOBS.json is a list of {"recipe": keys of a recipe, "seed": of the kills, or null for none}. Each job runs until its
training is finished. Prints a JSON list of the numbers of kills.

A fork of a process that has imported torch starts at once. The process itself computes nothing, so its forks inherit no
threads. A kill comes after a drawn number of events, not of seconds, so that it hits the same places on any machine.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch._dynamo  # noqa: F401  (every optimiser of torch imports it)

import visualbert_core.models.visualbert.trainable  # noqa: F401
from visualbert_core.config_mapping import from_mapping
from visualbert_core.provenance import code_digests
from visualbert_core.training import folder, state
from visualbert_core.training.launch import train
from visualbert_core.training.recipe import TrainConfig
from visualbert_core.training.step import Stepper

MOST_EVENTS = 50


def killed_after(events: int) -> None:
    """End this process at the `events`th event: a step, a file that is flushed, a name that is published."""
    left = [events]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    patched = cast(Any, Stepper)
    patched.__call__ = counted(Stepper.__call__)
    os.fsync, os.rename = counted(os.fsync), counted(os.rename)
    state.save_file, state.digest_file = counted(state.save_file), counted(state.digest_file)
    cast(Any, folder).publish = counted(folder.publish)
    Path.rename = counted(Path.rename)  # type: ignore[method-assign, assignment]


def finished(config: TrainConfig, events: int | None) -> bool:
    """Train in a fork. Return whether it finished; False where it was killed."""
    child = os.fork()
    if child == 0:
        try:
            if events is not None:
                killed_after(events)
            train(config)
            os._exit(0)
        finally:  # after an error
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    if os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"the training ended with {os.waitstatus_to_exitcode(status)}")
    return True


def kills(config: TrainConfig, seed: int | None) -> int:
    """Train until it is finished, and return how often it was killed."""
    draws, count = random.Random(seed), 0
    while not finished(config, None if seed is None else draws.randint(1, MOST_EVENTS)):
        count += 1
    return count


if __name__ == "__main__":
    code_digests(("training", "predictions"))  # and the imports below: each fork would repeat these seconds
    jobs = json.loads(Path(sys.argv[1]).read_text())
    found = [kills(from_mapping(TrainConfig, job["recipe"], "recipe"), job["seed"]) for job in jobs]
    sys.stdout.write(json.dumps(found) + "\n")
