"""Wrong annotation files: cut files, files of two splits or of other images, and files that are not text."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import re
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, run_here
from layouts import LAYOUTS, Layout

from visualbert_core.errors import AnnotationError, InputError
from visualbert_core.evaluation.score import describe, read_prediction_set, score
from visualbert_core.schema import Prediction
from visualbert_core.tasks import flickr30k_entities, nlvr2, open_task, vcr, vqa

REPORTS = ROOT / "tests" / "reports"
SIZES = {"vqa": vqa.SIZES, "vcr": vcr.SIZES, "nlvr2": nlvr2.SIZES}
QUESTIONS = "v2_OpenEnded_mscoco_{}_questions.json"
ANNOTATIONS = "v2_mscoco_{}_annotations.json"

# ---------------------------------------------------------------------------------------------------------------------
# The whole split, or a part of it.


@pytest.mark.parametrize(
    ("task", "split", "predictions", "line"),
    [
        ("vcr", "val", "vcr.csv", "2 of 26,534 records: this is not the official val split"),
        ("nlvr2", "dev", "nlvr2.csv", "2 of 6,982 statements: this is not the official dev split"),
        ("flickr30k_entities", "val", "flickr.json", "1 of 1,000 images: this is not the official val split"),
    ],
)
def test_a_cut_file_has_no_official_score(task: str, split: str, predictions: str, line: str) -> None:
    """A file that was cut at the end of a line is called a subset, with the split's known size, and gets neither the
    paper's number nor an official score."""
    folder = REPORTS / "cut" / task.removesuffix("30k_entities")
    flags = ("--task", task, "--split", split, "--annotations", str(folder))
    flags += ("--predictions", str(REPORTS / "cut" / predictions))
    done = run_here(ROOT / "jobs" / "score.py", *flags, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert "official" not in document
    assert document["subset"].startswith(line)
    assert re.search(r"own set or subset of \d \w+$", document["protocol"])
    text = run_here(ROOT / "jobs" / "score.py", *flags).stdout
    assert f"WARNING: {line}" in text
    assert "no official score" in text
    # the column "paper" is empty
    assert not re.findall(r"\d\d\.\d\d$", re.split("no official score;", text)[0], re.MULTILINE)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_whole_split_is_official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A file with the official number of examples has the plain protocol name, the official score and the paper's
    numbers."""
    layout = LAYOUTS[name]
    small = open_task(name, layout.write(tmp_path), layout.split)
    assert small.published_here() == ()
    if name == "flickr30k_entities":
        monkeypatch.setitem(flickr30k_entities.SIZES, layout.split, 2)
        assert open_task(name, tmp_path, layout.split).subset == (
            "3 of 14,481 phrases: this is not the official test split, so its score is not official and has no paper's "
            "number"
        )
        monkeypatch.setitem(flickr30k_entities.PHRASES, layout.split, 3)
    else:
        # The few records stand for the whole split.
        monkeypatch.setitem(SIZES[name], layout.split, len(layout.rows))
    task = open_task(name, tmp_path, layout.split)
    assert (task.subset, task.protocol) == (None, task.protocols[task.protocol_key])
    assert task.published_here() == tuple(each for each in task.published if each.split == layout.split)
    (tmp_path / "predictions").write_text(layout.text())
    document = score(task, read_prediction_set(task, tmp_path / "predictions", ""), "")
    assert "subset" not in document
    assert document["official"]
    assert "in the official form:" in list(describe(document, task))


def test_nlvr2_dev_of_its_full_size_is_official(tmp_path: Path) -> None:
    """Exactly 6,982 statements are the official dev split; one statement fewer or more is not."""
    lines = [json.dumps({"identifier": f"dev-{n}-0-0", "sentence": "Two dogs.", "label": "True"}) for n in range(6_983)]
    found = []
    for count in (6_981, 6_982, 6_983):
        (tmp_path / "dev.json").write_text("\n".join(lines[:count]))
        found.append(open_task("nlvr2", tmp_path, "dev").subset)
    assert found[1] is None
    assert str(found[0]).startswith("6,981 of 6,982 statements: ")
    assert str(found[2]).startswith("6,983 statements where 6,982 are official: ")


def test_every_split_has_a_known_size() -> None:
    """Every split that a user can ask for has a known official size."""
    assert vqa.SIZES.keys() == vqa.SUBSETS.keys()
    assert set(vcr.SIZES) == set(vcr.SPLITS)
    assert set(nlvr2.SIZES) == set(nlvr2.SPLITS)
    assert set(flickr30k_entities.SIZES) == set(flickr30k_entities.PHRASES) == set(flickr30k_entities.SPLITS)


# ---------------------------------------------------------------------------------------------------------------------
# Files that contradict each other.


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("image-differs", r"annotations.json question_id \d+: 'image_id' is \d+, but in v2_Open\S+ it is \d+"),
        ("wrong-split", "questions.json: 'data_subtype' is 'train2014', but the file should be 'val2014'"),
    ],
)
def test_vqa_files_that_contradict_each_other(tmp_path: Path, folder: str, message: str) -> None:
    """Annotations with another image, or questions of another split, end in one line and exit code 2, without a
    score."""
    (tmp_path / "p.json").write_text("[]")
    flags = ("--task", "vqa", "--split", "val", "--annotations", str(REPORTS / "vqa_contradictions" / folder))
    done = run_here(ROOT / "jobs" / "score.py", *flags, "--predictions", str(tmp_path / "p.json"))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert re.search(message, done.stderr)


@pytest.mark.parametrize("name", [QUESTIONS, ANNOTATIONS])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("key", "value", "refused"),
    [
        ("data_subtype", "test2015", True),
        ("data_subtype", "train2014", True),
        ("data_subtype", "val2014", False),
        ("data_subtype", "my-val", False),
        ("data_type", "abstract_v002", True),
        ("data_type", "mine", False),
        ("task_type", "Multiple-Choice", True),
        ("task_type", "Open-Ended", False),
    ],
)
def test_what_a_vqa_file_says_of_itself(
    tmp_path: Path, name: str, after: bool, key: str, value: str, refused: bool
) -> None:
    """A header field that official files of another kind have is refused in either file, before or after the records; a
    user's own words pass."""
    layout = LAYOUTS["vqa"]
    layout.write(tmp_path)
    path = tmp_path / name.format("val2014")
    held = {k: v for k, v in json.loads(path.read_text()).items() if k != key}
    path.write_text(json.dumps(held | {key: value} if after else {key: value} | held))
    if not refused:
        assert len(open_task("vqa", tmp_path, "val").expected()) == 3
        return
    with pytest.raises(AnnotationError, match=f"{re.escape(path.name)}: '{key}' is '{value}'"):
        open_task("vqa", tmp_path, "val")


def test_test_dev_is_about_the_images_of_test(tmp_path: Path) -> None:
    """The questions of test-dev may call themselves test-dev2015 or, after their images, test2015."""
    for subset in ("test-dev2015", "test2015"):
        questions = {"data_subtype": subset, "questions": [{"question_id": 1, "image_id": 1, "question": "?"}]}
        (tmp_path / QUESTIONS.format("test-dev2015")).write_text(json.dumps(questions))
        assert open_task("vqa", tmp_path, "test-dev").expected() == {"1": "COCO_test2015_000000000001"}


def changed(layout: Layout, file: str, old: str, new: str) -> Layout:
    assert old in layout.files[file]
    return dataclasses.replace(layout, files=layout.files | {file: layout.files[file].replace(old, new)})


@pytest.mark.parametrize(
    ("task", "file", "old", "new", "message"),
    [
        ("nlvr2", "dev.json", "dev-2-0-0", "test1-2-0-0", "line 4: identifier test1-2-0-0 is of the split 'test1'"),
        ("nlvr2", "dev.json", "dev-", "train-", "line 1: identifier train-1-0-0 is of the split 'train'"),
        ("vcr", "val.jsonl", "val-2", "train-2", "line 3: annot_id train-2 is of the split 'train'"),
        ("vcr", "val.jsonl", '"annot_id": "val-2"', '"annot_id": "val-2", "img_id": "i", "img_fn": "m/y.jpg"', ""),
        ("flickr30k_entities", "Annotations/5.xml", "<size/>", "<filename>6.jpg</filename>", "is of the image '6.jpg'"),
        ("flickr30k_entities", "Annotations/6.xml", "<name>1<", "<name>9<", "6.xml have no chain in common .1, 9."),
    ],
)
def test_records_of_another_split_or_image(
    tmp_path: Path, task: str, file: str, old: str, new: str, message: str
) -> None:
    """An official id of another split, or boxes of another image, end in one line that names the record."""
    layout = changed(LAYOUTS[task], file, old, new)
    if not message:  # two images under one img_id
        layout = changed(layout, file, '"annot_id": "val-1"', '"annot_id": "val-1", "img_id": "i"')
        message = r"line 3 .val-2.: 'img_fn' is 'm/y.jpg', but in val-1 it is 'm/x@1.jpg'; .* of the image i "
    with pytest.raises(AnnotationError, match=message):
        open_task(task, layout.write(tmp_path), layout.split)


@pytest.mark.parametrize(
    ("task", "file", "old", "new"),
    [
        ("nlvr2", "dev.json", "dev-", "mine-"),
        ("vcr", "val.jsonl", '"val-', '"mine-'),
        ("vcr", "val.jsonl", '"annot_id"', '"img_id": "i", "annot_id"'),
        ("flickr30k_entities", "Annotations/5.xml", "<size/>", "<filename>5</filename><size><width>0</width></size>"),
    ],
)
def test_own_ids_pass(tmp_path: Path, task: str, file: str, old: str, new: str) -> None:
    """A user's own set may have any ids."""
    official, own = LAYOUTS[task], changed(LAYOUTS[task], file, old, new)
    counts = [len(open_task(task, each.write(tmp_path), each.split).expected()) for each in (official, own)]
    assert counts[0] == counts[1] > 0


def edited(folder: Path, file: str, edits: dict[int, dict[str, object]]) -> None:
    """Change keys of records in a file with one record a line. Lines count from 1."""
    lines = (folder / file).read_text().splitlines()
    for number, changes in edits.items():
        lines[number - 1] = json.dumps(json.loads(lines[number - 1]) | changes)
    (folder / file).write_text("".join(f"{line}\n" for line in lines))


SEEN = {"img_id": "val-7", "metadata_fn": "m/x@1.json"}


@pytest.mark.parametrize(
    ("task", "edits", "message"),
    [
        (
            "nlvr2",
            {2: {"sentence": "A dog."}},
            r"line 2 \(dev-1-1-0\): 'sentence' is 'A dog\.', but in dev-1-0-0 it is 'Café 0\.'; .* sentence dev-1-0 ",
        ),
        ("vcr", {2: {"img_id": "train-7"}}, r"img_id train-7 is of the split 'train', but the file should be 'val'"),
        (
            "vcr",
            {1: SEEN, 3: SEEN | {"img_id": "val-8"}},
            r"line 3 \(val-2\): 'img_id' is 'val-8', but in val-0 it is 'val-7'; .* of the image m/x@1.jpg ",
        ),
        (
            "vcr",
            {1: SEEN, 2: SEEN | {"metadata_fn": "m/y.json"}},
            r"line 2 \(val-1\): 'metadata_fn' is 'm/y.json', but in val-0 it is 'm/x@1.json'; ",
        ),
        (
            "vcr",
            {2: {"objects": ["person", "dog", "cat"]}},
            r"line 2 \(val-1\): 'objects\[2\]' is 'cat', but in val-0 it is None; ",
        ),
    ],
)
def test_records_that_contradict_each_other(
    tmp_path: Path, task: str, edits: dict[int, dict[str, object]], message: str
) -> None:
    """Two records that disagree about one sentence or one image end in one line with the line number, both values and
    the remedy."""
    layout = LAYOUTS[task]
    edited(layout.write(tmp_path), next(iter(layout.files)), edits)
    with pytest.raises(AnnotationError, match=message) as caught:
        open_task(task, tmp_path, layout.split)
    assert "\n" not in str(caught.value)


def test_images_of_their_own_pass(tmp_path: Path) -> None:
    """Objects, ids and metadata may differ between images, and a user's own ids name no official split."""
    layout = LAYOUTS["vcr"]
    another = {"img_id": "mine-8", "img_fn": "m/y.jpg", "metadata_fn": "m/y.json", "objects": ["person"] * 3}
    edited(layout.write(tmp_path), "val.jsonl", {1: SEEN, 2: SEEN, 3: another})
    assert len(open_task("vcr", tmp_path, "val").expected()) == 6


@pytest.mark.parametrize(("asked", "judged", "refused"), [("a", "b", True), ("a", "a", False), ("a", None, False)])
def test_two_vqa_splits_of_ones_own(tmp_path: Path, asked: str, judged: str | None, refused: bool) -> None:
    """Questions and annotations that name two different splits are refused, even where neither split is official."""
    LAYOUTS["vqa"].write(tmp_path)
    for name, subtype in ((QUESTIONS, asked), (ANNOTATIONS, judged)):
        path = tmp_path / name.format("val2014")
        path.write_text(json.dumps(json.loads(path.read_text()) | ({"data_subtype": subtype} if subtype else {})))
    if not refused:
        assert len(open_task("vqa", tmp_path, "val").expected()) == 3
        return
    message = r"val2014_annotations\.json: 'data_subtype' is 'b', but in v2_Open\S+_questions\.json it is 'a'; "
    with pytest.raises(AnnotationError, match=message):
        open_task("vqa", tmp_path, "val")


@pytest.mark.parametrize(
    ("size", "refused"),
    [((90, 50), False), ((500, 375), False), ((89, 50), True), ((90, 49), True), ((50, 90), True)],
)
def test_gold_boxes_outside_their_image(tmp_path: Path, size: tuple[int, int], refused: bool) -> None:
    """A box may reach the last pixel of the size that its file states, as 53,729 of the 275,775 official boxes do, but
    not beyond; a box that counts from 0 passes."""
    layout, told = LAYOUTS["flickr30k_entities"], "<size><width>{}</width><height>{}</height></size>".format(*size)
    layout = changed(layout, "Annotations/5.xml", "<size/>", told)
    layout = changed(layout, "Annotations/5.xml", "<xmin>1<", "<xmin>0<")
    if not refused:
        assert len(open_task(layout.task, layout.write(tmp_path), layout.split).expected()) == 2
        return
    outside = r"5\.xml: bndbox of chain 1, 2: \[0\.0, 1\.0, 90\.0, 50\.0\] reaches outside the <size> {} × {}, ".format(
        *size
    )
    with pytest.raises(AnnotationError, match=outside):
        open_task(layout.task, layout.write(tmp_path), layout.split)


# ---------------------------------------------------------------------------------------------------------------------
# The submission of test-dev.


def _test_dev(folder: Path, whole: bool) -> None:
    asked = [{"question_id": n, "image_id": n, "question": "?"} for n in (3, 1, 2)]
    files = {"test-dev2015": asked[1:]} | ({"test2015": asked} if whole else {})
    for subset, questions in files.items():
        text = json.dumps({"data_subtype": subset, "questions": questions})
        (folder / QUESTIONS.format(subset)).write_text(text)


def test_a_submission_of_test_dev_has_all_questions_of_test(tmp_path: Path) -> None:
    """A submission of test-dev answers every other question of test2015 with "", in test2015's order, because EvalAI
    takes no file of test-dev alone."""
    _test_dev(tmp_path, whole=True)
    task = open_task("vqa", tmp_path, "test-dev")
    said = {name: Prediction(name, "", f"answer {name}", ()) for name in task.expected()}
    assert json.loads(task.submission(said)) == [
        {"question_id": 3, "answer": ""},
        {"question_id": 1, "answer": "answer 1"},
        {"question_id": 2, "answer": "answer 2"},
    ]
    assert [path.name for path in task.annotation_files()] == [QUESTIONS.format("test-dev2015")]


def test_test_dev_alone_has_no_submission(tmp_path: Path) -> None:
    """Without the questions of test2015 there is no submission, and the error names the split to run."""
    _test_dev(tmp_path, whole=False)
    task = open_task("vqa", tmp_path, "test-dev")
    said = {name: Prediction(name, "", "", ()) for name in task.expected()}
    with pytest.raises(
        InputError, match=r"EvalAI requires all 447,793 questions of test2015 .*; run the split test and"
    ):
        task.submission(said)


def test_test_dev_of_other_questions_than_test(tmp_path: Path) -> None:
    """A question of test-dev that is not in test2015 is an error."""
    _test_dev(tmp_path, whole=True)
    text = json.dumps({"questions": [{"question_id": 1, "image_id": 1, "question": "?"}]})
    (tmp_path / QUESTIONS.format("test2015")).write_text(text)
    task = open_task("vqa", tmp_path, "test-dev")
    with pytest.raises(AnnotationError, match=r"question_id 2 is not in v2_OpenEnded_mscoco_test2015_questions.json"):
        task.submission({name: Prediction(name, "", "", ()) for name in task.expected()})


@pytest.mark.parametrize("key", ["image_id", "question"])
def test_test_dev_that_contradicts_test(tmp_path: Path, key: str) -> None:
    """A question whose image or words differ between the two files is an error."""
    _test_dev(tmp_path, whole=True)
    asked: list[dict[str, object]] = [{"question_id": n, "image_id": n, "question": "?"} for n in (3, 1, 2)]
    asked[1][key] = {"image_id": 7, "question": "!"}[key]
    (tmp_path / QUESTIONS.format("test2015")).write_text(json.dumps({"questions": asked}))
    task = open_task("vqa", tmp_path, "test-dev")
    with pytest.raises(AnnotationError, match="question_id 1 has another image or other words in v2_"):
        task.submission({name: Prediction(name, "", "", ()) for name in task.expected()})


def test_test_dev_beside_a_cut_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The official test-dev beside a cut file of test2015 gives no submission, because EvalAI would refuse it."""
    _test_dev(tmp_path, whole=True)
    monkeypatch.setitem(vqa.SIZES, "test-dev", 2)
    task = open_task("vqa", tmp_path, "test-dev")
    with pytest.raises(InputError, match=r"EvalAI requires all 447,793 questions of test2015, but .* has 3; download"):
        task.submission({name: Prediction(name, "", "", ()) for name in task.expected()})


# ---------------------------------------------------------------------------------------------------------------------
# Files that are not text, and text that does not end.


def _npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, answers=np.arange(3))
    return file.getvalue()


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("predictions.json", "[]")
    return file.getvalue()


def _parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1]}), sink)
    return bytes(sink.getvalue())


NO_TEXT: dict[str, tuple[Callable[[], bytes], str]] = {
    "pointer": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "a Git LFS pointer, not the file itself: run git lfs pull",
    ),
    "npz": (_npz, r"a NumPy archive \(.npz\): write it as text"),
    "zip": (_zip, "a ZIP archive: unpack it and name the file inside"),
    "gzip": (lambda: b"\x1f\x8b\x08\x00\x00", "compressed by gzip: unpack it"),
    "pickle": (lambda: pickle.dumps([{"question_id": 1}]), "a Python pickle: write it"),
    "parquet": (_parquet, "a Parquet file: write it"),
    "page": (lambda: b"\n<!DOCTYPE html><html>log in</html>", "a web page: download the file itself"),
}


@pytest.mark.parametrize("what", NO_TEXT)
@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_no_text_is_called_what_it_is(tmp_path: Path, name: str, what: str) -> None:
    """A binary file in place of any annotation file or of the predictions ends in one line with the file's name and its
    kind."""
    make, message = NO_TEXT[what]
    layout = LAYOUTS[name]
    task = open_task(name, layout.write(tmp_path), layout.split)
    (tmp_path / "predictions").write_bytes(make())
    with pytest.raises(InputError, match=f"predictions: {message}"):
        task.read_submission(tmp_path / "predictions")
    for file in layout.files:
        layout.write(tmp_path)
        (tmp_path / file).write_bytes(make())
        with pytest.raises(AnnotationError, match=f"{re.escape(file)}: {message}"):
            open_task(name, tmp_path, layout.split)


def test_ids_may_begin_as_a_file_format_does(tmp_path: Path) -> None:
    """Text that begins with the letters of a binary format is read as text."""
    (tmp_path / "p.csv").write_text("PAR1,True\nBZh9,False\n")
    layout = LAYOUTS["nlvr2"]
    task = open_task("nlvr2", layout.write(tmp_path), "dev")
    assert [row.example_id for row in task.read_submission(tmp_path / "p.csv")] == ["PAR1", "BZh9"]


@pytest.mark.parametrize(
    "hostile", ["[" * 300_000, '{"a":' * 300_000, "9" * 3_000_000], ids=["lists", "objects", "digits"]
)
@pytest.mark.parametrize("name", LAYOUTS)
def test_hostile_json_is_one_line_at_once(tmp_path: Path, name: str, hostile: str) -> None:
    """Endless nesting and endless numbers are refused as fast as the file can be read."""
    layout = LAYOUTS[name]
    task = open_task(name, layout.write(tmp_path), layout.split)
    started = time.monotonic()
    (tmp_path / "predictions").write_text(layout.submission[0] + hostile)
    with pytest.raises(InputError) as caught:
        task.read_submission(tmp_path / "predictions")
    lines = [str(caught.value)]
    for file in layout.files:
        if file.endswith(("json", "jsonl")):
            text = layout.files[file]
            (tmp_path / file).write_text(text[: text.index("{") + 1] + '"a": ' + hostile)
            with pytest.raises(AnnotationError) as found:
                open_task(name, tmp_path, layout.split)
            lines.append(str(found.value))
            layout.write(tmp_path)
    assert all("\n" not in line and len(line) < 800 for line in lines)
    assert time.monotonic() - started < 20
