"""`visualbert compare`: two run folders → which scores changed, how significantly, on which examples, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from visualbert_core.comparison.compare import SHOWN, compare
from visualbert_core.comparison.seeds import compare_seeds
from visualbert_core.comparison.text import describe, describe_seeds
from visualbert_core.errors import ConfigError
from visualbert_core.evaluation.run_folder import Run, read_run
from visualbert_core.printable import say_result
from visualbert_core.provenance import digest_files
from visualbert_core.tasks import TASKS, Task, open_task
from visualbert_core.training.grid import read_seeds


@dataclass(frozen=True)
class Command:
    """Compare two runs of one benchmark and split.

    Runs over different annotations or splits are not compared (exit code 5). With --annotations, both runs are scored
    again by those annotations and then compared. With --force, they are compared as they are. This needs no model, no
    Ray and no torch.

    Folders that hold a folder seed=N for each seed, such as the settings of a sweep, are two recipes. They are compared
    over all seeds, paired by seed and by example, with an interval that counts both.

        visualbert compare RUN_A RUN_B
        visualbert compare RUN_A RUN_B --annotations DIR --annotations DIR --json
        visualbert compare SWEEP/learning_rate=1e-05 SWEEP/learning_rate=2e-05
    """

    before: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_A")]
    """The earlier run folder, or a folder with seed=N folders."""
    after: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_B")]
    """The later run folder, or a folder with seed=N folders."""
    annotations: Annotated[tyro.conf.UseAppendAction[tuple[Path, ...]], tyro.conf.arg(aliases=["-a"])] = ()
    """Folder of the official files by which one of the runs was scored. Give it twice for both runs, in any order."""
    task: str | None = None
    """module:Class of a task of your own, beside --annotations. A run folder may be untrusted, so the code that it
    names runs only if you name it too."""
    force: bool = False
    """Compare runs that are not comparable, and say so."""
    flips: int = SHOWN
    """How many flips to list in each direction."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        if (seeds := read_seeds(self.before)) and (others := read_seeds(self.after)):
            if self.annotations or self.force:
                raise ConfigError(
                    "--annotations and --force compare two run folders, and these folders hold several seeds"
                )
            over_seeds = compare_seeds(seeds, others)
            say_result(self.json, asdict(over_seeds), describe_seeds(over_seeds))
            return 0
        before, after = read_run(self.before), read_run(self.after)
        tasks = dict(self._opened(folder, after) for folder in self.annotations)
        comparison = compare(before, after, tasks, self.force, self.flips)
        say_result(self.json, asdict(comparison), describe(comparison))
        return 0

    def _opened(self, folder: Path, run: Run) -> tuple[str, Task]:
        name, split = run.record["spec"]["task"], run.record["spec"]["split"]
        if name not in TASKS and name != self.task:
            raise ConfigError(
                f"{run.folder} is a run of the task {name}, which is code outside this package: add --task {name}"
            )
        task = open_task(name, folder, split)
        return digest_files(task.annotation_files()), task
