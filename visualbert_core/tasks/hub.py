"""A Hugging Face dataset, in a folder or on the Hub → the official annotation files, which is what the readers read.

Owns the mapping of columns (below) and says no where a dataset lacks what the official score needs. An import is a step
of its own, so that a score is always over files that can be kept, digested and compared.

    vqa      lmms-lab/VQAv2 and others of its columns: question_id, image_id, question; and for train and val
             question_type, answer_type, multiple_choice_answer (optional), answers: ten of {answer,
             answer_confidence, answer_id}. Graphcore/vqa has soft labels in place of the ten answers: its questions can
             be imported for a test split, its labels cannot be scored officially. An image_id may be a number or a file
             name that ends in one.
    nlvr2    identifier, sentence, label (a boolean, 0 or 1, "True" or "False" in any case); left_url and right_url
             (optional: they tell balanced pairs from unbalanced).

A dataset whose shards count further than the files that are there is refused: the rest would pass for the whole. So is
one that is a program (HuggingFaceM4/VQAv2), as `datasets` runs none since version 4.

VCR's texts mix words with lists of object numbers, and nlphuji/flickr30k has captions without phrases or boxes: neither
benchmark can be asked from such a dataset, so both are refused.
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
from typing import IO, Any, NamedTuple

from visualbert_core.config import nearest
from visualbert_core.corpus.sources import SUFFIXES
from visualbert_core.errors import AnnotationError, ConfigError
from visualbert_core.io.lfs import REASON, is_pointer_file
from visualbert_core.io.numbered import gaps
from visualbert_core.tasks import nlvr2, vqa
from visualbert_core.tasks.reading import choose

Record = Mapping[str, Any]

_LONGEST_NUMBER = 18  # digits of an id; Python refuses to read thousands of them

_NOT_OFFERED = {
    "vcr": "VCR's texts mix words with lists of object numbers, which a column cannot hold; download the .jsonl files",
    "flickr30k_entities": "such datasets hold captions without phrases or boxes; download the Entities annotations",
}


def import_annotations(task: str, source: str, source_split: str, split: str, out: Path) -> tuple[Path, ...]:
    """Write the official files of `split` under `out` from the split `source_split` of a dataset; returns their paths.

    `source` is a folder (`save_to_disk`, or Parquet and other files that `load_dataset` takes) or a Hub id. Record by
    record: memory does not grow with the dataset. Raises ConfigError (task, split, a dataset that cannot be opened),
    AnnotationError (a column or a value that the benchmark needs is not there, or the reader refuses what came out);
    then nothing is left in `out`, and what was there stays.
    """
    if task in _NOT_OFFERED:
        raise ConfigError(f"{task} cannot be imported from a dataset: {_NOT_OFFERED[task]}")
    write, splits, read = _WRITERS[choose("task", task, _WRITERS)]
    choose(f"{task} split", split, splits)
    records = _Records(source, source_split)
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".import-", dir=out) as draft:
        written = write(records, split, Path(draft))
        try:
            read(Path(draft), split)
        except AnnotationError as error:
            raise AnnotationError(f"{source}: as {str(error).replace(f'{draft}/', '')}") from None
        return tuple(path.replace(out / path.name) for path in written)


class _Records:
    """Rows of a split of a dataset, and the columns that one asks for."""

    def __init__(self, source: str, split: str) -> None:
        self.source, self._split = source, split
        with _one_line(source, split):
            self._dataset, self._declared = _open(source, split)
            # A stream may not know its columns before its first row.
            self.columns: list[str] = list(self._dataset.column_names or next(iter(self._dataset.take(1)), {}))

    def require(self, names: Iterable[str], why: str) -> None:
        lacking = [name for name in names if name not in self.columns]
        if lacking:
            raise AnnotationError(
                f"{self.source}: no column {lacking[0]!r}, {why}; it has {', '.join(self.columns) or 'none'}"
            )

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Record]]:
        """(where, row) with those of the named columns that are there; images are not decoded. Raises AnnotationError
        at the end where there were not as many as the dataset says that it has."""
        kept = [name for name in names if name in self.columns]
        count = 0
        with _one_line(self.source, self._split):
            for index, row in enumerate(self._dataset.select_columns(kept)):
                yield f"{self.source} row {index}", row
                count += 1
        if self._declared and count != self._declared:
            raise AnnotationError(
                f"{self.source}: {count:,} rows, but its own description says {self._declared:,}; download all of it"
            )


def _open(source: str, split: str) -> tuple[Any, int | None]:
    """The dataset, and how many rows its description says that it has. What was saved by a program may say it of the
    dataset that it was cut from, so there it is not asked."""
    import datasets

    folder = Path(source)
    if any((folder / name).exists() for name in ("dataset_dict.json", "state.json")):
        _refuse_pointers(map(str, sorted(folder.rglob("*.arrow"))))
        found = datasets.load_from_disk(source)
        held = found if isinstance(found, dict) else {str(found.split or split): found}
        _check_split(source, split, held)
        return held[split], None
    _refuse_scripts(folder)
    builder = datasets.load_dataset_builder(source)
    described, named = builder.info.splits or {}, builder.config.data_files or {}
    if known := list(map(str, named or described)):  # else only reading tells
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
    """What `datasets` and what it reads with raise, as one ConfigError."""
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


def _refuse_scripts(folder: Path) -> None:
    """A repository named NAME whose data come out of a program has that in NAME.py."""
    script = folder / f"{folder.resolve().name}.py"
    if script.is_file():
        raise ConfigError(_a_script(str(folder), script.name))


def _a_script(source: str, script: str) -> str:
    return (
        f"{source}: is made by a program ({script}), which is not run here; name a dataset that holds its data as "
        "files (for VQA v2: lmms-lab/VQAv2), or use the benchmark's official files"
    )


def _check_shards(source: str, files: Iterable[str]) -> None:
    """Files named data-00000-of-00002.parquet say how many there are, and data-00000.parquet counts. Raises
    AnnotationError where one is lacking. The names of images are ids and count nothing."""
    held: defaultdict[PurePosixPath, list[str]] = defaultdict(list)
    for path in map(PurePosixPath, files):
        if path.suffix.lower() not in SUFFIXES:
            held[path.parent].append(path.name)
    for gap in chain.from_iterable(map(gaps, held.values())):
        raise AnnotationError(f"{source}: {gap.first} is lacking beside {gap.there[0]}; download all of them")


# ---------------------------------------------------------------------------------------------------------------------
# one writer a benchmark


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
            yield ({**row, "label": _label(row["label"], where)},)

    paths = (out / f"{split}.json",)
    _write(paths, rows(), [""], "\n", "\n")
    return paths


class _Writer(NamedTuple):
    write: Callable[[_Records, str, Path], tuple[Path, ...]]
    splits: tuple[str, ...]
    read: Callable[[Path, str], object]


_WRITERS = {
    "vqa": _Writer(_write_vqa, tuple(vqa.SUBSETS), vqa.VqaTask),
    "nlvr2": _Writer(_write_nlvr2, nlvr2.SPLITS, nlvr2.Nlvr2Task),
}


def _integer(value: Any, where: str) -> int:
    """42, "42" or "…/COCO_val2014_000000000042.jpg"."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = re.search(r"(\d+)(?:\.\w+)?$", value, re.ASCII) if isinstance(value, str) else None
    if number is None or len(number[1]) > _LONGEST_NUMBER:
        raise AnnotationError(f"{where}: {value!r} neither is nor ends in a number")
    return int(number[1])


def _label(value: Any, where: str) -> str:
    labels = {"true": "True", "false": "False", "1": "True", "0": "False"}
    if str(value).lower() not in labels:
        raise AnnotationError(f"{where}: 'label' is {value!r}, neither true nor false")
    return labels[str(value).lower()]


def _write(
    paths: tuple[Path, ...], rows: Iterable[tuple[Record, ...]], heads: list[str], between: str, tail: str
) -> None:
    """Write one record a row to each file."""
    with ExitStack() as stack:
        files: list[IO[str]] = [stack.enter_context(path.open("w", encoding="utf-8")) for path in paths]
        for file, head in zip(files, heads, strict=False):
            file.write(head)
        for index, row in enumerate(rows):
            for file, record in zip(files, row, strict=True):
                file.write((between if index else "") + json.dumps(record, ensure_ascii=False))
        for file in files:
            file.write(tail)
