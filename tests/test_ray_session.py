"""How the package joins or starts Ray: with a token in the home folder, in the environment, switched off, or without
one.
"""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, small_matrix
from heads import BIN, Head, below, environment, free_port, head, wait_for
from PIL import Image as Pillow
from ray._common.utils import get_default_ray_temp_dir

from visualbert_core.engine.ray_session import SHORT

TOKEN, FOREIGN = "0123456789abcdef0123456789abcdef", "f" * 32
DETECTOR = ROOT / "visualbert_core" / "synthetic" / "weights" / "detector"
SITUATIONS = ["token in the home folder", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "disabled", "none"]
START = "from visualbert_core.engine.ray_session import start_ray; from visualbert_core.errors import end; end({})"
COMPUTE = START.format(
    "lambda: start_ray() and __import__('ray').get(__import__('ray').remote(lambda x: x - 7).remote(7))"
)


def situation(name: str, home: Path) -> tuple[dict[str, str], str | None]:
    """Return the environment of a user in that situation, and the token that a cluster started there asks for."""
    home.mkdir()
    if name == "token in the home folder":
        (home / ".ray").mkdir()
        (home / ".ray" / "auth_token").write_text(TOKEN)
        return environment(home), TOKEN
    if name == "RAY_AUTH_TOKEN":
        return environment(home, RAY_AUTH_TOKEN=TOKEN), TOKEN
    if name == "RAY_AUTH_TOKEN_PATH":
        (home / "secret").write_text(TOKEN)
        return environment(home, RAY_AUTH_TOKEN_PATH=str(home / "secret")), TOKEN
    return environment(home, **({"RAY_AUTH_MODE": "disabled"} if name == "disabled" else {})), None


def files(home: Path) -> set[str]:
    return {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}


def run(*command: object, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    words = list(map(str, command))
    return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def job(pictures: Path, out: Path) -> list[object]:
    return ["jobs/extract_features.py", "--images", pictures, "--detector", DETECTOR, "--out", out, "--workers", 1]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "фото"
    folder.mkdir()
    Pillow.new("RGB", (224, 224), (90, 90, 30)).save(folder / "one.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", SITUATIONS)
def test_ray_starts_on_this_machine(name: str, tmp_path: Path) -> None:
    """Without RAY_ADDRESS Ray starts on this machine in every situation, and the home folder stays unchanged."""
    variables, _ = situation(name, tmp_path / "home")
    before = files(tmp_path / "home")
    done = run(sys.executable, "-c", COMPUTE, env=variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert files(tmp_path / "home") == before


@pytest.mark.parametrize(
    ("address", "words"),
    [("127.0.0.1:{}", "no Ray cluster answers at"), ("http://127.0.0.1:{}", "name the HOST:PORT of a head")],
)
def test_a_cluster_that_is_not_there_is_one_line(address: str, words: str, tmp_path: Path) -> None:
    """A missing cluster is one error line within seconds, where Ray itself tries for minutes. The dashboard's address
    in place of the cluster's gives one line too."""
    variables = environment(tmp_path, RAY_ADDRESS=address.format(free_port()))
    done = run(sys.executable, "-c", COMPUTE, env=variables)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert words in done.stderr
    assert "RAY_ADDRESS" in done.stderr


def test_a_night_ends_with_its_cluster(tmp_path: Path) -> None:
    """Without Ray a night cannot compute anything, so it ends with one line and not with one for each corpus and
    cell."""
    matrix = small_matrix(out=str(tmp_path / "out"), pool={"workers": 1})
    (tmp_path / "matrix.yaml").write_text(yaml.safe_dump(matrix))
    variables = environment(tmp_path, RAY_ADDRESS=f"127.0.0.1:{free_port()}")
    done = run(sys.executable, "jobs/nightly.py", tmp_path / "matrix.yaml", env=variables)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert done.stderr.startswith("error: no Ray cluster answers at ")


def test_a_wait_tells_refused_from_not_there() -> None:
    """The tests' own wait for a server ends at once when the server answers 401 or is gone, and names which."""

    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.headers["Authorization"] == f"Bearer {TOKEN}" else 401)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with subprocess.Popen(["sleep", "600"]) as process, http.server.HTTPServer(("127.0.0.1", 0), Refuses) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        wait_for(url, process, TOKEN)
        with pytest.raises(RuntimeError, match=r"is there and refuses \(401\)"):
            wait_for(url, process)
        server.shutdown()
        process.kill()
        process.wait()
        with pytest.raises(RuntimeError, match="is not there"):
            wait_for(f"http://127.0.0.1:{free_port()}", process)


# ---------------------------------------------------------------------------------------------------------------------


def test_the_short_folder_is_rays_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a variable that names a folder, the short folder is the one that Ray uses when TMPDIR is too long."""
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    assert get_default_ray_temp_dir() == SHORT


@pytest.mark.slow
def test_a_long_tmpdir_is_gone_around(tmp_path: Path) -> None:
    """A path of 150 characters leaves no room for Ray's sockets, so Ray's files go to a shorter path, and one line says
    so."""
    long = tmp_path / ("x" * 150)
    long.mkdir()
    done = run(sys.executable, "-c", COMPUTE, env=environment(tmp_path, TMPDIR=str(long)))
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        "WARNING: TMPDIR is too long a path for Ray's sockets, so Ray keeps its files in "
        f"{SHORT}: set RAY_TMPDIR to use another short folder\n"
    )


@contextmanager
def stopped_raylets(driver: subprocess.Popen[str], count: int) -> Iterator[set[int]]:
    """Stop the first raylets of a driver, so that they never answer, as on an overloaded machine."""
    stopped: set[int] = set()

    def watch() -> None:
        while len(stopped) < count and driver.poll() is None:
            for pid in set(below(driver.pid)) - stopped:
                try:
                    name = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
                    if name.endswith(b"/raylet") and len(stopped) < count:
                        os.kill(pid, signal.SIGSTOP)
                        stopped.add(pid)
                except OSError:
                    continue
            time.sleep(0.01)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield stopped
    thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(("count", "code"), [(1, 0), (2, 1)])
def test_ray_that_is_not_up_in_time_is_started_once_more(count: int, code: int, tmp_path: Path) -> None:
    """A second start succeeds when the machine has recovered, and the first one's processes are gone. If it fails too,
    one line says what to do."""
    command = [sys.executable, "-c", COMPUTE]
    with subprocess.Popen(command, cwd=ROOT, env=environment(tmp_path), stderr=subprocess.PIPE, text=True) as driver:
        with stopped_raylets(driver, count) as stopped:
            _, said = driver.communicate()
        assert driver.returncode == code, said
        lines = said.splitlines()
        assert lines[0].startswith("WARNING: Ray did not start (")
        assert lines[0].endswith("): trying once more")
        assert len(lines) == count
        assert code == 0 or (
            lines[1].startswith("error: Ray did not start in 2 attempts: ") and "RAY_TMPDIR" in lines[1]
        )
        assert not any(Path(f"/proc/{pid}").exists() for pid in stopped)


# Clusters that run already.


@dataclass(frozen=True)
class Cluster:
    """A cluster that was started in a situation, and the user who started it."""

    head: Head
    home: Path
    written: set[str]
    """The files in the home folder before the cluster was started."""

    @property
    def user(self) -> dict[str, str]:
        """The environment of the user, with the address of the cluster."""
        return self.head.environment | {"RAY_ADDRESS": self.head.address}


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start a cluster in a situation. pytest runs all tests of a situation one after the other."""
    home = tmp_path_factory.mktemp("user") / "home"
    variables, token = situation(request.param, home)
    before = files(home)
    with head(variables, token) as running:
        yield Cluster(running, home, before)


@pytest.mark.slow
@pytest.mark.parametrize("cluster", SITUATIONS, indirect=True)
def test_a_running_cluster_is_joined(cluster: Cluster) -> None:
    """A cluster started in the situation takes a driver with RAY_ADDRESS. Nothing is written into the home folder."""
    done = run(sys.executable, "-c", COMPUTE, env=cluster.user)
    assert (done.returncode, done.stderr) == (0, "")
    assert files(cluster.home) == cluster.written


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["none"], indirect=True)
def test_a_running_cluster_takes_jobs(cluster: Cluster, pictures: Path, tmp_path: Path) -> None:
    """A cluster without a token takes a job with RAY_ADDRESS and a job submitted as in the README; test_ray_job.py has
    one with a token. Nothing is written into the home folder. The corpus has a name beyond ASCII, which Ray's metrics
    refuse."""
    joined = run(sys.executable, *job(pictures, tmp_path / "joined"), env=cluster.user)
    assert joined.returncode == 0, joined.stderr
    readme = {"RAY_API_SERVER_ADDRESS": cluster.head.dashboard}
    submit = [BIN / "ray", "job", "submit", "--working-dir", ".", "--", "python"]
    submitted = run(*submit, *job(pictures, tmp_path / "submitted"), env=cluster.head.environment | readme)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    parts = [
        sorted(path.read_bytes() for path in tmp_path.glob(f"{out}/*/*/parts/*")) for out in ("joined", "submitted")
    ]
    assert parts[0] == parts[1] != []
    assert files(cluster.home) == cluster.written


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["token in the home folder"], indirect=True)
def test_who_is_refused_is_told_so(cluster: Cluster, tmp_path: Path) -> None:
    """No token, a foreign token and RAY_AUTH_MODE=disabled each give one line with a remedy, and no line says that the
    cluster is missing."""
    address, stranger = cluster.head.address, environment(tmp_path)
    cases = {
        "there is none here": {},
        "which is not its own": {"RAY_AUTH_TOKEN": FOREIGN},
        "RAY_AUTH_MODE=disabled keeps the token": {"RAY_AUTH_MODE": "disabled"},
    }
    for words, more in cases.items():
        done = run(sys.executable, "-c", COMPUTE, env=stranger | more | {"RAY_ADDRESS": address})
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: the cluster at {address} (RAY_ADDRESS) refuses ")
        assert (words in done.stderr, done.stderr.count("\n")) == (True, 1), done.stderr
