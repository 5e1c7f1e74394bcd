"""Tells whether a checkpoint was trained on the annotations that it is evaluated on.

Such a score says how well the checkpoint remembers, not how well it answers. The file training.json of a checkpoint has
the digests of what its own training read (`training/state.py`). It does not know what the training before read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from visualbert_core.errors import InputError
from visualbert_core.io.documents import read_json

INGREDIENT = None

TRAINED = "training.json"


def trained_on(model: Path, annotations: str) -> list[str]:
    """Return a warning where the checkpoint was trained on the annotations with this digest; else nothing."""
    if not (model / TRAINED).is_file():
        return []
    try:
        record = read_json(model / TRAINED, InputError)
    except InputError as error:
        return [f"it is not known whether this is the training split: {error}"]
    made_of = record.get("provenance") if isinstance(record, dict) else None
    if not isinstance(made_of, dict) or annotations not in _texts(made_of.get("data")):
        return []
    return [on_training_split(f"{model.name} was trained on these annotations")]


def on_training_split(why: str) -> str:
    """Return the warning that stands with a score on the training split."""
    return f"evaluated on the training split: {why}, so its score says little about other images"


def _texts(value: Any) -> Iterator[str]:
    """Yield every text of a JSON value: a training may have read several splits."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)
