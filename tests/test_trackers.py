"""Nights in MLflow, Weights & Biases and TensorBoard, each offline and read back with the tracker's own reader."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
from conftest import SmallNight, small_files

from visualbert_core.errors import ConfigError, TrackerError
from visualbert_core.evaluation.run_folder import Run, read_run
from visualbert_core.report.trackers import Tracked, check_trackers, track, tracked_night

CELL = "visualbert-vqa__vqa__val"


@pytest.fixture
def scored(small_night: SmallNight) -> Run:
    """Return a real run over the synthetic data."""
    return read_run(small_night.out / "runs" / "demo" / CELL)


@pytest.fixture
def night(small_night: SmallNight, scored: Run, tmp_path: Path) -> Tracked:
    """Return the night of the run, as the nightly passes it to a tracker."""
    return tracked_night("demo", "2026-02-03", {CELL: scored}, "pass", small_night.out / "report.html", tmp_path)


def metrics(night: Tracked) -> dict[str, float]:
    ((_, values),) = night.points
    return dict(values)


def test_metrics_are_the_runs_scores(night: Tracked, scored: Run) -> None:
    """Every score and both ends of its interval are metrics in percent under the cell's name, and no digest is
    empty."""
    scores, values = scored.scores, metrics(night)
    assert scores is not None
    assert values[f"{CELL}/accuracy"] == scores["scores"]["accuracy"]
    low, high = scores["intervals"]["accuracy"]
    assert (values[f"{CELL}/accuracy.low"], values[f"{CELL}/accuracy.high"]) == (low, high)
    assert {f"{CELL}/model", f"{CELL}/features", f"{CELL}/annotations"} <= night.settings.keys()
    assert all(night.settings.values())


def test_mlflow(night: Tracked, monkeypatch: pytest.MonkeyPatch) -> None:
    """A night that is sent twice is one run, with metrics, digests, verdict and page."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # else MLflow refuses its store in files
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (night.out / "mlruns").as_uri())
    track("mlflow", night)
    track("mlflow", night)
    (run,) = mlflow.search_runs(experiment_names=["demo"], output_format="list")
    assert run.info.run_name == "2026-02-03"
    assert run.data.metrics == pytest.approx(metrics(night))
    assert run.data.params == night.settings
    assert run.data.tags["verdict"] == "pass"
    (page,) = Path(run.info.artifact_uri.removeprefix("file://")).iterdir()
    assert night.page is not None
    assert page.read_bytes() == night.page.read_bytes()


def test_mlflow_that_does_not_answer(night: Tracked, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not answer is one line that names the tracker."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(TrackerError, match=r"^mlflow: .*127\.0\.0\.1"):
        track("mlflow", night)


def test_wandb(night: Tracked, monkeypatch: pytest.MonkeyPatch) -> None:
    """An offline run under the night's name has the metrics, the digests and the page."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(night.out))
    track("wandb", night)
    wandb.teardown()  # W&B's own process writes the journal; teardown waits for its last block
    (folder,) = (night.out / "wandb").glob("offline-run-*-demo-2026-02-03")
    (page,) = folder.rglob("report.html")
    assert night.page is not None
    assert page.read_bytes() == night.page.read_bytes()
    from wandb.proto.wandb_internal_pb2 import Record

    (journal,) = folder.glob("*.wandb")
    values, config = {}, {}
    for data in log_records(journal.read_bytes()):
        record = Record.FromString(data)
        values |= {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        config |= {item.key: item.value_json for item in record.run.config.update}
    assert {name: json.loads(values[name]) for name in metrics(night)} == pytest.approx(metrics(night))
    assert json.loads(config[f"{CELL}/model"]) == night.settings[f"{CELL}/model"]


def log_records(log: bytes) -> Iterator[bytes]:
    """Yield the records of a LevelDB log. It has blocks of 32 KiB with pieces of [checksum 4, length 2, kind 1] and
    data. The kinds are 1 whole, 2 first, 3 middle and 4 last. W&B's log begins with seven bytes of its own."""
    piece, at = b"", 7
    while at + 7 <= len(log):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        size, kind = int.from_bytes(log[at + 4 : at + 6], "little"), log[at + 6]
        piece += log[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield piece
            piece = b""


def test_tensorboard(night: Tracked) -> None:
    """An event file has each metric once, under its name, at the night's date whenever it was sent."""
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    track("tensorboard", night)
    (file,) = (night.out / "tensorboard" / "demo").iterdir()
    data, found = file.read_bytes(), {}
    while data:  # TFRecord: length, checksum of the length, event, checksum of the event
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        found |= {value.tag: value.simple_value for value in event.summary.value}
        assert not event.summary.value or event.step == date(2026, 2, 3).toordinal()
        data = data[16 + size :]
    assert found == pytest.approx(metrics(night))


def test_a_tracker_that_is_missing_is_said_before_the_night(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown tracker is an error with the nearest name, and a missing one says how to install it, before the night
    starts."""
    with pytest.raises(ConfigError, match=r"unknown tracker 'mlfow'.*mlflow"):
        check_trackers(["mlfow"], "m.yaml")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"wandb is not installed: pip install 'visualbert-core\[wandb\]'"):
        check_trackers(["wandb"], "m.yaml")


def test_ingredients_are_the_historys(night: Tracked) -> None:
    """The ingredients are JSON values that fit every tracker's limit (MLflow allows 6,000 characters per value)."""
    assert json.loads(json.dumps(night.settings)) == night.settings
    assert max(map(len, night.settings.values())) < 100


@pytest.mark.parametrize(
    ("tracker", "package", "where"),
    [("tensorboard", "tensorboardX", "tensorboard/demo"), ("mlflow", "mlflow", "mlruns")],
)
def test_a_full_disk_names_the_place(
    night: Tracked, monkeypatch: pytest.MonkeyPatch, tracker: str, package: str, where: str
) -> None:
    """When a disk is full, one line names the tracker and the place it wrote to. A limit of ten bytes per file stands
    in for the full disk."""
    pytest.importorskip(package)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (night.out / "mlruns").as_uri())
    track(tracker, night)  # loads the tracker and makes its first files before the limit applies
    with small_files(10), pytest.raises(TrackerError, match=rf"^{tracker}: .*{night.out / where}") as caught:
        track(tracker, night)
    assert "\n" not in str(caught.value)
