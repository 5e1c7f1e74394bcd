"""Writes the synthetic scenes and their annotations in the official file layouts of the four benchmarks.

    <root>/vqa/        v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json, val2014/*.jpg
    <root>/vcr/        val.jsonl, vcr1images/world/*.jpg with *.json beside
    <root>/nlvr2/      dev.json (JSON lines), images/dev/*.png
    <root>/flickr30k/  Sentences/*.txt, Annotations/*.xml, val.txt, images/*.jpg, scenes.json
    <root>/SYNTHETIC.json  seed and counts, written last

The readers in `tasks/` do not know that the files are synthetic. The only addition to the official records is an
optional `family` in VCR and NLVR2. Reports break down scores by family. `captions` of this folder reads scenes.json,
the things in each scene.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar
from xml.sax.saxutils import escape

import numpy as np

from visualbert_core.config import SyntheticConfig
from visualbert_core.engine.processes import DraftFolder, helpers, stopping
from visualbert_core.errors import ConfigError
from visualbert_core.schema import Token
from visualbert_core.synthetic import questions as ask
from visualbert_core.synthetic import references as refer
from visualbert_core.synthetic.captions import SCENES_FILE
from visualbert_core.synthetic.scenes import SIZE, Things, encode, make_scene

VALIDATION = 1
"""The second number in the seed of a validation scene. Training scenes have a different one, so no scene is in both."""
VQA_QUESTIONS, VCR_ITEMS, NLVR2_SENTENCES, FLICKR_CAPTIONS = 4, 2, 2, 5
WRONG_ANNOTATOR = 0.03
"""The probability that one of ten VQA annotators gives a wrong answer."""


T = TypeVar("T")

Paint = Callable[..., list[Things]]
"""`paint` for the images of one benchmark."""


def make_synthetic(root: Path, config: SyntheticConfig) -> Path:
    """Write the synthetic data of `config` under `root`, unless it is there already.

    The folder appears whole or not at all. Synthetic data of another configuration is replaced. Raise ConfigError if
    `root` holds anything else, and UnfinishedError after a signal.
    """
    about = {"made_by": "visualbert_core.synthetic.files", "version": 2} | asdict(config)
    marker = root / "SYNTHETIC.json"
    DraftFolder.clear(root)
    if _is_there(marker, about):
        return root
    if root.exists() and not marker.exists():
        raise ConfigError(f"{root} exists and holds no synthetic data: choose another `out`, or move the folder away")
    root.parent.mkdir(parents=True, exist_ok=True)
    with stopping("while the synthetic scenes were drawn"), DraftFolder(root) as draft:
        _write_files(draft.folder, config)
        (draft.folder / "SYNTHETIC.json").write_text(json.dumps(about, indent=2) + "\n")
        if not _is_there(marker, about):  # another run may have published the same data in the meantime
            shutil.rmtree(root, ignore_errors=True)
            draft.publish()
    return root


def _is_there(marker: Path, about: dict[str, Any]) -> bool:
    return marker.exists() and bool(json.loads(marker.read_text()) == about)


def _write_files(root: Path, config: SyntheticConfig) -> None:
    counts = (config.vqa_images, config.vcr_images, config.nlvr2_sets, config.flickr_images)
    with helpers() as pool:
        for part, write in enumerate((_write_vqa, _write_vcr, _write_nlvr2, _write_flickr)):
            seed = (config.seed, VALIDATION, part)
            write(root, partial(paint, pool, seed), np.random.default_rng(seed), counts[part])


def paint(pool: ProcessPoolExecutor, seed: tuple[int, ...], paths: Sequence[Path], min_things: int = 2) -> list[Things]:
    """Draw a scene into each file, in parallel, and return the things in them."""
    for folder in {path.parent for path in paths}:
        folder.mkdir(parents=True, exist_ok=True)
    draw = partial(_draw, seed, min_things)
    return list(pool.map(draw, range(len(paths)), paths, chunksize=16))


def _draw(seed: tuple[int, ...], min_things: int, index: int, path: Path) -> Things:
    scene = make_scene((*seed, index), min_things=min_things)
    path.write_bytes(encode(scene.pixels, "PNG" if path.suffix == ".png" else "JPEG"))
    return scene.things


# ---------------------------------------------------------------------------------------------------------------------


def _write_vqa(root: Path, painted: Paint, rng: np.random.Generator, count: int) -> None:
    folder = root / "vqa"
    ids = [index + 1 for index in range(count)]
    scenes = painted([folder / "val2014" / f"COCO_val2014_{i:012d}.jpg" for i in ids])
    questions, annotations = [], []
    for image_id, things in zip(ids, scenes, strict=True):
        items = _distinct(VQA_QUESTIONS, partial(ask.vqa_item, rng, things), attrgetter("question"))
        for number, item in enumerate(items):
            key = {"image_id": image_id, "question_id": image_id * 1000 + number}
            questions.append(key | {"question": item.question})
            annotations.append(key | _vqa_annotation(rng, item))
    about: dict[str, Any] = {"info": {"description": "Embedded synthetic world"}, "license": {"name": "Apache-2.0"}}
    about |= {"data_type": "mscoco", "data_subtype": "val2014"}
    _write_json(
        folder / "v2_OpenEnded_mscoco_val2014_questions.json",
        about | {"task_type": "Open-Ended", "questions": questions},
    )
    _write_json(folder / "v2_mscoco_val2014_annotations.json", about | {"annotations": annotations})


def _distinct(count: int, draw: Callable[[], T | None], text: Callable[[T], str]) -> list[T]:
    """Draw until there are `count` items with different texts."""
    items: dict[str, T] = {}
    while len(items) < count:
        if (item := draw()) is not None:
            items[text(item)] = item
    return list(items.values())


def _vqa_annotation(rng: np.random.Generator, item: ask.VqaItem) -> dict[str, Any]:
    """Return the answers of ten annotators. Each is wrong with probability WRONG_ANNOTATOR, as real annotators are."""
    alternatives = [a for a in ask.ANSWERS[1:] if a != item.answer]
    said = [str(rng.choice(alternatives)) if rng.random() < WRONG_ANNOTATOR else item.answer for _ in range(10)]
    return {
        "question_type": item.question_type,
        "answer_type": item.answer_type,
        "multiple_choice_answer": item.answer,
        "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": i + 1} for i, a in enumerate(said)],
    }


# ---------------------------------------------------------------------------------------------------------------------


def _write_vcr(root: Path, painted: Paint, rng: np.random.Generator, count: int) -> None:
    folder = root / "vcr"
    names = [f"world/world_{index:04d}@0" for index in range(count)]
    images = folder / "vcr1images"
    records = []
    scenes = painted([images / f"{name}.jpg" for name in names], min_things=4)
    for index, (name, things) in enumerate(zip(names, scenes, strict=True)):
        _write_json(images / f"{name}.json", vcr_metadata(things))
        for number in range(VCR_ITEMS):
            record = _vcr_record(refer.vcr_item(rng, things), things)
            serial = index * VCR_ITEMS + number
            records.append(
                {
                    "movie": "world",
                    "img_fn": f"{name}.jpg",
                    "metadata_fn": f"{name}.json",
                    "img_id": f"val-{index}",
                    "annot_id": f"val-{serial}",
                    "question_number": number,
                    "match_fold": "val-0",
                    "match_index": serial,
                }
                | record
            )
    write_lines(folder / "val.jsonl", records)


def vcr_metadata(things: Things) -> dict[str, Any]:
    corners = [[[x0, y0], [x1, y0], [x1, y1], [x0, y1]] for x0, y0, x1, y1 in (t.box for t in things)]
    return {
        "boxes": [[*t.box, 1.0] for t in things],
        "segms": [[polygon] for polygon in corners],
        "names": [t.shape for t in things],
        "width": SIZE,
        "height": SIZE,
    }


def _vcr_record(item: refer.VcrItem, things: Things) -> dict[str, Any]:
    def tokens(text: Iterable[Token]) -> list[Any]:
        return [t if isinstance(t, str) else list(t) for t in text]

    return {
        "objects": [t.shape for t in things],
        "question": tokens(item.question),
        "answer_choices": [tokens(a) for a in item.answers],
        "answer_label": item.answer_label,
        "rationale_choices": [tokens(r) for r in item.rationales],
        "rationale_label": item.rationale_label,
        "family": item.family,
    }


# ---------------------------------------------------------------------------------------------------------------------


def _write_nlvr2(root: Path, painted: Paint, rng: np.random.Generator, count: int) -> None:
    folder = root / "nlvr2"
    names = [f"dev-{s}-{p}" for s in range(count) for p in range(ask.PAIRS)]
    paths = [folder / "images" / "dev" / f"{name}-img{side}.png" for name in names for side in (0, 1)]
    scenes = painted(paths)
    pairs = list(zip(scenes[::2], scenes[1::2], strict=True))
    records = []
    for number in range(count):
        of_set = slice(number * ask.PAIRS, (number + 1) * ask.PAIRS)
        items = _distinct(NLVR2_SENTENCES, partial(ask.nlvr2_item, rng, pairs[of_set]), attrgetter("sentence"))
        for k, item in enumerate(items):
            for name, label in zip(names[of_set], item.labels, strict=True):
                records.append(
                    {
                        "identifier": f"{name}-{k}",
                        "sentence": item.sentence,
                        "label": str(label),
                        "left_url": f"world/{name}-img0.png",
                        "right_url": f"world/{name}-img1.png",
                        "synset": "world",
                        "query": f"world{number}",
                        "family": item.family,
                    }
                )
    write_lines(folder / "dev.json", records)


# ---------------------------------------------------------------------------------------------------------------------


def _write_flickr(root: Path, painted: Paint, rng: np.random.Generator, count: int) -> None:
    folder = root / "flickr30k"
    ids = [str(1000 + index) for index in range(count)]
    for name in ("Sentences", "Annotations"):
        (folder / name).mkdir(parents=True)
    scenes = painted([folder / "images" / f"{i}.jpg" for i in ids])
    _write_json(
        folder / SCENES_FILE,
        {i: [asdict(thing) for thing in things] for i, things in zip(ids, scenes, strict=True)},
    )
    for image_id, things in zip(ids, scenes, strict=True):
        chains: dict[tuple[int, ...], int] = {}
        lines = [_sentence(refer.caption(rng, things), chains) for _ in range(FLICKR_CAPTIONS)]
        (folder / "Sentences" / f"{image_id}.txt").write_text("".join(f"{line}\n" for line in lines))
        (folder / "Annotations" / f"{image_id}.xml").write_text(_annotation(image_id, things, chains))
    (folder / "val.txt").write_text("".join(f"{image_id}\n" for image_id in ids))


def _sentence(caption: refer.Caption, chains: dict[tuple[int, ...], int]) -> str:
    """Return a caption with `[/EN#chain/type words]` around each phrase. Phrases for the same things share a chain."""
    parts = []
    for part in caption:
        if isinstance(part, str):
            parts.append(part)
        else:
            chain = chains.setdefault(part.things, len(chains) + 1)
            parts.append(f"[/EN#{chain}/{part.kind} {part.words}]")
    return " ".join(parts)


def _annotation(image_id: str, things: Things, chains: dict[tuple[int, ...], int]) -> str:
    """Return the XML of an image: one object for each thing, with the name of every chain that it belongs to.

    Boxes are 1-based and include their last pixel, as in the official files.
    """
    objects = []
    for index, thing in enumerate(things):
        names = [f"<name>{chain}</name>" for members, chain in chains.items() if index in members]
        x0, y0, x1, y1 = (round(v) for v in thing.box)
        corners = {"xmin": x0 + 1, "ymin": y0 + 1, "xmax": x1, "ymax": y1}
        box = "".join(f"<{k}>{v}</{k}>" for k, v in corners.items())
        if names:
            objects.append(f"<object>{''.join(names)}<bndbox>{box}</bndbox></object>")
    size = f"<size><width>{SIZE}</width><height>{SIZE}</height><depth>3</depth></size>"
    body = "\n".join(objects)
    return f"<annotation>\n<filename>{escape(image_id)}.jpg</filename>\n{size}\n{body}\n</annotation>\n"


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value) + "\n")


def write_lines(path: Path, records: Iterable[Any]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
