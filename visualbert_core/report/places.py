"""Folders of the machine that made a page, and what stands for each on it.

A page is mailed and published; where somebody's home or a group's disk lies is nobody's business there, and two nights
that are equal have equal pages wherever they ran. Names and digests say which files they were; run.json keeps the
paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ELSEWHERE = "…"
"""Stands for a folder that no word is for."""

# An absolute path of at least one folder and a name; not the rest of a relative one, nor of an address.
_PATH = re.compile(r"""(?<![\w/.:…~-])(?:file://)?/(?:[^\s/:;,"'()]+/)+([^\s/:;,"'()]*)""")


@dataclass(frozen=True)
class Places:
    """Absolute folder → word. Inner folders come before those that hold them."""

    words: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folders: Iterable[tuple[str, Path]]) -> Places:
        """(word, folder); where a folder comes twice, its first word counts, and inside a folder that has a word none
        is elsewhere."""
        words: dict[str, str] = {}
        for word, folder in folders:
            # An error may name a folder by its link or by what that leads to.
            for path in (folder.absolute(), folder.resolve()):
                known = word == ELSEWHERE and any(path.is_relative_to(other) for other in words)
                if path.name and not known:
                    words.setdefault(str(path), word)
        return cls(dict(sorted(words.items(), key=lambda pair: (-len(pair[0]), pair[0]))))

    def hide(self, text: str) -> str:
        """`text` without an absolute path: from a known folder on, or of others the last name alone."""
        for folder, word in self.words.items():
            text = re.sub(rf"(?<![\w.…]){re.escape(folder)}(?![\w-]|\.\w)", word, text)
        return _PATH.sub(lambda found: f"{ELSEWHERE}/{found[1]}", text)
