"""The import rules of the package: imports go one way, Ray is in one place, heavy libraries are loaded only where
needed.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "visualbert_core"

# A room may import from the rooms below it and from itself.
ORDER = (
    {"jobs"},
    {"__main__"},
    {"cli"},
    {"commands"},
    {"nightly", "synthetic"},
    {"training"},
    {"report"},
    {"comparison"},
    {"evaluation"},
    {"features"},
    {"tasks", "models", "detector"},
    {"corpus", "metrics", "engine"},
    {"schema", "provenance", "float32", "config_mapping"},
    {"config"},
    {"io"},
    {"errors"},
    {"printable"},
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
LIGHT = (
    "visualbert_core",
    "visualbert_core.tasks",
    "visualbert_core.metrics",
    "visualbert_core.report.html",
    "visualbert_core.comparison.compare",
    "visualbert_core.comparison.gate",
    "visualbert_core.report.ci",
    "visualbert_core.comparison.history",
    "visualbert_core.commands.compare",
    "visualbert_core.commands.score",
    "visualbert_core.cli",
)


def sources() -> Iterator[tuple[str, Path]]:
    """List (room, file) of every source file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts != ("__init__",):
            yield parts[0], path
    yield from (("jobs", path) for path in sorted((ROOT / "jobs").glob("*.py")))


def imported(path: Path) -> Iterator[str]:
    """List everything that a file imports, at the top or inside a function: modules, and the names imported from
    them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_room_has_a_rank() -> None:
    """Every folder of the package has a rank in the list of rooms."""
    assert {room for room, _ in sources()} == set(RANK)


@pytest.mark.parametrize("path", [path for _, path in sources()], ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    """No file imports from a room above its own or from another room of the same level."""
    room = next(r for r, p in sources() if p == path)
    for module in imported(path):
        first, _, rest = module.partition(".")
        target = rest.partition(".")[0]
        if first == "visualbert_core" and target in RANK and target != room:
            assert RANK[target] > RANK[room], f"{path.name} ({room}) must not import {module}"


def test_ray_is_imported_in_four_files() -> None:
    """Only these files and the jobs import Ray, so the rest can be tested and used without a cluster."""
    library = [path for room, path in sources() if room != "jobs"]
    files = [path.name for path in library if any(module.split(".")[0] == "ray" for module in imported(path))]
    assert files == ["calls.py", "pool.py", "ray_session.py", "ray_workers.py"]


def test_metrics_need_numpy_and_scipy_only() -> None:
    """A metric is a pure function, so another project can copy it."""
    allowed = set(sys.stdlib_module_names) | {"numpy", "scipy", "visualbert_core"}
    for room, path in sources():
        if room == "metrics":
            assert {module.split(".")[0] for module in imported(path)} <= allowed, path


def test_scipy_is_loaded_where_a_tail_is_computed() -> None:
    """Importing the code that scores and compares does not load SciPy, whose import takes longer than all the rest."""
    modules = "visualbert_core.commands.score, visualbert_core.commands.compare"
    code = f"import sys, {modules}; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("module", LIGHT)
def test_scores_and_reports_need_neither_torch_nor_ray(module: str) -> None:
    """Reading, scoring and reporting start fast, and run without torch and Ray."""
    heavy = {"torch", "ray", "transformers", "jinja2"}  # Jinja2 is loaded only while a page is drawn
    code = f"import sys, {module}; sys.exit(' '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_comparing_needs_no_page() -> None:
    """Comparing two runs loads neither the code of the report nor an imaging library."""
    code = (
        "import sys, visualbert_core.comparison.compare, visualbert_core.comparison.gate; "
        "drawing = ('PIL', 'jinja2', 'visualbert_core.report'); "
        "sys.exit(' '.join(name for name in sys.modules if name.startswith(drawing)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
