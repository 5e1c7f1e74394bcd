"""A Ray cluster of one node for a test, with a home folder and a token of its own or none."""

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
    """Where its dashboard and its cluster answer, its first process, where it writes its logs, and what it was started
    with: whoever talks to it needs the same environment."""

    dashboard: str
    address: str
    pid: int
    folder: Path
    environment: dict[str, str]


def environment(home: Path, **more: str) -> dict[str, str]:
    """`python` in a job is the one that this test runs with; nobody's home folder, cluster or token leaks in."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return inherited | {"HOME": str(home), "PATH": path, "OMP_NUM_THREADS": "1", **more}


@contextmanager
def head(environment: Mapping[str, str], token: str | None = None) -> Iterator[Head]:
    """A head that answers, ended with everything that it started."""
    port, dashboard = free_port(), free_port()
    url = f"http://127.0.0.1:{dashboard}"
    ports = ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--dashboard-agent-listen-port=0"]
    ports.append(f"--port={port}")
    # Ray's sockets need a short path, which pytest's own folders are not.
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
            # Asked to end, Ray takes half a minute; nothing here is worth it.
            for pid in (*below(process.pid), process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], token: str | None = None, seconds: float = PATIENCE) -> None:
    """Until it answers. Who refuses is there and will go on refusing: that is said, and at once."""
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
    """Every process that this one started, and theirs."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # a thread that has just ended
            for child in children.read_text().split():
                yield from below(int(child))
                yield int(child)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
