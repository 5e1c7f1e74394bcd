"""The page of a training, training.html, in the look of the report: one file, which loads and runs nothing.

It has the curves, the score of the best checkpoint with those of its parent and of the papers, examples of its answers,
the recipe and the digests. All of it is read from the folder of the training, so equal trainings give equal pages,
except for the curves of times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from visualbert_core import __version__
from visualbert_core.comparison.compare import compare
from visualbert_core.corpus.listing import list_images
from visualbert_core.engine.shards import publish
from visualbert_core.features.store import FeatureStore
from visualbert_core.features.stores import open_stores
from visualbert_core.printable import printable
from visualbert_core.provenance import leaves
from visualbert_core.report import ReportCell, ReportInfo
from visualbert_core.report.curves import Line, Plot, plot
from visualbert_core.report.gate_section import CellNight
from visualbert_core.report.html import Before, environment, static
from visualbert_core.report.places import ELSEWHERE, Places
from visualbert_core.report.scores import notes
from visualbert_core.report.sections import Section, section
from visualbert_core.tasks import Task, open_task, title_of
from visualbert_core.training.log import KEPT, CurvePoint, Curves, read_curves
from visualbert_core.training.recipe import EPOCHS, PATHS, AlsoTask, TrainConfig
from visualbert_core.training.validation import Validation, best, validation_run

INGREDIENT = None

PAGE = "training.html"
_EXAMPLES = 12
_ROWS = 20  # of the table of the curves
_NAMED = 5  # ids in a line

_NO_PARENT = {
    "checkpoint": "",
    "new-head": "The training began with a new head, so its parent answers nothing and has no score.",
    "random": "The training began with random weights, so it has no parent.",
}
"""Why there is no score of a parent."""
PARENT = Before(
    column="parent",
    meaning="The score of the checkpoint that the training started from, over the same examples.",
    ring="parent",
    dot="best checkpoint",
)


class PageWriter:
    """Writes the page of a training, again and again. What a validation shows is computed once for each best one."""

    def __init__(self, config: TrainConfig, total: int) -> None:
        """List the images of the validation. Raise InputError where there are none."""
        self._config, self._total = config, total
        images = config.validate_images or config.images
        self._images = {} if images is None else list_images(images)
        self._shown: tuple[int, ReportCell, Section] | None = None

    def write(self, record: Mapping[str, Any], history: Sequence[Validation], parent: Validation | None) -> None:
        """Publish OUT/training.html, whole or not at all.

        Raise VisualBertCoreError where a part of the training cannot be read, OSError where the disk is full.
        """
        publish(self._config.folder / PAGE, self._render(record, history, parent).encode(errors="replace"))

    def _render(self, record: Mapping[str, Any], history: Sequence[Validation], parent: Validation | None) -> str:
        config, curves = self._config, read_curves(self._config.folder)
        found = best(history)
        cell, shown = self._best(found[0], parent) if found else (None, None)
        cells = [] if cell is None else [cell]
        optional = {"parent": parent is not None, "wrong image": bool(found) and found[0].wrong_image is not None}
        columns = ("metric", "score", "parent", "wrong image", "chance", "paper", "n")
        places = places_of(config)
        chosen, defaults = recipe_rows(config, places)
        return render_page(
            "training.html",
            title=f"Training of {record['model']} on {title_of(config.task)} {config.split}",
            status=self._status(record, curves),
            warnings=record["warnings"],
            left_out=[_left_out(step.step, step.left_out) for step in curves.left_out],
            plots=list(_plots(curves, history, parent, config.validate_split)),
            rows=_table(curves),
            validations=_validations(history, parent),
            smoothing=smoothing(curves.each),
            cells=[] if shown is None else [shown],
            no_parent=_NO_PARENT[config.weights],
            columns=[name for name in columns if optional.get(name, True)],
            notes=notes(cells),
            before=PARENT,
            counts=list(_counts(record["examples"])),
            recipe=_recipe_yaml(config, places),
            chosen=chosen,
            defaults=defaults,
            provenance=list(leaves(record["provenance"])),
        )

    def _status(self, record: Mapping[str, Any], curves: Curves) -> str:
        taken = f"{curves.steps:,} of {self._total:,} steps"
        epochs = curves.points[-1].epoch + 1 if curves.points else 0
        over = "finished" if record["status"] == "finished" else "not finished"
        return f"{over}: {taken}, in epoch {epochs:,}"

    def _best(self, found: Validation, parent: Validation | None) -> tuple[ReportCell, Section]:
        """Return what the page shows of the best validation. Only another one is read anew."""
        if self._shown is not None and self._shown[0] == found.step:
            return self._shown[1:]
        config = self._config
        folder = config.folder / "checkpoints" / f"step-{found.step:08d}"
        run = validation_run(config, folder, found.step)
        wrong = None if found.wrong_image is None else validation_run(config, folder, found.step, "wrong-image")
        cell = ReportCell(
            title=f"{folder.name} on {title_of(config.task)} {config.validate_split}",
            task=self._task,
            store=self._store,
            images=self._images,
            run=run,
            baseline=wrong,
            places=places_of(config),
        )
        comparison = None if parent is None else compare(validation_run(config, config.model, 0), run, shown=0)
        shown = section(ReportInfo("", False, _EXAMPLES), cell, CellNight("best", comparison, ()))
        self._shown = found.step, cell, shown
        return cell, shown

    @cached_property
    def _task(self) -> Task:
        config = self._config
        return open_task(config.task, config.validate_annotations or config.annotations, str(config.validate_split))

    @cached_property
    def _store(self) -> FeatureStore | None:
        """Return the store of the examples. The gallery draws regions of one store, so of several it draws none."""
        folders = self._config.validate_features or self._config.features
        store = None if folders is None else open_stores(folders)
        return store if isinstance(store, FeatureStore) else None


def render_page(template: str, **shown: Any) -> str:
    """Return a page that shows `shown`, without a script."""
    page = {"style": static("page.css"), "script": "", "version": __version__}
    return environment().get_template(template).render(page=page | shown)


def places_of(config: TrainConfig) -> Places:
    """Return the words for the folders of this machine: equal trainings give equal pages on every machine."""
    keys = ("out", "annotations", "features", "validate_annotations", "validate_features")
    found = [(key.upper(), place) for key in keys if isinstance(place := getattr(config, key), Path)]
    return Places.of([*found, ("MODELS", config.model.parent), (ELSEWHERE, config.annotations.parent)])


def _plots(
    curves: Curves, history: Sequence[Validation], parent: Validation | None, split: str | None
) -> Iterator[Plot]:
    points, steps = curves.points, max(curves.steps, 1)

    def line(name: str, value: Callable[[CurvePoint], float | None]) -> Line:
        return Line(name, [(point.step, found) for point in points if (found := value(point)) is not None])

    def term(name: str) -> Line:
        return line(name, lambda point: point.terms.get(name))

    names = list(points[-1].terms) if points else []
    every = [each for each in (parent, *history) if each is not None]
    own = Line("own image", [(each.step, each.score) for each in every], marks=True)
    wrong = [(each.step, each.wrong_image[each.headline]) for each in every if each.wrong_image is not None]
    headline = f"{every[0].headline}, in percent" if every else ""
    headline += "; step 0 is the parent" if parent is not None else ""
    losses = [line("loss", lambda point: point.loss), *(map(term, names) if len(names) > 1 else ())]
    for title, note, lines in (
        ("Loss", "smoothed", losses),
        (f"Score on {split}", headline, [own, Line("wrong image", wrong, marks=True)]),
        ("Learning rate", "", [line("rate", lambda point: point.rate)]),
        ("Gradient", "length before it is shortened", [line("", lambda point: point.norm)]),
        ("Speed", "examples a second", [line("", lambda point: point.speed)]),
        ("Waiting for data", "percent of the time", [line("", lambda point: point.waiting)]),
    ):
        if (drawn := plot(title, note, lines, steps)) is not None:
            yield drawn


def _table(curves: Curves) -> list[list[str]]:
    """Return the curves as a table of about `_ROWS` rows; the first row has the names of the columns."""
    points = curves.points
    names = list(points[-1].terms) if points else []
    names = names if len(names) > 1 else []
    every = max(1, len(points) // _ROWS)
    header = ["step", "epoch", "loss", *names, "rate", "gradient", "examples/s", "waiting"]
    shown = [point for index, point in enumerate(points) if (len(points) - 1 - index) % every == 0]
    return [header] + [
        [
            f"{p.step:,}",
            f"{p.epoch + 1:,}",
            *(_number(each) for each in (p.loss, *(p.terms.get(name) for name in names), p.rate, p.norm)),
            f"{p.speed:,.1f}",
            f"{p.waiting:.1f} %",
        ]
        for p in shown
    ]


def _validations(history: Sequence[Validation], parent: Validation | None) -> list[list[str]]:
    """Return the validations as a table; the first row has the names of the columns. Step 0 is the parent."""
    every = [each for each in (parent, *history) if each is not None]
    if not every:
        return []
    metrics = list(every[0].scores)
    wrong = [f"{metric}, wrong image" for metric in metrics] if any(each.wrong_image for each in every) else []
    return [["step", *metrics, *wrong]] + [
        [
            f"{each.step:,}",
            *(f"{each.scores[metric]:.2f}" for metric in metrics),
            *(f"{each.wrong_image[metric]:.2f}" if each.wrong_image else "–" for metric in metrics if wrong),
        ]
        for each in every
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def smoothing(each: int) -> str:
    """Return how the loss of a plot is smoothed, and how many steps a point stands for."""
    points = "" if each == 1 else f" A point stands for {each:,} steps."
    return f"The loss is smoothed: each step keeps {100 * KEPT:.0f} % of the value before.{points}"


def _left_out(step: int, example_ids: Sequence[str]) -> str:
    named = ", ".join(example_ids[:_NAMED]) + (", …" if len(example_ids) > _NAMED else "")
    return f"step {step:,}: {len(example_ids):,} examples ({named})"


def _counts(remarks: Mapping[str, Any]) -> Iterator[str]:
    """Yield what was counted before the first step: "48 examples", "2 without a target", "vqa: 90 examples"."""
    for name, count in remarks.items():
        if name == "also":
            yield from (f"{task}: {line}" for task, counted in count.items() for line in _counts(counted))
        else:
            yield f"{count:,} {name.replace('_', ' ')}"


def _set(config: TrainConfig | AlsoTask) -> dict[str, Any]:
    """Return the keys whose value is not the default."""
    found = {}
    for each in fields(config):
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if (value := getattr(config, each.name)) != default:
            found[each.name] = value
    return found


def recipe_rows(config: TrainConfig, places: Places) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return (key, value) of the keys that were set, and of those that have their defaults."""
    rows = {each.name: _text(each.name, getattr(config, each.name), config, places) for each in fields(config)}
    chosen = [(name, rows.pop(name)) for name in _set(config)]
    return chosen, list(rows.items())


def _text(name: str, value: Any, config: TrainConfig, places: Places) -> str:
    if name == "epochs" and value is None and config.steps is None:
        return f"{EPOCHS}"
    found = _plain(name, value, places)
    if found in (None, [], {}):
        return "–"
    return printable(", ".join(map(str, found)) if isinstance(found, list) else str(found))


def _plain(name: str, value: Any, places: Places) -> Any:
    """Return a value of a recipe as YAML holds it, with words in place of the folders of this machine."""
    if name == "also":
        return {
            task: {key: _plain(key, held, places) for key, held in _set(each).items()} for task, each in value.items()
        }
    if isinstance(value, tuple):
        return [_plain(name, each, places) for each in value]
    return places.hide(str(value)) if name in PATHS and value is not None else value


def _recipe_yaml(config: TrainConfig, places: Places) -> str:
    """Return the recipe that gives this training, with words in place of the folders of this machine."""
    found = {name: _plain(name, value, places) for name, value in _set(config).items()}
    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True).rstrip()
