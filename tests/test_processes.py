"""Processes outside the pool of workers, and the folder they draw into: nothing stays behind when the driver ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from visualbert_core.engine.processes import DraftFolder, helpers
from visualbert_core.errors import ClusterError

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds children in Linux's /proc")

DRIVER = """
import sys
from pathlib import Path
from visualbert_core.config import SyntheticConfig
from visualbert_core.errors import end
from visualbert_core.synthetic.files import make_synthetic

count = int(sys.argv[2])
config = SyntheticConfig(seed=5, vqa_images=count, vcr_images=4, nlvr2_sets=1, flickr_images=4)
end(lambda: make_synthetic(Path(sys.argv[1]), config) and 0)
"""
SCENES = """
from visualbert_core.errors import end
from visualbert_core.synthetic.train_detector import make_scenes

print("imported", flush=True)  # imports have children of their own, for a moment
end(lambda: make_scenes(1, 0, 100_000) and 0)
"""
MANY = 20_000  # images: drawing them takes minutes


def driver(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, text=True, start_new_session=True, **pipes)


def until(true: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def children(pid: int) -> set[int]:
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for text in lists for child in text.read_text().split()}


def alive(pids: set[int]) -> set[int]:
    """Return the processes that have not ended. A zombie, which its parent has not waited for, counts as ended."""
    states = {pid: Path(f"/proc/{pid}/stat") for pid in pids}
    return {
        pid for pid, stat in states.items() if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
    }


@pytest.fixture
def drawing(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], set[int]]]:
    """Start a driver that draws large synthetic data at `tmp_path / "synthetic"`; return it and its children in the
    middle."""
    process = driver(DRIVER, tmp_path / "synthetic", MANY)
    until(lambda: len(list(tmp_path.glob(".*/synthetic/vqa/val2014/*.jpg"))) > 20)
    found = children(process.pid)
    assert len(found) >= 1
    yield process, found
    process.kill()
    process.wait()


def test_a_killed_driver_leaves_no_process_and_the_next_no_folder(
    drawing: tuple[subprocess.Popen[str], set[int]], tmp_path: Path
) -> None:
    """After SIGKILL during the drawing, the driver's children end by themselves. The same command line, started at
    once, succeeds and leaves only the synthetic data."""
    process, found = drawing
    process.kill()
    again = driver(DRIVER, tmp_path / "synthetic", 4)
    until(lambda: not alive(found))
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert [path.name for path in tmp_path.iterdir()] == ["synthetic"]
    assert (tmp_path / "synthetic" / "SYNTHETIC.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("all_of_them", [False, True])
def test_a_signal_is_exit_6_and_leaves_nothing(
    drawing: tuple[subprocess.Popen[str], set[int]], tmp_path: Path, number: signal.Signals, all_of_them: bool
) -> None:
    """A signal is one line and exit code 6, without a folder or a process left. The same holds for a signal to the
    whole group, as Ctrl-C and `ray job stop` send it."""
    process, found = drawing
    (os.killpg if all_of_them else os.kill)(process.pid, number)
    _, said = process.communicate(timeout=120)
    what = "while the synthetic scenes were drawn; run the same line again to restart it"
    assert said == f"error: stopped ({number.name}) {what}\n"
    assert process.returncode == 6
    assert not alive(found)
    assert list(tmp_path.iterdir()) == []


def test_drawing_training_scenes_ends_with_its_driver_too() -> None:
    """Drawing training scenes is parallel too: SIGTERM is exit code 6 in one line, and SIGKILL leaves no process."""
    for number, code in ((signal.SIGTERM, 6), (signal.SIGKILL, -signal.SIGKILL)):
        process = driver(SCENES)
        assert process.stdout is not None
        assert process.stdout.readline() == "imported\n"
        until(lambda process=process: children(process.pid))
        time.sleep(1)  # lets the drawing reach its middle
        found = children(process.pid)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
        assert process.returncode == code
        assert said.count("\n") == (code == 6), said
        until(lambda found=found: not alive(found))


def test_a_helper_that_is_ended_from_outside_is_one_line() -> None:
    """A drawing process that the system kills, as when memory is short, is one error line with a remedy and no
    traceback."""
    with pytest.raises(ClusterError, match=r"was ended from outside.*run the same line again"), helpers() as pool:
        pool.submit(os._exit, 1).result()


def test_the_draft_of_a_run_that_goes_on_stays(tmp_path: Path) -> None:
    """With two drivers at once, neither deletes the other driver's draft, nor a folder that is not a draft."""
    (tmp_path / ".synthetic-mine").mkdir()
    code = "import sys; from pathlib import Path; from visualbert_core.engine.processes import Draft; "
    code += "draft = Draft(Path(sys.argv[1])).__enter__(); print(draft.place, flush=True); input()"
    command = [sys.executable, "-c", code, tmp_path / "synthetic"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        place = Path(other.stdout.readline().strip())
        DraftFolder.clear(tmp_path / "synthetic")
        assert place.is_dir()
        other.kill()
        other.wait()
        DraftFolder.clear(tmp_path / "synthetic")
    assert [path.name for path in tmp_path.iterdir()] == [".synthetic-mine"]
