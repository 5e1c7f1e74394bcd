"""The report: one HTML page in one file. A reader needs no network and no other file.

Python computes what is on the page. Jinja2 templates lay it out: templates/page.html has the order of the sections, and
static/ has the style sheet and the script. All text is escaped, because questions, captions and ids come from
annotation files. The page shows nothing that is not in its input, so equal runs give equal bytes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from visualbert_core import __version__
from visualbert_core.comparison.compare import p_value
from visualbert_core.engine.shards import publish
from visualbert_core.report import ReportCell, ReportInfo
from visualbert_core.report.flip_gallery import FlipGallery, flip_gallery
from visualbert_core.report.forms import overlap, sentence
from visualbert_core.report.gate_section import CellNight, GatedNight, Verdict, points, reach, verdict
from visualbert_core.report.pictures import colour_class
from visualbert_core.report.scores import (
    SYNTHETIC,
    guesses,
    has_no_image,
    has_person,
    has_wrong_image,
    label,
    papers,
    percent,
    persons,
    scales,
)
from visualbert_core.report.sections import Section, plural, section
from visualbert_core.report.side_by_side import SideBySide, side_by_side

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


@dataclass(frozen=True)
class Page:
    """Everything that the templates show."""

    info: ReportInfo
    cells: Sequence[Section]
    verdict: Verdict | None
    side_by_side: Sequence[SideBySide]
    flips: FlipGallery | None
    columns: Sequence[str]
    """Columns of the score table."""
    guesses: Sequence[str]
    """How chance is computed, a phrase for each benchmark."""
    scales: Sequence[str]
    """The metrics that are not in percent, and how far they go."""
    persons: Sequence[str]
    """Who the person is, a phrase for each benchmark."""
    papers: Sequence[str]
    """Where the numbers of the papers come from."""
    style: str
    script: str
    """Empty on a page without flips."""
    before: Before = NIGHT_BEFORE
    synthetic: str = SYNTHETIC
    version: str = __version__

    @property
    def script_digest(self) -> str:
        """Return the digest by which the content security policy allows the script (base64 of SHA-256)."""
        return base64.b64encode(hashlib.sha256(self.script.encode()).digest()).decode()


def write_report(path: Path, info: ReportInfo, cells: Sequence[ReportCell], night: GatedNight | None = None) -> None:
    """Render the page and publish it at `path`, whole or not at all."""
    # JSON may hold half a surrogate pair ("\ud800"), which UTF-8 cannot encode.
    publish(path, render(info, cells, night).encode(errors="replace"))


def render(info: ReportInfo, cells: Sequence[ReportCell], night: GatedNight | None = None) -> str:
    """Return the page. Cells keep their order. A cell without a score says why. `night` is what a gate adds."""
    nights: Sequence[CellNight | None] = night.cells if night else [None] * len(cells)
    flips = flip_gallery(cells, night.cells) if night else None
    shown = {"earlier": bool(night), "wrong image": has_wrong_image(cells), "no image": has_no_image(cells)}
    shown |= {"paper": not info.synthetic, "person": has_person(cells)}
    columns = ("metric", "score", "earlier", "wrong image", "no image", "chance", "person", "paper", "n")
    page = Page(
        info=info,
        cells=[section(info, cell, each) for cell, each in zip(cells, nights, strict=True)],
        verdict=verdict(night, cells) if night else None,
        side_by_side=side_by_side(cells),
        flips=flips,
        columns=[name for name in columns if shown.get(name, True)],
        guesses=guesses(cells),
        persons=persons(cells),
        scales=scales(cells),
        papers=papers(cells),
        style=static("page.css"),
        script=static("flips.js") if flips else "",
    )
    return environment().get_template("page.html").render(page=page)


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
