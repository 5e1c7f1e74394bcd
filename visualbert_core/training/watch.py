"""What people see of a training while it runs: its page, its curves as Parquet, and its run in experiment trackers.

All of it is made from the files of the training, at every checkpoint and at the end. A fault here is a line of the log:
the training goes on, and the next checkpoint tries again.
"""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from visualbert_core.engine.shards import publish
from visualbert_core.errors import InputError, VisualBertCoreError
from visualbert_core.io.documents import read_json
from visualbert_core.printable import logger
from visualbert_core.report.trackers import PROJECT, Tracked, track
from visualbert_core.training.log import CURVES, read_steps, write_parquet
from visualbert_core.training.page import PAGE, PageWriter
from visualbert_core.training.recipe import TrainConfig
from visualbert_core.training.validation import Validation

INGREDIENT = None

_LOG = logger(__name__)
TRACKERS = "trackers.json"


class Watch:
    """Shows a training of `total` steps. `parent` is the validation of the checkpoint that it starts from."""

    def __init__(self, config: TrainConfig, total: int, parent: Validation | None) -> None:
        self._config, self._parent = config, parent
        self._page = PageWriter(config, total)

    def update(self, record: Mapping[str, Any], history: Sequence[Validation]) -> None:
        """Write and send what is new. `record` is run.json, `history` the validations so far."""
        out, finished = self._config.folder, record["status"] == "finished"
        with noted(PAGE):
            self._page.write(record, history, self._parent)
        if finished:
            with noted(CURVES):
                write_parquet(out)
        for tracker in self._config.trackers:
            with noted("a tracker"):
                self._track(tracker, record, history)

    def _track(self, tracker: str, record: Mapping[str, Any], history: Sequence[Validation]) -> None:
        """Send the steps that this tracker has not received, and note in trackers.json that it has."""
        out = self._config.folder
        path = out / TRACKERS
        state: dict[str, Any] = {"training": uuid.uuid4().hex[:16], "sent": {}}
        state = read_json(path, InputError) if path.exists() else state
        publish(path, json.dumps(state).encode())  # before the first run is made under this name
        points = self._points(state["sent"].get(tracker, -1), history)
        recipe = {name: json.dumps(value) for name, value in record["provenance"]["recipe"].items()}
        page = out / PAGE if record["status"] == "finished" else None
        track(tracker, Tracked(PROJECT, out.name, state["training"], recipe, points, out, page))
        if points:
            state["sent"][tracker] = points[-1][0]
            publish(path, json.dumps(state).encode())

    def _points(self, sent: int, history: Sequence[Validation]) -> list[tuple[int, dict[str, float]]]:
        """Return (step, name → value) after the step `sent`: a line of steps.jsonl, with the scores of that step."""
        found: defaultdict[int, dict[str, float]] = defaultdict(dict)
        for line in read_steps(self._config.folder):
            values = {"loss": line.loss, "rate": line.rate, "norm": line.norm}
            terms = line.terms or {}
            values |= {f"loss/{name}": value for name, value in terms.items()} if len(terms) > 1 else {}
            found[line.step] |= {name: value for name, value in values.items() if value is not None}
        split = self._config.validate_split
        for each in (self._parent, *history):
            if each is not None:
                wrong = each.wrong_image or {}
                found[each.step] |= {f"{split}/{metric}": score for metric, score in each.scores.items()}
                found[each.step] |= {f"{split} wrong image/{metric}": score for metric, score in wrong.items()}
        return [(step, values) for step, values in sorted(found.items()) if step > sent and values]


@contextmanager
def noted(what: str) -> Iterator[None]:
    """Log an error of this package or of the system in place of ending the training."""
    try:
        yield
    except (VisualBertCoreError, OSError) as error:
        _LOG.error("the training goes on, but %s is not up to date: %s", what, error)
