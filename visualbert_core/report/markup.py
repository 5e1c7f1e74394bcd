"""HTML and SVG elements as strings. Owns escaping: whatever is not `Html` already is escaped on its way in.

Questions, captions and ids come out of annotation files, so no text reaches the page but through `tag` and `join`.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

_VOID = frozenset({"br", "img", "input", "meta"})


class Html(str):
    """Markup, as opposed to text."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: object) -> Html:
    """`<name attributes>children</name>`.

    In attribute names `_` stands for `-` and a last `_` is dropped (`class_`). None and False leave an attribute out,
    True gives it without a value.
    """
    opening = name + "".join(_attribute(key, value) for key, value in attributes.items())
    return Html(f"<{opening}>" if name in _VOID else f"<{opening}>{join(children)}</{name}>")


def join(children: Iterable[str]) -> Html:
    """The children in a row, with nothing between."""
    return Html("".join(child if isinstance(child, Html) else escape(child) for child in children))


def _attribute(key: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
