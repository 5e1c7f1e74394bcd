"""A small corpus, questions about it, and a detector and a model of a few lines that end their process on request.
Tests of the engine use them in place of real models. They have a separate file because every worker process imports
it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image as Pillow

from visualbert_core.config import AnsweringConfig, EvaluateConfig, ExtractConfig, PoolConfig
from visualbert_core.detector import Detection, Detector, load_detector
from visualbert_core.engine import scheduler
from visualbert_core.engine.pool import Pool
from visualbert_core.errors import end
from visualbert_core.evaluation.run import evaluate
from visualbert_core.evaluation.worker import read_predictions
from visualbert_core.features.extract import extract
from visualbert_core.features.store import FeatureStore
from visualbert_core.models import ReadsRegions, load_model
from visualbert_core.schema import Example, Prediction, Question, Regions

WEIGHTS = Path(__file__).parents[1] / "visualbert_core" / "synthetic" / "weights"
SHARD, SECONDS = 3, 0.02
PAUSE = "pause"  # the name of a file; while it exists, workers stop after the first finished shards
DEADLY = 255  # the top left red value of an image that ends the process
QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"


class PixelDetector:
    """Boxes and features are a fixed function of the pixels. A batch takes `SECONDS`."""

    space, feature_size = "pixels", 3

    def __init__(self, folder: Path, device: str | None) -> None:
        self.out = folder.parent
        if device is None:
            _wait_for_the_end(folder.parents[1])

    def fingerprint(self) -> dict[str, Any]:
        return {"of": "pixels"}

    def detect(self, images: Sequence[np.ndarray], boxes: Sequence[np.ndarray] | None = None) -> list[Detection]:
        time.sleep(SECONDS)
        while (self.out / PAUSE).exists() and any(self.out.glob("features/**/shards/*.json")):
            time.sleep(0.01)
        return [self._regions(image) for image in images]

    def _regions(self, image: np.ndarray) -> Detection:
        corner = int(image[0, 0, 0])
        if corner == DEADLY:
            _crash()
        boxes = np.full((1 + corner % 4, 4), corner, np.float32)
        features = np.outer(np.arange(1, len(boxes) + 1), image.mean((0, 1))).astype(np.float32)
        return Detection(boxes, np.zeros(len(boxes)), boxes[:, 0], features)


class SumModel:
    """The answer is the sum of the image's features. A question with the word "deadly" ends the process."""

    name, protocol = "Sum", ""
    reads, forms = ReadsRegions(3, "pixels"), frozenset({Question})

    def __init__(self, folder: Path, device: str | None) -> None:
        if device is None:
            _wait_for_the_end(folder.parents[1])

    def fingerprint(self) -> dict[str, Any]:
        return {"of": "sums"}

    def predict(self, batch: Sequence[tuple[Example, tuple[Regions, ...]]]) -> list[Prediction]:
        time.sleep(SECONDS)
        return [self._answer(example, regions[0]) for example, regions in batch]

    def _answer(self, example: Example, regions: Regions) -> Prediction:
        if "deadly" in example.text:  # type: ignore[union-attr]
            _crash()
        total = float(regions.features.astype(np.float32).sum())
        return Prediction(example.example_id, example.image_ids[0], f"{total:.1f}", (total % 1,))


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(60)  # another thread may receive the signal, and this one must not go on until the end


@cache
def _wait_for_the_end(folder: Path) -> None:
    """Start a thread that ends this actor by SIGKILL, at any moment of its work, once a file `kill` appears. Only the
    first actor that finds the file ends."""

    def watch() -> None:
        while True:
            time.sleep(0.005)
            try:
                (folder / "kill").rename(folder / f"killed-{os.getpid()}")
            except FileNotFoundError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)

    import ray

    if ray.is_initialized() and ray.get_runtime_context().get_actor_id():  # not in the process that runs the tests
        threading.Thread(target=watch, daemon=True).start()


def load_pixels(folder: str | Path, device: str | None = None, precision: str = "float32") -> PixelDetector:
    return PixelDetector(Path(folder), device)


def load_sums(
    folder: Path, form: type[Example], device: str | None, precision: str, answering: AnsweringConfig
) -> SumModel:
    return SumModel(folder, device)


def load_killed_once(
    folder: Path, form: type[Example], device: str | None, precision: str, answering: AnsweringConfig
) -> Any:
    """Open a real model. The worker that first predicts while a file `kill` lies beside the folder ends by SIGKILL."""
    model = load_model(folder, form, device, precision, answering)
    predict = model.predict

    def predict_or_die(batch: Any) -> Any:
        with contextlib.suppress(FileNotFoundError):  # Another worker was first, or nobody is to be killed.
            (folder.parent / "kill").rename(folder.parent / f"killed-{os.getpid()}")
            os.kill(os.getpid(), signal.SIGKILL)
        return predict(batch)

    model.predict = predict_or_die  # type: ignore[method-assign]
    return model


@dataclass(frozen=True)
class Job:
    """Extraction and evaluation with one output folder, `out`. All other folders below `root` are shared by all jobs.

    `out/toy` is the folder of the detector and of the model. A file called `kill` beside `out` ends one worker.
    """

    root: Path
    out: Path

    def run(self, workers: Pool) -> None:
        self.evaluate(workers, self.extract(workers))

    def alone(self) -> int:
        """Run in this process and return 0, as a job's main function does."""
        with Pool(PoolConfig(inline=True)) as workers:
            self.run(workers)
        return 0

    def extract(self, workers: Pool) -> FeatureStore:
        config = ExtractConfig(
            images=self.root / "images",
            detector=self.out / "toy",
            out=self.out / "features",
            corpus="toy",
            shard_size=SHARD,
        )
        return extract(config, workers, load_pixels)

    def evaluate(self, workers: Pool, store: FeatureStore) -> None:
        config = EvaluateConfig(
            task="vqa",
            split="val",
            annotations=self.root / "vqa",
            features=store.folder,
            model=self.out / "toy",
            out=self.out / "runs",
            shard_size=SHARD,
        )
        evaluate(config, workers, load_sums)

    def may_go(self) -> Self:
        """Let the driver that waits for this job start it."""
        self.out.mkdir(exist_ok=True)
        (self.out / "go").touch()
        return self

    def ended(self) -> bool:
        return any(self.out.glob("runs/**/scores.json"))

    def done(self, stage: str) -> int:
        """Return how many shards of a stage are committed."""
        return len(list(self.out.glob(f"{stage}/**/shards/*.json")))

    def tree(self) -> dict[str, bytes]:
        """Return the bytes of every published file. The drafts of a killed writer are left out."""
        files = (path for stage in ("features", "runs") for path in (self.out / stage).rglob("[!.]*") if path.is_file())
        return {str(path.relative_to(self.out)): path.read_bytes() for path in files}

    def census(self) -> tuple[int, int]:
        """Return how many images and questions are lost and how many are there twice, counted in the finished
        folders."""
        (store,) = (self.out / "features" / "toy").iterdir()
        (predictions,) = (self.out / "runs").glob("*/predictions")
        answered, failed = read_predictions(predictions)
        opened = FeatureStore.open(store, verify=True)
        images = [*opened.image_ids, *(failure.item_id for failure in opened.failures())]
        questions = [*(row.example_id for row in answered), *(failure.item_id for failure in failed)]
        names = {path.stem for path in (self.root / "images").iterdir()}
        asked = {str(q["question_id"]) for q in json.loads((self.root / "vqa" / QUESTIONS).read_text())["questions"]}
        lost = len(names - set(images)) + len(asked - set(questions))
        return lost, len(images) + len(questions) - len(set(images)) - len(set(questions))


@dataclass(frozen=True)
class RealJob(Job):
    """The same job with the synthetic data's detector and VisualBERT. `root` is the output folder of the small
    night."""

    def extract(self, workers: Pool) -> FeatureStore:
        shutil.copytree(WEIGHTS / "detector", self.out / "toy", dirs_exist_ok=True)
        images, out = self.root / "synthetic" / "vqa" / "val2014", self.out / "features"
        config = ExtractConfig(images=images, detector=self.out / "toy", out=out, corpus="vqa-val2014", shard_size=5)
        return extract(config, workers, load_mortal)

    def evaluate(self, workers: Pool, store: FeatureStore) -> None:
        config = EvaluateConfig(
            task="vqa",
            split="val",
            annotations=self.root / "synthetic" / "vqa",
            features=store.folder,
            model=WEIGHTS / "visualbert-vqa",
            out=self.out / "runs" / "demo",
            shard_size=5,
        )
        evaluate(config, workers)


def load_mortal(folder: str | Path, device: str | None = None, precision: str = "float32") -> Detector:
    """Load the folder's detector in a process that ends on request."""
    if device is None:
        _wait_for_the_end(Path(folder).parents[1])
    return load_detector(folder, device)


def write_world(root: Path, images: int, deadly: Sequence[int] = (), deadly_question: int | None = None) -> Path:
    """Write images of three shapes and two questions about each image. Images in `deadly` have no questions."""
    (root / "images").mkdir(parents=True)
    (root / "vqa").mkdir()
    for number in range(images):
        height, width = [(6, 8), (8, 6), (5, 5)][number % 3]
        pixels = np.random.default_rng(number).integers(0, 200, (height, width, 3), np.uint8)
        pixels[0, 0, 0] = DEADLY if number in deadly else number % 200
        Pillow.fromarray(pixels).save(root / "images" / f"COCO_val2014_{number:012d}.png")
    ids = [number * 1000 + k for number in range(images) if number not in deadly for k in (0, 1)]
    kind = {"question_type": "what", "answer_type": "other", "multiple_choice_answer": "1"}
    kind |= {"answers": [{"answer": "1", "answer_confidence": "yes", "answer_id": i} for i in range(10)]}
    about = [{"question_id": i, "image_id": i // 1000} for i in ids]
    asked = [q | {"question": "deadly?" if q["question_id"] == deadly_question else "How much?"} for q in about]
    (root / "vqa" / QUESTIONS).write_text(json.dumps({"data_subtype": "val2014", "questions": asked}))
    (root / "vqa" / ANNOTATIONS).write_text(json.dumps({"annotations": [q | kind for q in about]}))
    return root


def new_job(root: Path, name: str) -> Job:
    job = Job(root, root / name)
    (job.out / "toy").mkdir(parents=True, exist_ok=True)
    return job


def drive(jobs: Sequence[Job], pool: PoolConfig) -> None:
    """Do what a driver process does: run the jobs with one pool, each when it may start, and exit with the first
    error's code. The output goes to the file `stderr` of the first job."""
    sys.stderr = sys.stdout = (jobs[0].out / "stderr").open("a", buffering=1)

    def run() -> int:
        with Pool(pool) as workers:
            for job in jobs:
                while not (job.out / "go").exists():
                    time.sleep(0.005)
                job.run(workers)
        return 0

    end(run)


def drive_here(root: str, out: str) -> None:
    """Run one job without Ray and without waiting, for `python -c`."""
    # This is a process of its own, so it changes the waits for itself alone.
    scheduler.RETRY_WAITS = (0.0, 0.0)
    end(new_job(Path(root), out).alone)
