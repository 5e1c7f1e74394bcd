"""The page on a phone of 320 pixels: no word is broken, and a sign stays on the line of its answer."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from browser import Browser, find
from conftest import ROOT

from visualbert_core.report.html import environment
from visualbert_core.report.scores import Estimate

BROKEN = r"""(() => {
  const found = [], nodes = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const lines = (node, from, to) => {
    const range = document.createRange(); range.setStart(node, from); range.setEnd(node, to);
    return [...range.getClientRects()].map(each => Math.round(each.bottom));
  };
  for (let node; node = nodes.nextNode();) {
    if (node.parentElement.closest("svg, thead")) continue;
    for (const word of node.data.matchAll(/\p{L}+/gu)) {
      const seen = new Set(lines(node, word.index, word.index + word[0].length));
      if (seen.size > 1) found.push(word[0]);
    }
  }
  for (const sign of document.querySelectorAll("dd [role=img]")) {
    const before = sign.previousElementSibling?.firstChild ?? sign.previousSibling;
    const answer = lines(before, 0, before.data.trimEnd().length).pop(), own = sign.getBoundingClientRect().bottom;
    if (Math.abs(answer - own) > 8) found.push(sign.textContent + " behind " + before.data);
  }
  return JSON.stringify(found);
})()"""

# Fonts differ from machine to machine: the text is scaled until this word has the width that it has in a wide font.
SCALED = """(() => {
  const probe = document.body.appendChild(document.createElement("span"));
  probe.textContent = "unbalanced";
  document.documentElement.style.fontSize = `${16 * 93 / probe.getBoundingClientRect().width}px`;
  probe.remove();
})()"""


def macro(template: str, name: str, *views: Any) -> str:
    return str(getattr(environment().get_template(template).module, name)(*views))


def answered(answer: str, other: str) -> str:
    """Return an example of a question with an answer, and one over a wrong image."""
    given, wrong = SimpleNamespace(answer=answer, scores=(1.0,)), SimpleNamespace(answer=other, scores=(0.5,))
    figure = SimpleNamespace(given=given, worth=1, gold=answer, other=wrong, other_worth=0, pictures=(None,), names=())
    caption = macro("forms/question.html", "answers", figure)
    return f"<figure><div class=pictures></div><figcaption>{caption}</figcaption></figure>"


@pytest.mark.parametrize("width", [320, 800, 1400])
def test_words_and_signs_stay_together(tmp_path: Path, width: int) -> None:
    """The longest group of NLVR2 and answers of up to five letters fit beside their numbers, and plots have room."""
    program = find()
    if program is None:
        pytest.skip("no Chromium here")
    table = macro("plots.html", "columns", ("pair", "score", "wrong image", "n"))
    for name in ("balanced", "unbalanced"):
        plot = macro("plots.html", "plot", Estimate(100.0), Estimate(50.0))
        table += f"<tr><th>{name}</th><td>100.0</td><td>100.0</td><td>20,000</td><td class=plot>{plot}</td></tr>"
    style = (ROOT / "visualbert_core" / "report" / "static" / "page.css").read_text()
    examples = "".join(answered(*pair) for pair in (("green", "white"), ("yes", "brown")))
    page = tmp_path / "page.html"
    page.write_text(
        f"<!doctype html><meta charset=utf-8><style>{style}</style><div class=breakdowns><table>{table}</table></div>"
        f"<div class='examples question'>{examples}</div>"
    )
    with Browser(program, tmp_path / "profile") as browser:
        browser.open(page, width)
        browser.run(SCALED)
        assert json.loads(browser.run(BROKEN)) == []
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.run("document.querySelector('td.plot').clientWidth") > 80
