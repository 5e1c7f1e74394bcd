"""From predictions to the scores document: the file of every benchmark or a run, complete or refused, without heavy
imports.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SmallNight, run_here
from layouts import LAYOUTS, Layout

from visualbert_core.cli import main
from visualbert_core.commands.nightly import run_night
from visualbert_core.config import EvaluateConfig, PoolConfig
from visualbert_core.engine.pool import Pool
from visualbert_core.engine.shards import Part, ShardFolder, plan
from visualbert_core.errors import ConfigError, CoverageError, InputError
from visualbert_core.evaluation.run import evaluate
from visualbert_core.evaluation.run_folder import read_run
from visualbert_core.evaluation.score import Mode, describe, read_prediction_set, score
from visualbert_core.evaluation.worker import encode
from visualbert_core.nightly.matrix import load_matrix
from visualbert_core.provenance import digest_files
from visualbert_core.tasks import TASKS, Task, nlvr2, open_task
from visualbert_core.tasks.nlvr2 import Nlvr2Task

ASKED = {"task", "split", "protocol", "n", "scores", "intervals", "breakdown", "coverage", "annotations_digest"}
ALSO = {"subset", "official_form_of_subset", "warnings", "partial", "headline", "units", "chance"}


def opened(layout: Layout, folder: Path) -> Task:
    return open_task(layout.task, layout.write(folder), layout.split)


def document(task: Task, path: Path, mode: Mode = "strict") -> dict[str, Any]:
    digest = digest_files(task.annotation_files())
    return score(task, read_prediction_set(task, path, digest, mode), digest, mode)


def scored(task: Task, folder: Path, text: str, mode: Mode = "strict") -> dict[str, Any]:
    path = folder / "predictions"
    path.write_text(text, encoding="utf-8")
    return document(task, path, mode)


def line(layout: Layout, folder: Path, text: str, *flags: str) -> list[str]:
    (folder / "predictions").write_text(text, encoding="utf-8")
    where = ("--annotations", str(layout.write(folder)), "--predictions", str(folder / "predictions"))
    return [str(ROOT / "jobs" / "score.py"), "--task", layout.task, "--split", layout.split, *where, *flags]


def job(layout: Layout, folder: Path, text: str, *flags: str) -> subprocess.CompletedProcess[str]:
    script, *arguments = line(layout, folder, text, *flags)
    return run_here(Path(script), *arguments)


# ---------------------------------------------------------------------------------------------------------------------
# complete predictions


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_file_is_scored_by_the_job(tmp_path: Path, name: str) -> None:
    """The job takes one command line and prints one JSON object with all that was asked for, or the same as text."""
    layout = LAYOUTS[name]
    done = job(layout, tmp_path, layout.text(), "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout, parse_constant=lambda word: pytest.fail(f"{word} in JSON"))
    assert answer.keys() == ASKED | ALSO
    assert answer["scores"].keys() == answer["intervals"].keys() == answer["units"].keys()
    assert (answer["task"], answer["split"], answer["partial"], answer["warnings"]) == (name, layout.split, False, [])
    expected = len(open_task(name, tmp_path, layout.split).expected())
    counts = {"expected": expected, "predicted": expected, "missing": 0, "duplicate": 0, "unknown": 0}
    assert (answer["n"], answer["coverage"]) == (expected, counts)
    text = job(layout, tmp_path, layout.text())
    assert text.returncode == 0, text.stderr
    assert answer["protocol"] in text.stdout
    assert all(f"{metric:<14} {value:6.2f}" in text.stdout for metric, value in answer["scores"].items())
    assert all(key in text.stdout for key in (*answer["official_form_of_subset"], *answer["breakdown"]))


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_order_of_predictions_never_matters(tmp_path: Path, name: str) -> None:
    """A shuffled file gives the same document, byte for byte."""
    layout = LAYOUTS[name]
    task = opened(layout, tmp_path)
    orders = list(itertools.permutations(layout.rows))
    random.Random(3).shuffle(orders)
    assert len({json.dumps(scored(task, tmp_path, layout.text(rows))) for rows in orders[:24]}) == 1


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_written_submission_scores_as_what_it_was_written_from(tmp_path: Path, name: str) -> None:
    """A file with all that the leaderboard asks for has the same score after it is read, written and read again."""
    layout = LAYOUTS[name]
    task = opened(layout, tmp_path)
    once = scored(task, tmp_path, layout.text())
    predictions = {row.example_id: row for row in task.read_submission(tmp_path / "predictions")}
    if name == "vcr":  # VCR's leaderboard asks for more examples than a labelled split has
        with pytest.raises(InputError, match="the rationale for each of the four answers"):
            task.submission(predictions)
        return
    written = task.submission(predictions)
    (tmp_path / task.submission_name).write_bytes(written)
    assert document(task, tmp_path / task.submission_name) == once
    assert task.submission(dict(reversed(predictions.items()))) == written


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    """Scoring loads none of the large libraries, so it runs without torch and Ray."""
    layout = LAYOUTS["nlvr2"]
    (tmp_path / "predictions").write_text(layout.text())
    flags = ["--task", "nlvr2", "--split", "dev", "--annotations", str(layout.write(tmp_path))]
    code = (
        "import atexit, runpy, sys\n"
        "heavy = {'torch', 'torchvision', 'ray', 'datasets', 'transformers', 'PIL'}\n"
        "atexit.register(lambda: print(sorted(heavy & sys.modules.keys())))\n"
        f"sys.argv = ['score.py', *{flags!r}, '--predictions', {str(tmp_path / 'predictions')!r}]\n"
        "runpy.run_path('jobs/score.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert "accuracy" in done.stdout


def test_text_for_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text has interval and n, no interval for a single set, and a table per breakdown. The network behind a file
    is not known, so published numbers are listed below with network and protocol, and none stands beside a score."""
    layout = LAYOUTS["nlvr2"]
    monkeypatch.setitem(nlvr2.SIZES, "dev", len(layout.rows))
    task = opened(layout, tmp_path)
    text = list(describe(scored(task, tmp_path, layout.text()), task))
    assert text[:2] == ["NLVR2 official (metrics.py)", "nlvr2 dev, 4 examples"]
    assert "accuracy        75.00  [1.50, 100.00]           4       –" in text
    assert "consistency     66.67  [0.00, 100.00]           3       –" in text
    assert "consistency=0.6666666666666666" in text
    assert [line.split() for line in text if line.startswith("negation")] == [
        ["negation", "66.67", "(3)", "50.00", "(2)"]
    ]
    below = text[text.index("published for dev, under the protocols that are named:") + 1 :]
    assert below[0] == "VisualBERT: accuracy 67.40; scored: official (VisualBERT, arXiv:1908.03557, table 3)"
    assert [line.partition(":")[0] for line in below[1:]] == [
        "ViLT-B/32",
        "ViLT-B/32, 100k steps",
        "ViLT-B/32, released",
    ]
    alone = dataclasses.replace(layout, files={"dev.json": layout.files["dev.json"].splitlines()[0]})
    task = open_task("nlvr2", alone.write(tmp_path), "dev")
    lone = scored(task, tmp_path, alone.text(alone.rows[:1]))
    assert lone["intervals"] == {"accuracy": [None, None], "consistency": [None, None]}
    assert any(line.startswith("accuracy       100.00   ") for line in describe(lone, task))


# ---------------------------------------------------------------------------------------------------------------------
# incomplete predictions


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("fault", ["missing", "duplicate", "unknown", "mistyped"])
def test_no_score_without_full_coverage(tmp_path: Path, name: str, fault: str) -> None:
    """For every benchmark incomplete predictions give no score, but exit code 3 and one line with the file and the
    fault."""
    layout = LAYOUTS[name]
    rows = {
        "missing": layout.rows[1:],
        "duplicate": (*layout.rows, layout.rows[0]),
        "unknown": (*layout.rows, layout.unknown),
        "mistyped": (layout.mistyped, *layout.rows[1:]),
    }[fault]
    task = opened(layout, tmp_path)
    with pytest.raises(CoverageError) as caught:
        scored(task, tmp_path, layout.text(rows))
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert "\n" not in message
    assert str(tmp_path / "predictions") in message
    assert fault in message or fault == "mistyped"
    if fault in ("duplicate", "unknown"):
        with pytest.raises(CoverageError, match=fault):
            scored(task, tmp_path, layout.text(rows), "partial")


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("data", [b"", b"[{", b"\xff\xfe", b"\x89PNG\r\n"])
def test_a_file_without_records_is_bad_input(tmp_path: Path, name: str, data: bytes) -> None:
    """A file that is not text, or not JSON where the benchmark's submissions are, is exit code 2: nothing is known of
    any example."""
    task = opened(LAYOUTS[name], tmp_path)
    (tmp_path / "predictions").write_bytes(data)
    table = not task.submission_name.endswith(".json")  # any text is a table, which may lack lines
    for mode in ("strict", "official"):
        with pytest.raises((CoverageError, InputError), match="predictions") as caught:
            document(task, tmp_path / "predictions", mode)
        assert (caught.value.exit_code == 3) == (table and data in (b"", b"[{"))


def test_the_job_shows_counts_and_first_ids(tmp_path: Path) -> None:
    """The job ends with exit code 3 and an empty stdout. stderr has a table of five counts with ids, and one error line
    that says which of these faults the official program ignores without a message."""
    layout = LAYOUTS["nlvr2"]
    rows = (*layout.rows[:3], layout.rows[0], layout.unknown)
    command = [sys.executable, *line(layout, tmp_path, layout.text(rows), "--json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    table, error = done.stderr.splitlines()[:-1], done.stderr.splitlines()[-1]
    assert [line.split(maxsplit=2) for line in table] == [
        ["expected", "4"],
        ["predicted", "5"],
        ["missing", "1", "dev-2-0-0"],
        ["duplicate", "1", "dev-1-0-0"],
        ["unknown", "1", "dev-9-0-0"],
    ]
    assert error.startswith("error: ")
    assert "silently takes the last of two and ignores unknown ids: --official-lenient" in error


def test_partial_predictions_leave_a_range(tmp_path: Path) -> None:
    """The range is exactly what the missing answers could still make of the score. It is marked as partial and has no
    point estimate."""
    layout = LAYOUTS["nlvr2"]
    task = opened(layout, tmp_path)
    given, missing = layout.rows[1:3], (layout.rows[0], layout.rows[3])
    said = [
        [f"{row.split(',')[0]},{answer}" for row, answer in zip(missing, answers, strict=True)]
        for answers in itertools.product(("True", "False"), repeat=2)
    ]
    possible = [scored(task, tmp_path, layout.text([*given, *rows]))["scores"] for rows in said]
    partial = scored(task, tmp_path, layout.text(given), "partial")
    assert partial["ranges"] == {
        metric: [min(p[metric] for p in possible), max(p[metric] for p in possible)]
        for metric in ("accuracy", "consistency")
    }
    assert (partial["partial"], partial["n"], partial["coverage"]["missing"]) == (True, 4, 2)
    assert partial.keys() == (ASKED | ALSO | {"ranges"}) - {
        "scores",
        "intervals",
        "breakdown",
        "official_form_of_subset",
        "units",
        "chance",
    }
    done = job(layout, tmp_path, layout.text(given), "--allow-partial")
    assert done.returncode == 0
    assert "PARTIAL, no score: 2 missing" in done.stdout
    assert "accuracy       50.00 … 100.00" in done.stdout
    assert "interval" not in done.stdout


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_range_holds_the_complete_score(tmp_path: Path, name: str) -> None:
    """The complete score lies in the range for any number of missing answers, and a file that misses none gives no
    range. Only metrics of a ranking may have no range: no answer that is there may have a second box."""
    layout = LAYOUTS[name]
    task = opened(layout, tmp_path)
    whole = scored(task, tmp_path, layout.text())
    for count in range(len(layout.rows)):
        ranges = scored(task, tmp_path, layout.text(layout.rows[:count]), "partial")["ranges"]
        assert whole["scores"].keys() - ranges.keys() <= {"recall@5", "recall@10", "upper_bound"}
        assert bool(count == 0 and name == "flickr30k_entities") == bool(whole["scores"].keys() - ranges.keys())
        assert all(low <= whole["scores"][m] <= high and low < high for m, (low, high) in ranges.items())
    assert scored(task, tmp_path, layout.text(), "partial") == whole


def test_lenient_says_what_it_did(tmp_path: Path) -> None:
    """The lenient mode gives the official score with a warning for everything it ignored, exit code 0, and raw counts
    in the document."""
    layout = LAYOUTS["nlvr2"]
    rows = ("identifier,label", layout.rows[3], layout.unknown, *layout.rows, "dev-1-0-0,False")
    done = job(layout, tmp_path, layout.text(rows), "--official-lenient", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    counts = {"expected": 4, "predicted": 8, "missing": 0, "duplicate": 2, "unknown": 2}
    assert (answer["scores"]["accuracy"], answer["coverage"]) == (50.0, counts)
    assert len(answer["warnings"]) == 3
    assert "line 1 ('identifier'): 'label' is neither" in answer["warnings"][0]
    assert "2 predictions of unknown ids" in answer["warnings"][1]
    assert "2 predictions of repeated ids (the last prediction of an id counts)" in answer["warnings"][2]
    assert "WARNING: ignored as the official program does: 2" in "\n".join(describe(answer, opened(layout, tmp_path)))


def test_one_unusual_mode_at_a_time(tmp_path: Path) -> None:
    """The lenient mode and the partial mode exclude each other, because no official program gives a range."""
    done = job(LAYOUTS["nlvr2"], tmp_path, "", "--official-lenient", "--allow-partial")
    assert (done.returncode, "exclude each other" in done.stderr) == (2, True)


# ---------------------------------------------------------------------------------------------------------------------
# what cannot be scored


def test_wrong_choices_are_one_line(tmp_path: Path) -> None:
    """An unknown task, split or protocol, or a missing file, is exit code 2 and one line."""
    layout = LAYOUTS["nlvr2"]
    wrong = (
        (dataclasses.replace(layout, task="nlvr"), (), "unknown task 'nlvr'; did you mean 'nlvr2'?"),
        (dataclasses.replace(layout, split="val"), (), "unknown NLVR2 split"),
        (layout, ("--protocol", "offical"), "'offical'; known: official"),
        (layout, ("--predictions", str(tmp_path / "none.csv")), "none.csv: not found"),
    )
    for what, flags, message in wrong:
        done = job(what, tmp_path, layout.text(), *flags)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
        assert message in done.stderr


class Unlabelled(Nlvr2Task):
    """A split whose labels are not public."""

    name, title, unlabelled = "nlvr2", "NLVR2", Nlvr2Task.splits


def test_a_split_without_labels_is_refused(tmp_path: Path) -> None:
    """A split without labels has no score, and the error names the submission file that can be scored elsewhere."""
    layout = LAYOUTS["nlvr2"]
    task = Unlabelled(layout.write(tmp_path), "dev")
    with pytest.raises(ConfigError, match=r"nlvr2 dev has no public labels: send the leaderboard its submission.csv"):
        scored(task, tmp_path, layout.text())


# ---------------------------------------------------------------------------------------------------------------------
# runs


def made_run(folder: Path, task: Task, answers: Path, spec: Mapping[str, str] = {}) -> Path:
    """Write a finished run folder with the predictions of a file."""
    rows = task.read_submission(answers)
    predictions = ShardFolder(folder / "predictions")
    (shard,) = plan([row.example_id for row in rows], "test", 100)
    predictions.commit(shard, Part(encode(rows), len(rows), None, 0))
    predictions.finish([shard], {})
    record = {
        "spec": {"task": task.name, "split": task.split, "model": "made-up", "visual": "own", **spec},
        "provenance": {"annotations": digest_files(task.annotation_files())},
        "network": "Made-up",
        "answering": "",
        "warnings": ["features of another space: a test"],
        "status": "complete",
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_run_scores_as_its_file(tmp_path: Path, name: str) -> None:
    """The predictions of a run give the document of the same file, with the model and the warnings of the run."""
    layout = LAYOUTS[name]
    task = opened(layout, tmp_path)
    of_file = scored(task, tmp_path, layout.text())
    of_run = document(task, made_run(tmp_path / "run", task, tmp_path / "predictions"))
    said = {"model": "made-up", "visual": "own", "network": "Made-up", "answering": ""}
    assert of_run == of_file | said | {"warnings": ["features of another space: a test"]}


def test_a_wrong_image_run_is_called_one(tmp_path: Path) -> None:
    """The text says that a score is a wrong-image baseline, so that it is not taken for the model's score."""
    task = opened(LAYOUTS["nlvr2"], tmp_path)
    (tmp_path / "predictions").write_text(LAYOUTS["nlvr2"].text())
    for visual, said in (("own", None), ("wrong-image", "other images"), ("none", "a grey image")):
        run = made_run(tmp_path / visual, task, tmp_path / "predictions", {"visual": visual})
        lines = list(describe(document(task, run), task))
        asked = [line.partition("asked about ")[2] for line in lines if "asked about" in line]
        assert asked == ([] if said is None else [said])


def test_a_run_on_something_else_is_refused(tmp_path: Path) -> None:
    """A run on another task, split or annotations is refused."""
    layout = LAYOUTS["nlvr2"]
    task = opened(layout, tmp_path)
    (tmp_path / "predictions").write_text(layout.text())
    for key in ("task", "split"):
        run = made_run(tmp_path / key, task, tmp_path / "predictions", {key: "other"})
        with pytest.raises(InputError, match=f"another value of {key}: other, not"):
            document(task, run)
    run = made_run(tmp_path / "run", task, tmp_path / "predictions")
    (tmp_path / "dev.json").write_text(layout.files["dev.json"].replace('"writer": "1"', '"writer": "2"'))
    with pytest.raises(InputError, match="another value of annotations"):
        document(open_task("nlvr2", tmp_path, "dev"), run)
    for text in ("", "[]", "{}", '{"spec": 3}'):
        (run / "run.json").write_text(text)
        with pytest.raises(InputError, match="is not a run folder"):
            document(task, run)


def test_every_run_of_the_night_scores_the_same_again(small_night: SmallNight) -> None:
    """The job prints each run's scores.json again for its folder, and gives the same for the submission beside it."""
    submissions = 0
    for cell in small_night.night.cells:
        assert cell.run is not None
        assert cell.run.scores is not None
        assert cell.task is not None
        stored = json.loads((cell.run.folder / "scores.json").read_text())
        assert json.loads(json.dumps(document(cell.task, cell.run.folder))) == stored
        name = cell.run.record["submission"]
        if name is not None:
            submissions += 1
            assert document(cell.task, cell.run.folder / name)["scores"] == pytest.approx(stored["scores"])
    assert submissions == 3  # VCR's submission needs more than a labelled split asks


def test_a_run_without_labels_ends_in_a_submission(
    small_night: SmallNight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A complete run without labels writes the leaderboard's file and no score. The same command line finds it again,
    and the job names it."""
    monkeypatch.setitem(TASKS, "nlvr2", f"{__name__}:Unlabelled")
    (store,) = (small_night.out / "features" / "nlvr2-dev").iterdir()
    config = EvaluateConfig(
        task="nlvr2",
        split="dev",
        annotations=small_night.out / "synthetic" / "nlvr2",
        features=store,
        model=ROOT / "visualbert_core" / "synthetic" / "weights" / "visualbert-nlvr2",
        out=tmp_path,
    )
    for _ in range(2):
        with Pool(PoolConfig(inline=True)) as pool:
            run = evaluate(config, pool)
        assert (run.scores, run.record["status"], read_run(run.folder)) == (None, "complete", run)
        assert not (run.folder / "scores.json").exists()
    written = run.folder / run.record["submission"]
    assert len(written.read_text().splitlines()) == run.record["coverage"]["expected"]
    flags = {"task": "nlvr2", "split": "dev", "annotations": config.annotations, "features": store}
    flags |= {"model": config.model, "out": tmp_path}
    assert main(["evaluate", *(f"--{name}={value}" for name, value in flags.items())]) == 0
    assert capsys.readouterr().out == f"no public labels, so no score: {written}\n"


def test_a_night_needs_labels(small_night: SmallNight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell on a split without labels is a configuration error that names the cell, and the other cells have
    scores."""
    monkeypatch.setitem(TASKS, "nlvr2", f"{__name__}:Unlabelled")
    out = shutil.copytree(small_night.out, tmp_path / "out")
    night = run_night(load_matrix(small_night.matrix, {"out": str(out)}))
    assert night.exit_code == 2
    without = [cell for cell in night.cells if cell.run is None]
    assert [cell.error for cell in without] == [
        "dev has no public labels: `visualbert evaluate` makes its submission.csv"
    ]
