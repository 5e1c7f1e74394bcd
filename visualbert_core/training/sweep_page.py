"""The page of a sweep, sweep.html, in the look of the page of a training: one file, which loads and runs nothing.

It has the table of the settings with mean and deviation over seeds, the curves of the best settings, and a link to the
page of each training. A curve of a setting is the mean over its seeds, at the steps that all of them have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from urllib.parse import quote

from visualbert_core.engine.shards import publish
from visualbert_core.report.curves import Line, Plot, Point, plot
from visualbert_core.report.places import Places
from visualbert_core.training.folder import read_validations
from visualbert_core.training.grid import FAILED, FINISHED, SEED, UNFINISHED, WAITING, Row, Setting, Sweep, columns
from visualbert_core.training.log import STEPS, read_curves
from visualbert_core.training.page import PAGE, places_of, recipe_rows, render_page, smoothing
from visualbert_core.training.recipe import TrainConfig

INGREDIENT = None

SWEEP_PAGE = "sweep.html"
_DRAWN = 4
"""Settings whose curves are drawn: as many as there are dashes that a reader tells apart."""


@dataclass(frozen=True)
class Cell:
    """A cell of the table, and the page that it leads to; "" where it leads nowhere."""

    text: str
    link: str = ""


def write_sweep_page(config: TrainConfig, found: Sweep) -> None:
    """Publish OUT/sweep.html, whole or not at all. `config` has the keys that all trainings share.

    Raise VisualBertCoreError where a part of a training cannot be read, OSError where the disk is full.
    """
    publish(found.folder / SWEEP_PAGE, _render(config, found).encode(errors="replace"))


def _render(config: TrainConfig, found: Sweep) -> str:
    places = places_of(config)
    names, rows = _table(found, places)
    chosen, defaults = recipe_rows(config, places)
    return render_page(
        "sweep.html",
        title=f"Sweep of {', '.join(found.grid)} on {config.task} {config.split}",
        status=_status(found.rows),
        best=_best(found),
        failures=[f"{row.name} {row.status}: {places.hide(row.reason)}" for row in found.rows if row.reason],
        columns=names,
        rows=rows,
        plots=list(_plots(found)),
        note=_note(found),
        grid=[(key, places.hide(", ".join(map(str, values)))) for key, values in found.document()["grid"].items()],
        chosen=[pair for pair in chosen if pair[0] not in found.grid],
        defaults=[pair for pair in defaults if pair[0] not in found.grid],
    )


def _status(rows: Sequence[Row]) -> str:
    """Return "4 of 6 trainings are finished, 1 failed, 1 waiting"."""
    counts = {status: sum(row.status == status for row in rows) for status in (FAILED, UNFINISHED, WAITING)}
    others = [f"{count:,} {status}" for status, count in counts.items() if count]
    done = sum(row.status == FINISHED for row in rows)
    return ", ".join([f"{done:,} of {len(rows):,} trainings are finished", *others])


def _ranked(found: Sweep) -> list[Setting]:
    """Return the settings with a score, the best mean first. Equal means keep the order of the grid."""
    return sorted((each for each in found.settings if each.mean is not None), key=lambda each: -(each.mean or 0.0))


def _best(found: Sweep) -> str:
    if not (ranked := _ranked(found)):
        return ""
    best = ranked[0]
    spread = "" if best.deviation is None else f" ± {best.deviation:.2f}"
    many = len(best.scores) > 1
    return f"{_name(best)}: {found.headline} {best.mean:.2f}{spread}" + (f" over {best.seeds} seeds" if many else "")


def _name(setting: Setting) -> str:
    return setting.name.replace(",", ", ") or "all seeds"


def _table(found: Sweep, places: Places) -> tuple[list[str], list[list[Cell]]]:
    """Return the names of the columns, and a row for each setting. The score of a training leads to its page."""
    names, texts = columns(found)
    if SEED not in found.grid:
        names.append("training")
    seeds = len(found.grid.get(SEED, ()))
    rows = []
    for setting, row in zip(found.settings, texts, strict=True):
        held = [Cell(places.hide(text)) for text in row[: len(row) - seeds]]
        rows.append([*held, *(_training(found.folder, each) for each in setting.rows)])
    return names, rows


def _training(folder: Path, row: Row) -> Cell:
    score = row.score()
    there = (folder / row.name / PAGE).exists()
    link = quote(f"{row.name}/{PAGE}", safe="/=,+") if there else ""
    return Cell(row.status if score is None else f"{score:.2f}", link)


def _drawn(found: Sweep) -> list[Setting]:
    """Return the settings whose curves are drawn, in the order of the grid."""
    best = _ranked(found)[:_DRAWN]
    return [each for each in found.settings if each in best] if best else list(found.settings[:_DRAWN])


def _plots(found: Sweep) -> Iterator[Plot]:
    losses, scores = [], []
    for setting in _drawn(found):
        folders = [path for row in setting.rows if ((path := found.folder / row.name) / STEPS).exists()]
        losses.append(Line(_name(setting), _mean([_losses(path) for path in folders])))
        scores.append(Line(_name(setting), _mean([_scores(path) for path in folders]), marks=True))
    steps = max((point[0] for line in (*losses, *scores) for point in line.points), default=1)
    headline = f"{found.headline}, in percent"
    for each in (plot("Loss", "smoothed", losses, steps), plot(f"Score on {found.split}", headline, scores, steps)):
        if each is not None:
            yield each


def _losses(folder: Path) -> dict[int, float]:
    return {point.step: point.loss for point in read_curves(folder).points if point.loss is not None}


def _scores(folder: Path) -> dict[int, float]:
    return {each.step: each.score for each in read_validations(folder)}


def _mean(curves: Sequence[dict[int, float]]) -> list[Point]:
    """Return the mean of several curves at the steps that all of them have."""
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    return [(step, fmean(curve[step] for curve in curves)) for step in steps]


def _note(found: Sweep) -> str:
    said = "A line is a setting: the mean over its seeds."
    if len(found.settings) > _DRAWN:
        said += f" The {_DRAWN} best of {len(found.settings):,} settings are drawn."
    return f"{said} {smoothing(1)}"
