"""The page shows words in place of the folders of the machine that made it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from test_nightly import ANNOTATIONS, CELL, write_matrix

from visualbert_core.commands.nightly import run_night
from visualbert_core.nightly.matrix import load_matrix
from visualbert_core.nightly.night import Night
from visualbert_core.report.places import Places


def test_no_path_of_the_machine_is_on_the_page(tmp_path: Path) -> None:
    """Four nights run in a user's folder: two whole ones, one that cannot be compared and one with a broken annotation
    file. The page, summary.md and junit.xml name files, and no folder above the night's own."""
    root = tmp_path / "Jäger's secret (disk) [1]"
    root.mkdir()
    matrix = write_matrix(root)
    texts = []

    def run(night: str) -> Night:
        done = run_night(load_matrix(matrix, {"night": night}))
        texts.extend(path.read_text() for path in (done.report, *(done.runs / n for n in ("summary.md", "junit.xml"))))
        return done

    first = run("1")
    run("2")
    page = texts[-3]
    assert "OUT/runs/demo/2" in page
    assert re.search(
        r"--annotations DATA/vqa --features OUT/features/vqa-val2014/\w+ --model MODELS/visualbert-vqa", page
    )
    assert "Nothing in the record differs from <code>OUT/runs/demo/1" in page
    (first.runs / CELL / "units.parquet").write_bytes(b"broken")
    shutil.rmtree(root / "out" / "history" / "demo" / "2")
    run("3")
    assert "cannot be compared: OUT/runs/demo/1" in texts[-2]
    annotations = root / "out" / "synthetic" / "vqa" / ANNOTATIONS
    annotations.write_text(annotations.read_text()[:500])
    run("4")
    assert f"DATA/vqa/{ANNOTATIONS}" in texts[-3]
    for text in texts:
        for part in (root.name, "secret", tmp_path.name, *tmp_path.parts[1:3]):
            assert part not in text
        assert not re.search(r"(?<![\w<.…])/(?:tmp|home|root|work|usr|var)\b", text)


def test_places_hide_paths_and_nothing_else() -> None:
    """Known folders become words, the innermost first, and other absolute paths keep their file name. Ids, addresses
    and fractions stay unchanged."""
    places = Places.of([("OUT", Path("/a b/out")), ("DATA", Path("/a b/out/synthetic")), ("…", Path("/a b"))])
    for text, shown in {
        "/a b/out/synthetic/vqa: gone": "DATA/vqa: gone",
        "'/a b/out' and /a b/out.": "'OUT' and OUT.",
        "/a b/out2/x": "…/out2/x",
        "file:///mnt/x/y.json is torn": "…/y.json is torn",
        "[Errno 2] No such file: '/mnt/x/y z.jpg'": "[Errno 2] No such file: '…/y z.jpg'",
        "s3://bucket/a/b, https://x.org/a/b, movie/1.jpg, 1/2/3, and/or, a / b": None,
    }.items():
        assert places.hide(text) == (shown or text)
        assert places.hide(places.hide(text)) == places.hide(text)
