"""What the loop does beside plain steps: checkpointing, label smoothing, averaged weights, and too little memory."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from test_training import TASKS, Recipe, recipe, steps, stop_after, weights  # noqa: F401  (recipe is a fixture)
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.optim.swa_utils import get_ema_multi_avg_fn

from visualbert_core.errors import ConfigError, UnfinishedError
from visualbert_core.models.trainable import Item
from visualbert_core.models.visualbert.trainable import VisualBertTrainable
from visualbert_core.synthetic import WEIGHTS
from visualbert_core.training import TrainConfig, train
from visualbert_core.training.data import read_portion
from visualbert_core.training.order import Order
from visualbert_core.training.sources import open_recipe
from visualbert_core.training.state import Checkpoints

EXAMPLES = 6


def opened(config: TrainConfig) -> tuple[VisualBertTrainable, tuple[Item, ...]]:
    """Return the model of a recipe and the items of its first step."""
    lessons = open_recipe(config)
    return cast(VisualBertTrainable, lessons.model), read_portion(
        lessons, Order(len(lessons.examples), EXAMPLES, 0), 0
    ).items


def layers(folder: Path, count: int) -> Path:
    """Make a start for random weights: the configuration of the demo's VisualBERT with `count` layers."""
    shutil.copytree(WEIGHTS / "visualbert-vqa", folder)
    held = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(held | {"num_hidden_layers": count}))
    return folder


@pytest.mark.parametrize("task", TASKS)
def test_checkpointing_changes_no_bit(recipe: Recipe, task: str) -> None:  # noqa: F811
    """With gradient checkpointing, losses and gradients are the same bits, with dropout on."""
    found = []
    for checkpointing in (False, True):
        model, items = opened(recipe(task, gradient_checkpointing=checkpointing))
        torch.manual_seed(3)
        sums = model.losses(model.prepare(items))
        sums.sum().backward()  # type: ignore[no-untyped-call]
        found.append(
            (sums.detach(), {n: each.grad for n, each in model.network.named_parameters() if each.grad is not None})
        )
    (plain, expected), (again, gradients) = found
    assert torch.equal(again, plain)
    assert len(expected) > 10
    assert gradients.keys() == expected.keys()
    assert all(torch.equal(gradients[name], each) for name, each in expected.items())


def kept_bytes(model: VisualBertTrainable, items: tuple[Item, ...]) -> int:
    """Return the bytes that autograd keeps for the backward pass, without the weights."""
    weights_at = {each.untyped_storage().data_ptr() for each in model.network.parameters()}
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        held = model.losses(model.prepare(items))
    assert held.requires_grad
    return sum(size for place, size in sizes.items() if place not in weights_at)


def test_checkpointing_keeps_a_fraction(recipe: Recipe, tmp_path: Path) -> None:  # noqa: F811
    """Twelve layers keep less than a fifth of the bytes, and a further layer adds one state of each token."""
    found = {}
    for count in (12, 13):
        for checkpointing in (False, True):
            folder = layers(tmp_path / f"{count}-{checkpointing}", count)
            config = recipe(model=folder, weights="random", gradient_checkpointing=checkpointing)
            model, items = opened(config)
            found[count, checkpointing] = kept_bytes(model, items)
    assert found[12, True] < found[12, False] / 5
    state = 4 * model.network.config.hidden_size * sum(item.tokens for item in items)
    assert found[13, True] - found[12, True] < 1.1 * state
    assert found[13, False] - found[12, False] > 10 * state


def test_checkpointing_may_be_switched_on_later(recipe: Recipe) -> None:  # noqa: F811
    """A training that goes on with gradient checkpointing ends with the weights of one that never had it."""
    train(recipe(out="whole"))
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 5, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(UnfinishedError):
            train(recipe())
    train(recipe(gradient_checkpointing=True))
    assert steps(recipe().out) == steps(recipe(out="whole").out)
    assert weights(recipe().out) == weights(recipe(out="whole").out)


@pytest.mark.parametrize("task", ["vcr", "nlvr2"])
def test_smoothed_classes_are_those_of_torch(recipe: Recipe, task: str) -> None:  # noqa: F811
    """The sum over choices or statements is torch's cross-entropy with label smoothing over the padded logits."""
    model, items = opened(recipe(task, label_smoothing=0.1, dropout=0.0))
    padded = model.padded(items)
    labels = padded.pop("labels")
    expected = functional.cross_entropy(model.network(**padded).logits, labels, label_smoothing=0.1, reduction="sum")
    (found,) = model.losses(model.prepare(items))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_smoothed_words_are_those_of_torch(recipe: Recipe) -> None:  # noqa: F811
    """Masked words and the second term are smoothed too, and a batch without a masked word still adds 0."""
    changes = {"objective": "masked-words", "weights": "random", "dropout": 0.0, "label_smoothing": 0.1}
    model, items = opened(recipe("nlvr2", **changes))
    padded = model.padded(items)
    labels, truths = padded.pop("labels"), padded.pop("sentence_image_labels")
    out = model.network(**padded)
    masked = labels != -100
    found = model.losses(model.prepare(items))
    for term, logits, right in zip(
        found,
        (out.prediction_logits[masked], out.seq_relationship_logits),
        (labels[masked], truths),
        strict=True,
    ):
        expected = functional.cross_entropy(logits, right, label_smoothing=0.1, reduction="sum")
        assert term.item() == pytest.approx(expected.item(), rel=1e-5)
    nothing = tuple(replace(item, content=replace(item.content, hidden={})) for item in items)
    none = model.losses(model.prepare(nothing))
    none.sum().backward()  # type: ignore[no-untyped-call]
    assert none[0].item() == 0


def test_smoothing_counts_the_choices_that_are_there(recipe: Recipe) -> None:  # noqa: F811
    """Examples with three and with four choices each have the loss that they have alone."""
    model, items = opened(recipe("vcr", label_smoothing=0.1, dropout=0.0))
    short = replace(items[0].content, sequences=items[0].content.sequences[:3], label=1)
    mixed = [replace(items[0], content=short), *items[1:]]
    together = model.losses(model.prepare(mixed))
    together.sum().backward()  # type: ignore[no-untyped-call]
    alone = sum(model.losses(model.prepare([item])).item() for item in mixed)
    assert together.item() == pytest.approx(alone, rel=1e-5)
    assert all(bool(each.grad.isfinite().all()) for each in model.network.parameters() if each.grad is not None)


@pytest.mark.parametrize(("task", "named"), [("vqa", "answers"), ("flickr30k_entities", "phrases")])
def test_shares_are_not_smoothed(recipe: Recipe, task: str, named: str) -> None:  # noqa: F811
    """Targets that are shares refuse label smoothing by one line."""
    with pytest.raises(ConfigError, match=f"label_smoothing 0.1: the targets of {named} are shares already"):
        open_recipe(recipe(task, label_smoothing=0.1))


def test_averages_are_those_of_torch_and_resume_exactly(recipe: Recipe) -> None:  # noqa: F811
    """With `ema` a checkpoint holds the averages that torch computes of the weights after each step, the steps are
    those without it, and an interrupted training ends with the same bits."""
    train(recipe(out="plain", save_every=1, keep_last=9))
    done = train(recipe(out="whole", ema=0.9))
    assert steps(done.folder) == steps(recipe(out="plain").out)
    plain = [load_file(path / "model.safetensors") for path in sorted((recipe(out="plain").out).glob("checkpoints/*"))]
    assert len(plain) == 8
    names, average = list(plain[0]), [each.clone() for each in plain[0].values()]
    for held in plain[1:]:
        get_ema_multi_avg_fn(0.9)(average, list(held.values()), None)  # type: ignore[no-untyped-call]
    found, state = load_file(done.last / "model.safetensors"), load_file(done.last / "optimizer.safetensors")
    averaged = [name for name in names if f"{name}/average" in state]
    assert len(averaged) > 10
    for name, expected in zip(names, average, strict=True):
        assert torch.allclose(found[name], expected, rtol=1e-6, atol=1e-8), name
    assert all(torch.equal(state[f"{name}/average"], plain[-1][name]) for name in averaged)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 5, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(UnfinishedError):
            train(recipe(ema=0.9))
    train(recipe(ema=0.9))
    assert steps(recipe().out) == steps(done.folder)
    assert weights(recipe().out) == weights(done.folder)


def small_device(patch: pytest.MonkeyPatch, tokens: int) -> list[int]:
    """Stand in for a device with memory for this many tokens. Return a list that collects the passes too large."""
    real, refused = VisualBertTrainable.losses, list[int]()

    def losses(self: VisualBertTrainable, prepared: Any) -> torch.Tensor:
        size = sum(prepared[0].lengths)
        sums = real(self, prepared)
        if size > tokens:
            refused.append(size)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sums

    patch.setattr(VisualBertTrainable, "losses", losses)
    return refused


def test_a_device_that_is_too_small_halves_passes(recipe: Recipe, caplog: pytest.LogCaptureFixture) -> None:  # noqa: F811
    """The batch is taken again in smaller passes, so are all later ones, and no loss changes beyond rounding."""
    train(recipe(out="large", dropout=0.0))
    with pytest.MonkeyPatch.context() as patch:
        refused = small_device(patch, 60)
        done = train(recipe(dropout=0.0))
    size = done.record["tokens_per_pass"]
    assert 30 <= size <= 60
    assert 1 <= len(refused) <= 4  # not at every step
    said = [line.message for line in caplog.records if "do not fit into the memory of the device" in line.message]
    assert len(said) == len(refused)
    assert said[-1].endswith(f"from here on a pass has at most {size}")
    for a, b in zip(steps(recipe(out="large").out), steps(done.folder), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)


def test_halved_passes_are_resumed(recipe: Recipe) -> None:  # noqa: F811
    """An interrupted training goes on with the smaller passes, so that dropout draws the same."""
    with pytest.MonkeyPatch.context() as patch:
        small_device(patch, 60)
        train(recipe(out="whole"))
        stop_after(patch, 5, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(UnfinishedError):
            train(recipe())
    train(recipe())
    assert weights(recipe().out) == weights(recipe(out="whole").out)


def test_memory_that_cannot_be_found_is_one_line(recipe: Recipe) -> None:  # noqa: F811
    """An example that alone is too large, and a host without memory, are errors that name step and setting; the last
    checkpoint stays."""
    with pytest.MonkeyPatch.context() as patch:
        small_device(patch, 5)
        with pytest.raises(ConfigError, match=r"step 1: .* of the device: set --gradient-checkpointing, which goes on"):
            train(recipe(out="device"))
        with pytest.raises(ConfigError, match="of the device: a pass has one example, so it needs more memory"):
            train(recipe(out="device", gradient_checkpointing=True))
    real, calls = VisualBertTrainable.losses, list[int]()

    def losses(self: VisualBertTrainable, prepared: Any) -> torch.Tensor:
        calls.append(1)
        return real(self, prepared) if len(calls) < 5 else torch.empty(1 << 50)  # torch's own error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VisualBertTrainable, "losses", losses)
        with pytest.raises(ConfigError, match=r"step 5: .* of the host: .* or lower --tokens-per-pass for a new --out"):
            train(recipe())
    assert Checkpoints(recipe().out).steps() == [3]
    assert train(recipe(gradient_checkpointing=True)).record["steps"] == 8
