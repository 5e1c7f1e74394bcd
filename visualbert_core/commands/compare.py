"""`visualbert compare`: two run folders → what changed, how surely, on which examples, because of what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from visualbert_core.comparison.compare import SHOWN, compare, describe
from visualbert_core.errors import ConfigError
from visualbert_core.evaluation.run_folder import Run, read_run
from visualbert_core.printable import say, say_json
from visualbert_core.provenance import digest_files
from visualbert_core.tasks import TASKS, Task, open_task


@dataclass(frozen=True)
class Command:
    """Compare two runs of one benchmark and split.

    Runs over different annotations or splits are not compared (exit code 5), unless with the annotations of one of
    them, under which both are then scored anew, or with --force. No model, no Ray, no torch.

        visualbert compare RUN_A RUN_B
        visualbert compare RUN_A RUN_B --annotations DIR --annotations DIR --json
    """

    before: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_A")]
    """Run folder."""
    after: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_B")]
    """Run folder."""
    annotations: Annotated[tyro.conf.UseAppendAction[tuple[Path, ...]], tyro.conf.arg(aliases=["-a"])] = ()
    """Folder of official files that one of the runs was scored by. May be given for both, in any order."""
    task: str | None = None
    """For runs of a task of your own, beside --annotations: its module:Class. A run folder may come from anybody, so
    the code that it names is not run unless you name it."""
    force: bool = False
    """Compare what is not comparable, and say so."""
    flips: int = SHOWN
    """Flips to list each way."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        """Compare, and print."""
        before, after = read_run(self.before), read_run(self.after)
        tasks = dict(self._opened(folder, after) for folder in self.annotations)
        comparison = compare(before, after, tasks, self.force, self.flips)
        if self.json:
            say_json(comparison.document())
            return 0
        for line in describe(comparison):
            say(line)
        return 0

    def _opened(self, folder: Path, run: Run) -> tuple[str, Task]:
        name, split = run.record["spec"]["task"], run.record["spec"]["split"]
        if name not in TASKS and name != self.task:
            raise ConfigError(
                f"{run.folder} is of the task {name}, which is code outside this package: add --task {name}"
            )
        task = open_task(name, folder, split)
        return digest_files(task.annotation_files()), task
