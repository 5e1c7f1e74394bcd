"""The benchmark scripts run, and they compare equal results. No test checks a speed."""

from __future__ import annotations

import re
import subprocess
import sys

from conftest import ROOT, run_here
from tolerances import SHALLOW, relative


def run(script: str, *arguments: str) -> str:
    """Run a benchmark in a new process and return what it prints. Its two callers start processes themselves."""
    command = [sys.executable, f"benchmarks/{script}", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=1800).stdout


def run_within(script: str, *arguments: str) -> str:
    """Run a benchmark in this process and return what it prints."""
    done = run_here(ROOT / "benchmarks" / script, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_throughput_compares_equal_logits() -> None:
    """Each load gives transformers' logits in float32, shown with one layer and one image."""
    printed = run_within(
        *("visualbert_throughput.py", "--layers", "1", "--images", "1", "--rounds", "1", "--no-bfloat16"),
        *("--loads", "vqa-36", "nlvr2", "vcr"),
    )
    differences = re.findall(r"^visualbert_core float32 +[\d.]+ +[\d.]+x +(\S+)", printed, re.MULTILINE)
    assert len(differences) == 3
    assert all(float(difference) < relative(SHALLOW) for difference in differences)
    assert len(re.findall(r"^transformers", printed, re.MULTILINE)) == 3 * 2


def test_training_compares_equal_losses_and_gradients() -> None:
    """Each load gives the loss and the gradient of transformers' network, shown with one narrow layer."""
    small = ("--layers", "1", "--hidden", "64", "--examples", "3", "--rounds", "1")
    rows = []
    for flags in ((), ("--loads", "nlvr2", "--precision", "bfloat16")):
        rows += re.findall(r"^\S+ +(\w+) .*× +(\S+) +(\S+)$", run_within("training.py", *small, *flags), re.MULTILINE)
    assert [precision for precision, _, _ in rows] == ["float32"] * 5 + ["bfloat16"]
    for precision, loss, gradient in rows:
        # bfloat16 has 8 bits, and the two networks round at different places.
        most = relative(SHALLOW) if precision == "float32" else 0.05
        assert float(loss) < most
        assert float(gradient) < most


def test_learning_lists_each_lesson_with_its_floor() -> None:
    """Lessons of three steps run to the end of the table, and the floors that they miss are marked."""
    printed = run_here(ROOT / "benchmarks" / "learning.py", "--steps", "3", "--images", "12", "6")
    assert printed.returncode == 1, printed.stderr
    names = re.findall(r"^(\S+) .*  below its floor$", printed.stdout, re.MULTILINE)
    assert names == ["flickr30k", "vqa", "masked-words", "nlvr2"]


def test_vilt_compares_equal_logits() -> None:
    """ViLT gives transformers' logits in float32 for images of one size and of several, shown with one layer."""
    printed = run_within("vilt_throughput.py", "--layers", "1", "--images", "1", "--rounds", "1")
    differences = re.findall(r"^\w+ sizes? .*× +(\S+)$", printed, re.MULTILINE)
    assert len(differences) == 2
    assert all(float(difference) < relative(SHALLOW) * 4 for difference in differences)


def test_vilt_logits_lists_both_distances() -> None:
    """The table has a row for each image, and ours is about as far from transformers as transformers from itself."""
    printed = run_within("vilt_logits.py", "--layers", "0")
    rows = re.findall(r"^tiny +\w+ +(\S+) +(\S+)$", printed, re.MULTILINE)
    assert len(rows) == 5
    assert all(float(distance) < relative(SHALLOW) for row in rows for distance in row)


def test_generation_compares_equal_texts() -> None:
    """Both families write the texts that transformers writes for the whole batch, with four questions about each image
    and with one."""
    printed = run("generation.py", "--width", "32", "--layers", "2", "--rounds", "1", "--questions", "8")
    assert re.findall(r"(\d+) of (\d+)$", printed, re.MULTILINE) == [("8", "8")] * 4


def test_feature_store_compares_equal_features() -> None:
    """Each installed container returns the features that were written, and has a row in the table."""
    printed = run("feature_store.py", "--images", "3", "--rounds", "1", "--cold", "1")
    names = ("visualbert_core store", "Parquet lists", "LMDB", "npy", "HDF5", "base64 TSV", "datasets")
    for name in names:
        (line,) = re.findall(rf"^{name}.*$", printed, re.MULTILINE)
        assert re.search(r"( +[\d.]+){8}$| missing: pip install \w+$", line)


def test_gate_power_tells_a_drop_from_none() -> None:
    """On a small set, the gate hardly gives a false alarm and finds every large drop."""
    printed = run_within("gate_power.py", "--images", "500", "--nights", "30", "--drops", "20")
    (alarms,) = re.findall(r"without a change: (\d+) of 30 nights fail", printed)
    assert int(alarms) <= 3
    assert "a drop of 20 points: found on 30 of 30 nights" in printed


def test_gate_power_tells_drops_of_captions() -> None:
    """BLEU and CIDEr of 30 small simulated nights: few false alarms, intervals that hold, and the promised power."""
    printed = run_within("gate_power.py", "--captions", "--images", "100", "--nights", "30", "--changed", "0.5")
    alarms = re.findall(r"without a change: failed at 1% on (\d+) of 30 nights", printed)
    held = re.findall(r"held the mean of all sets on (\d+) of 30", printed)
    found = re.findall(r"a drop of [\d.]+ points: found on (\d+) of 30", printed)
    assert [len(each) for each in (alarms, held, found)] == [2, 2, 4]
    assert all(int(each) <= 3 for each in alarms)
    assert all(int(each) >= 25 for each in held)
    for half, whole in (found[:2], found[2:]):
        assert int(half) < int(whole)
        assert int(whole) >= 18  # 80 % of 30, less three standard deviations


def test_extraction_compares_equal_regions() -> None:
    """In float32 the worker keeps exactly the regions that torchvision's parts give one after the other, and the tables
    also list bfloat16 and the stages."""
    printed = run_within("extraction.py", "--space", "tiny_rcnn", "--images", "4", "--rounds", "1")
    (same, total) = re.findall(r"^visualbert_core float32 .* (\d+) of (\d+) +1\.0000\d$", printed, re.MULTILINE)[0]
    assert same == total != "0"
    stages = re.findall(r"^  (\w+) +[\d.]+ ms/image", printed, re.MULTILINE)
    assert stages == ["decode", "wait", "turn", "detect", "rows", "encode", "commit"]
    low = run_within(
        "extraction.py", "--space", "tiny_rcnn", "--images", "2", "--rounds", "1", "--precision", "bfloat16"
    )
    assert re.search(r"^torchvision, part by part, autocast", low, re.MULTILINE)
    assert re.search(r"^visualbert_core bfloat16 ", low, re.MULTILINE)


def test_engine_overhead_runs_both_engines() -> None:
    """The table lists the plain loop and the pool with the same shards, and the script times a plan with its
    markers."""
    printed = run(
        "engine_overhead.py", "--shards", "4", "--seconds", "0.1", "--workers", "--images", "2000", "--markers", "2"
    )
    assert re.search(r"^plain loop( +[\d.]+){2} *$", printed, re.MULTILINE)
    assert re.search(r"^pool, 1 worker( +[\d.]+){3} +-?[\d.]+%$", printed, re.MULTILINE)
    assert re.search(r"^2,000 images, 2 shards", printed, re.MULTILINE)


def test_reading_is_measured_in_both_orders() -> None:
    """Both orders of the examples are read from a disk and trained on, with a small store and a narrow network."""
    printed = run_within(*("training_data.py", "--images", "70", "--steps", "1", "--layers", "1", "--hidden", "64"))
    rows = re.findall(r"^(reading|training) +disk +(\S+) +[\d.]+ examples/s", printed, re.MULTILINE)
    assert rows == [(kind, order) for kind in ("reading", "training") for order in ("whole", "row-groups")]
