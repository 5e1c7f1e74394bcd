"""Compare VisualBERT inference with transformers: examples a second, ratio, largest logit difference, share of peak.

    python benchmarks/visualbert_throughput.py                       # one CPU thread, VQA loads of 36 and 100 regions
    python benchmarks/visualbert_throughput.py --device cuda --loads vqa-100 nlvr2 --images 64

Both sides have the same random BERT-base weights and the same examples, two or five for each image. The time is from
inputs in host memory to logits in host memory. Inputs of transformers are padded to the longest of the batch, and ours
are packed. All contestants take turns in each round, so that a noisy machine hits all alike. A ratio is the median of
the ratios of the rounds. The peak is the speed of square matrix products in the same rounds. Needs torch and
transformers, not Ray.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn import functional

from visualbert_core.models.visualbert import (
    VisualBertConfig,
    VisualBertForMultipleChoice,
    VisualBertForQuestionAnswering,
    VisualBertForVisualReasoning,
)
from visualbert_core.models.visualbert.checkpoint.pretrained import Pretrained
from visualbert_core.models.visualbert.heads import collate
from visualbert_core.models.visualbert.inference import InferenceNetwork
from visualbert_core.models.visualbert.inputs import Encoded

Item = Encoded | tuple[Encoded, ...]
Answer = Callable[[], Tensor]


@dataclass(frozen=True)
class Load:
    """A network and the examples that it gets. Examples of one image share its regions."""

    network: type[Pretrained]
    feature_size: int
    regions: tuple[int, int]  # for each image: at least, below
    tokens: tuple[int, int]  # for each text: at least, below
    examples: int  # for each image
    labels: int = 2


LOADS = {
    "vqa-36": Load(VisualBertForQuestionAnswering, 2048, (36, 37), (8, 21), 5, labels=3129),
    "vqa-100": Load(VisualBertForQuestionAnswering, 2048, (100, 101), (8, 21), 5, labels=3129),
    "nlvr2": Load(VisualBertForVisualReasoning, 1024, (144, 145), (10, 31), 2),
    "vcr": Load(VisualBertForMultipleChoice, 512, (4, 14), (20, 61), 2),
}


def main() -> None:
    flags = parse()
    torch.manual_seed(0)
    torch.set_num_threads(flags.threads)
    device = torch.device(flags.device)
    print(f"{machine(device)}, {flags.threads} thread(s), torch {torch.__version__}, ", end="")
    print(f"transformers {transformers.__version__}")
    for load in flags.loads:
        print(f"\n{load}, {flags.images} images, {flags.rounds} rounds")
        measure(LOADS[load], flags, device)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=["vqa-36", "vqa-100"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=4, help="images in a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=12, help="fewer for a quick look")
    parser.add_argument("--no-bfloat16", action="store_true", help="leave out bfloat16, slow on a CPU without it")
    return parser.parse_args()


def measure(load: Load, flags: argparse.Namespace, device: torch.device) -> None:
    config = VisualBertConfig(
        visual_embedding_dim=load.feature_size, num_labels=load.labels, num_hidden_layers=flags.layers
    )
    ours = load.network(config).eval()
    batch = examples(load, flags.images)
    precisions = [torch.float32] if flags.no_bfloat16 else [torch.float32, torch.bfloat16]
    contestants = dict(theirs(ours, batch, device, precisions))
    for dtype in precisions:
        contestants[f"visualbert_core {name(dtype)}"] = packed(ours, batch, name(dtype), device), dtype
    peaks = {dtype: peak(device, dtype) for dtype in precisions}
    seconds, logits = timed(contestants, peaks, flags.rounds)
    rates = {dtype: [work / s / 1e12 for s in seconds[name(dtype)]] for dtype, (_, work) in peaks.items()}
    print("measured peak, TFLOP/s: " + ", ".join(f"{name(d)} {median(r):.3f}" for d, r in rates.items()))
    print(f"{'':44} {'examples/s':>10} {'ratio':>6} {'max diff':>9} {'of peak':>8}")
    useful = flops(config, batch) / 1e12
    base = "transformers"
    for label, (_, dtype) in contestants.items():
        took = seconds[label]
        ratio = median(b / s for b, s in zip(seconds[base], took, strict=True))
        share = median(useful / s / rate for s, rate in zip(took, rates[dtype], strict=True))
        difference = (logits[label] - logits[base]).abs().max().item()
        speed = len(batch) / median(took)
        print(f"{label:44} {speed:10.2f} {ratio:5.2f}x {difference:9.1e} {share:6.0%} {name(dtype)}")
    print(f"spread (standard deviation) of the logits: {logits[base].std().item():.2f}")


def examples(load: Load, num_images: int) -> list[Item]:
    """Make random examples, in the order of their images."""
    rng = np.random.default_rng(0)
    per_example = 2 if load.network is VisualBertForVisualReasoning else 1
    batch: list[Item] = []
    for _ in range(num_images):
        sizes = rng.integers(*load.regions, per_example)
        images = tuple(rng.normal(size=(size, load.feature_size)).clip(0).astype(np.float16) for size in sizes)
        rows, types = np.arange(sizes.sum()), np.repeat(np.arange(per_example), sizes)
        for _ in range(load.examples):
            made = []
            for _ in range(4 if load.network is VisualBertForMultipleChoice else 1):
                text = int(rng.integers(*load.tokens))
                made.append(Encoded(rng.integers(1000, 30000, text).tolist(), [0] * text, images, rows, types))
            batch.append(tuple(made) if len(made) > 1 else made[0])
    return batch


def theirs(
    ours: Pretrained, batch: list[Item], device: torch.device, precisions: list[torch.dtype]
) -> Iterator[tuple[str, tuple[Answer, torch.dtype]]]:
    """Yield transformers with its defaults, and as fair baselines its fastest settings that need no other code."""
    config = transformers.VisualBertConfig(**{**ours.config.to_dict(), "architectures": None})
    network = getattr(transformers, type(ours).__name__)(config).eval()
    network.load_state_dict(ours.state_dict())
    network = network.to(device)
    tensors = collate(batch)
    if device.type == "cuda":
        tensors = {key: tensor.pin_memory() for key, tensor in tensors.items()}

    @torch.inference_mode()
    def answer() -> Tensor:
        logits: Tensor = network(**{key: t.to(device, non_blocking=True) for key, t in tensors.items()}).logits
        return logits.float().cpu()

    def autocast() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return answer()

    def medium() -> Tensor:
        with float32_precision("medium"):
            return answer()

    yield "transformers", (answer, torch.float32)
    yield 'transformers, matmul precision "medium"', (medium, torch.float32)
    if torch.bfloat16 in precisions:
        yield "transformers, bfloat16 autocast", (autocast, torch.bfloat16)


def packed(ours: Pretrained, batch: list[Item], precision: str, device: torch.device) -> Answer:
    network = InferenceNetwork(ours, precision, device)
    items = [item if isinstance(item, tuple) else (item,) for item in batch]
    ready = network.prepare([sequence for item in items for sequence in item])

    def answer() -> Tensor:
        logits = torch.stack(network(ready))
        return logits.view(len(batch), -1)

    return answer


def timed(
    contestants: dict[str, tuple[Answer, torch.dtype]], peaks: dict[torch.dtype, tuple[Answer, float]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Return the seconds of every round, by contestant and by dtype of a peak; and the logits by contestant."""
    logits = {label: run() for label, (run, _) in contestants.items()}  # also the warm-up
    runs = {label: run for label, (run, _) in contestants.items()} | {name(d): run for d, (run, _) in peaks.items()}
    seconds: dict[str, list[float]] = {label: [] for label in runs}
    for _ in range(rounds):
        for label, run in runs.items():
            start = time.perf_counter()
            run()  # ends with a copy to the host, so the device has finished
            seconds[label].append(time.perf_counter() - start)
    return seconds, logits


def flops(config: VisualBertConfig, batch: list[Item]) -> float:
    """Return the floating-point operations of the published network: no padding, no pruning, two a multiplication.

    The share of the peak counts this useful work for both sides. So computing padding does not look like speed.
    """
    H, wide = config.hidden_size, config.intermediate_size
    total = 0.0
    for item in batch:
        for sequence in item if isinstance(item, tuple) else (item,):
            regions, L = len(sequence.rows), len(sequence.input_ids) + len(sequence.rows)
            layer = L * (4 * H * H + 2 * H * wide) + 2 * L * L * H
            head = H * H if config.num_labels == 2 else 0
            total += 2 * (config.num_hidden_layers * layer + regions * config.visual_embedding_dim * H + head)
            total += 2 * H * config.num_labels
    return total


def peak(device: torch.device, dtype: torch.dtype) -> tuple[Answer, float]:
    """Return a run of square products, and its operations. On a CPU the faster of MKL and oneDNN is taken."""
    size, times = (8192, 10) if device.type == "cuda" else (1536, 3)
    inputs, weight = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    products = [lambda: functional.linear(inputs, weight)]
    if device.type == "cpu" and (dtype is torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        reordered = torch.ops.mkldnn._reorder_linear_weight(weight, size)
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(inputs, reordered, None, "none", [], ""))
    best = min(products, key=_seconds) if len(products) > 1 else products[0]

    def answer() -> Tensor:
        for _ in range(times):
            product = best()
        return product[:1, :1].cpu()

    answer()
    return answer, 2.0 * times * size**3


def _seconds(run: Answer) -> float:
    """Return the least seconds of three runs."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@contextmanager
def float32_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    main()
