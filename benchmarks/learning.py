"""Learn the embedded world's official files from random weights: score, wrong image's score, CPU seconds, floor.

    python benchmarks/learning.py                             # all lessons, about twenty CPU minutes on one thread
    python benchmarks/learning.py --lessons flickr30k --steps 100

Each lesson makes scenes for learning and other scenes for asking, extracts them with the demo's detector, and trains
a VisualBERT of four layers of 96 through `visualbert_core.train`. Masked words are scored by their loss on fresh
captions, where the wrong image is the image of another caption. A lesson below its floor is marked; the exit code then
is 1. NLVR2's written sentences alone stay at chance, because the network must learn to find things first. So its lesson
is the recipe of four tasks at once (`synthetic/recipes/four-tasks.yaml`), with questions made anew at each visit.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from visualbert_core.config import EvaluateConfig, ExtractConfig, PoolConfig, SyntheticConfig
from visualbert_core.engine.pool import Pool
from visualbert_core.evaluation.run import evaluate
from visualbert_core.features.extract import extract
from visualbert_core.features.store import FeatureStore
from visualbert_core.synthetic import WEIGHTS
from visualbert_core.synthetic.files import make_synthetic
from visualbert_core.synthetic.training_files import recipe, write_lessons
from visualbert_core.training import TrainConfig, train
from visualbert_core.training.order import draws
from visualbert_core.training.sources import open_recipe

CAPTIONS = 5  # of an image; the captions of an image follow one another
FEW = {"vqa_images": 1, "vcr_images": 1, "nlvr2_sets": 1, "flickr_images": 1}


@dataclass(frozen=True)
class Lesson:
    """A benchmark of the world, how many images are drawn, and what must be reached."""

    task: str
    folder: str
    drawn: str  # the key of SyntheticConfig that counts its images
    images: tuple[int, int]  # to learn from, to be asked about
    steps: int
    measure: str
    floor: float
    pictures: str
    masked: bool = False
    split: str = "val"
    together: bool = False  # by the recipe of four tasks


LESSONS = {
    "flickr30k": Lesson(
        *("flickr30k_entities", "flickr30k", "flickr_images", (240, 100), 300),
        *("recall@1", 50.0, "flickr30k/images"),
    ),
    "vqa": Lesson("vqa", "vqa", "vqa_images", (1500, 250), 1500, "accuracy", 60.0, "vqa/val2014"),
    "masked-words": Lesson(
        *("flickr30k_entities", "flickr30k", "flickr_images", (600, 100), 1000),
        *("loss, wrong image's minus own", 0.15, "flickr30k/images"),
        masked=True,
    ),
    "nlvr2": Lesson(
        *("nlvr2", "nlvr2", "nlvr2_sets", (4000, 64), 6000),
        *("accuracy", 90.0, "nlvr2/images/dev"),
        split="dev",
        together=True,
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lessons", nargs="+", choices=LESSONS, default=list(LESSONS))
    parser.add_argument("--steps", type=int, help="steps of each lesson; default: by lesson")
    parser.add_argument("--images", type=int, nargs=2, help="images to learn from and to ask about; default: by lesson")
    flags = parser.parse_args()
    logging.basicConfig(level="WARNING")
    torch.set_num_threads(1)
    print(f"{'':14} {'images':>6} {'steps':>6} {'CPU s':>6} {'own':>8} {'wrong':>8} {'floor':>7}")
    missed = 0
    for name in flags.lessons:
        lesson = LESSONS[name]
        lesson = replace(lesson, images=flags.images or lesson.images, steps=flags.steps or lesson.steps)
        with tempfile.TemporaryDirectory() as folder:
            seconds, own, wrong = learn(lesson, Path(folder))
        reached = wrong - own if lesson.masked else own
        missed += reached < lesson.floor
        mark = "" if reached >= lesson.floor else "  below its floor"
        sizes = f"{lesson.images[0]:6,} {lesson.steps:6,} {seconds:6.0f}"
        print(f"{name:14} {sizes} {own:8.3f} {wrong:8.3f} {lesson.floor:7.2f} {lesson.measure}{mark}", flush=True)
    return int(missed > 0)


def learn(lesson: Lesson, root: Path) -> tuple[float, float, float]:
    """Return the CPU seconds of the training, and what is measured with the own and with the wrong image."""
    asked = scenes(root / "asked", lesson, 12, lesson.images[1])
    config = four_tasks(lesson, root) if lesson.together else one_task(lesson, root)
    began = time.process_time()
    done = train(config)
    seconds = time.process_time() - began
    there: dict[str, Any] = {"annotations": root / "asked" / lesson.folder, "features": asked.folder}
    if lesson.masked:
        config = replace(config, model=done.last, weights="checkpoint", out=root / "unused", **there)
        return seconds, loss(config, shift=0), loss(config, shift=len(asked.image_ids) // 2 * CAPTIONS)
    asking = EvaluateConfig(task=lesson.task, split=lesson.split, model=done.last, out=root / "runs", **there)
    return seconds, score(asking), score(replace(asking, visual="wrong-image"))


def four_tasks(lesson: Lesson, root: Path) -> TrainConfig:
    """Make the scenes of the recipe of four tasks, and return the recipe."""
    write_lessons(root / "learnt", seed=11, count=lesson.images[0])
    steps: dict[str, Any] = {"steps": lesson.steps, "save_every": lesson.steps}
    return recipe(root / "learnt", out=str(root / "training"), **steps)


def one_task(lesson: Lesson, root: Path) -> TrainConfig:
    """Make the scenes of a lesson, and return its recipe."""
    learnt = scenes(root / "learnt", lesson, 11, lesson.images[0])
    return TrainConfig(
        task=lesson.task,
        split="val",
        annotations=root / "learnt" / lesson.folder,
        features=learnt.folder,
        model=start(root / "start", lesson),
        weights="random",
        objective="masked-words" if lesson.masked else "task",
        out=root / "training",
        steps=lesson.steps,
        save_every=lesson.steps,
        learning_rate=1.3e-3,
        beta2=0.98,
        schedule="cosine",
        readers=1,
    )


def scenes(root: Path, lesson: Lesson, seed: int, count: int) -> FeatureStore:
    make_synthetic(root, SyntheticConfig(seed=seed, **{**FEW, lesson.drawn: count}))
    config = ExtractConfig(images=root / lesson.pictures, detector=WEIGHTS / "detector", out=root / "features")
    with Pool(PoolConfig(inline=True)) as pool:
        return extract(config, pool)


def start(folder: Path, lesson: Lesson) -> Path:
    """Write sizes and words of the demo's network, without its weights."""
    demo = WEIGHTS / f"visualbert-{lesson.folder}"
    folder.mkdir()
    # With BERT's 0.02, words are too weak beside the features of these scenes.
    config = json.loads((demo / "config.json").read_text()) | {"initializer_range": 0.1}
    (folder / "config.json").write_text(json.dumps(config))
    for path in demo.iterdir():
        if path.name in ("vocab.txt", "answers.txt", "visualbert_core.json"):
            shutil.copyfile(path, folder / path.name)
    return folder


def score(config: EvaluateConfig) -> float:
    """Return the headline metric of a checkpoint, in percent."""
    with Pool(PoolConfig(inline=True)) as pool:
        run = evaluate(config, pool)
    assert run.scores is not None  # the world's splits have labels
    found: float = run.scores["scores"][run.scores["headline"]]
    return found


@torch.no_grad()
def loss(config: TrainConfig, shift: int) -> float:
    """Return the mean loss of masked words, where the captions are shown the image of the `shift`-th next caption."""
    lessons = open_recipe(config)
    lessons.model.network.eval()
    total = words = 0.0
    for at, example in enumerate(lessons.examples):
        drawing = draws(config.seed, 0, example.example_id)  # the same masks for both images
        shown = lessons.examples[(at + shift) % len(lessons.examples)]
        regions = tuple(lessons.store.fetch_many(list(shown.image_ids)))
        item = lessons.model.encode(example, regions, lessons.target(example, [], drawing), drawing)
        if item.counts[0]:
            total += lessons.model.losses(lessons.model.prepare([item]))[0].item()
            words += item.counts[0]
    return total / words


if __name__ == "__main__":
    sys.exit(main())
