"""Small inputs with the faults of public bug reports, each given to the program as a user would give it.

tests/reports/README.md describes each of them. A wrong input must not end in exit code 0 without a message, and a right
input must pass. The code behind each has its own tests: test_import_checks, test_predicted_boxes, test_annotations,
test_hub, test_parquet_images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT, run_here

PROGRAM = ROOT / "visualbert_core" / "__main__.py"
REPORTS = ROOT / "tests" / "reports"
DETECTOR = ROOT / "visualbert_core" / "synthetic" / "weights" / "detector"


@dataclass(frozen=True)
class Report:
    """A command line, its exit code and the words it prints; the word OUT stands for an empty folder."""

    line: str
    code: int
    says: tuple[str, ...]


def imported(kind: str, source: str, code: int, *says: str, space: str = "mine") -> Report:
    return Report(f"import {kind} {REPORTS / source} --out OUT --space {space}", code, says)


def scored(task: str, split: str, annotations: str, predictions: str, code: int, *says: str) -> Report:
    where = f"--annotations {REPORTS / annotations} --predictions {predictions}"
    return Report(f"score --task {task} --split {split} {where}", code, says)


def extracted(table: str, code: int, *says: str) -> Report:
    flags = f"--detector {DETECTOR} --out OUT --inline --json"
    return Report(f"extract --images {REPORTS / 'parquet' / table} {flags}", code, says)


BOXES, CUT = "flickr_predictions", REPORTS / "cut"
ANNOTATED = f"{BOXES}/annotations"
CASES = {
    "boxes of a TSV are right": imported("bua-tsv", "tsv/ok.tsv", 0, "0 malformed"),
    "boxes of a TSV are x, y, width, height": imported("bua-tsv", "tsv/xywh.tsv", 2, "x, y, width, height"),
    "boxes of a TSV are normalised": imported("bua-tsv", "tsv/normalised.tsv", 2, "normalised"),
    "width and height of a TSV are swapped": imported(
        "bua-tsv", "tsv/swapped-wh.tsv", 2, "width and height", "swapped"
    ),
    "boxes of a TSV lie outside": imported("bua-tsv", "tsv/outside.tsv", 2, "outside"),
    "features of a TSV are float16": imported("bua-tsv", "tsv/f16feat.tsv", 2, "float16"),
    "features of a TSV are float64": imported("bua-tsv", "tsv/f64feat.tsv", 2, "float64"),
    "float16 under a known space": imported("bua-tsv", "tsv/f16feat.tsv", 2, "float16", space="vg_c4"),
    "another size than the space's": imported("bua-tsv", "tsv/ok.tsv", 2, "16", "2,048", space="vg_c4"),
    "features of a TSV hold NaN": imported("bua-tsv", "tsv/nan.tsv", 0, "malformed: ", "NaN"),
    "a torn row beside a whole one": imported("bua-tsv", "tsv/glued.tsv", 0, "torn: 73", "0 malformed"),
    "one corpus in two TSVs": imported("bua-tsv", "tsv_shards", 0, "0 malformed"),
    "MILVLG's npz": imported("milvlg-npz", "npz", 0, "2 images, 0 malformed"),
    "bottom-up attention's HDF5": imported("bua-hdf5", "hdf5/val36.hdf5", 0, "0 malformed", "WARNING: "),
    "predicted boxes are right": scored("flickr30k_entities", "val", ANNOTATED, f"{REPORTS / BOXES}/ok.json", 0),
    "predicted boxes are x, y, width, height": scored(
        *("flickr30k_entities", "val", ANNOTATED, f"{REPORTS / BOXES}/xywh.json", 2),
        "x, y, width, height",
        "--boxes xywh",
    ),
    "predicted boxes are normalised": scored(
        *("flickr30k_entities", "val", ANNOTATED, f"{REPORTS / BOXES}/normalised.json", 2), "--boxes normalised"
    ),
    "declared boxes are converted": scored(
        *("flickr30k_entities", "val", ANNOTATED, f"{REPORTS / BOXES}/xywh.json --boxes xywh", 0), "recall@1"
    ),
    "declared normalised boxes are converted": scored(
        *("flickr30k_entities", "val", ANNOTATED, f"{REPORTS / BOXES}/normalised.json --boxes normalised", 0),
        "recall@1",
    ),
    "VCR is cut": scored("vcr", "val", "cut/vcr", f"{CUT}/vcr.csv", 0, "of 26,534", "not the official val split"),
    "NLVR2 is cut": scored(
        "nlvr2", "dev", "cut/nlvr2", f"{CUT}/nlvr2.csv", 0, "of 6,982", "not the official dev split"
    ),
    "Flickr is cut": scored(
        *("flickr30k_entities", "val", "cut/flickr", f"{CUT}/flickr.json", 0), "of 1,000", "not the official val split"
    ),
    "images of question and annotation differ": scored(
        *("vqa", "val", "vqa_contradictions/image-differs", "none.json", 2), "image_id"
    ),
    "questions of another split": scored(
        "vqa", "val", "vqa_contradictions/wrong-split", "none.json", 2, "data_subtype"
    ),
    "a dataset that is a program": Report(
        f"import-annotations --task vqa --dataset {REPORTS / 'hub_script' / 'VQAv2'} --split val --out OUT",
        *(2, ("makes this dataset, and programs are not run here", "lmms-lab/VQAv2")),
    ),
    "images in a table": extracted("ok.parquet", 0, '"quarantined": 0'),
    "a row without an image": extracted("onenull.parquet", 0, '"quarantined": 2', "neither bytes nor a path"),
    "paths in place of images": extracted("pathonly.parquet", 3, "has no bytes, and its path"),
    "a row a question": extracted("byquestion.parquet", 0, '"quarantined": 0'),
    "other bytes under one id": extracted("byquestion-diff.parquet", 2, "row"),
    "NLVR2's pairs": extracted("twoimages.parquet", 0, '"quarantined": 0'),
}


@pytest.mark.parametrize("name", CASES)
def test_what_was_reported(name: str, tmp_path: Path) -> None:
    """Each input gives its exit code and the words that identify the fault. A refusal is one line, and no paper's
    number stands beside a part of a split."""
    case = CASES[name]
    done = run_here(PROGRAM, *(str(tmp_path / "out") if word == "OUT" else word for word in case.line.split()))
    said = done.stdout + done.stderr
    assert (done.returncode, [word for word in case.says if word not in said]) == (case.code, []), said
    assert "Traceback" not in said
    if case.code == 2:
        assert len(done.stderr.splitlines()) == 1
    if "is cut" in name:
        table = done.stdout.partition("\nmetric ")[2].partition("\n\n")[0].splitlines()[1:]
        assert table
        assert all(line.endswith("–") for line in table)
