"""What people see of a training: its page as bytes and in a browser, its curves, trackers, and the line while it runs.

The module trains a few tiny models over the small synthetic data. One of them is validated on another split of it.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from browser import Browser, find
from conftest import SmallNight, small_files

from visualbert_core.cli import main
from visualbert_core.config import EvaluateConfig, PoolConfig
from visualbert_core.engine.pool import Pool
from visualbert_core.errors import ConfigError, InputError, TrackerError
from visualbert_core.evaluation.checks import trained_on
from visualbert_core.evaluation.run import evaluate
from visualbert_core.models.visualbert.trainable import VisualBertTrainable
from visualbert_core.report import trackers
from visualbert_core.report.curves import Line, plot
from visualbert_core.synthetic import WEIGHTS
from visualbert_core.training import TrainConfig, train
from visualbert_core.training.log import Live, Step, read_curves, read_steps
from visualbert_core.training.page import PAGE, PageWriter
from visualbert_core.training.run import Watch
from visualbert_core.training.validation import Validation, validate_parent

WIDTHS = (320, 800, 1400)
LOOKS = {
    "as it is": "",
    "large text in a wide font": "html { font-size: 125%; } * { letter-spacing: .12em !important; }",
}


def recipe(night: SmallNight, out: Path, **changes: Any) -> TrainConfig:
    """Return a short recipe over the questions of the small night, which is validated on the same questions."""
    (store,) = (night.out / "features" / "vqa-val2014").iterdir()
    images = night.out / "synthetic" / "vqa" / "val2014"
    values: dict[str, Any] = {"task": "vqa", "split": "val", "validate_split": "val", "validate_images": images}
    values |= {"annotations": night.out / "synthetic" / "vqa", "features": store, "model": WEIGHTS / "visualbert-vqa"}
    values |= {"out": out, "steps": 6, "save_every": 2, "batch_size": 6, "learning_rate": 1e-3, "skip_bad_batches": 1}
    return TrainConfig(**values | changes)


def poison(patch: pytest.MonkeyPatch, number: int) -> None:
    """Make the loss NaN at this step, counted from 1."""
    seen, real = [0], VisualBertTrainable.losses

    def losses(self: VisualBertTrainable, prepared: Any) -> Any:
        seen[0] += 1
        return real(self, prepared) * (float("nan") if seen[0] == number else 1.0)

    patch.setattr(VisualBertTrainable, "losses", losses)


@pytest.fixture(scope="module")
def training(small_night: SmallNight, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Return the recipe of a finished training whose third batch was left out."""
    config = recipe(small_night, tmp_path_factory.mktemp("training") / "out")
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, 3)
        train(config)
    return config


@pytest.fixture(scope="module")
def page(training: TrainConfig) -> str:
    return (training.out / PAGE).read_text()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find()
    if program is None:
        pytest.skip("no Chromium here")
    with Browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def record_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "run.json").read_text())
    return found


def history_of(out: Path) -> list[Validation]:
    return [Validation(**json.loads(line)) for line in (out / "validations.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------------------------------------------------------------
# what the page says


def test_the_page_has_the_curves_and_the_scores(training: TrainConfig, page: str) -> None:
    """Each curve has a name that tells its numbers; the best checkpoint stands beside parent and wrong image."""
    said, record = text_of(page), record_of(training.out)
    assert "Training of visualbert-vqa on vqa val" in said
    assert "finished: 6 of 6 steps, in epoch 1" in said
    curves = re.findall(r'aria-label="([^"]+ over 6 steps[^"]*)"', page)
    names = ["Loss", "Score on val", "Learning rate", "Gradient", "Speed", "Waiting for data"]
    assert [name.partition(" over ")[0] for name in curves] == names
    best, parent = record["validation"], record["parent"]
    assert parent["step"] == 0
    assert f"own image from {parent['scores']['accuracy']:.4g}" in curves[1]
    assert "wrong image from" in curves[1]
    (row,) = re.findall(r'<tr class="headline">.*?</tr>', page, re.DOTALL)
    shown = [text_of(cell).split() for cell in re.findall(r"<td data-label.*?</td>|<td class=.*?</td>", row, re.DOTALL)]
    assert shown[0][0] == f"{best['scores']['accuracy']:.1f}"
    assert shown[1][0] == f"{parent['scores']['accuracy']:.1f}"
    assert shown[2][0] == f"{best['wrong_image']['accuracy']:.1f}"


def test_the_page_shows_what_the_best_checkpoint_answers(training: TrainConfig, page: str) -> None:
    """The gallery has pictures and answers of the best checkpoint, and about half are wrong where so many are."""
    assert "not right" in text_of(page)
    assert len(re.findall("<figure", page)) == 12
    assert 'src="data:image/jpeg;base64,' in page


def test_a_batch_that_was_left_out_is_named(training: TrainConfig, page: str) -> None:
    """The page names the step and its examples, and so does its line of steps.jsonl."""
    (left,) = [step for step in read_steps(training.out) if step.rate is None]
    assert (left.step, len(left.left_out)) == (3, 6)
    assert f"step 3: 6 examples ({', '.join(left.left_out[:5])}, …)" in text_of(page)


def test_the_page_has_the_recipe_and_the_digests(training: TrainConfig, page: str, tmp_path: Path) -> None:
    """What was set and what has its default stand apart, with every digest, and no folder of this machine."""
    said = text_of(page)
    chosen, defaults = said[said.index("What was set") :].split("What has its default")
    assert "learning_rate 0.001" in chosen
    assert "learning_rate" not in defaults[: defaults.index("Provenance")]
    assert "weight_decay 0.01" in defaults
    made_of = record_of(training.out)["provenance"]
    digests = (made_of["data"]["annotations"], made_of["data"]["features"]["manifest"], made_of["parent"]["weights"])
    assert all(digest in said for digest in (*digests, made_of["code"]["training"]))
    assert str(training.out) not in page
    assert str(training.annotations.parent) not in page
    assert str(WEIGHTS) not in page


def test_nothing_on_it_leads_outside(page: str) -> None:
    """The page has no script, and no address but anchors and data."""
    assert not re.search(r"https?:|@import|url\(|<script", page)
    assert all(link.startswith(("#", "data:")) for link in re.findall(r'\b(?:href|src)="([^"]*)"', page))


def test_equal_trainings_give_equal_pages(training: TrainConfig, small_night: SmallNight, tmp_path: Path) -> None:
    """A training that stopped and went on, in another folder, has the same page as this one, except for its times."""
    config = recipe(small_night, tmp_path / "again")
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, 3)
        with pytest.MonkeyPatch.context() as stopping:
            stopping.setattr(Watch, "update", interrupt)
            with pytest.raises(KeyboardInterrupt):
                train(config)
        train(config)
    pages = []
    for each in (training, config):
        folder = tmp_path / each.out.name / "copy"
        shutil.copytree(each.out, folder)
        lines = [json.loads(line) | {"seconds": 1.0, "waiting": 0.0} for line in open_lines(folder)]
        (folder / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        moved = dataclasses.replace(each, out=folder)
        PageWriter(moved, 6).write(record_of(folder), history_of(folder), validate_parent(moved))
        pages.append((folder / PAGE).read_bytes())
    assert pages[0] == pages[1]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def open_lines(folder: Path) -> list[str]:
    return (folder / "steps.jsonl").read_text().splitlines()


def test_without_a_validation_the_page_has_curves_only(small_night: SmallNight, tmp_path: Path) -> None:
    """Pre-training on masked words has no score: the page has each term of its loss, and no section of scores."""
    (store,) = (small_night.out / "features" / "nlvr2-dev").iterdir()
    changes: dict[str, Any] = {"task": "nlvr2", "split": "dev", "features": store, "validate_split": None, "steps": 2}
    changes |= {"annotations": small_night.out / "synthetic" / "nlvr2", "objective": "masked-words"}
    config = recipe(small_night, tmp_path / "out", model=WEIGHTS / "visualbert-nlvr2", weights="random", **changes)
    train(config)
    page = (config.out / PAGE).read_text()
    assert 'id="scores"' not in page
    assert re.search(r"Loss over 2 steps; loss from [\d.]+ .*; words from [\d.]+ .*; pairs from [\d.]+", page)


def test_a_parent_without_a_head_has_no_score(small_night: SmallNight, tmp_path: Path) -> None:
    """A training with a new head says so and evaluates no parent."""
    config = recipe(small_night, tmp_path / "out", weights="new-head", steps=1)
    train(config)
    assert record_of(config.out)["parent"] is None
    assert "began with a new head, so its parent answers nothing" in text_of((config.out / PAGE).read_text())


# ---------------------------------------------------------------------------------------------------------------------
# the training split


def test_the_training_split_is_said(
    training: TrainConfig, page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A validation on what is learnt is said in run.json, on the page and in the terminal; so is an evaluation."""
    line = "evaluated on the training split: vqa val is what is learnt"
    assert any(warning.startswith(line) for warning in record_of(training.out)["warnings"])
    assert line in text_of(page)
    where = {"annotations": training.annotations, "features": training.features, "out": tmp_path}
    last = training.out / "checkpoints" / "step-00000006"
    words = [word for name, value in where.items() for word in (f"--{name}", str(value))]
    assert main(["evaluate", "--task", "vqa", "--split", "val", "--model", str(last), "--inline", *words]) == 0
    assert "WARNING: evaluated on the training split: step-00000006 was trained on" in capsys.readouterr().out
    own = {**where, "task": "vqa", "split": "val"}
    with Pool(PoolConfig(inline=True)) as pool:
        parent = evaluate(EvaluateConfig(model=training.model, **own), pool)  # type: ignore[arg-type]
    assert not any("training split" in warning for warning in parent.record["warnings"])


def test_other_records_beside_a_checkpoint(tmp_path: Path) -> None:
    """A training.json of another program says nothing; one that is damaged is a warning and no error."""
    assert trained_on(tmp_path, "a") == []
    for text, found in (
        ("[]", []),
        ('{"provenance": {"data": [{"annotations": "a"}]}}', ["evaluated on the training"]),
    ):
        (tmp_path / "training.json").write_text(text)
        assert [line[:25] for line in trained_on(tmp_path, "a")] == found
        assert trained_on(tmp_path, "b") == []
    (tmp_path / "training.json").write_text("{")
    assert "it is not known whether this is the training split" in trained_on(tmp_path, "a")[0]


# ---------------------------------------------------------------------------------------------------------------------
# curves


def test_the_curves_are_a_parquet_file(training: TrainConfig) -> None:
    """curves.parquet has a row for each line of steps.jsonl, with the same values."""
    rows = pyarrow.parquet.read_table(training.out / "curves.parquet").to_pylist()
    lines = [json.loads(line) for line in open_lines(training.out)]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[2]["left_out"] == lines[2]["left_out"]
    for row, line in zip(rows, lines, strict=True):
        assert {name: row[name] for name in line} == line


def test_a_long_training_has_few_points(tmp_path: Path) -> None:
    """A plot has at most 200 points. Speed and waiting are shares of all the time, and the loss is smoothed."""
    line = {"epoch": 0, "terms": {"a": 1.0}, "rate": 0.1, "norm": 2.0, "examples": 4, "seconds": 0.5, "waiting": 0.05}
    line |= {"tokens": 9, "counts": [4]}
    lines = (json.dumps({"step": n, "loss": 1.0 if n < 1000 else 0.0, **line}) for n in range(1, 1202))
    (tmp_path / "steps.jsonl").write_text("\n".join(lines) + '\n{"step": 12')
    curves = read_curves(tmp_path)
    assert (len(curves.points), curves.steps, curves.each) == (172, 1201, 7)
    assert (curves.points[0].step, curves.points[-1].step) == (7, 1201)
    assert curves.points[0].speed == pytest.approx(8)
    assert curves.points[0].waiting == pytest.approx(10)
    assert curves.points[-1].loss == pytest.approx(0.95**202)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ((2e-5, 0.0), ["0", "5e-06", "1e-05", "1.5e-05", "2e-05"]),
        ((3.0, 3.0), ["3", "4"]),
        ((0.0, 0.0), ["0", "1"]),
        ((12_000.0, 9_000.0), ["9,000", "10,000", "11,000", "12,000"]),
    ],
)
def test_scales_have_round_numbers(values: tuple[float, ...], ticks: list[str]) -> None:
    """Scales are round for small, large and constant values, and every point is inside its plot."""
    drawn = plot("t", "", [Line("a", list(enumerate(values, start=1)))], len(values))
    assert drawn is not None
    assert [value for value, _ in drawn.values] == ticks
    assert all(0 <= x <= 100 and 0 <= y <= drawn.height for x, y in drawn.lines[0].places)
    assert plot("t", "", [Line("a", [])], 1) is None


# ---------------------------------------------------------------------------------------------------------------------
# faults


def test_a_page_that_cannot_be_written_does_not_end_the_training(
    small_night: SmallNight, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the disk has no room for the page, or the tracker does not answer, a line says so and the training ends."""
    config = recipe(small_night, tmp_path / "out", validate_split=None, steps=2, trackers=("tensorboard",))
    real = PageWriter.write

    def full(self: PageWriter, *arguments: Any) -> None:
        with small_files(1000):
            real(self, *arguments)

    def refuse(*_: object) -> None:
        raise TrackerError("no answer")

    with pytest.MonkeyPatch.context() as patch, caplog.at_level("ERROR", "visualbert_core"):
        patch.setattr(PageWriter, "write", full)
        patch.setattr("visualbert_core.training.watch.track", refuse)
        assert train(config).record["status"] == "finished"
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "the training goes on, but training.html is not up to date: " in said
    assert "the training goes on, but a tracker is not up to date: no answer" in said
    assert not (config.out / PAGE).exists()


# ---------------------------------------------------------------------------------------------------------------------
# trackers


def sent(config: TrainConfig, tracker: str) -> None:
    """Send a finished training to a tracker, first as it was after two steps, then whole."""
    held = dataclasses.replace(config, trackers=(tracker,))
    record, history, parent = record_of(config.out), history_of(config.out), validate_parent(config)
    lines = open_lines(config.out)
    (config.out / "trackers.json").unlink(missing_ok=True)
    try:
        (config.out / "steps.jsonl").write_text("\n".join(lines[:2]) + "\n")
        Watch(held, 6, parent)._track(tracker, record | {"status": "running"}, history[:1])
    finally:
        (config.out / "steps.jsonl").write_text("\n".join(lines) + "\n")
    Watch(held, 6, parent)._track(tracker, record, history)


def expected(config: TrainConfig) -> dict[str, dict[int, float]]:
    """Return name → step → value of a training."""
    found: dict[str, dict[int, float]] = {name: {} for name in ("loss", "rate", "norm")}
    for step in read_steps(config.out):
        found |= {k: v | {step.step: getattr(step, k)} for k, v in found.items() if getattr(step, k) is not None}
    every = [validate_parent(config), *history_of(config.out)]
    found["val/accuracy"] = {each.step: each.score for each in every if each is not None}
    found["val wrong image/accuracy"] = {
        each.step: each.wrong_image["accuracy"] for each in every if each and each.wrong_image
    }
    return found


def test_mlflow(training: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that is sent twice is one run, with the recipe, every point once, and the page."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    sent(training, "mlflow")
    (run,) = mlflow.search_runs(experiment_names=["visualbert-train"], output_format="list")
    assert run.info.run_name == training.out.name
    assert run.data.params["learning_rate"] == "0.001"
    client = mlflow.MlflowClient()
    for name, values in expected(training).items():
        points = [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)]
        assert sorted(points) == [(step, pytest.approx(value)) for step, value in sorted(values.items())]
    (found,) = Path(run.info.artifact_uri.removeprefix("file://")).iterdir()
    assert found.read_bytes() == (training.out / PAGE).read_bytes()


def test_mlflow_takes_the_names_of_all_metrics() -> None:
    """MLflow refuses @, which a metric of Flickr30K Entities has."""
    validation = pytest.importorskip("mlflow.utils.validation")
    for name in ("val/recall@1", "val wrong image/Q->AR", "loss/masked words"):
        validation._validate_metric_name(trackers._mlflow_name(name))


def test_tensorboard(training: TrainConfig) -> None:
    """The event files have every point of every curve once, at its step."""
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    shutil.rmtree(training.out / "tensorboard", ignore_errors=True)
    sent(training, "tensorboard")
    found = []
    for file in (training.out / "tensorboard").iterdir():
        data = file.read_bytes()
        while data:  # TFRecord: length, checksum of the length, event, checksum of the event
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            data = data[16 + size :]
    wanted = [(name, step, value) for name, values in expected(training).items() for step, value in values.items()]
    named = {name: re.sub(r"[^-/\w.]", "_", name) for name, _, _ in wanted}  # as TensorBoard's writer does
    assert sorted(found) == [
        (name, step, pytest.approx(value)) for name, step, value in sorted((named[n], s, v) for n, s, v in wanted)
    ]


def test_wandb(training: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline runs under the training's name hold what was sent, and the page."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    sent(training, "wandb")
    wandb.teardown()
    identity = json.loads((training.out / "trackers.json").read_text())["training"]
    assert list((tmp_path / "wandb").glob(f"offline-run-*-{identity}"))
    (found,) = (tmp_path / "wandb").rglob(PAGE)
    assert found.read_bytes() == (training.out / PAGE).read_bytes()


def test_an_unknown_tracker_is_said_before_the_first_step(small_night: SmallNight, tmp_path: Path) -> None:
    """The error names the recipe's key and the nearest name."""
    with pytest.raises(ConfigError, match=r"recipe: trackers: unknown tracker 'mlfow'.*mlflow"):
        train(recipe(small_night, tmp_path / "out", trackers=("mlfow",)))


def test_images_that_are_not_there_are_said_before_the_first_step(small_night: SmallNight, tmp_path: Path) -> None:
    """A wrong folder for the pictures of the page ends the training at once, and not after an epoch."""
    with pytest.raises(InputError, match="nowhere"):
        train(recipe(small_night, tmp_path / "out", validate_images=tmp_path / "nowhere"))
    assert not (tmp_path / "out" / "steps.jsonl").exists()


# ---------------------------------------------------------------------------------------------------------------------
# while it runs

SAID = ("epoch 2, loss 0.5, rate 0.001, gradient 1.5, 30 examples/s, waiting 25 %", "8/10")


def test_the_line_of_a_log_says_everything(caplog: pytest.LogCaptureFixture) -> None:
    """Without a terminal, a line has step, epoch, smoothed loss, rate, gradient, speed, waiting and time left."""
    with caplog.at_level("INFO", "visualbert_core"), Live("training on vqa train", 10, 0.0) as live:
        live.show(Step(8, 1, 0.5, {}, 1e-3, 1.5, 60, 9, (), 2.0, 0.5))
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == f"training on vqa train: step 8 of 10, {SAID[0]}, 4 s left"


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_the_lines_of_a_terminal_say_everything_in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 80 columns shows the same, and nothing while another display has it."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with Live("training on vqa train", 10, 60.0) as live:
        live.show(Step(8, 1, 0.5, {}, 1e-3, 1.5, 60, 9, (), 2.0, 0.5))
        with live.paused():
            before = terminal.getvalue()
            live.show(Step(9, 1, 0.5, {}, 1e-3, 1.5, 60, 9, (), 2.0, 0.5))
            assert terminal.getvalue() == before
    text = terminal.getvalue()
    lines = [re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", line).strip() for line in re.split(r"[\r\n]+", text)]
    assert SAID[0] in lines
    assert any(line.startswith("training on vqa train ") and SAID[1] in line for line in lines)


# ---------------------------------------------------------------------------------------------------------------------
# in a browser


def test_it_opens_without_a_complaint_and_asks_for_nothing(browser: Browser, training: TrainConfig) -> None:
    """Opened from file://, the page gives no message and requests only itself and its data."""
    browser.open(training.out / PAGE)
    assert browser.problems == []
    assert {address.split(":")[0] for address in browser.requests} <= {"file", "data"}
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    named = ("radio", "image", "link", "region")
    seen = [node for node in nodes if not node["ignored"] and node["role"]["value"] in named]
    assert [node for node in seen if not node["name"]["value"]] == []
    ids = browser.run("[...document.querySelectorAll('[id]')].map((each) => each.id)")
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("look", LOOKS)
def test_nothing_is_wider_than_the_screen(browser: Browser, training: TrainConfig, width: int, look: str) -> None:
    """With everything unfolded the page never scrolls sideways, whatever the font, and no number of a scale is cut."""
    browser.open(training.out / PAGE, width=width)
    browser.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    style = f"Object.assign(document.createElement('style'), {{textContent: {LOOKS[look]!r}}})"
    browser.run(f"document.head.append({style})")
    assert browser.run("document.documentElement.scrollWidth") <= width
    cut = "[...document.querySelectorAll('.curves .ticks span')].filter((each) => each.scrollWidth > each.clientWidth)"
    assert browser.run(f"{cut}.map((each) => each.textContent)") == []
