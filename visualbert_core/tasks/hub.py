"""Writes the official annotation files from a Hugging Face dataset, in a folder or on the Hub.

This file owns the mapping of columns. It refuses a dataset that lacks something that the official score needs. The
import is a separate step, so that every score is over files that can be kept, digested and compared.

    vqa      Fits lmms-lab/VQAv2 and datasets with the same columns: question_id, image_id, question. Train and val also
             need question_type, answer_type and answers: ten of {answer, answer_confidence, answer_id}. The column
             multiple_choice_answer is optional. An image_id is a number or a file name that ends in a number.
             Graphcore/vqa has soft labels instead of the ten answers. Its questions can be imported for a test split,
             but its labels cannot be scored officially.
    nlvr2    Needs identifier, sentence, and label (a boolean, 0 or 1, or "True" or "False" in any case). The columns
             left_url and right_url are optional; they tell balanced pairs from unbalanced ones.

A dataset that lacks a file of a numbered series is refused, because the other files would pass for the whole dataset. A
dataset that is a program (HuggingFaceM4/VQAv2) is refused, because `datasets` runs no programs since version 4.

Two benchmarks cannot be imported. VCR's texts mix words with lists of object numbers. Datasets such as
nlphuji/flickr30k have captions without phrases and boxes.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, Any

from visualbert_core.config import nearest
from visualbert_core.corpus.sources import SUFFIXES
from visualbert_core.errors import AnnotationError, ConfigError
from visualbert_core.io.lfs import REASON, is_pointer_file
from visualbert_core.io.numbered import gaps
from visualbert_core.tasks import vqa
from visualbert_core.tasks.base import Task
from visualbert_core.tasks.nlvr2 import Nlvr2Task
from visualbert_core.tasks.reading import choose

Record = Mapping[str, Any]

_LONGEST_NUMBER = 18  # digits of an id; Python's int() refuses thousands of digits

_NOT_OFFERED = {
    "vcr": "VCR's texts mix words with lists of object numbers, which a column cannot hold; download the .jsonl files",
    "flickr30k_entities": "datasets of it hold captions without phrases or boxes; download the Entities annotations",
}


def import_annotations(task: str, source: str, source_split: str, split: str, out: Path) -> tuple[Path, ...]:
    """Write the official files of `split` under `out` from the split `source_split` of a dataset; return their paths.

    `source` is a folder or a Hub id. The folder comes from `save_to_disk`, or holds Parquet or other files that
    `load_dataset` takes. Records are written one by one, so memory does not grow with the dataset.

    Raises ConfigError for an unknown task or split and for a dataset that cannot be opened. Raises AnnotationError
    where a column or a value is missing, or where the benchmark's reader refuses the written files. After an error,
    `out` holds the files that it held before.
    """
    if task in _NOT_OFFERED:
        raise ConfigError(f"{task} cannot be imported from a dataset: {_NOT_OFFERED[task]}")
    write, benchmark = _WRITERS[choose("task", task, _WRITERS)]
    choose(f"{task} split", split, benchmark.splits)
    records = _Records(source, source_split)
    out.mkdir(parents=True, exist_ok=True)
    # The benchmark's reader checks a draft of the files before they replace anything.
    with TemporaryDirectory(prefix=".import-", dir=out) as draft:
        written = write(records, split, Path(draft))
        try:
            benchmark(Path(draft), split)
        except AnnotationError as error:
            raise AnnotationError(f"{source}: written as {str(error).replace(f'{draft}/', '')}") from None
        return tuple(path.replace(out / path.name) for path in written)


class _Records:
    """Reads the rows of one split of a dataset."""

    def __init__(self, source: str, split: str) -> None:
        self.source, self._split = source, split
        with _one_line(source, split):
            self._dataset, self._declared = _open(source, split)
            # A stream may know its columns only after its first row.
            self.columns: list[str] = list(self._dataset.column_names or next(iter(self._dataset.take(1)), {}))

    def require(self, names: Iterable[str], why: str) -> None:
        """Raise AnnotationError where the dataset lacks one of the named columns."""
        lacking = [name for name in names if name not in self.columns]
        if lacking:
            raise AnnotationError(
                f"{self.source}: no column {lacking[0]!r}, {why}; its columns are {', '.join(self.columns) or 'none'}"
            )

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Record]]:
        """Yield (where, row) of every row, with only the named columns that the dataset has.

        Other columns are never read, so no image is decoded. Raises AnnotationError at the end where the number of rows
        differs from the number in the dataset's description.
        """
        kept = [name for name in names if name in self.columns]
        count = 0
        with _one_line(self.source, self._split):
            for index, row in enumerate(self._dataset.select_columns(kept)):
                yield f"{self.source} row {index}", row
                count += 1
        if self._declared and count != self._declared:
            raise AnnotationError(
                f"{self.source}: {count:,} rows, but its description says {self._declared:,}; download all of it"
            )


def _open(source: str, split: str) -> tuple[Any, int | None]:
    """Return the dataset, and the number of rows in its description (None: not known).

    `save_to_disk` keeps the description of the original dataset, also for a part of it. So a saved dataset's
    description is not read.
    """
    # The import is here because it is slow, and no other job needs it.
    import datasets

    folder = Path(source)
    if any((folder / name).exists() for name in ("dataset_dict.json", "state.json")):
        _refuse_pointers(map(str, sorted(folder.rglob("*.arrow"))))
        found = datasets.load_from_disk(source)
        held = found if isinstance(found, dict) else {str(found.split or split): found}
        _check_split(source, split, held)
        return held[split], None
    # In a repository named NAME, NAME.py is the program that makes the dataset.
    if (script := folder / f"{folder.resolve().name}.py").is_file():
        raise ConfigError(_a_script(source, script.name))
    builder = datasets.load_dataset_builder(source)
    described, named = builder.info.splits or {}, builder.config.data_files or {}
    if known := list(map(str, named or described)):  # Without these names, an unknown split shows only when it is read.
        _check_split(source, split, known)
    files = [str(file) for file in named.get(split, ())]
    _refuse_pointers(files)
    _check_shards(source, files)
    dataset = builder.as_streaming_dataset(split=split)
    return dataset, described[split].num_examples if split in described else None


def _check_split(source: str, split: str, held: Collection[str]) -> None:
    if split not in held:
        raise ConfigError(f"{source}: no split {split!r}{nearest(split, held)}")


def _refuse_pointers(files: Iterable[str]) -> None:
    for file in files:
        if is_pointer_file(Path(file)):
            raise AnnotationError(f"{file}: {REASON}")


@contextmanager
def _one_line(source: str, split: str) -> Iterator[None]:
    """Turn an error of `datasets`, or of a library below it, into one ConfigError of one line."""
    import datasets
    import pyarrow as pa

    faults = (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError, pa.ArrowException)
    try:
        yield
    except faults as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if "scripts are no longer supported" in reason:
            raise ConfigError(_a_script(source, reason.rpartition(" ")[2])) from None
        raise ConfigError(f"{source}: split {split!r} cannot be opened as a dataset ({reason})") from None


def _a_script(source: str, script: str) -> str:
    return (
        f"{source}: a program ({script}) makes this dataset, and programs are not run here; name a dataset that holds "
        "its data as files (for VQA v2: lmms-lab/VQAv2), or use the benchmark's official files"
    )


def _check_shards(source: str, files: Iterable[str]) -> None:
    """Raise AnnotationError where a file of a numbered series is missing.

    data-00000-of-00002.parquet names the number of files, and data-00000.parquet is the first of a series. Images are
    left out: a number in the name of an image is an id.
    """
    held: defaultdict[PurePosixPath, list[str]] = defaultdict(list)
    for path in map(PurePosixPath, files):
        if path.suffix.lower() not in SUFFIXES:
            held[path.parent].append(path.name)
    for gap in chain.from_iterable(map(gaps, held.values())):
        raise AnnotationError(f"{source}: {gap.first} is missing beside {gap.there[0]}; download all files")


# ---------------------------------------------------------------------------------------------------------------------
# one writer per benchmark


def _write_vqa(records: _Records, split: str, out: Path) -> tuple[Path, ...]:
    subset = vqa.SUBSETS[split]
    labelled = split not in vqa.VqaTask.unlabelled
    asked = ("question_id", "image_id", "question")
    judged = ("question_type", "answer_type", "answers") if labelled else ()
    records.require(asked, "which every question has")
    records.require(judged, "without which the official score cannot be computed (soft labels are not enough)")
    questions = out / f"v2_OpenEnded_mscoco_{subset}_questions.json"
    annotations = out / f"v2_mscoco_{subset}_annotations.json"
    paths = (questions, annotations) if labelled else (questions,)

    def rows() -> Iterator[tuple[Record, ...]]:
        for where, row in records.read((*asked, *judged, "multiple_choice_answer")):
            ids = {"question_id": _integer(row["question_id"], f"{where} question_id")}
            ids["image_id"] = _integer(row["image_id"], f"{where} image_id")
            question = ids | {"question": row["question"]}
            labels = {key: value for key, value in row.items() if key not in asked}
            yield (question, ids | labels) if labelled else (question,)

    heads = [f'{{"data_subtype": "{subset}", "{key}": [\n' for key in ("questions", "annotations")]
    _write(paths, rows(), heads, ",\n", "\n]}\n")
    return paths


def _write_nlvr2(records: _Records, split: str, out: Path) -> tuple[Path, ...]:
    names = ("identifier", "sentence", "label")
    records.require(names, "which every statement has")

    def rows() -> Iterator[tuple[Record, ...]]:
        for where, row in records.read((*names, "left_url", "right_url")):
            label = {"true": "True", "false": "False", "1": "True", "0": "False"}.get(str(row["label"]).lower())
            if label is None:
                raise AnnotationError(f"{where}: 'label' is {row['label']!r}, neither true nor false; correct the row")
            yield ({**row, "label": label},)

    paths = (out / f"{split}.json",)
    _write(paths, rows(), [""], "\n", "\n")
    return paths


_Write = Callable[[_Records, str, Path], tuple[Path, ...]]
_WRITERS: dict[str, tuple[_Write, type[Task]]] = {
    "vqa": (_write_vqa, vqa.VqaTask),
    "nlvr2": (_write_nlvr2, Nlvr2Task),
}


def _integer(value: Any, where: str) -> int:
    """Return the number in 42, "42" or "…/COCO_val2014_000000000042.jpg"."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = re.search(r"(\d+)(?:\.\w+)?$", value, re.ASCII) if isinstance(value, str) else None
    if number is None or len(number[1]) > _LONGEST_NUMBER:
        raise AnnotationError(f"{where}: {value!r} does not end in a number; correct the row")
    return int(number[1])


def _write(
    paths: tuple[Path, ...], rows: Iterable[tuple[Record, ...]], heads: list[str], between: str, tail: str
) -> None:
    """Write one record per row to each file."""
    with ExitStack() as stack:
        files: list[IO[str]] = [stack.enter_context(path.open("w", encoding="utf-8")) for path in paths]
        for file, head in zip(files, heads, strict=False):
            file.write(head)
        for index, row in enumerate(rows):
            for file, record in zip(files, row, strict=True):
                file.write((between if index else "") + json.dumps(record, ensure_ascii=False))
        for file in files:
            file.write(tail)
