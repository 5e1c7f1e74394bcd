"""Text that others wrote, made safe to print: ids, answers, question types and file names are whatever a file holds.

A terminal obeys what it prints. An escape sequence in an id can clear the screen, rename the window or hide a line, and
a newline in it can forge one (CWE-150). Everything that quotes a file goes through here on its way to a terminal.
"""

from __future__ import annotations

import re

INGREDIENT = None

# C0 and C1 controls, what turns the direction of writing, line separators, and halves of characters
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` as one line in which each character that a terminal would obey is written as an escape, such as \\x1b."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
