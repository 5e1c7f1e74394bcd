"""Compare a training step with transformers: examples a second, ratio, difference of loss and gradient.

    python benchmarks/training.py                                   # float32, one CPU thread, two layers
    python benchmarks/training.py --layers 12 --loads vqa-36 --precision float32 bfloat16

Both sides have the same random weights of BERT-base's width, the same examples and the same AdamW. A step is forward,
backward, clipping and the move of the optimiser. It starts with tensors on the device, because `visualbert train` makes
batches ahead, in threads. transformers pads to the longest sequence of the batch; this package packs. All contestants
take turns in each round, so that a noisy machine hits all alike. A ratio is the median of the ratios of the rounds.
On a CPU with one thread, times are CPU times.

Loss and gradient are compared before the first step, without dropout. The steps that are timed have dropout 0.1, as in
the recipes. "filled" is the share of positions that are not padding. Needs torch and transformers, not Ray.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers

from visualbert_core.float32 import whole_float32
from visualbert_core.models import load_trainable
from visualbert_core.models.trainable import Item, Start, Trainable
from visualbert_core.models.visualbert import VisualBertConfig
from visualbert_core.models.visualbert.inputs import Encoded
from visualbert_core.models.visualbert.trainable import Content
from visualbert_core.schema import CaptionPair, Example, MultipleChoice, Question, Statement
from visualbert_core.training import TrainConfig
from visualbert_core.training.optimizers import AdamW, Moments, Schedule, clip, decay_groups
from visualbert_core.training.step import Prepared, Stepper

STEPS = 1000  # of the schedule; more than are taken
ANSWERS, CHOICES, MASKED, PIECES = 3129, 4, 0.15, 30522


@dataclass(frozen=True)
class Load:
    """What a batch consists of. Ranges exclude their end."""

    form: type[Example] | type[CaptionPair]
    feature_size: int
    images: int  # of each example
    regions: tuple[int, int]  # of each image
    tokens: tuple[int, int]  # of each text
    examples: int


LOADS = {
    "vqa-36": Load(Question, 2048, 1, (36, 37), (8, 21), 32),
    "vqa-adaptive": Load(Question, 2048, 1, (10, 101), (8, 21), 24),
    "vcr": Load(MultipleChoice, 512, 1, (4, 14), (20, 61), 16),
    "nlvr2": Load(Statement, 1024, 2, (10, 145), (10, 31), 8),
    "pre-training": Load(CaptionPair, 2048, 1, (36, 37), (20, 41), 24),
}
NETWORKS = {
    Question: "VisualBertForQuestionAnswering",
    MultipleChoice: "VisualBertForMultipleChoice",
    Statement: "VisualBertForVisualReasoning",
    CaptionPair: "VisualBertForPreTraining",
}


@dataclass(frozen=True)
class Side:
    """One contestant: a step that returns its loss, and the loss and gradient of the first weights."""

    step: Callable[[int], float]
    loss: float
    gradient: dict[str, torch.Tensor]


def main() -> None:
    flags = parse()
    torch.set_num_threads(flags.threads)
    device = torch.device(flags.device)
    print(f"{machine(device)}, {flags.threads} thread(s), torch {torch.__version__}, ", end="")
    print(f"transformers {transformers.__version__}, {flags.layers} layers, {flags.rounds} rounds")
    print(f"{'':14} precision filled  transformers visualbert_core   ratio      loss  gradient")
    for name in flags.loads:
        for precision in flags.precision:
            measure(name, precision, flags, device)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--precision", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--layers", type=int, default=2, help="12 for the whole BERT-base, which needs 6 GB")
    parser.add_argument("--hidden", type=int, default=768, help="width, a multiple of 64")
    parser.add_argument("--examples", type=int, help="examples of a batch; default: by load, 8 to 32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def measure(name: str, precision: str, flags: argparse.Namespace, device: torch.device) -> None:
    load = LOADS[name]
    with tempfile.TemporaryDirectory() as folder:
        write_start(Path(folder), load, flags)
        model = load_trainable(folder, load.form, Start(weights="random"))
    items = examples(load, flags.examples or load.examples)
    padded = {key: tensor.to(device) for key, tensor in model.padded(items).items()}
    filled = (padded["attention_mask"].sum() + padded["visual_attention_mask"].sum()).item() / (
        padded["attention_mask"].numel() + padded["visual_attention_mask"].numel()
    )
    sides = theirs(load, model, padded, precision), ours(model, items, precision, device)
    took: tuple[list[float], list[float]] = [], []
    # With one thread the CPU time of this process is the time of a machine on which nothing else runs.
    clock = time.process_time if device.type == "cpu" and flags.threads == 1 else time.perf_counter
    for number in range(flags.rounds + 1):
        for side, seconds in zip(sides, took, strict=True):
            start = clock()
            side.step(number)  # returns a number of the host, so the device has finished
            seconds.append(clock() - start)
    base, fast = (seconds[1:] for seconds in took)  # the first round is the warm-up
    ratio = median(b / f for b, f in zip(base, fast, strict=True))
    loss, gradient = abs(sides[1].loss / sides[0].loss - 1), distance(sides[1].gradient, sides[0].gradient)
    print(
        f"{name:14} {precision:9} {filled:6.2f} {len(items) / median(base):8.2f} ex/s "
        f"{len(items) / median(fast):10.2f} ex/s {ratio:6.2f}× {loss:9.1e} {gradient:9.1e}"
    )


def write_start(folder: Path, load: Load, flags: argparse.Namespace) -> None:
    """Write the files that a training from random weights needs."""
    config = VisualBertConfig(
        hidden_size=flags.hidden,
        num_attention_heads=flags.hidden // 64,
        intermediate_size=4 * flags.hidden,
        num_hidden_layers=flags.layers,
        visual_embedding_dim=load.feature_size,
        num_labels=ANSWERS if load.form is Question else 2,
        pad_token_id=0,
        special_visual_initialize=False,
    )
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = special + [f"piece{number}" for number in range(PIECES - len(special))]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    (folder / "answers.txt").write_text("\n".join(["<unk>", *(f"answer {n}" for n in range(1, ANSWERS))]) + "\n")


def examples(load: Load, count: int) -> list[Item]:
    """Make random examples. No two share an image, as in the shuffled batches of a training."""
    rng = np.random.default_rng(0)
    items = []
    for number in range(count):
        sizes = rng.integers(*load.regions, load.images)
        images = tuple(rng.normal(size=(size, load.feature_size)).clip(0).astype(np.float16) for size in sizes)
        rows, types = np.arange(sizes.sum()), np.repeat(np.arange(load.images), sizes)
        sequences = []
        for _ in range(CHOICES if load.form is MultipleChoice else 1):
            text = rng.integers(1000, 30000, rng.integers(*load.tokens)).tolist()
            sequences.append(Encoded(text, [0] * len(text), images, rows, types))
        content = target(load, tuple(sequences), rng)
        tokens = sum(len(each.input_ids) + len(each.rows) for each in sequences)
        counts = (1,) if content.hidden is None else (len(content.hidden), 1)
        items.append(Item(str(number), tokens, counts, content))
    return items


def target(load: Load, sequences: tuple[Encoded, ...], rng: np.random.Generator) -> Content:
    """Add a random target: three answers, a choice, a truth value, or masked words and whether a caption is own."""
    if load.form is Question:
        soft = {int(at): weight for at, weight in zip(rng.integers(1, ANSWERS, 3), (1.0, 0.6, 0.3), strict=True)}
        return Content(sequences, soft=soft)
    if load.form is not CaptionPair:
        return Content(sequences, label=int(rng.integers(CHOICES if load.form is MultipleChoice else 2)))
    text = len(sequences[0].input_ids)
    places = sorted(rng.choice(np.arange(1, text - 1), max(1, round(MASKED * text)), replace=False).tolist())
    return Content(sequences, label=int(rng.integers(2)), hidden={place: int(rng.integers(PIECES)) for place in places})


def optimizer_of(network: torch.nn.Module) -> AdamW:
    return AdamW(decay_groups(network.named_parameters(), 0.01), Moments(2e-5), Schedule("linear", STEPS))


def theirs(load: Load, model: Trainable[Any], padded: dict[str, torch.Tensor], precision: str) -> Side:
    """Return transformers' network with its own loss."""
    device = next(iter(padded.values())).device
    values = {**model.network.config.to_dict(), "architectures": None}  # type: ignore[operator, union-attr]
    network: Any = getattr(transformers, NETWORKS[load.form])(transformers.VisualBertConfig(**values))
    network.load_state_dict(model.network.state_dict())
    network = network.to(device).eval()
    optimizer = optimizer_of(network)

    def lose() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, precision == "bfloat16"):
            loss: torch.Tensor = network(**padded).loss
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    first = lose().item()
    gradient = gradients(network)
    network.train()

    def step(number: int) -> float:
        optimizer.zero_grad()
        loss = lose()
        clip(list(network.parameters()), 1.0, "all")
        optimizer.step_at(number)
        return loss.item()

    return Side(step, first, gradient)


def ours(model: Trainable[Any], items: list[Item], precision: str, device: torch.device) -> Side:
    """Return the step of `visualbert train`."""
    network = model.network.to(device).eval()
    prepared = model.prepare(items)
    counts = tuple(sum(item.counts[term] for item in items) for term in range(len(model.terms)))
    with whole_float32(), torch.autocast(device.type, torch.bfloat16, precision == "bfloat16"):
        sums = model.losses(prepared)
    loss = (sums / torch.tensor(counts, device=device)).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    gradient = gradients(network)
    nowhere = Path("unused")
    config = TrainConfig(
        task="vqa",
        split="train",
        annotations=nowhere,
        features=nowhere,
        model=nowhere,
        out=nowhere,
        precision=precision,  # type: ignore[arg-type]  # one of the choices of the flag
    )
    stepper = Stepper(model, optimizer_of(network), config)
    ids, tokens = tuple(item.example_id for item in items), sum(item.tokens for item in items)

    def step(number: int) -> float:
        return stepper(Prepared(number, 0, ids, (prepared,), counts, tokens)).loss

    return Side(step, loss.item(), gradient)


def gradients(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copy the gradients of a network, by name. A parameter that the loss does not reach has none, or zeros."""
    return {
        name: each.grad.detach().cpu().clone() for name, each in network.named_parameters() if each.grad is not None
    }


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Return the length of the difference of two gradients, as a share of the length of the second."""
    names = found.keys() | expected.keys()
    zero = torch.zeros(())
    differs = sum(float((found.get(n, zero) - expected.get(n, zero)).double().square().sum()) for n in names)
    return math.sqrt(differs / sum(float(each.double().square().sum()) for each in expected.values()))


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
