"""Checkpoints of a training, with the training state inside, written whole or not at all.

    OUT/checkpoints/step-00000500/
        config.json, model.safetensors, vocab.txt, …   the checkpoint, which `evaluate` and transformers open
        NAME/                                          the checkpoint of the further task NAME
        optimizer.safetensors                          the moments of the optimiser; only in the newest checkpoints
        training.json                                  the step, what it was trained on, and the digest of each file

A folder is written under another name, flushed to the disk and renamed. So a kill or a full disk leaves the earlier
checkpoints as they were (Lightning#688 and many others resumed from half a folder). A folder whose files do not have
their digests is not resumed from.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from visualbert_core.engine.processes import DraftFolder
from visualbert_core.errors import InputError
from visualbert_core.evaluation.checks import TRAINED
from visualbert_core.io.documents import read_json
from visualbert_core.io.storage import naming
from visualbert_core.models.trainable import Trainable
from visualbert_core.printable import logger
from visualbert_core.provenance import digest_file
from visualbert_core.training.optimizers import Optimizer

_LOG = logger(__name__)
RECORD, MOMENTS, WEIGHTS = TRAINED, "optimizer.safetensors", "model.safetensors"
_NAME = re.compile(r"step-(\d{8,})")
_STATES = 2
"""Checkpoints that keep the training state: the newest, and the one before it in case the newest is damaged."""


@dataclass(frozen=True)
class State:
    """A checkpoint from which a run goes on."""

    folder: Path
    step: int
    about: dict[str, Any]


class Checkpoints:
    def __init__(self, out: Path) -> None:
        self.root = out / "checkpoints"

    def folder(self, step: int) -> Path:
        return self.root / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints, in ascending order."""
        found = (_NAME.fullmatch(path.name) for path in self.root.glob("step-*"))
        return sorted(int(match[1]) for match in found if match)

    def last(self) -> int:
        """Return the step of the last checkpoint, whole or not. 0: there is none."""
        return max(self.steps(), default=0)

    def write(
        self, step: int, save: Callable[[Path], None], moments: Mapping[str, Tensor], about: Mapping[str, Any]
    ) -> None:
        """Write a checkpoint. `save` writes its own files into a folder, `about` is kept in training.json.

        Raise OSError naming the folder where the disk is full. The earlier checkpoints then are as they were.
        """
        folder = self.folder(step)
        self.root.mkdir(parents=True, exist_ok=True)
        DraftFolder.clear(folder)
        with naming(folder), DraftFolder(folder) as draft:
            try:
                save(draft.folder)
                save_file(dict(moments), draft.folder / MOMENTS)
            except SafetensorError as error:  # also a full disk
                raise OSError(str(error)) from error
            written = sorted(path for path in draft.folder.rglob("*") if path.is_file())
            files = {path.relative_to(draft.folder).as_posix(): digest_file(path) for path in written}
            record = {"step": step, **about, "files": files}
            (draft.folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            for path in (*draft.folder.rglob("*"), draft.folder):
                _flush(path)
            if folder.exists():  # a damaged checkpoint of this step
                shutil.rmtree(folder)
            draft.publish()
            _flush(self.root)

    def newest(self) -> State | None:
        """Return the newest checkpoint that a run can go on from, or None. Log the damaged ones.

        Drafts that killed processes left are removed.
        """
        for draft in self.root.glob(".step-*.draft-*"):
            DraftFolder.clear(self.root / draft.name[1:].partition(".draft-")[0])
        for step in reversed(self.steps()):
            folder = self.folder(step)
            try:
                record = read_json(folder / RECORD, InputError)
                files: dict[str, str] = record["files"]
                needed = {WEIGHTS, MOMENTS, *(name for name in files if name.endswith(".safetensors"))}
                wrong = [name for name in sorted(needed) if digest_file(folder / name) != files[name]]
            except (InputError, OSError, KeyError, TypeError) as error:
                _LOG.warning("%s is not whole and is not resumed from: %s", folder, error)
                continue
            if not wrong:
                return State(folder, step, record)
            _LOG.warning("%s is damaged (%s) and is not resumed from", folder, ", ".join(wrong))
        return None

    def prune(self, kept: Collection[int]) -> None:
        """Remove the checkpoints of all other steps. Remove the training state of all but the two newest."""
        steps = self.steps()
        for step in steps:
            if step not in kept and step != steps[-1]:
                shutil.rmtree(self.folder(step))
            elif step not in steps[-_STATES:]:
                (self.folder(step) / MOMENTS).unlink(missing_ok=True)


def moments_of(optimizer: Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """Return the state of an optimiser as "NAME/KEY" → tensor, on the CPU."""
    found = {}
    for name, parameter in network.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{name}/{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    return found


def restore(state: State, optimizer: Optimizer, model: Trainable[Any]) -> None:
    """Set the weights and the moments to those of a checkpoint, bit for bit."""
    weights = model.saved_weights(state.folder)
    parameters = dict(model.network.named_parameters())  # names a tied parameter once
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    for key, value in load_file(state.folder / MOMENTS).items():
        name, _, part = key.rpartition("/")
        parameter = parameters[name]
        # The number of steps stays on the CPU, where both optimisers count.
        optimizer.state[parameter][part] = value.clone() if part == "step" else value.to(parameter.device, copy=True)


def _flush(path: Path) -> None:
    """Write a file, or the names of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
