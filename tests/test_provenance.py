"""A digest changes with what can change a number and with nothing else, and each difference is named in words."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SmallNight

from visualbert_core.provenance import (
    INGREDIENTS,
    changed,
    code_digests,
    differences,
    digest_file,
    digest_files,
    digest_json,
    versions,
)


def test_file_digest_is_xxh3_128(tmp_path: Path) -> None:
    """The digest of a file is the published xxh3-128: no bytes give the reference implementation's test vector."""
    (tmp_path / "empty").touch()
    assert digest_file(tmp_path / "empty") == "99aa06d3014798d86001c324468d497f"


def test_digest_of_files_sees_names_and_bytes_but_not_folders(tmp_path: Path) -> None:
    """Moving annotations to another folder or listing them in another order keeps the digest; renaming or editing
    changes it."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in ("x.json", "y.json"):
            (tmp_path / folder / name).write_text(name)
    paths = [[tmp_path / folder / name for name in ("x.json", "y.json")] for folder in ("a", "b")]
    assert digest_files(paths[0]) == digest_files(reversed(paths[1]))
    (tmp_path / "b" / "x.json").write_text("other")
    assert digest_files(paths[0]) != digest_files(paths[1])
    renamed = (tmp_path / "b" / "y.json").rename(tmp_path / "b" / "z.json")
    assert digest_files([paths[0][1]]) != digest_files([renamed])


def test_json_digest_ignores_the_order_of_keys() -> None:
    """Equal values have equal digests, and values that JSON does not have are refused."""
    assert digest_json({"a": 1, "b": [1.5, None]}) == digest_json({"b": [1.5, None], "a": 1})
    assert digest_json({"a": 1}) != digest_json({"a": "1"})
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest_json(float("nan"))
    with pytest.raises(TypeError):
        digest_json(Path())


def test_code_digests_are_stable() -> None:
    """A checkout gives the same three digests again, and the three differ."""
    assert code_digests() == code_digests()
    assert len(set(code_digests().values())) == 3


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Copy the package, so that a test may edit it."""
    package = tmp_path / "visualbert_core"
    shutil.copytree(ROOT / "visualbert_core", package, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    return package


def digests(checkout: Path) -> dict[str, str]:
    """Return the digests that a checkout computes of itself."""
    look = "import json; from visualbert_core.provenance import code_digests; print(json.dumps(code_digests()))"
    done = subprocess.run([sys.executable, "-c", look], cwd=checkout.parent, check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("source", "kinds"),
    [
        ("detector/resize.py", {"features"}),
        ("features/worker.py", {"features"}),
        ("features/store.py", {"predictions"}),
        ("models/visualbert/heads.py", {"predictions"}),
        ("schema.py", {"predictions"}),
        ("tasks/vqa.py", {"scores"}),
        ("metrics/recall.py", {"scores"}),
        ("report/html.py", set()),
        ("nightly/matrix.py", set()),
        ("nightly/night.py", set()),
    ],
)
def test_code_digests_see_what_can_change_a_number(source: str, kinds: set[str], checkout: Path) -> None:
    """A changed statement changes the first digest whose number it can change, and code of the page changes none."""
    before = code_digests()
    (checkout / source).write_text((checkout / source).read_text() + "\nEXTRA = 1\n")
    after = digests(checkout)
    assert {kind for kind in before if before[kind] != after[kind]} == kinds


def test_code_digests_do_not_see_words_or_places(checkout: Path) -> None:
    """A changed comment, docstring, line break or file name inside the same package changes no digest."""
    before = digests(checkout)
    heads = checkout / "models" / "visualbert" / "heads.py"
    head, quotes, rest = heads.read_text().partition('"""')
    heads.write_text(f"{head}{quotes}Other words. {rest}\n\n# a comment\n")
    (checkout / "metrics" / "boxes").mkdir()
    (checkout / "metrics" / "recall.py").rename(checkout / "metrics" / "boxes" / "overlap.py")
    for path in checkout.rglob("*.py"):
        text = path.read_text()
        path.write_text(text.replace("visualbert_core.metrics.recall", "visualbert_core.metrics.boxes.overlap"))
    assert digests(checkout) == before


def test_versions_import_nothing_heavy() -> None:
    """The versions of torch and Ray are read without importing them."""
    check = (
        "import sys; from visualbert_core.provenance import versions; found = versions(); "
        "assert found['torch'] != 'absent' and found['python'].startswith('3.'), found; "
        "assert not {'torch', 'ray', 'pyarrow', 'numpy'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
    assert set(versions()) >= {"torch", "torchvision", "pyarrow", "ray", "numpy", "python"}


def test_differences_name_each_ingredient() -> None:
    """A nested ingredient is named by its path, a missing one is named as missing, and an equal one is left out."""
    a = {"weights": "1f", "versions": {"torch": "2.11.0", "numpy": "2.1"}, "mean": [1, 2]}
    b = {"weights": "1f", "versions": {"torch": "2.12.0", "numpy": "2.1"}, "mean": [1, 3], "nms": 0.5}
    assert differences(a, b) == ["mean: [1, 2] → [1, 3]", "nms: (absent) → 0.5", "versions.torch: 2.11.0 → 2.12.0"]
    assert differences(a, a) == []


def test_changes_are_sorted_by_ingredient() -> None:
    """Every difference belongs to an ingredient that a user can name, and `code` does not include the code that
    judges."""
    a = {
        "model": {"weights": "1f", "precision": "float32"},
        "code": {"features": "1", "predictions": "1", "scores": "1"},
        "annotations": "aa",
        "spec": {"batch_size": 64, "model": "m"},
    }
    b = a | {"model": {"weights": "2f", "precision": "float32"}, "code": a["code"] | {"scores": "2"}}  # type: ignore[operator]
    assert changed(a, b) == {"model": ["model.weights: 1f → 2f"], "scorer": ["code.scores: 1 → 2"]}
    assert list(changed(a, b | {"annotations": "bb"})) == ["model", "annotations", "scorer"]
    assert changed(a, a) == {}


def test_a_run_says_what_it_is_made_of(small_night: SmallNight) -> None:
    """run.json names code, packages, weights, answer list, detector, feature manifest, annotations and scorer, and
    every part belongs to one ingredient."""
    (folder,) = (small_night.out / "runs" / "demo").glob("*__vqa__val")
    made_of = json.loads((folder / "run.json").read_text())["provenance"]
    (store,) = (small_night.out / "features" / "vqa-val2014").iterdir()
    weights = ROOT / "visualbert_core" / "synthetic" / "weights"
    assert made_of["code"] == code_digests()
    assert made_of["versions"] == versions()
    assert made_of["model"]["weights"] == digest_file(weights / "visualbert-vqa" / "model.safetensors")
    assert made_of["model"]["answers"] is not None
    assert made_of["features"]["detector"]["weights"] == digest_file(weights / "detector" / "model.safetensors")
    assert made_of["features"]["detector"]["resize"]["min"] == [224]
    assert made_of["features"]["manifest"] == digest_file(store / "manifest.json")
    assert made_of["annotations"] == digest_files((small_night.out / "synthetic" / "vqa").glob("*.json"))
    assert "official" in made_of["protocol"]
    sorted_in = changed({}, made_of)
    # Only models that read pixels have images. How a model is asked stands beside the provenance.
    assert set(sorted_in) == set(INGREDIENTS) - {"images", "answering"}
    assert sorted(line for lines in sorted_in.values() for line in lines) == differences({}, made_of)
