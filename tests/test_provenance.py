"""Digests see what matters and nothing else, and a difference is named in words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from visualbert_core.provenance import code_digest, differences, digest_file, digest_files, digest_json, versions


def test_file_digest_is_xxh3_128(tmp_path: Path) -> None:
    """The digest is the published xxh3-128 of the bytes, here of none (the reference implementation's test vector)."""
    (tmp_path / "empty").touch()
    assert digest_file(tmp_path / "empty") == "99aa06d3014798d86001c324468d497f"


def test_digest_of_files_sees_names_and_bytes_but_not_folders(tmp_path: Path) -> None:
    """Moving annotations elsewhere or listing them in another order changes nothing; renaming or editing one does."""
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
    """Equal values have equal digests; values that are not JSON are refused rather than guessed."""
    assert digest_json({"a": 1, "b": [1.5, None]}) == digest_json({"b": [1.5, None], "a": 1})
    assert digest_json({"a": 1}) != digest_json({"a": "1"})
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest_json(float("nan"))
    with pytest.raises(TypeError):
        digest_json(Path())


def test_code_digest_is_stable() -> None:
    """The same checkout has one digest."""
    assert code_digest() == code_digest()


def test_versions_import_nothing_heavy() -> None:
    """Versions of torch and Ray are known without importing them."""
    check = (
        "import sys; from visualbert_core.provenance import versions; found = versions(); "
        "assert found['torch'] != 'absent' and found['python'].startswith('3.'), found; "
        "assert not {'torch', 'ray', 'pyarrow', 'numpy'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
    assert set(versions()) >= {"torch", "torchvision", "pyarrow", "ray", "numpy", "python"}


def test_differences_name_each_ingredient() -> None:
    """Nested ingredients are named by their path, absent ones as such, equal ones not at all."""
    a = {"weights": "1f", "versions": {"torch": "2.11.0", "numpy": "2.1"}, "mean": [1, 2]}
    b = {"weights": "1f", "versions": {"torch": "2.12.0", "numpy": "2.1"}, "mean": [1, 3], "nms": 0.5}
    assert differences(a, b) == ["mean: [1, 2] → [1, 3]", "nms: (absent) → 0.5", "versions.torch: 2.11.0 → 2.12.0"]
    assert differences(a, a) == []
