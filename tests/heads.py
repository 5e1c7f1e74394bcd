"""Start a Ray cluster of one node for a test. It has a separate home folder, and a token if the test gives it one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
PATIENCE = 300.0  # seconds for a server that starts on a busy machine


@dataclass(frozen=True)
class Head:
    """The addresses of the dashboard and of the cluster, the id of the first process, the folder of the logs, and the
    environment of the cluster. Every client needs the same environment."""

    dashboard: str
    address: str
    pid: int
    folder: Path
    environment: dict[str, str]


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return an environment in which `python` is the interpreter of this test. The user's home folder, cluster and
    token are left out."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return inherited | {"HOME": str(home), "PATH": path, "OMP_NUM_THREADS": "1", **more}


@contextmanager
def head(environment: Mapping[str, str], token: str | None = None) -> Iterator[Head]:
    """Yield a head that answers. End it afterwards, with every process that it started."""
    port, dashboard = free_port(), free_port()
    url = f"http://127.0.0.1:{dashboard}"
    # Port 0 lets the agent take any free port, because several clusters may run at once.
    ports = ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--dashboard-agent-listen-port=0"]
    ports.append(f"--port={port}")
    # A Unix socket's path has about a hundred characters at most. Ray's sockets would exceed that in pytest's folders.
    with tempfile.TemporaryDirectory(prefix="vbray", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", *ports, "--disable-usage-stats", f"--temp-dir={folder}"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_for(f"{url}/api/version", process, token)
            yield Head(url, f"127.0.0.1:{port}", process.pid, Path(folder), dict(environment))
        finally:
            # Kill the processes. A normal stop takes Ray half a minute, and no data here is worth the wait.
            for pid in (*below(process.pid), process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], token: str | None = None, seconds: float = PATIENCE) -> None:
    """Wait until the server answers. Raise RuntimeError at once where it refuses the token, because a second try
    changes nothing."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(request, timeout=10).close()
            return
        except urllib.error.HTTPError as error:
            if error.code in {401, 403}:
                raise RuntimeError(f"{url} is there and refuses ({error.code}): {error.read().decode()}") from error
            time.sleep(0.5)
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"{url} is not there (exit code of its process: {process.poll()})")


def below(pid: int) -> Iterator[int]:
    """Yield every process that this process started, and their processes."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # the thread has just ended
            for child in children.read_text().split():
                yield from below(int(child))
                yield int(child)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
