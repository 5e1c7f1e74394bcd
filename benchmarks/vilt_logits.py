"""Compare ViLT's logits with transformers: how far they are from each other, as a share of their size.

    python benchmarks/vilt_logits.py                     # a tiny network, and B/32 with 2 and with 12 layers
    python benchmarks/vilt_logits.py --layers 2          # only B/32 with 2 layers

Both sides have the same random weights, images and questions. A distance is the norm of the difference over the norm of
the logits, over four questions about one image. transformers draws the order of the patches at random, so its own
logits change from call to call. The column "transformers" compares two of its calls: one in raster order, one drawn.
The column "visualbert_core" compares ours with its call in raster order. The weights have the spread of `--spread`: a
wider spread makes rounding errors grow, in transformers as here. Needs torch and transformers, not Ray.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the maker of the checkpoints
from vilt_folders import write_vilt

from visualbert_core.models.vilt.predictor import ViltPredictor
from visualbert_core.schema import Pixels, Question

SHAPES = {"square": (80, 80), "wide": (60, 150), "tall": (150, 60), "small": (9, 11), "large": (300, 420)}
TEXTS = ("is it red ?", "what is the cat left of ?", "the cat", "is the red cat left of it ?")
B32 = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "image_size": 384, "patch_size": 32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="*", default=[0, 2, 12], help="of B/32; 0 is a tiny network")
    parser.add_argument("--spread", type=float, help="deviation of the weights; B/32 has 0.02, the tiny one 0.1")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'network':<14} {'image':<8} {'transformers':>13} {'visualbert_core':>16}")
    for layers in args.layers:
        shape: dict[str, Any] = {"initializer_range": args.spread or (0.02 if layers else 0.1)}
        shape |= {**B32, "num_hidden_layers": layers} if layers else {}
        with tempfile.TemporaryDirectory() as root:
            folder = write_vilt(Path(root), sides=384 if layers else 64, **shape)
            ours = ViltPredictor.from_pretrained(folder, Question, "cpu", "float32")
            name = f"B/32, {layers}" if layers else "tiny"
            for image, size in SHAPES.items():
                rgb = np.random.default_rng(size).integers(0, 256, (*size, 3), dtype=np.uint8)
                drawn, ordered = (theirs(folder, rgb, in_order) for in_order in (False, True))
                batch = [(Question(text, (image,), text), (Pixels(image, rgb, ""),)) for text in TEXTS]
                found = np.stack([each[1] for each in ours.examine(batch) if isinstance(each, tuple)])
                print(f"{name:<14} {image:<8} {distance(drawn, ordered):13.1e} {distance(found, ordered):16.1e}")


def theirs(folder: Path, rgb: np.ndarray, in_order: bool) -> np.ndarray:
    """Return the logits of transformers, one question at a time, so that it pads no text."""
    network: Any = transformers.ViltForQuestionAnswering.from_pretrained(folder)
    network.eval()
    processor = transformers.ViltProcessor.from_pretrained(folder)
    found = []
    for text in TEXTS:
        inputs = processor(images=[rgb], text=text, return_tensors="pt", input_data_format="channels_last")
        raster = mock.patch.object(torch, "multinomial", lambda weights, count, _=False: torch.arange(count))
        with torch.inference_mode(), raster if in_order else nullcontext():
            found.append(network(**inputs).logits[0].numpy())
    return np.stack(found)


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


if __name__ == "__main__":
    main()
