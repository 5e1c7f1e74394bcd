"""Datasets in the format of Hugging Face become official annotation files, or are refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import PIL.Image
import pytest
from conftest import ROOT, run_here

from visualbert_core.errors import AnnotationError, ConfigError
from visualbert_core.schema import Prediction
from visualbert_core.tasks import judge, open_task
from visualbert_core.tasks.hub import import_annotations


def answers(*texts: str) -> list[dict[str, Any]]:
    return [{"answer": text, "answer_confidence": "yes", "answer_id": i} for i, text in enumerate(texts, start=1)]


VQA = {  # the columns of lmms-lab/VQAv2, without its images
    "question_type": ["what color", "is the"],
    "multiple_choice_answer": ["red", "yes"],
    "answers": [answers(*["red"] * 7, *["Red."] * 3), answers(*["yes"] * 10)],
    "image_id": [42, 7],
    "answer_type": ["other", "yes/no"],
    "question_id": [42000, 7001],
    "question": ["What color is it?", "Is the “sky” blue?"],
}
NLVR2 = {
    "identifier": ["dev-1-0-0", "dev-1-0-1"],
    "sentence": ["Two dogs.", "Zwei Hunde — größer."],
    "label": ["True", "False"],
    "left_url": ["a", "a"],
    "right_url": ["b", "c"],
}


def save(folder: Path, columns: Mapping[str, list[Any]], split: str = "validation") -> Path:
    datasets.DatasetDict({split: datasets.Dataset.from_dict(dict(columns))}).save_to_disk(str(folder))
    return folder


def without(columns: Mapping[str, list[Any]], *names: str, **changed: list[Any]) -> dict[str, list[Any]]:
    return {name: values for name, values in columns.items() if name not in names} | changed


def test_vqa_from_a_saved_dataset(tmp_path: Path) -> None:
    """The imported VQA files open like the official ones, with every answer, and can be scored."""
    source = save(tmp_path / "source", VQA)
    paths = import_annotations("vqa", str(source), "validation", "val", tmp_path / "out")
    assert [path.name for path in paths] == [
        "v2_OpenEnded_mscoco_val2014_questions.json",
        "v2_mscoco_val2014_annotations.json",
    ]
    task = open_task("vqa", tmp_path / "out", "val")
    assert [(e.example_id, e.image_ids[0], e.text) for e in task.examples()] == [  # type: ignore[union-attr]
        ("42000", "COCO_val2014_000000000042", "What color is it?"),
        ("7001", "COCO_val2014_000000000007", "Is the “sky” blue?"),
    ]
    scores = judge(task, [Prediction("42000", "", "red", ()), Prediction("7001", "", "Yes", ())])
    # The official scorer normalises answers only where the ten differ. So "red" gets the full score, and "Yes" differs
    # from "yes".
    assert [(score.unit_id, score.value) for score in scores] == [("42000", 1.0), ("7001", 0.0)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in paths)


def test_vqa_from_parquet_files(tmp_path: Path) -> None:
    """A folder of Parquet files can be imported, and an image id may be a file name."""
    columns = without(VQA, "multiple_choice_answer", image_id=["val2014/COCO_val2014_000000000042.jpg", "7"])
    (tmp_path / "source").mkdir()
    datasets.Dataset.from_dict(columns).to_parquet(str(tmp_path / "source" / "validation-00000-of-00001.parquet"))
    import_annotations("vqa", str(tmp_path / "source"), "validation", "val", tmp_path / "out")
    task = open_task("vqa", tmp_path / "out", "val")
    assert list(task.expected().values()) == ["COCO_val2014_000000000042", "COCO_val2014_000000000007"]
    assert task.gold("42000") == "red"


def test_questions_alone_for_a_test_split(tmp_path: Path) -> None:
    """A test split needs no answers and becomes a file of questions only."""
    source = save(tmp_path / "source", without(VQA, "answers", "answer_type", "question_type"), "test")
    (path,) = import_annotations("vqa", str(source), "test", "test", tmp_path / "out")
    assert path.name == "v2_OpenEnded_mscoco_test2015_questions.json"
    assert len(open_task("vqa", tmp_path / "out", "test").expected()) == 2


@pytest.mark.parametrize("labels", [["True", "false"], [True, False], [1, 0]])
def test_nlvr2_labels(tmp_path: Path, labels: list[Any]) -> None:
    """Labels may be text in any letter case, booleans or numbers."""
    source = save(tmp_path / "source", without(NLVR2, label=labels), "dev")
    import_annotations("nlvr2", str(source), "dev", "dev", tmp_path / "out")
    task = open_task("nlvr2", tmp_path / "out", "dev")
    assert [(e.example_id, e.text, task.gold(e.example_id)) for e in task.examples()] == [  # type: ignore[union-attr]
        ("dev-1-0-0", "Two dogs.", "True"),
        ("dev-1-0-1", "Zwei Hunde — größer.", "False"),
    ]


@pytest.mark.parametrize(
    ("task", "columns", "says"),
    [
        (
            "vqa",
            without(VQA, "answers", label=[{"ids": ["red"]}] * 2),
            "no column 'answers', without which the officia",
        ),
        ("vqa", without(VQA, "question_id"), "no column 'question_id', which every question has; its columns are "),
        ("vqa", without(VQA, image_id=["a", "b"]), "row 0 image_id: 'a' does not end in a number"),
        ("nlvr2", without(NLVR2, label=["True", "yes"]), "row 1: 'label' is 'yes', neither true nor false"),
        ("nlvr2", without(NLVR2, "sentence"), "no column 'sentence', which every statement has"),
    ],
)
def test_what_a_dataset_lacks(tmp_path: Path, task: str, columns: dict[str, list[Any]], says: str) -> None:
    """A dataset without a needed column or value is refused by its name, and no file is left; soft labels do not
    replace ten answers."""
    source = save(tmp_path / "source", columns)
    with pytest.raises(AnnotationError, match=says):
        import_annotations(task, str(source), "validation", "val" if task == "vqa" else "dev", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("task", "columns", "says"),
    [
        ("vqa", without(VQA, question=[None, "What?"]), r"json questions\[0\] \(question_id 42000\): .*`\$.question`"),
        ("vqa", without(VQA, question_id=[7, 7]), "questions.json: question_id 7 occurs twice"),
        ("vqa", without(VQA, answers=[answers("red"), None]), r"annotations\[1\] .*7001\): .*`null` - at `\$.answers`"),
        ("nlvr2", without(NLVR2, identifier=["dev-1-0-0", "b"]), "dev.json line 2: identifier 'b' is not"),
    ],
)
def test_what_no_job_would_read_is_not_written(
    tmp_path: Path, task: str, columns: dict[str, list[Any]], says: str
) -> None:
    """Where the benchmark's reader refuses the result, nothing is written, and the files of an earlier import stay."""
    split, out = ("val" if task == "vqa" else "dev"), tmp_path / "out"
    source = save(tmp_path / "good", VQA if task == "vqa" else NLVR2)
    good = import_annotations(task, str(source), "validation", split, out)
    before = [path.read_bytes() for path in good]
    with pytest.raises(AnnotationError, match=says):
        import_annotations(task, str(save(tmp_path / "bad", columns)), "validation", split, out)
    assert [path.read_bytes() for path in good] == before
    assert sorted(out.iterdir()) == sorted(good)


def test_another_split_is_not_taken_for_the_one_asked_for(tmp_path: Path) -> None:
    """A folder with the single split train cannot be imported as validation."""
    source = str(tmp_path / "train")
    datasets.Dataset.from_dict(VQA, split=datasets.Split.TRAIN).save_to_disk(source)
    with pytest.raises(ConfigError, match=r"no split 'validation'; known: train"):
        import_annotations("vqa", source, "validation", "val", tmp_path / "out")
    assert len(import_annotations("vqa", source, "train", "train", tmp_path / "out")) == 2


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    """An unsupported benchmark, an unknown split and a folder without a dataset each end in one line."""
    source = str(save(tmp_path / "source", VQA))
    with pytest.raises(
        ConfigError, match="flickr30k_entities cannot be imported from a dataset: datasets of it hold cap"
    ):
        import_annotations("flickr30k_entities", source, "test", "test", tmp_path)
    with pytest.raises(ConfigError, match="no split 'val'; known: validation"):
        import_annotations("vqa", source, "val", "val", tmp_path)
    with pytest.raises(ConfigError, match="unknown vqa split 'validation'"):
        import_annotations("vqa", source, "validation", "validation", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="split 'val' cannot be opened as a dataset"):
        import_annotations("vqa", str(tmp_path / "empty"), "val", "val", tmp_path)


def test_the_job(tmp_path: Path) -> None:
    """The job prints the files that it wrote, and a wrong split ends in one line and exit code 2."""
    source = str(save(tmp_path / "source", NLVR2, "dev"))
    command = [sys.executable, "jobs/import_annotations.py", "--task", "nlvr2", "--dataset", source, "--split"]
    done = subprocess.run([*command, "dev", "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'dev.json'}\n")
    done = subprocess.run([*command, "test1", "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


# ---------------------------------------------------------------------------------------------------------------------
# Incomplete datasets, and sources that are not datasets.


def job(source: Path, tmp_path: Path, split: str = "validation") -> subprocess.CompletedProcess[str]:
    flags = {"--task": "vqa", "--dataset": str(source), "--dataset-split": split, "--split": "val"}
    flags["--out"] = str(tmp_path / "out")
    words = [word for pair in flags.items() for word in pair]
    return run_here(ROOT / "jobs" / "import_annotations.py", *words)


def test_a_dataset_that_is_a_program(tmp_path: Path) -> None:
    """A dataset that is a script ends in one line and exit code 2, and the line names a dataset to use instead, as the
    help does."""
    done = job(ROOT / "tests" / "reports" / "hub_script" / "VQAv2", tmp_path)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "VQAv2: a program (VQAv2.py) makes this dataset, and programs are not run here; name" in done.stderr
    assert "lmms-lab/VQAv2" in done.stderr
    shown = run_here(ROOT / "jobs" / "import_annotations.py", "--help").stdout
    assert "lmms-lab/VQAv2" in shown
    assert "HuggingFaceM4" not in shown


def test_what_datasets_itself_says_of_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same line replaces the RuntimeError of the `datasets` library, which alone knows the scripts on the Hub."""

    def refuse(source: str) -> None:
        raise RuntimeError("Dataset scripts are no longer supported, but found VQAv2.py")

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    with pytest.raises(ConfigError, match=r"somebody/VQAv2: a program \(VQAv2.py\) makes this dataset"):
        import_annotations("vqa", "somebody/VQAv2", "validation", "val", tmp_path / "out")


def test_a_gap_in_the_shards(tmp_path: Path) -> None:
    """A missing number between two shards stops the import, even where the names do not say how many shards there
    are."""
    (tmp_path / "source").mkdir()
    for number in (0, 2):
        columns = datasets.Dataset.from_dict(without(VQA, question_id=[number, number + 1]))
        columns.to_parquet(str(tmp_path / "source" / f"validation-0000{number}.parquet"))
    with pytest.raises(AnnotationError, match=r"validation-00001\.parquet is missing beside validation-00000\.parquet"):
        import_annotations("vqa", str(tmp_path / "source"), "validation", "val", tmp_path / "out")
    (tmp_path / "source" / "validation-00002.parquet").rename(tmp_path / "source" / "validation-00001.parquet")
    assert len(import_annotations("vqa", str(tmp_path / "source"), "validation", "val", tmp_path / "out")) == 2


def test_the_names_of_images_count_nothing(tmp_path: Path) -> None:
    """Numbers in image names may have gaps, because they are ids and do not count shards."""
    folder = tmp_path / "source" / "validation"
    folder.mkdir(parents=True)
    rows = [{key: values[row] for key, values in VQA.items()} for row in (0, 1)]
    for number, row in zip((1, 3), rows, strict=True):
        PIL.Image.new("RGB", (8, 8)).save(folder / f"img_{number}.png")
        row["file_name"] = f"img_{number}.png"
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(import_annotations("vqa", str(tmp_path / "source"), "validation", "val", tmp_path / "out")) == 2


@pytest.mark.parametrize("saved", [False, True])
def test_a_split_that_is_misspelt(saved: bool, tmp_path: Path) -> None:
    """A misspelt split is answered with the nearest known split, or with all where none is near."""
    if saved:
        datasets.DatasetDict({"validation": datasets.Dataset.from_dict(VQA)}).save_to_disk(str(tmp_path / "source"))
    else:
        (tmp_path / "source").mkdir()
        datasets.Dataset.from_dict(VQA).to_parquet(str(tmp_path / "source" / "validation.parquet"))
    with pytest.raises(ConfigError, match=r"source: no split 'validaton'; did you mean 'validation'\?$"):
        import_annotations("vqa", str(tmp_path / "source"), "validaton", "val", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"source: no split 'dev'; known: validation$"):
        import_annotations("vqa", str(tmp_path / "source"), "dev", "val", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        ("validation-00000-of-00002.parquet", "validation-00001-of-00002.parquet"),
        ("validation-00001-of-00003-1f2e3d4c.parquet", "validation-00000-of-00003.parquet"),
        ("validation_0-of-2.jsonl", "validation_1-of-2.jsonl"),
        ("data/validation-00002-of-00002.json", "validation-00001-of-00002.json"),  # numbered from 1
    ],
)
def test_shards_that_are_lacking(tmp_path: Path, name: str, lacking: str) -> None:
    """Where a shard's name promises more shards than exist, nothing is imported, and the line names the missing
    shard."""
    path = tmp_path / "source" / name
    path.parent.mkdir(parents=True)
    columns = datasets.Dataset.from_dict(VQA)
    _ = columns.to_parquet(str(path)) if path.suffix == ".parquet" else columns.to_json(str(path))
    with pytest.raises(AnnotationError, match=rf"source: {lacking} is missing beside \S+; download all"):
        import_annotations("vqa", str(tmp_path / "source"), "validation", "val", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_shards_are_imported(tmp_path: Path) -> None:
    """All shards of a split are imported, with the Hub's digests in the names, although shards of another split are
    missing."""
    source = tmp_path / "source"
    source.mkdir()
    for number, ids in enumerate(([1, 2], [3, 4])):
        columns = datasets.Dataset.from_dict(without(VQA, question_id=ids))
        columns.to_parquet(str(source / f"validation-0000{number}-of-00002-{number}abc.parquet"))
    datasets.Dataset.from_dict(VQA).to_parquet(str(source / "train-00000-of-00009.parquet"))
    import_annotations("vqa", str(source), "validation", "val", tmp_path / "out")
    assert list(open_task("vqa", tmp_path / "out", "val").expected()) == ["1", "2", "3", "4"]


def test_a_dataset_that_says_that_it_has_more_rows(tmp_path: Path) -> None:
    """A dataset whose own description promises more rows is refused, even where the file names are complete."""
    source = tmp_path / "source"
    source.mkdir()
    datasets.Dataset.from_dict(VQA).to_parquet(str(source / "validation.parquet"))
    about = "---\ndataset_info:\n  splits:\n  - name: validation\n    num_bytes: 9\n    num_examples: {}\n---\n"
    (source / "README.md").write_text(about.format(4))
    with pytest.raises(AnnotationError, match="source: 2 rows, but its description says 4; download all of it"):
        import_annotations("vqa", str(source), "validation", "val", tmp_path / "out")
    (source / "README.md").write_text(about.format(2))
    assert len(import_annotations("vqa", str(source), "validation", "val", tmp_path / "out")) == 2


def test_files_that_are_not_data(tmp_path: Path) -> None:
    """A Git LFS pointer is named as one, in a folder and in a saved dataset, and a broken file ends in one line."""
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    source = tmp_path / "source"
    source.mkdir()
    (source / "validation.parquet").write_text(pointer)
    saved = save(tmp_path / "saved", VQA)
    for file in saved.rglob("*.arrow"):
        file.write_text(pointer)
    for folder in (source, saved):
        with pytest.raises(AnnotationError, match=r"\.(parquet|arrow): a Git LFS pointer, .*: run git lfs pull"):
            import_annotations("vqa", str(folder), "validation", "val", tmp_path / "out")
    (source / "validation.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(ConfigError, match="source: split 'validation' cannot be opened as a dataset"):
        import_annotations("vqa", str(source), "validation", "val", tmp_path / "out")


def test_ids_of_thousands_of_digits(tmp_path: Path) -> None:
    """A number of thousands of digits, which Python refuses to parse, is reported like any other wrong value."""
    source = save(tmp_path / "source", without(VQA, image_id=["7" * 5000, "8"]))
    with pytest.raises(AnnotationError, match="row 0 image_id: '7777"):
        import_annotations("vqa", str(source), "validation", "val", tmp_path / "out")
