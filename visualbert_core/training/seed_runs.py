"""The runs of one recipe over several seeds, by which two recipes are compared.

A group is a folder that holds a folder seed=N for each seed, as a sweep writes it. A folder seed=N is a training, whose
best checkpoint was evaluated when it was validated; or a run folder; or a folder with one run folder, which is where
`visualbert evaluate --out GROUP/seed=N` writes the run of another split.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from visualbert_core.errors import InputError
from visualbert_core.evaluation.run_folder import TRAINED, Run, read_run
from visualbert_core.io.documents import read_json

INGREDIENT = None

_SEED = re.compile(r"seed=(\d+)", re.ASCII)


def read_seeds(folder: Path) -> dict[int, Run]:
    """Return seed → run of a group; {} where the folder holds no seed=N, so that it is no group.

    The `record` of a training's run has what the training was made of beside the keys of run.json, as `TRAINED`.
    Raise InputError where a seed has no run, or several.
    """
    children = folder.iterdir() if folder.is_dir() else ()
    found = {int(match[1]): path for path in children if (match := _SEED.fullmatch(path.name))}
    return {seed: _run(found[seed]) for seed in sorted(found)}


def _run(folder: Path) -> Run:
    """Return the run of one seed, with its own images."""
    record = read_json(folder / "run.json", InputError) if (folder / "run.json").exists() else {}
    if "spec" in record:
        return read_run(folder)
    root, trained = folder, {}
    if "parent" in record.get("provenance", {}):  # a training
        trained = {TRAINED: {name: record["provenance"][name] for name in ("recipe", "data", "parent")}}
        if not record.get("validation"):
            raise InputError(
                f"{folder} has no validation of its best checkpoint: finish the training with validate_split, or "
                "evaluate its checkpoints into folders seed=N elsewhere"
            )
        root = folder / "validation" / f"step-{record['validation']['step']:08d}"
    runs = [read_run(path.parent) for path in sorted(root.glob("*/run.json"))]
    own = [run for run in runs if run.record["spec"]["visual"] == "own"]
    if len(own) != 1:
        names = ", ".join(run.folder.name for run in own) or "none"
        raise InputError(f"{root} must hold one run folder, and holds {names}: name folders with one run for each seed")
    return replace(own[0], record=own[0].record | trained)
