"""Folders of the machine that made a page, and the word that the page writes for each.

A page is mailed and published: it must not show the home folder of a user or the disks of a group. Two equal nights
must give equal pages on any machine. Names and digests say which files a run used; run.json keeps the paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ELSEWHERE = "…"
"""Written for a folder that has no word."""

# An absolute path of at least one folder and a name. The rest of a relative path or of an address is not one.
_PATH = re.compile(r"""(?<![\w/.:…~-])(?:file://)?/(?:[^\s/:;,"'()]+/)+([^\s/:;,"'()]*)""")


@dataclass(frozen=True)
class Places:
    """Absolute folder → word. A folder comes before the folders that hold it."""

    words: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folders: Iterable[tuple[str, Path]]) -> Places:
        """Make them from pairs (word, folder).

        Where a folder comes twice, its first word counts. `ELSEWHERE` is not used inside a folder that has a word.
        """
        words: dict[str, str] = {}
        for word, folder in folders:
            # An error message may name a folder by a link to it, or by the folder behind the link.
            for path in (folder.absolute(), folder.resolve()):
                known = word == ELSEWHERE and any(path.is_relative_to(other) for other in words)
                if path.name and not known:
                    words.setdefault(str(path), word)
        return cls(dict(sorted(words.items(), key=lambda pair: (-len(pair[0]), pair[0]))))

    def hide(self, text: str) -> str:
        """Return `text` without absolute paths. A known folder becomes its word; another path keeps its last name."""
        for folder, word in self.words.items():
            text = re.sub(rf"(?<![\w.…]){re.escape(folder)}(?![\w-]|\.\w)", word, text)
        return _PATH.sub(lambda found: f"{ELSEWHERE}/{found[1]}", text)
