"""The comparison of two runs, for each task: aligned by unit, in every group, with flips that name their example."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from conftest import SmallNight

from visualbert_core.comparison.attribution import NOTHING, causes
from visualbert_core.comparison.compare import compare
from visualbert_core.comparison.flips import flips
from visualbert_core.comparison.text import describe
from visualbert_core.errors import InputError, NotComparableError
from visualbert_core.evaluation.run_folder import Run, read_run
from visualbert_core.evaluation.units import by_metric, encode_units, read_units
from visualbert_core.schema import JudgedAnswer, Score

TASKS = ("vqa", "vcr", "nlvr2", "flickr30k_entities")


def pair(night: SmallNight, task: str) -> tuple[Run, Run]:
    """Return the run over the wrong images and the run over the right images."""
    (own,) = (run for cell in night.night.cells if (run := cell.run) and run.record["spec"]["task"] == task)
    return read_run(own.folder.with_name(f"{own.folder.name}__wrong-image")), own


@pytest.mark.parametrize("task", TASKS)
def test_the_right_image_is_better_than_the_wrong_one(task: str, small_night: SmallNight) -> None:
    """The comparison has every metric, with the values of both scores.json files, and every group of the task's
    breakdown."""
    wrong, own = pair(small_night, task)
    found = compare(wrong, own)
    assert own.scores is not None
    assert wrong.scores is not None
    assert set(found.metrics) == set(own.scores["scores"])
    for metric, change in found.metrics.items():
        assert change.before == pytest.approx(wrong.scores["scores"][metric])
        assert change.after == pytest.approx(own.scores["scores"][metric])
        assert change.difference == pytest.approx(change.after - change.before)
        assert change.n == own.scores["units"][metric]
    headline = found.metrics[found.headline]
    assert headline.low is not None
    assert headline.p_drop > 0.9
    if task != "nlvr2":  # three sets of sentences are too few for significance
        assert headline.low > 0
        assert headline.p < 0.05
    groups = own.scores["breakdown"]
    assert {kind: set(of) for kind, of in found.groups.items()} == {kind: set(of) for kind, of in groups.items()}
    for kind, of in found.groups.items():
        for group, changes in of.items():
            for metric, change in changes.items():
                assert [change.after, change.n] == pytest.approx(groups[kind][group][metric])
                assert change.p_holm is not None
                assert change.p_holm >= change.p
    assert list(found.differs) == ["settings"]
    assert [cause.ingredients for cause in found.causes] == [("settings",)]


@pytest.mark.parametrize("task", TASKS)
def test_flips_are_the_units_whose_value_changed(task: str, small_night: SmallNight) -> None:
    """The flips of a metric are exactly the units whose value changed, each with the confidences and answers of both
    runs."""
    wrong, own = pair(small_night, task)
    found = compare(wrong, own, shown=10_000)
    metrics = {"vcr": ["q_to_a", "qa_to_r"], "flickr30k_entities": ["recall@1"]}.get(task, ["accuracy"])
    assert list(found.flips) == metrics
    units = [read_units(run.folder) for run in (wrong, own)]
    for metric, moved in found.flips.items():
        values = [{unit.unit_id: unit.value for unit in each[metric]} for each in units]
        better = {name for name in values[0] if values[1][name] > values[0][name]}
        assert {flip.unit_id for flip in moved.better} == better
        assert moved.better_count == len(better) > moved.worse_count == len(moved.worse)
        for flip in (*moved.better, *moved.worse):
            assert 0 <= flip.confidence_before <= 1
            assert 0 <= flip.confidence_after <= 1
            assert flip.answer_before != flip.answer_after
            assert (flip.change > 0) == (flip in moved.better) or abs(flip.change) < 1
    document = json.loads(json.dumps(dataclasses.asdict(found), allow_nan=False))
    assert document["metrics"][found.headline]["images"] > 1
    assert "settings" in "\n".join(describe(found))


def test_a_run_against_itself(small_night: SmallNight) -> None:
    """A run compared with itself has difference 0, p = 1, no flips, no differences and no causes."""
    _, own = pair(small_night, "nlvr2")
    found = compare(own, own)
    assert {(c.difference, c.p, c.images_changed) for c in found.metrics.values()} == {(0.0, 1.0, 0)}
    assert (found.answers_changed, found.causes, found.differs) == (0, (), {})


def test_other_tasks_and_splits_are_refused(small_night: SmallNight, tmp_path: Path) -> None:
    """Another task is always refused, another split unless forced, and a run without scores has nothing to compare."""
    (_, vqa), (_, nlvr2) = (pair(small_night, task) for task in ("vqa", "nlvr2"))
    with pytest.raises(NotComparableError, match="task: nlvr2 → vqa"):
        compare(nlvr2, vqa, force=True)
    assert vqa.scores is not None
    other = dataclasses.replace(vqa, scores=vqa.scores | {"split": "train"})
    with pytest.raises(NotComparableError, match="split: train → val"):
        compare(other, vqa)
    assert compare(other, vqa, force=True).metrics["accuracy"].difference == 0
    with pytest.raises(InputError, match="only complete runs"):
        compare(dataclasses.replace(vqa, scores=None), vqa)
    folder = shutil.copytree(vqa.folder, tmp_path / "old")
    (folder / "units.parquet").unlink()
    with pytest.raises(InputError, match=r"no units\.parquet"):
        compare(read_run(folder), vqa)
    (folder / "units.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(InputError, match="damaged"):
        compare(read_run(folder), vqa)


def test_units_survive_their_file(tmp_path: Path) -> None:
    """Units keep their order, exact values and groups in the file, and equal units give equal bytes."""
    scores = [
        Score("u1", "m", 0.1 + 0.2, "image 1", {"kind": ("a", "b")}, JudgedAnswer("e1", [1.5, 2.0], 0.25, 0)),
        Score("u2", "m", 1.0, "image 1", {}, JudgedAnswer("e2", "ja\n", None)),
        Score("u1", "a", 0.0, "café", {"kind": ("c",)}),
    ]
    made = by_metric(scores)
    (tmp_path / "units.parquet").write_bytes(encode_units(made))
    read = read_units(tmp_path)
    assert read == made
    assert list(read) == ["m", "a"]
    assert encode_units(read) == encode_units(made)


def test_any_metric_has_flips_where_its_units_judge_an_answer() -> None:
    """A metric unknown to the library gets its flips from its units alone, the surest first, or None where no unit
    judges an answer."""

    def units(values: list[float], answers: list[str], sure: float | None) -> list[Score]:
        judged = [JudgedAnswer(f"e{row}", answer, sure) for row, answer in enumerate(answers)]
        every = enumerate(zip(values, judged, strict=True))
        return [Score(f"u{row}", "novelty", value, "image", {}, of) for row, (value, of) in every]

    found = flips(units([1, 0, 1], ["a", "b", "c"], 0.9), units([0, 1, 1], ["x", "y", "c"], None), shown=1)
    assert found is not None
    assert (found.worse_count, found.better_count) == (1, 1)
    assert [(flip.example_id, flip.answer_before, flip.answer_after) for flip in found.worse] == [("e0", "a", "x")]
    # The sureness falls from 0.9 (right) to -1 (wrong), because an answer without a confidence counts as sure.
    assert found.worse[0].change == pytest.approx(-1.9)
    assert str(found.worse[0]) == "u0: a (1.00, sure 0.90) → x (0.00)"
    whole_groups = [Score("g", "novelty", 1.0, "image")]
    assert flips(whole_groups, whole_groups, shown=1) is None


# ---------------------------------------------------------------------------------------------------------------------
# Causes of a change.


def named(
    answers_changed: bool, differs: dict[str, list[str]], *of_judge: float
) -> dict[tuple[str, ...], float | None]:
    """Return the causes of a fall by 10 points, and their points."""
    found = causes(-10.0, lambda: of_judge, answers_changed, differs)
    return {cause.ingredients: cause.points for cause in found}


def test_causes_add_up() -> None:
    """The judge's share is the mean over both orders of the swap (-3 and -4 points), and the answers have the rest."""
    differs = {"model": ["model.weights: 1 → 2"], "annotations": ["annotations: 1 → 2"]}
    assert named(True, differs, -3.0, -4.0) == {("model",): -6.5, ("annotations",): -3.5}


def test_causes_that_cannot_be_told_apart_stay_together() -> None:
    """Two ingredients of the answers are one cause, and answers and judge are one cause where no annotations are
    available."""
    both = {"model": ["model.weights: 1 → 2"], "features": ["features.manifest: 1 → 2"]}
    assert named(True, both) == {("model", "features"): -10.0}
    judged = {"model": ["model.weights: 1 → 2"], "scorer": ["code.scores: 1 → 2"]}
    assert named(True, judged) == {("model", "scorer"): None}


def test_without_changed_answers_only_the_judge_can_be_the_cause() -> None:
    """Other weights that give the same answers are not a cause."""
    differs = {"model": ["model.weights: 1 → 2"], "scorer": ["code.scores: 1 → 2"]}
    assert named(False, differs) == {("scorer",): -10.0}
    assert named(False, {"model": ["model.weights: 1 → 2"]}) == {}


def test_what_cannot_change_an_answer_is_no_cause() -> None:
    """A detector's code that gives the same features and the name of a folder are not causes; with no other difference,
    the cause is a rerun."""
    differs = {"code": ["code.features: 1 → 2"], "settings": ["spec.model: a → b"]}
    assert named(True, differs) == {(NOTHING,): -10.0}
    differs["code"].append("code.predictions: 1 → 2")
    assert named(True, differs) == {("code",): -10.0}
