"""What docs/security.md promises of a job on one machine; the tests that the page names must exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

LISTENING = """
import os
from pathlib import Path
from visualbert_core.engine.ray_session import start_ray

start_ray()
import ray

@ray.remote(num_cpus=0.1)
def touch():
    return 1

ray.get(touch.remote())
parents = {}
for status in Path("/proc").glob("[0-9]*/status"):
    try:
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    except OSError:
        continue
    parents[int(status.parent.name)] = int(lines["PPid"])

def ours(pid):
    while pid and pid != os.getpid():
        pid = parents.get(pid, 0)
    return bool(pid)

inodes = set()
for pid in filter(ours, parents):
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            inodes.add(os.readlink(link))
        except OSError:
            continue
for table in ("tcp", "tcp6"):
    for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
            print(fields[1].split(":")[0])
"""
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's table of sockets")
def test_local_ray_listens_on_loopback_only(tmp_path: Path) -> None:
    """Every socket of a local Ray listens on 127.0.0.1 or ::1 only, and no token is left in the home folder."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", LISTENING], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    addresses = set(done.stdout.split())
    assert addresses
    assert addresses <= LOOPBACK
    assert not list(tmp_path.rglob("auth_token"))


def test_every_test_that_the_pages_name_exists() -> None:
    """Every test that a page names as the proof of a guarantee exists."""
    pages = [(ROOT / "docs" / name).read_text() for name in ("security.md", "guarantees.md")]
    named = {found for page in pages for found in re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", page)}
    assert len(named) > 5
    for file, name in named:
        text = (ROOT / "tests" / file).read_text()
        assert not name or re.search(rf"^def {name}\(", text, re.MULTILINE), f"{file}::{name}"
