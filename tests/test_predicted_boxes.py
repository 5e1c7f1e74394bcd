"""Predicted boxes of Flickr30K Entities. Boxes in another convention are refused by name, and converted when the
command line declares the convention. Boxes in pixels are scored, however bad they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, run_here
from layouts import LAYOUTS

from visualbert_core.errors import ConfigError, InputError
from visualbert_core.evaluation.score import Mode, read_prediction_set, score
from visualbert_core.metrics.boxes import CONVENTIONS
from visualbert_core.tasks import open_task
from visualbert_core.tasks.flickr30k_entities import Flickr30kEntitiesTask

REPORTS = ROOT / "tests" / "reports" / "flickr_predictions"
GOLDEN = json.loads((ROOT / "tests" / "golden" / "flickr_protocols.json").read_text())
SIZES = ((500, 375), (375, 500), (500, 333), (300, 200))
IMAGES, PHRASES = 12, 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write twelve images of four sizes, with four phrases each and one box per phrase."""
    folder = tmp_path_factory.mktemp("flickr")
    random = np.random.default_rng(3)
    for name in ("Sentences", "Annotations"):
        (folder / name).mkdir()
    for number in range(IMAGES):
        width, height = SIZES[number % len(SIZES)]
        words, objects = [], []
        for chain in range(1, PHRASES + 1):
            words.append(f"[/EN#{chain}/other thing {chain}]")
            x, y = random.uniform(1, (width * 0.6, height * 0.6)).round()
            box = (x, y, *random.uniform((x + 40, y + 40), (width, height)).round())
            sides = "".join(f"<{k}>{int(v)}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
            objects.append(f"<object><name>{chain}</name><bndbox>{sides}</bndbox></object>")
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        (folder / "Sentences" / f"{number}.txt").write_text(" ".join(words))
        (folder / "Annotations" / f"{number}.xml").write_text(f"<annotation>{size}{''.join(objects)}</annotation>")
    (folder / "val.txt").write_text("".join(f"{number}\n" for number in range(IMAGES)))
    return folder


Change = Callable[[np.ndarray, int, int], np.ndarray]


def write(path: Path, folder: Path, change: Change = lambda b, w, h: b, share: float = 0.8) -> Path:
    """Write predictions of a good model: three boxes per phrase, one near the gold box. It is first for `share` of the
    phrases. `change` converts all boxes."""
    task = Flickr30kEntitiesTask(folder, "val")
    random = np.random.default_rng(5)
    records = []
    for example_id, image_id in task.expected().items():
        width, height = task.image_sizes()[image_id]
        phrases = []
        for (gold,) in task.gold(example_id):
            right = np.array(gold) + random.uniform(-3, 3, 4)
            others = [[0, 0, width, height], [0.0, 0.0, 30.0, 25.0]]
            boxes = np.array([right, *others] if random.random() < share else [others[1], right, others[0]])
            phrases.append(change(boxes.clip(0, [width, height] * 2), width, height).tolist())
        records.append({"image_id": image_id, "sentence_id": 0, "boxes": phrases})
    path.write_text(json.dumps(records))
    return path


def scored(folder: Path, path: Path, boxes: str | None = None, mode: Mode = "strict") -> dict[str, Any]:
    task = open_task("flickr30k_entities", folder, "val")
    return score(task, read_prediction_set(task, path, "", mode, boxes), "", mode)


def _corner(b: np.ndarray) -> np.ndarray:
    return np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], axis=1)


ORDERS: dict[str, Change] = {
    "xywh": lambda b, w, h: _corner(b),
    "yxyx": lambda b, w, h: b[:, [1, 0, 3, 2]],
    "cxcywh": lambda b, w, h: np.concatenate([(b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2]], axis=1),
    "yxhw": lambda b, w, h: _corner(b)[:, [1, 0, 3, 2]],
    "xxyy": lambda b, w, h: b[:, [0, 2, 1, 3]],
    "reversed": lambda b, w, h: b[:, [2, 3, 0, 1]],
    "normalised": lambda b, w, h: b / [w, h, w, h],
    "normalised-xywh": lambda b, w, h: _corner(b / [w, h, w, h]),
    "per-mille": lambda b, w, h: (b / [w, h, w, h] * 1000).round(),
}


@pytest.mark.parametrize("name", ORDERS)
def test_another_convention_is_refused_and_converted(made: Path, tmp_path: Path, name: str) -> None:
    """An undeclared convention is one line, exit code 2, with the flag that declares it. The declared convention gives
    the scores of the same boxes in pixels. A wrong declaration is refused."""
    path = write(tmp_path / "p.json", made, ORDERS[name])
    flags = ("--task", "flickr30k_entities", "--split", "val", "--annotations", str(made), "--predictions", str(path))
    done = run_here(ROOT / "jobs" / "score.py", *flags)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert "p.json: " in done.stderr
    assert f"declare it with --boxes {name}, or" in done.stderr
    declared = run_here(ROOT / "jobs" / "score.py", *flags, "--boxes", name, "--json")
    assert declared.returncode == 0, declared.stderr
    right = scored(made, write(tmp_path / "right.json", made))
    assert json.loads(declared.stdout)["scores"] == pytest.approx(right["scores"])
    assert right["scores"]["recall@1"] > 60
    assert right["warnings"] == []
    other = "xxyy" if name != "xxyy" else "xywh"
    with pytest.raises(InputError, match=r"p.json: .*--boxes"):
        scored(made, path, other)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b, w, h: b * 0.75, r"images resized to one part of their size .75 %.: \d+ of 48 phrases are found"),
        (lambda b, w, h: b * 4 / 3, r"resized to one part of their size .133 %."),
        (lambda b, w, h: b / [w, h, w, h] * 384, r"resized to squares .(38|39)\d pixels."),
        (lambda b, w, h: b * (600 / min(w, h)), r"resized to one short side .(59|60)\d pixels."),
        (lambda b, w, h: b * (224 / max(w, h)), r"resized to one long side .22\d pixels."),
    ],
)
def test_boxes_of_resized_images(made: Path, tmp_path: Path, change: Change, says: str) -> None:
    """Boxes on resized images are refused, and the line says which resize fits and how many phrases it would find."""
    with pytest.raises(InputError, match=says):
        scored(made, write(tmp_path / "p.json", made, change))


def test_a_few_bad_boxes_are_misses(made: Path, tmp_path: Path) -> None:
    """One inverted box and one box outside its image, among good boxes, are scored, counted and reported."""
    path = write(tmp_path / "p.json", made)
    records = json.loads(path.read_text())
    before = scored(made, path)["scores"]["recall@1"]
    first = records[0]["boxes"][0]
    first[0] = first[0][2:] + first[0][:2]
    records[1]["boxes"][1].append([10, 10, 9000, 9000])
    path.write_text(json.dumps(records))
    document = scored(made, path)
    assert document["scores"]["recall@1"] == pytest.approx(before - 100 / 48)
    assert document["warnings"] == [
        "1 of 145 boxes end before they begin: misses",
        "1 of 145 boxes reach outside their image",
    ]


def test_some_normalised_boxes_are_said(made: Path, tmp_path: Path) -> None:
    """Normalised boxes in too few phrases to refuse the file are counted in a warning."""
    path = write(tmp_path / "p.json", made)
    records = json.loads(path.read_text())
    for record in records[:3]:
        record["boxes"] = (np.array(record["boxes"]) / (SIZES[int(record["image_id"]) % len(SIZES)] * 2)).tolist()
    path.write_text(json.dumps(records))
    document = scored(made, path)
    assert "36 of 144 boxes lie in the first pixel of their image: normalised?" in document["warnings"]


@pytest.mark.parametrize(
    "change",
    [
        lambda b, w, h: b,
        lambda b, w, h: b.round(),
        lambda b, w, h: b - 1,  # pixels counted from 0
        lambda b, w, h: np.array([[0, 0, w, h]]),
        lambda b, w, h: np.array([[w / 2, h / 2, w / 2, h / 2]]),
        lambda b, w, h: b[:0],
        lambda b, w, h: b[2:],
        lambda b, w, h: np.array([[0, 0, w / 2, h / 2]]),
        lambda b, w, h: np.array([[w / 4, h / 4, 3 * w / 4, 3 * h / 4]]),
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_right_files_are_scored(made: Path, tmp_path: Path, change: Change, share: float) -> None:
    """Boxes in pixels pass without a warning: good and bad models, whole images, points and no boxes at all."""
    document = scored(made, write(tmp_path / "p.json", made, change, share))
    assert [line for line in document["warnings"] if "boxes" in line] == []


@pytest.mark.parametrize("seed", range(5))
def test_random_boxes_are_scored(made: Path, tmp_path: Path, seed: int) -> None:
    """The random boxes of a bad model are not taken for another convention."""
    random = np.random.default_rng(seed)

    def any_boxes(b: np.ndarray, w: int, h: int) -> np.ndarray:
        ends = np.sort(random.random((10, 2, 2)), axis=1) * [w, h]
        return ends.reshape(10, 4)

    assert scored(made, write(tmp_path / "p.json", made, any_boxes))["scores"]["recall@1"] < 60


def test_the_golden_predictions_pass(tmp_path: Path) -> None:
    """The predictions behind the official program's golden scores are scored."""
    for name, text in GOLDEN["files"].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "p.json").write_text(json.dumps(GOLDEN["predictions"]))
    assert scored(tmp_path, tmp_path / "p.json")["scores"]["recall@1"] > 0


def test_the_reports_examples(tmp_path: Path) -> None:
    """On three captions, boxes in pixels are scored, two other conventions are refused with counts, and declared they
    score the same."""
    folder = REPORTS / "annotations"
    right = scored(folder, REPORTS / "ok.json")["scores"]
    assert (right["recall@1"], right["recall@5"]) == pytest.approx((60, 80))
    for name, says in (
        ("xywh", "xywh.json: 2 of 6 boxes end before they begin: x, y, width, height?"),
        ("normalised", r"normalised.json: all coordinates lie in \[0, 1\]: normalised?"),
    ):
        with pytest.raises(InputError, match=says.replace("?", r"\?")):
            scored(folder, REPORTS / f"{name}.json")
        assert scored(folder, REPORTS / f"{name}.json", name)["scores"] == pytest.approx(right)


def test_pixels_all_the_same(made: Path, tmp_path: Path) -> None:
    """Boxes declared as pixels, or scored in the official mode, give a warning where they look like another
    convention."""
    path = write(tmp_path / "p.json", made, ORDERS["xywh"])
    for boxes, mode in (("xyxy", "strict"), (None, "official")):
        document = scored(made, path, boxes, mode)  # type: ignore[arg-type]
        (line,) = [line for line in document["warnings"] if "before they begin" in line]
        assert line.startswith("read as left, top, right, bottom in pixels nevertheless: ")


def test_what_cannot_be_converted(tmp_path: Path) -> None:
    """Normalised boxes need the image sizes, boxes of a run folder are always pixels, other benchmarks have no boxes,
    and an unknown convention is refused."""
    layout = LAYOUTS["flickr30k_entities"]
    task = open_task(layout.task, layout.write(tmp_path), layout.split)
    (tmp_path / "predictions").write_text(layout.text())
    with pytest.raises(InputError, match=r"normalised boxes need .*, but the annotations of 5 have no <size>"):
        read_prediction_set(task, tmp_path / "predictions", "", boxes="normalised")
    with pytest.raises(ConfigError, match="is a run folder, so its boxes are in pixels; leave the flag out"):
        read_prediction_set(task, tmp_path, "", boxes="xywh")
    nlvr2 = LAYOUTS["nlvr2"]
    (tmp_path / "p.csv").write_text(nlvr2.text())
    with pytest.raises(ConfigError, match="--boxes xywh: predictions of nlvr2 hold no boxes"):
        read_prediction_set(open_task("nlvr2", nlvr2.write(tmp_path), "dev"), tmp_path / "p.csv", "", boxes="xywh")
    where = ("--task", "nlvr2", "--split", "dev", "--annotations", tmp_path, "--predictions", tmp_path / "p.csv")
    done = run_here(ROOT / "jobs" / "score.py", *where, "--boxes", "xyhw")
    assert (done.returncode, "xywh" in done.stderr) == (2, True)
    assert set(ORDERS) < set(CONVENTIONS)
