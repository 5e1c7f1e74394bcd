"""The four benchmarks' files in their official layouts, with a few records each and a submission. The tests of
everything above the tasks run on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Layout:
    """The annotation files and the submission of one benchmark. `rows` are the submission's records in the split's
    order, one an example. `unknown` is a record of another split. `mistyped` answers the first example with a wrong
    type."""

    task: str
    split: str
    files: dict[str, str]
    submission: tuple[str, str, str]  # the text before the rows, between two rows, and after them
    rows: tuple[str, ...]
    unknown: str
    mistyped: str

    def write(self, folder: Path) -> Path:
        for name, text in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        return folder

    def text(self, rows: Sequence[str] | None = None) -> str:
        before, between, after = self.submission
        return before + between.join(self.rows if rows is None else rows) + after


def _lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _vqa() -> Layout:
    ids, subset = (42000, 42001, 73000), "mscoco_val2014"
    questions = [{"question_id": i, "image_id": i // 1000, "question": "What color, café?"} for i in ids]
    answers = [{"answer": "red" if i < 7 else "1,000", "answer_confidence": "yes", "answer_id": i} for i in range(10)]
    kind = {"question_type": "what color", "answer_type": "other", "multiple_choice_answer": "red", "answers": answers}
    files = {
        f"v2_OpenEnded_{subset}_questions.json": json.dumps({"data_subtype": "val2014", "questions": questions}),
        f"v2_{subset}_annotations.json": json.dumps(
            {"annotations": [{"question_id": i, "image_id": i // 1000} | kind for i in ids]}
        ),
    }
    rows = tuple(json.dumps({"question_id": i, "answer": a}) for i, a in zip(ids, ("red", "the Red.", ""), strict=True))
    unknown, mistyped = ({"question_id": 1, "answer": "red"}, {"question_id": ids[0], "answer": 3})
    return Layout("vqa", "val", files, ("[", ", ", "]"), rows, json.dumps(unknown), json.dumps(mistyped))


def _vcr() -> Layout:
    four = [["Yes", "."], [[0], "runs"], ["No"], [[0, 1], "wait", "café"]]
    record = {"img_fn": "m/x@1.jpg", "objects": ["person", "dog"], "question": ["Who", [0], "?"]}
    record |= {"answer_choices": four, "rationale_choices": four, "answer_label": 0, "rationale_label": 3}
    columns = ["annot_id", *(f"answer_{i}" for i in range(4))]
    columns += [f"rationale_conditioned_on_a{a}_{i}" for a in range(4) for i in range(4)]
    scores = ",".join(f"{0.05 * ((7 * i) % 19):.2f}" for i in range(20))
    rows = tuple(f"val-{i},{scores}" for i in range(3))
    files = {"val.jsonl": _lines(*(record | {"annot_id": f"val-{i}"} for i in range(3)))}
    submission = (",".join(columns) + "\n", "\n", "")
    return Layout("vcr", "val", files, submission, rows, f"val-9,{scores}", f"val-0,much,{scores[5:]}")


def _nlvr2() -> Layout:
    names = ("dev-1-0-0", "dev-1-1-0", "dev-1-0-1", "dev-2-0-0")
    records = [
        {"identifier": name, "sentence": f"Café {name[-1]}.", "label": str(name[6] == "0"), "left_url": "a"}
        | {"right_url": f"b{name[6]}", "writer": "1"}
        for name in names
    ]
    annotated = "Café 0.\n* negation\n* coreference\n\nCafé 1.\n\nNobody.\n* negation\n\n"
    files = {"dev.json": _lines(*records), "annotated_dev_examples.txt": annotated}
    rows = tuple(f"{name},{answer}" for name, answer in zip(names, ("True", "False", "true", "False"), strict=True))
    return Layout("nlvr2", "dev", files, ("", "\n", ""), rows, "dev-9-0-0,True", "dev-1-0-0,3")


def _flickr30k_entities() -> Layout:
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>90</xmax><ymax>50</ymax></bndbox>"
    objects = f"<object><name>1</name><name>2</name>{box}</object><object><name>1</name>{box}</object>"
    flagged = "<object><name>3</name><scene>1</scene><nobndbox>0</nobndbox></object>"
    files = {
        "test.txt": "5\n6",
        "Sentences/5.txt": "[/EN#1/people A man] in [/EN#2/other/clothing a café hat] at [/EN#3/scene sea] .\nNobody .",
        "Sentences/6.txt": "Nobody .\n[/EN#1/people He] runs .",
        "Annotations/5.xml": f"<annotation><size/>{objects}{flagged}</annotation>",
        "Annotations/6.xml": f"<annotation><object><name>1</name>{box}</object></annotation>",
    }
    boxes = [[1, 1, 90, 50], [10.5, 2, 30, 40]]
    answers = (("5", 0, [boxes, boxes[::-1]]), ("6", 1, [boxes]))
    rows = tuple(json.dumps({"image_id": i, "sentence_id": s, "boxes": b}) for i, s, b in answers)
    unknown, mistyped = (json.dumps({"image_id": i, "sentence_id": 0, "boxes": b}) for i, b in (("7", []), ("5", "x")))
    return Layout("flickr30k_entities", "test", files, ("[", ", ", "]"), rows, unknown, mistyped)


LAYOUTS = {layout.task: layout for layout in (_vqa(), _vcr(), _nlvr2(), _flickr30k_entities())}
