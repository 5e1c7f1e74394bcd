"""Compare generation with transformers' own batched `generate`: texts a second, ratio, equal texts.

    python benchmarks/generation.py                                 # one CPU thread, like LLaVA and Qwen2.5-VL
    python benchmarks/generation.py --width 32 --layers 2 --rounds 1   # a smoke test

Both sides have the same random weights, images, prompts and settings: greedy, 10 new tokens, left padding. One row of
the table has four questions about each image, as VQA v2 has five. The other has one question about each image. LLaVA
reads the last layer but one of its image encoder, as the published models do; they have 24 layers there. The time is
from pixels and words to text. On a CPU it is the time of the process on its cores, which other programs disturb less.
transformers gets the whole batch at once and pads as its processor does. Both take turns in each round, and the side
that comes first changes from round to round. A ratio is the median of the ratios of the rounds. Needs torch and
transformers, not Ray.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
import transformers
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the makers of the checkpoints
from generative_folders import TEXT, write_llava, write_qwen

from visualbert_core.config import AnsweringConfig
from visualbert_core.models.generative.model import GenerativeModel
from visualbert_core.schema import Pixels, Question

NEW = 10
QUESTIONS = (4, 1)  # for each image
WORDS = ("what", "is", "the", "red", "cat", "dog", "left", "of", "on", "a", "blue", "two")
SIZES = ((240, 320), (320, 240), (200, 200))
Batch = Sequence[tuple[Question, tuple[Pixels, ...]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256, help="hidden size of both networks")
    parser.add_argument("--layers", type=int, default=6, help="layers of each of the two")
    parser.add_argument("--side", type=int, default=96, help="pixels of a side of LLaVA's image, in patches of 8")
    parser.add_argument("--questions", type=int, default=16, help="questions in a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", help="float32, bfloat16 or float16, on both sides")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    TEXT.update(hidden_size=args.width, num_hidden_layers=args.layers, intermediate_size=4 * args.width)
    print(f"{platform.machine()}, {args.device}, {args.threads} threads, {args.precision}")
    print(f"{'family':<12} {'questions':>9} {'transformers':>14} {'visualbert_core':>16} {'ratio':>7}  equal texts")
    makers = {
        "llava": partial(write_llava, side=args.side, read=-2),
        "qwen2.5-vl": partial(write_qwen, pixels=(4 * args.side) ** 2),
    }
    for name, write in makers.items():
        with tempfile.TemporaryDirectory() as root:
            folder = write(Path(root) / name)
            answering = AnsweringConfig(max_new_tokens=NEW, post="raw")
            ours = GenerativeModel.from_pretrained(folder, Question, args.device, args.precision, answering)
            theirs = Transformers(folder, ours, args.device, args.precision)
            for each in QUESTIONS:
                compare(f"{name:<12} {each:>9}", theirs, ours, make_batch(args.questions, each), args)


def compare(
    name: str, theirs: Callable[[Batch], list[str]], ours: GenerativeModel, batch: Batch, args: argparse.Namespace
) -> None:
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    texts: dict[str, list[str]] = {}
    times: dict[str, list[float]] = {"theirs": [], "ours": []}
    for number in range(args.rounds + 1):
        for side in sorted(times, reverse=number % 2 == 0):
            since = clock()
            if side == "theirs":
                texts[side] = theirs(batch)
            else:
                texts[side] = [each.generated[0].text for each in ours.predict(batch)]  # type: ignore[union-attr]
            times[side].append(clock() - since)
    equal = sum(one == other for one, other in zip(texts["ours"], texts["theirs"], strict=True))
    rounds = list(zip(times["theirs"][1:], times["ours"][1:], strict=True))  # The first round warms up.
    rates = [len(batch) / median(seconds) for seconds in zip(*rounds, strict=True)]
    ratio = median(theirs_s / ours_s for theirs_s, ours_s in rounds)
    print(f"{name} {rates[0]:12.2f}/s {rates[1]:14.2f}/s {ratio:6.2f}×  {equal} of {len(batch)}", flush=True)


class Transformers:
    """The processor and `generate` of transformers over a whole batch."""

    def __init__(self, folder: Path, ours: GenerativeModel, device: str, precision: str) -> None:
        self.processor = transformers.AutoProcessor.from_pretrained(folder)
        self.processor.tokenizer.padding_side = "left"
        network = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=getattr(torch, precision))
        self.network, self.ours = network.eval().to(device), ours

    def __call__(self, batch: Batch) -> list[str]:
        texts = [self.ours._inputs._text(self.ours._ask(q, images, self.ours._settings)[0]) for q, images in batch]
        images = [[Image.fromarray(image.rgb)] for _, (image,) in batch]
        inputs = self.processor(images=images, text=texts, padding=True, return_tensors="pt")
        inputs = inputs.to(self.network.device, self.network.dtype)
        with torch.inference_mode():
            tokens = self.network.generate(**inputs, max_new_tokens=NEW, do_sample=False)
        ends = self.processor.tokenizer.eos_token
        found = self.processor.tokenizer.batch_decode(tokens[:, inputs.input_ids.shape[1] :])
        return [text.partition(ends)[0].replace("<pad>", "").replace("<s>", "") for text in found]


def make_batch(questions: int, each: int) -> Batch:
    """Return questions about images of three sizes in turn, `each` of them about one image."""
    rng = np.random.default_rng(0)
    batch = []
    for number in range(questions):
        if number % each == 0:
            rgb = rng.integers(0, 256, (*SIZES[number // each % len(SIZES)], 3), dtype=np.uint8)
            image = Pixels(f"image{number}", rgb, "")
        text = " ".join(rng.choice(WORDS, rng.integers(4, 14)))
        batch.append((Question(f"{number}", (image.image_id,), text), (image,)))
    return batch


if __name__ == "__main__":
    main()
