"""Trains the weights of the demo from random ones, on a CPU:

    python -m visualbert_core.synthetic.train --out visualbert_core/synthetic/weights

Draws 10,000 training scenes and trains the detector. One VisualBERT trunk with four heads learns by the public recipe
`recipes/four-tasks.yaml`, over the files of `training_files`. From the pixels of the same scenes it trains a ViLT, a
small generative model and a captioner; these need the extra [transformers]. Then it writes a
checkpoint folder in float16 for each, with a README.md that shows its scores. The scores are measured on the validation
files (`synthetic.files`), as in `make demo`. These files share no scene with the training. Finished stages are kept in
--work, so a stopped run continues after the last of them.
"""

from __future__ import annotations

import argparse
import datetime
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from visualbert_core.config import EvaluateConfig, ExtractConfig, PoolConfig, SyntheticConfig
from visualbert_core.detector.torchvision_rcnn import TorchvisionRCNN, build
from visualbert_core.engine.pool import Pool
from visualbert_core.engine.shards import publish
from visualbert_core.errors import end
from visualbert_core.evaluation.run import evaluate
from visualbert_core.features.extract import extract
from visualbert_core.models.base import METADATA_FILE
from visualbert_core.models.visualbert.checkpoint.metadata import FORMS
from visualbert_core.models.visualbert.heads import NETWORKS as VISUALBERTS
from visualbert_core.models.visualbert.inputs import VOCAB_FILE
from visualbert_core.models.visualbert.predictor import ANSWERS_FILE
from visualbert_core.synthetic import train_captioner, train_detector, train_generative, train_image_side, train_vilt
from visualbert_core.synthetic.captions import SceneCaptions
from visualbert_core.synthetic.files import make_synthetic
from visualbert_core.synthetic.training_files import recipe, write_lessons
from visualbert_core.training import train

T = TypeVar("T")

SEED = 2026
SCENES, VISUALBERT_SCENES, HELD_OUT_SCENES = 10_000, 4_000, 400
DETECTOR_STEPS = 1_800
IMAGE_CYCLES, PACKED_STEPS, PLAIN_STEPS, GENERATIVE_STEPS = (2_400, 1_800), 2_000, 300, 1_100
CAPTIONER_STEPS = 2_000
VALIDATION_FILES: dict[str, tuple[str, str, str, Literal["none", "beside"]]] = {
    "vqa": ("val", "vqa", "vqa/val2014", "none"),
    "vcr": ("val", "vcr", "vcr/vcr1images", "beside"),
    "nlvr2": ("dev", "nlvr2", "nlvr2/images/dev", "none"),
    "flickr30k_entities": ("val", "flickr30k", "flickr30k/images", "none"),
}
"""Task → (split, annotations, images, boxes), as in demo.yaml."""
_SIDE = f"{sum(IMAGE_CYCLES):,} steps on what each patch shows"
_SCENES = f"{SCENES:,} scenes, AdamW, cosine, bfloat16"
NETWORKS = {
    "visualbert": (
        "VisualBERT",
        "`visualbert_core/synthetic/recipes/four-tasks.yaml`: one trunk with four heads, questions generated during "
        f"training from {VISUALBERT_SCENES:,} scenes, AdamW, cosine",
    ),
    "vilt": (
        "ViLT",
        f"{_SIDE}, {PACKED_STEPS:,} on images with all their texts, {PLAIN_STEPS:,} on single texts; {_SCENES}",
    ),
    "vlm": (
        "LLaVA",
        f"{_SIDE}, then {GENERATIVE_STEPS:,} of projector and language model on questions and sentences; {_SCENES}",
    ),
    "captioner": (
        "A captioner (SigLIP + BERT)",
        f"{_SIDE}, then {CAPTIONER_STEPS:,} of the decoder on captions generated during training; {_SCENES}",
    ),
}
"""First word of a folder → what the network is, and its recipe."""
FOLDERS = {
    "visualbert-nlvr2": "nlvr2",
    "visualbert-vqa": "vqa",
    "visualbert-vcr": "vcr",
    "visualbert-flickr30k": "flickr30k_entities",
    "vilt-vqa": "vqa",
    "vlm": "vqa",
    "captioner": SceneCaptions.name,
}
"""Folder → the task that it is scored on."""
VISUALS: tuple[Literal["own", "wrong-image"], ...] = ("own", "wrong-image")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder in which the checkpoint folders are written")
    parser.add_argument("--work", type=Path, default=Path("build/synthetic"), help="folder that keeps finished stages")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; another number gives other weights")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)

    scenes = _stage(args.work / "scenes.pkl", lambda: train_detector.make_scenes(SEED, train_detector.TRAIN, SCENES))
    state = _stage(
        args.work / "detector.pkl",
        lambda: train_detector.train_detector(scenes, SEED, DETECTOR_STEPS).state_dict(),
    )
    _write_detector(args.out / "detector", state)
    _write_visualberts(args.out, args.work)
    _write_pixel_models(args.out, args.work, train_image_side.pictures(scenes))
    with tempfile.TemporaryDirectory() as folder, Pool(PoolConfig(inline=True)) as pool:
        _score(args.out, Path(folder), pool)
    return 0


def _stage(path: Path, make: Callable[[], T]) -> T:
    """Return the stored result of a stage, or compute and store it.

    The result is a pickle, and loading a pickle runs code. So `path` must be a file that this program wrote.
    """
    if path.exists():
        return pickle.loads(path.read_bytes())  # type: ignore[no-any-return]
    started = time.process_time()
    value = make()
    publish(path, pickle.dumps(value))
    print(f"{path.stem}: {time.process_time() - started:.0f} CPU-seconds in this process", flush=True)
    return value


def _write_detector(folder: Path, state: dict[str, torch.Tensor]) -> None:
    model = build(train_detector.CONFIG)
    model.load_state_dict(state)
    TorchvisionRCNN(model, train_detector.CONFIG, "", "cpu").save_pretrained(folder, torch.float16)
    detector = TorchvisionRCNN.from_pretrained(folder, "cpu")  # read again, to score the weights rounded to float16
    held_out = train_detector.make_scenes(SEED, train_detector.HELD_OUT, HELD_OUT_SCENES)
    heading = f"{HELD_OUT_SCENES} held-out scenes; things found with the right class at IoU 0.5, in percent:"
    scores = train_detector.found_share(detector, held_out)
    recipe = f"{DETECTOR_STEPS} steps of {train_detector.BATCH} scenes out of {SCENES:,}, AdamW, one-cycle"
    _card(folder, "Faster R-CNN for the synthetic scenes", recipe, heading, scores)


def _write_visualberts(out: Path, work: Path) -> None:
    """Train by the public recipe, and write its last checkpoint in float16, a folder for each task."""
    world = work / "world"
    if not (world / "given").exists():  # the last file that is written
        write_lessons(world, SEED, VISUALBERT_SCENES, out / "detector")
    last = train(recipe(world, out=str(work / "visualbert"))).last
    assert isinstance(last, Path)
    for task, form in FORMS.items():
        # A checkpoint of several tasks is the folder of the first, and holds one for each of the others.
        found, folder = last if task == "nlvr2" else last / task, out / f"visualbert-{task.removesuffix('_entities')}"
        VISUALBERTS[form].from_pretrained(found).save_pretrained(folder, dtype=torch.float16)
        for name in (VOCAB_FILE, METADATA_FILE, *([ANSWERS_FILE] if task == "vqa" else [])):
            shutil.copyfile(found / name, folder / name)


def _write_pixel_models(out: Path, work: Path, pictures: train_image_side.Pictures) -> None:
    """Train the image side, and from it ViLT, the generative model and the captioner. Write their folders."""
    vilt, labels = _stage(
        work / "image-side.pkl",
        lambda: train_image_side.train_image_side(pictures, train_vilt.LAYERS, SEED, IMAGE_CYCLES),
    )
    generative = _stage(
        work / "generative.pkl",
        lambda: train_generative.train_generative(pictures, vilt, labels, SEED, GENERATIVE_STEPS).state_dict(),
    )
    train_generative.save(generative, out / "vlm")
    encoder = train_captioner.encoder_weights(vilt, labels)
    captioner = _stage(
        work / "captioner.pkl",
        lambda: train_captioner.train_captioner(pictures, encoder, SEED, CAPTIONER_STEPS).state_dict(),
    )
    train_captioner.save(captioner, out / "captioner")
    packed = _stage(
        work / "vilt-packed.pkl", lambda: train_vilt.train_packed(pictures, vilt, labels, SEED, PACKED_STEPS)
    )
    plain = _stage(work / "vilt.pkl", lambda: train_vilt.train_plain(pictures, packed, SEED, PLAIN_STEPS))
    train_vilt.save(plain, out / "vilt-vqa")


def _score(out: Path, work: Path, pool: Pool) -> None:
    """Evaluate on the validation files, with own images and with wrong ones, and write the README.md of each folder."""
    data = make_synthetic(work / "synthetic", SyntheticConfig())
    for name, task in FOLDERS.items():
        split, folder, images, boxes = VALIDATION_FILES["flickr30k_entities" if task == SceneCaptions.name else task]
        title, recipe = NETWORKS[name.partition("-")[0]]
        seen: dict[str, Any] = {"images": data / images}
        if title == "VisualBERT":
            corpus = ExtractConfig(**seen, detector=out / "detector", out=work, corpus=task, boxes=boxes)
            seen = {"features": extract(corpus, pool).folder}
        found: dict[str, float] = {}
        for visual in VISUALS:
            cell = EvaluateConfig(
                task=task,
                split=split,
                annotations=data / folder,
                model=out / name,
                out=work / "runs",
                visual=visual,
                **seen,
            )
            scores = evaluate(cell, pool).scores
            assert scores is not None
            shown = scores["scores"] | scores.get("beside", {})
            found |= {f"{metric}, {visual}": value for metric, value in shown.items()}
        title += f" for the synthetic scenes: {task.rpartition(':')[2]}"
        _card(out / name, title, recipe, "Validation files, in percent:", found)


def _card(folder: Path, title: str, recipe: str, heading: str, scores: dict[str, Any]) -> None:
    lines = [
        f"# {title}",
        "",
        "Synthetic scenes and tiny weights: the scores show that the pipeline works, not how good such models are.",
        "",
        f"- made by: `python -m visualbert_core.synthetic.train --out visualbert_core/synthetic/weights`, seed {SEED}",
        f"- recipe: {recipe}",
        f"- date: {datetime.date.today().isoformat()}, torch {torch.__version__}",
        "- weights: float16 safetensors, Apache-2.0",
        "",
        heading,
        "",
        *(f"- {name}: {value:.1f}" for name, value in scores.items()),
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    end(main)
