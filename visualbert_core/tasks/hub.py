"""A Hugging Face dataset, in a folder or on the Hub → the official annotation files, which is what the readers read.

Owns the mapping of columns (below) and says no where a dataset lacks what the official score needs. An import is a step
of its own, so that a score is always over files that can be kept, digested and compared.

    vqa      HuggingFaceM4/VQAv2 and others of its columns: question_id, image_id, question; and for train and val
             question_type, answer_type, multiple_choice_answer (optional), answers: ten of {answer,
             answer_confidence, answer_id}. Graphcore/vqa has soft labels in place of the ten answers: its questions can
             be imported for a test split, its labels cannot be scored officially. An image_id may be a number or a file
             name that ends in one.
    nlvr2    identifier, sentence, label (a boolean, 0 or 1, "True" or "False" in any case); left_url and right_url
             (optional: they tell balanced pairs from unbalanced).

VCR's texts mix words with lists of object numbers, and nlphuji/flickr30k has captions without phrases or boxes: neither
benchmark can be asked from such a dataset, so both are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, NamedTuple

from visualbert_core.errors import AnnotationError, ConfigError
from visualbert_core.tasks import nlvr2, vqa
from visualbert_core.tasks.reading import choose

Record = Mapping[str, Any]

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
    dataset = _open(source, source_split)
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".import-", dir=out) as draft:
        written = write(_Records(source, dataset), split, Path(draft))
        try:
            read(Path(draft), split)
        except AnnotationError as error:
            raise AnnotationError(f"{source}: as {str(error).replace(f'{draft}/', '')}") from None
        return tuple(path.replace(out / path.name) for path in written)


class _Records:
    """Rows of a dataset, and the columns that one asks for."""

    def __init__(self, source: str, dataset: Any) -> None:
        self.source, self._dataset = source, dataset
        # A stream may not know its columns before its first row.
        self.columns: list[str] = list(dataset.column_names or next(iter(dataset.take(1)), {}))

    def require(self, names: Iterable[str], why: str) -> None:
        lacking = [name for name in names if name not in self.columns]
        if lacking:
            raise AnnotationError(
                f"{self.source}: no column {lacking[0]!r}, {why}; it has {', '.join(self.columns) or 'none'}"
            )

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Record]]:
        """(where, row) with those of the named columns that are there; images are not decoded."""
        kept = [name for name in names if name in self.columns]
        for index, row in enumerate(self._dataset.select_columns(kept)):
            yield f"{self.source} row {index}", row


def _open(source: str, split: str) -> Any:
    import datasets

    folder = Path(source)
    saved = any((folder / name).exists() for name in ("dataset_dict.json", "state.json"))
    try:
        if not saved:
            return datasets.load_dataset(source, split=split, streaming=True)
        found = datasets.load_from_disk(source)
        held = found if isinstance(found, dict) else {str(found.split or split): found}
        return held[choose("split of the dataset", split, list(held))]
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{source}: split {split!r} cannot be opened as a dataset ({reason})") from None


# ---------------------------------------------------------------------------------------------------------------------
# one writer a benchmark


def _write_vqa(records: _Records, split: str, out: Path) -> tuple[Path, ...]:
    subset = vqa.SUBSETS[split]
    labelled = split in vqa.LABELLED
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
    if number is None:
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
