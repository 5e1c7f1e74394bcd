"""The verdict of a night for continuous integration: JUnit's XML (through junitparser), and GitHub's Markdown.

Owns the escaping of both: names and messages may hold anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from io import BytesIO

from junitparser import Error, Failure, JUnitXml, TestCase, TestSuite

from visualbert_core.comparison.compare import Comparison, p_value
from visualbert_core.comparison.gate import Check, Gate
from visualbert_core.printable import printable

_SIGNS = {"pass": "✅", "fail": "❌", "cannot tell": "❓"}
_NO_XML = re.compile(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")


def junit(name: str, gate: Gate) -> bytes:
    """Return the XML: a test case for each watched metric, and one for each bound that was missed.

    The verdict `fail` is a JUnit failure, and `cannot tell` is a JUnit error.
    """
    suite = TestSuite(_clean(f"{name} {gate.night}"))
    suite.add_testcases([_case(c.watched.metric, c.watched.cell, c.verdict, c.reason) for c in gate.checks])
    suite.add_testcases([_case(line, "bounds", "out of bounds", line) for line in gate.missed])
    document, written = JUnitXml(), BytesIO()
    document.add_testsuite(suite)
    # junitparser uses lxml where it is installed. With and without it, only pretty-printed bytes are equal.
    document.write(written, pretty=True)
    return written.getvalue()


def _case(name: str, group: str, verdict: str, reason: str) -> TestCase:
    case = TestCase(_clean(name), _clean(group))
    if verdict == "pass":
        case.system_out = _clean(reason)
    else:
        case.result = (Error if verdict == "cannot tell" else Failure)(_clean(reason), verdict)
    return case


def markdown(name: str, gate: Gate, comparisons: Mapping[str, Comparison]) -> str:
    """Return Markdown: the verdict, a row for each watched metric, and for each cell what changed and why."""
    return "\n".join(_markdown(name, gate, comparisons)) + "\n"


def _markdown(name: str, gate: Gate, comparisons: Mapping[str, Comparison]) -> Iterator[str]:
    yield f"## {_SIGNS[gate.verdict]} {_text(name)}, {_text(gate.night)}: {gate.verdict}"
    yield from ("", "| | cell | metric | before | now | points [95 %] | p (Holm) | would have seen | against |")
    yield "|---|---|---|--:|--:|--:|--:|--:|---|"
    yield from (_row(check) for check in gate.checks)
    yield from (f"\n❌ {_text(line)}" for line in gate.missed)
    for check in gate.checks:
        if check.verdict != "pass":
            cell = _text(check.watched.cell)
            yield f"\n{_SIGNS[check.verdict]} **{cell}** {check.watched.metric}: {_text(check.reason)}"
    for cell, comparison in comparisons.items():
        yield from _why(cell, comparison)


def _row(check: Check) -> str:
    change, watched = check.change, check.watched
    columns = [_SIGNS[check.verdict], _text(watched.cell), watched.metric]
    if change is None:
        return f"| {' | '.join([*columns, *['–'] * 5, _text(watched.compared_with or '–')])} |"
    reach = "" if change.low is None else f" [{change.low:+.2f}, {change.high:+.2f}]"
    seen = "–" if check.visible is None else f"{check.visible:.2f}"
    columns += [f"{change.before:.2f}", f"{change.after:.2f}", f"{change.difference:+.2f}{reach}"]
    columns += ["–" if check.p_holm is None else p_value(check.p_holm), seen, _text(watched.compared_with or "–")]
    return f"| {' | '.join(columns)} |"


def _why(cell: str, comparison: Comparison) -> Iterator[str]:
    if not comparison.differs and not comparison.answers_changed:
        return
    yield f"\n**{_text(cell)}**: {comparison.answers_changed:,} of {comparison.examples:,} answers changed"
    for metric, flips in comparison.flips.items():
        yield f"- {metric}: {flips.worse_count:,} worse, {flips.better_count:,} better"
    yield from (f"- {_text(str(cause))}" for cause in comparison.causes)
    yield from (f"- ⚠ {_text(warning)}" for warning in comparison.warnings)


def _text(text: str) -> str:
    """Return `text` on one line with all Markdown escaped: names and annotations come from files of other people."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$&])", r"\\\1", printable(" ".join(text.split())))


def _clean(text: str) -> str:
    return _NO_XML.sub("�", printable(text))
