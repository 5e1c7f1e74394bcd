"""`visualbert import-annotations`: a Hugging Face dataset → a benchmark's official files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from visualbert_core.printable import say


@dataclass(frozen=True, kw_only=True)
class Command:
    """Make a benchmark's official annotation files from a Hugging Face dataset. The other commands read these files.

    The names of the written files are printed. visualbert_core/tasks/hub.py says which columns it reads.

        visualbert import-annotations --task vqa --dataset lmms-lab/VQAv2 --dataset-split validation \\
            --split val --out annotations/vqa
    """

    task: str
    """The benchmark. A wrong name lists the benchmarks that can be imported."""
    dataset: str
    """Folder of the dataset, or its id on the Hugging Face Hub."""
    split: str
    """The split of the benchmark: val, train, dev, test1, …"""
    out: Path
    """Folder for the annotation files."""
    dataset_split: str | None = None
    """The name of the split in the dataset. Default: the value of --split."""

    def run(self) -> int:
        from visualbert_core.tasks.hub import import_annotations

        for path in import_annotations(self.task, self.dataset, self.dataset_split or self.split, self.split, self.out):
            say(path)
        return 0
