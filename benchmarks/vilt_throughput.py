"""Compare ViLT inference with transformers: questions a second, ratio, largest logit difference.

    python benchmarks/vilt_throughput.py                                     # one CPU thread, the shape of ViLT-B/32
    python benchmarks/vilt_throughput.py --layers 2 --images 2 --rounds 1    # a smoke test

Both sides have the same random weights, the same images and the same questions, five for each image. The time is from
pixels and words to logits. transformers gets the whole batch at once, as its documentation shows: its processor reads
the image of each question, and pads images and texts to the largest of the batch. Here an image is read once for all
its questions. On a CPU the time is that of the process, so other processes do not count. Both take turns in each round,
so that a noisy machine hits both alike. A ratio is the median of the ratios of the rounds. "one size" has images of one
size, so transformers pads no image. Needs torch and transformers, not Ray.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers

from visualbert_core.models.vilt.predictor import ViltPredictor
from visualbert_core.schema import Pixels, Question

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{number}" for number in range(1000)))
QUESTIONS = 5  # for each image
SIZES = {"mixed sizes": ((480, 640), (640, 480), (427, 640), (500, 375)), "one size": ((480, 640),)}
Batch = Sequence[tuple[Question, tuple[Pixels, ...]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12, help="layers of the network; the others have the B/32 shape")
    parser.add_argument("--images", type=int, default=4, help="images in a batch, with five questions each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", help="float32, bfloat16 or float16, on both sides")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), args.layers)
        ours = ViltPredictor.from_pretrained(folder, Question, args.device, args.precision)
        theirs = Transformers(Path(folder), args.device, args.precision)
    print(f"{platform.machine()}, {args.device}, {args.threads} threads, {args.precision}, {args.layers} layers")
    print(f"{'batch':<14} {'transformers':>16} {'visualbert_core':>16} {'ratio':>7}  largest logit difference")
    for name, sizes in SIZES.items():
        batch = make_batch(args.images, sizes)
        clock = time.process_time if args.device == "cpu" else time.perf_counter
        times, difference = timed(clock, lambda b=batch: theirs(b), lambda b=batch: answer(ours, b), args.rounds)
        rates = [len(batch) / median(seconds) for seconds in zip(*times, strict=True)]
        ratio = median(theirs_s / ours_s for theirs_s, ours_s in times)
        print(f"{name:<14} {rates[0]:14.2f}/s {rates[1]:14.2f}/s {ratio:6.2f}×  {difference:.1e}")


def timed(
    clock: Callable[[], float], theirs: Callable[[], np.ndarray], ours: Callable[[], np.ndarray], rounds: int
) -> tuple[list[Any], float]:
    """Return (seconds of theirs, seconds of ours) for each round, and the largest difference of a logit."""
    times, difference = [], 0.0
    for _ in range(rounds + 1):  # The first round warms up.
        since = clock()
        expected = theirs()
        between = clock()
        found = ours()
        times.append((between - since, clock() - between))
        difference = max(difference, float(np.abs(found - expected).max()))
    return times[1:], difference


class Transformers:
    """The processor and the network of transformers, as its documentation uses them."""

    def __init__(self, folder: Path, device: str, precision: str) -> None:
        self.processor = transformers.ViltProcessor.from_pretrained(folder)
        network = transformers.ViltForQuestionAnswering.from_pretrained(folder, dtype=getattr(torch, precision))
        self.network = network.eval().to(device)

    def __call__(self, batch: Batch) -> np.ndarray:
        images, texts = [image.rgb for _, (image,) in batch], [question.text for question, _ in batch]
        settings = {"padding": True, "return_tensors": "pt", "input_data_format": "channels_last"}
        inputs = self.processor(images=images, text=texts, **settings).to(self.network.device, self.network.dtype)
        with torch.inference_mode():
            return np.asarray(self.network(**inputs).logits.float().cpu())


def answer(model: ViltPredictor, batch: Batch) -> np.ndarray:
    return np.stack([found[1] for found in model.examine(batch) if isinstance(found, tuple)])


def make_batch(images: int, sizes: Sequence[tuple[int, int]]) -> Batch:
    rng = np.random.default_rng(0)
    batch = []
    for number in range(images):
        rgb = rng.integers(0, 256, (*sizes[number % len(sizes)], 3), dtype=np.uint8)
        image = Pixels(f"image{number}", rgb, "")
        for _ in range(QUESTIONS):
            text = " ".join(f"word{word}" for word in rng.integers(0, 1000, rng.integers(4, 14)))
            batch.append((Question(f"{len(batch)}", (image.image_id,), text), (image,)))
    return batch


def write_checkpoint(folder: Path, layers: int) -> None:
    torch.manual_seed(0)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    answers = {number: f"answer {number}" for number in range(3129)}
    config = transformers.ViltConfig(vocab_size=len(WORDS), num_hidden_layers=layers, id2label=answers)
    transformers.ViltForQuestionAnswering(config).save_pretrained(folder)
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    transformers.ViltProcessor(transformers.ViltImageProcessor(), tokenizer).save_pretrained(folder)


if __name__ == "__main__":
    main()
