"""`visualbert import-annotations`: a Hugging Face dataset → a benchmark's official files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from visualbert_core.printable import say


@dataclass(frozen=True, kw_only=True)
class Command:
    """Make a benchmark's official annotation files of a Hugging Face dataset, for every other command.

    visualbert_core/tasks/hub.py says which columns it takes for what. Prints the files that it wrote.

        visualbert import-annotations --task vqa --dataset lmms-lab/VQAv2 --dataset-split validation \\
            --split val --out annotations/vqa
    """

    task: str
    """The benchmark (a name that cannot be imported lists those that can)."""
    dataset: str
    """Folder or Hub id."""
    split: str
    """The benchmark's split: val, train, dev, test1, …"""
    out: Path
    """Annotations folder to write into."""
    dataset_split: str | None = None
    """The dataset's own name for the split; default: the benchmark's."""

    def run(self) -> int:
        """Import."""
        from visualbert_core.tasks.hub import import_annotations

        for path in import_annotations(self.task, self.dataset, self.dataset_split or self.split, self.split, self.out):
            say(path)
        return 0
