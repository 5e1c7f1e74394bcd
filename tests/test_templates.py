"""The templates of the page: they escape every value, and the package contains every file that they need."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT
from jinja2 import UndefinedError

from visualbert_core.report.forms import FORMS
from visualbert_core.report.html import environment

REPORT = ROOT / "visualbert_core" / "report"
TEMPLATES = sorted((REPORT / "templates").rglob("*.html"))
HOSTILE = "\"><script>alert('1')</script>&"


def test_what_a_template_is_given_is_text() -> None:
    """Markup in a value is escaped, in text, in a quoted attribute and through a macro."""
    macro = '{% macro m(x) %}<p title="{{ x }}">{{ x }}</p>{% endmacro %}{{ m(x) }}'
    drawn = environment().from_string(macro).render(x=HOSTILE)
    assert re.findall(r"<[^>]*>", re.sub(r'"[^"]*"', "", drawn)) == ["<p title=>", "</p>"]
    assert "alert" in drawn


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_no_template_lets_markup_through(path: Path) -> None:
    """Only the page's own style sheet and script are marked as safe, and every value in an attribute is quoted."""
    text = path.read_text()
    assert set(re.findall(r"\{\{[^}]*\bsafe\b[^}]*\}\}", text)) <= {"{{ page.style|safe }}", "{{ page.script|safe }}"}
    assert "autoescape" not in text
    assert not re.search(r"=\s*\{[{%]", re.sub(r"\{%.*?%\}", "", text, flags=re.DOTALL))


def test_a_name_that_a_template_does_not_know_is_an_error() -> None:
    """A field that a view model no longer has is an error, not an empty place on the page."""
    with pytest.raises(UndefinedError, match="lost"):
        environment().from_string("{{ page.lost }}").render(page={})


def test_every_form_has_a_template_with_the_same_macros() -> None:
    """Every form of example has a template with the same four macros, so a gallery draws any form."""
    for form in FORMS.values():
        module = environment().get_template(f"forms/{form.name}.html").module
        assert all(hasattr(module, name) for name in ("note", "asked", "answers", "changes"))


def test_every_data_file_goes_with_the_package() -> None:
    """Templates, style, the demo's matrix and weights are package data, so an installed copy can run the demo."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    package = ROOT / "visualbert_core"
    patterns = pyproject["tool"]["setuptools"]["package-data"]["visualbert_core"]
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    kinds = {".html", ".css", ".js", ".yaml", ".json", ".safetensors", ".txt", ".md", ".typed"}
    needed = {path for path in package.rglob("*") if path.is_file() and path.suffix in kinds}
    assert {path.name for path in needed} >= {"page.html", "page.css", "demo.yaml", "model.safetensors", "vocab.txt"}
    assert needed <= packed
