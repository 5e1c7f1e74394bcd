"""`visualbert evaluate`: one model × task × split over features or images → run folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from visualbert_core.commands.declarations import Flat
from visualbert_core.config import EvaluateConfig, PoolConfig
from visualbert_core.errors import ConfigError
from visualbert_core.io.hub import with_folder
from visualbert_core.io.locations import absolute_paths
from visualbert_core.printable import logger, say_result

if TYPE_CHECKING:
    from visualbert_core.evaluation.run_folder import Run

_LOG = logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Command:
    """Evaluate a checkpoint on one split of a benchmark.

    Writes RUNS/MODEL__TASK__SPLIT/ with the predictions. If they cover the split, it also holds scores.json and the
    file for the leaderboard. A split without public labels has no scores.json. The same line again resumes; a finished
    run is not computed again. Exit code 3: some examples have no prediction, so there is no score. 4: the invariance
    check found an answer that changed. 6: SIGTERM or --max-hours stopped the job before the end.

        visualbert evaluate --task vqa --split val --annotations DIR --features STORE --model FOLDER --out RUNS
        visualbert evaluate … --invariance-check       (does an answer depend on the batch? 64 examples, no run)
        ray job submit --working-dir . -- python jobs/evaluate.py --task … (the same)
    """

    evaluation: Flat[EvaluateConfig]
    pool: Flat[PoolConfig] = field(default_factory=PoolConfig)
    invariance_check: bool = False
    """Check on 64 examples that no answer depends on the batch or the workers."""
    java: tuple[str, ...] = ()
    """Also print the scores of Java programs that you have installed. For captions: meteor, spice."""
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self) -> None:
        if self.java and (self.invariance_check or self.evaluation.limit is not None):
            raise ConfigError("--java needs a score: leave out --limit and --invariance-check")

    def run(self) -> int:
        from visualbert_core.engine.pool import Pool
        from visualbert_core.evaluation.run import evaluate
        from visualbert_core.evaluation.score import JAVA
        from visualbert_core.evaluation.worker import read_predictions
        from visualbert_core.tasks import open_task

        evaluation = absolute_paths(with_folder(self.evaluation))
        if self.invariance_check:
            return self._check(evaluation)
        task = open_task(evaluation.task, evaluation.annotations, evaluation.split)
        other = task.other_scorer(self.java) if self.java else None  # before the first shard: it may be missing
        with Pool(self.pool) as pool:
            run = evaluate(evaluation, pool, task=task)
        if run.scores is None:
            document, line = self._without_score(run)
            say_result(self.json, {"run": str(run.folder), **document}, [line])
            return 0
        predictions, _ = read_predictions(run.folder / "predictions") if other else ([], [])
        scores = run.scores | ({JAVA: other({row.example_id: row for row in predictions})} if other else {})
        say_result(self.json, scores | {"run": str(run.folder)}, (*result_lines(scores), run.folder))
        return 0

    def _check(self, evaluation: EvaluateConfig) -> int:
        from visualbert_core.engine.ray_session import start_ray
        from visualbert_core.evaluation.invariance_check import REGRESSION, check_invariance, describe

        start_ray()  # here, so that the two pools of the check share one Ray
        check = check_invariance(evaluation, self.pool)
        say_result(self.json, asdict(check), describe(check))
        return REGRESSION if check.changed else 0

    def _without_score(self, run: Run) -> tuple[dict[str, Any], str]:
        """Return what is printed in place of scores: for a program, and for people."""
        if run.record["status"] == "sample":
            line = f"a sample ({self.evaluation.limit} examples), so no score: {run.folder}"
            return {"coverage": run.record["coverage"]}, line
        if "subset" in run.record:
            _LOG.warning("%s", run.record["subset"])
        submission = run.folder / run.record["submission"]
        return {"submission": str(submission)}, f"no public labels, so no score: {submission}"


def result_lines(scores: Mapping[str, Any]) -> Iterator[str]:
    """Yield what people read of the scores of a run."""
    from visualbert_core.evaluation.score import against_person, how_answered

    subset = [scores["subset"]] if "subset" in scores else []
    yield from (f"WARNING: {warning}" for warning in (*subset, *scores["warnings"]))
    for metric, value in scores["scores"].items():
        low, high = scores["intervals"][metric]
        spread = "" if low is None else f"  [{low:.2f}, {high:.2f}]"
        others = scores.get("other_protocols", {}).items()
        under = "".join(f"  {protocol} {values[metric]:.2f}" for protocol, values in others)
        yield f"{metric:>14} {value:6.2f}{spread}  n={scores['units'][metric]}{under}"
    yield scores["protocol"]
    yield from against_person(scores, {})
    yield from how_answered(scores)
