"""The report: one HTML page in one file. A reader needs no network and no other file.

Python computes what is on the page. Jinja2 templates lay it out: templates/page.html has the order of the sections, and
static/ has the style sheet and the script. All text is escaped, because questions, captions and ids come from
annotation files. The page shows nothing that is not in its input, so equal runs give equal bytes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visualbert_core import __version__
from visualbert_core.comparison.compare import p_value
from visualbert_core.engine.shards import publish
from visualbert_core.evaluation.score import PERSON
from visualbert_core.report import ReportCell, ReportInfo
from visualbert_core.report.flip_gallery import flip_gallery
from visualbert_core.report.forms import overlap, sentence
from visualbert_core.report.gate_section import CellNight, GatedNight, points, reach, verdict
from visualbert_core.report.pictures import colour_class
from visualbert_core.report.scores import SYNTHETIC, label, notes, percent, scores_of
from visualbert_core.report.sections import plural, section
from visualbert_core.report.side_by_side import side_by_side

if TYPE_CHECKING:
    from jinja2 import Environment

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Before:
    """The words for what the scores of a page are compared with."""

    column: str
    """Name of the column with its scores."""
    meaning: str
    ring: str
    """What the ring of a plot stands for."""
    dot: str


NIGHT_BEFORE = Before(
    column="earlier",
    meaning="The score of the last night that did not fail, under tonight's annotations.",
    ring="earlier night",
    dot="tonight",
)


def write_report(path: Path, info: ReportInfo, cells: Sequence[ReportCell], night: GatedNight | None = None) -> None:
    """Render the page and publish it at `path`, whole or not at all."""
    # JSON may hold half a surrogate pair ("\ud800"), which UTF-8 cannot encode.
    publish(path, render(info, cells, night).encode(errors="replace"))


def render(info: ReportInfo, cells: Sequence[ReportCell], night: GatedNight | None = None) -> str:
    """Return the page. Cells keep their order. A cell without a score says why. `night` is what a gate adds."""
    nights: Sequence[CellNight | None] = night.cells if night else [None] * len(cells)
    flips = flip_gallery(cells, night.cells) if night else None
    absent = {
        "earlier": not night,
        "wrong image": all(cell.baseline is None for cell in cells),
        "no image": all(cell.no_image is None for cell in cells),
        "person": not any(PERSON in (scores_of(cell.run) or {}) for cell in cells),
        "paper": info.synthetic,
    }
    columns = ("metric", "score", "earlier", "wrong image", "no image", "chance", "person", "paper", "n")
    page = {
        "info": info,
        "cells": [section(info, cell, each) for cell, each in zip(cells, nights, strict=True)],
        "verdict": verdict(night, cells) if night else None,
        "side_by_side": side_by_side(cells),
        "flips": flips,
        "columns": [name for name in columns if not absent.get(name)],
        "notes": notes(cells),
        "before": NIGHT_BEFORE,
        "synthetic": SYNTHETIC,
    }
    return draw("page.html", page, static("flips.js") if flips else "")


def draw(template: str, page: Mapping[str, Any], script: str = "") -> str:
    """Return a whole page, of which the template shows `page` and what every page has."""
    shared = {
        "style": static("page.css"),
        "script": script,
        # The content security policy allows only the script with this digest.
        "script_digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "version": __version__,
    }
    return environment().get_template(template).render(page={**page, **shared})


@cache
def environment() -> Environment:
    """Return the templates, compiled once. A name that is not defined is an error and not an empty text."""
    # Imported here: scoring, comparing and the table of the terminal import this package, and need no Jinja2.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {
        "colour": colour_class,
        "grouped": "{:,}".format,
        "label": label,
        "overlap": overlap,
        "p_value": p_value,
        "percent": percent,
        "plural": plural,
        "points": points,
        "reach": reach,
        "sentence": sentence,
    }
    return templates


def static(name: str) -> str:
    """Return the text of a file of static/."""
    return (_HERE / "static" / name).read_text(encoding="utf-8")
