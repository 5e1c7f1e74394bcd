"""Optimisers, schedules and clipping equal the golden traces of the authors' code and of torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch import nn

from visualbert_core.training.optimizers import OPTIMIZERS, Moments, Schedule, clip, decay_groups
from visualbert_core.training.order import planned_steps
from visualbert_core.training.recipe import TrainConfig

GOLDEN = Path(__file__).parent / "golden" / "training"
TRACES: dict[str, Any] = json.loads((GOLDEN / "bertadam.json").read_text())
ARRAYS = np.load(GOLDEN / "bertadam.npz")
PLANS: list[dict[str, Any]] = json.loads((GOLDEN / "schedule.json").read_text())["cases"]
POOLER = "bert.pooler.dense.weight"
NAMES = [name for name in TRACES["tensors"] if name != POOLER]
THEIR_SHAPES = {"warmup_linear": "linear", "warmup_constant": "constant", "warmup_cosine": "cosine", "none": "none"}
THEIR_CLASSES = {
    "WarmupCosineWithHardRestartsSchedule": "cosine-hard-restarts",
    "WarmupCosineWithWarmupRestartsSchedule": "cosine-warm-restarts",
}


def schedule_of(trace: dict[str, Any]) -> Schedule:
    """Return the schedule that a golden trace names."""
    named = trace.get("schedule", "warmup_linear")
    if isinstance(named, dict):
        return Schedule(THEIR_CLASSES[named["class"]], int(named["t_total"]), named["warmup"], named["cycles"])
    if named not in THEIR_SHAPES:  # the AdamW traces take the rates of linear40
        trace = TRACES["traces"]["linear40"]
    if trace["t_total"] < 0:
        return Schedule("none", 1)
    return Schedule(THEIR_SHAPES.get(named, "linear"), trace["t_total"], max(trace["warmup"], 0))


def replay(name: str) -> tuple[dict[str, nn.Parameter], Any, dict[str, list[np.ndarray]], list[float]]:
    """Run a golden trace. Return the parameters, the optimiser, their values after each step, and the rates."""
    trace = TRACES["traces"][name]
    parameters = {each: nn.Parameter(torch.from_numpy(ARRAYS[f"start/{each}"].copy())) for each in TRACES["tensors"]}
    parameters[POOLER].requires_grad_(False)
    kind = "adamw" if name.startswith("adamw") else "bertadam"
    groups = decay_groups(parameters.items(), 0.01)
    optimizer = OPTIMIZERS[kind](groups, Moments(trace["lr"]), schedule_of(trace))
    how: Any = "each" if trace.get("max_grad_norm", 1) > 0 and trace.get("clip", "each") == "each" else "none"
    how = "all" if trace.get("clip") == "all" else how
    after: dict[str, list[np.ndarray]] = {each: [] for each in NAMES}
    rates = []
    for step in range(TRACES["steps"]):
        for each in NAMES:
            gradient = torch.from_numpy(ARRAYS[f"grad/{each}"][step].copy())
            missing = step in trace.get("no_gradient_at", {}).get(each, ())
            parameters[each].grad = None if missing else gradient
        clip([parameters[each] for each in NAMES], 1.0, how)
        rates.append(optimizer.step_at(step))
        for each in NAMES:
            after[each].append(parameters[each].detach().numpy().copy())
    return parameters, optimizer, after, rates


@pytest.mark.parametrize("name", TRACES["traces"])
def test_steps_equal_the_golden_traces(name: str) -> None:
    """Every parameter after every step, and the moments at the end, equal the trace within rounding."""
    parameters, optimizer, after, rates = replay(name)
    for each in NAMES:
        golden = ARRAYS[f"{name}/after/{each}"]
        assert np.abs(np.stack(after[each]) - golden).max() <= 2e-6 * np.abs(golden).max(), each
        for key, moment in (("m", "exp_avg"), ("v", "exp_avg_sq")):
            if f"{name}/{key}/{each}" in ARRAYS:
                held, known = optimizer.state[parameters[each]][moment].numpy(), ARRAYS[f"{name}/{key}/{each}"]
                assert np.abs(held - known).max() <= 2e-6 * np.abs(known).max(), each
    if f"{name}/lr" in ARRAYS and name != "late_and_missing":
        assert np.allclose(np.array(rates)[:, None], ARRAYS[f"{name}/lr"][:, :4], rtol=1e-9, atol=1e-12)


def test_each_tensor_is_clipped_alone_or_all_together() -> None:
    """The norm that is returned is the one before clipping, and each way shortens what it says."""
    one, two = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))

    def fill() -> None:
        one.grad, two.grad = torch.tensor([3.0, 4.0]), torch.tensor([0.5])

    for how, first, second in (("all", 5 / 25.25**0.5, 0.5 / 25.25**0.5), ("each", 1.0, 0.5), ("none", 5.0, 0.5)):
        fill()
        assert clip([one, two], 1.0, how) == pytest.approx(25.25**0.5)  # type: ignore[arg-type]
        assert one.grad is not None
        assert two.grad is not None
        assert float(one.grad.norm()) == pytest.approx(first, rel=1e-5)
        assert float(two.grad.norm()) == pytest.approx(second, rel=1e-5)
    one.grad = torch.tensor([float("nan"), 1.0])
    assert np.isnan(clip([one, two], 1.0, "all"))


@pytest.mark.parametrize("head", TRACES["groups_of_heads"])
def test_decay_groups_are_the_authors(head: str) -> None:
    """A name has weight decay, none, or is frozen exactly where it is in the authors' code."""
    expected = TRACES["groups_of_heads"][head]
    parameters = {name: nn.Parameter(torch.zeros(1), "pooler" not in name) for name in expected}
    found = dict.fromkeys(expected, "not optimised")
    for group in decay_groups(parameters.items(), 0.01):
        members = {id(parameter) for parameter in group["params"]}
        found |= {name: group["weight_decay"] for name, each in parameters.items() if id(each) in members}
    assert found == expected


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan["name"])
def test_rates_of_the_authors_recipes(plan: dict[str, Any]) -> None:
    """The rate at every sampled step of the authors' runs is theirs, past the planned end too."""
    steps = planned_steps(plan["examples"], plan["batch"], plan["epochs"], round_down=True)
    assert steps == plan["t_total"]
    assert (
        planned_steps(plan["examples"], plan["batch"], plan["epochs"], round_down=False) == plan["steps_really_taken"]
    )
    schedule = Schedule("linear", steps, plan["warmup"])
    assert all(abs(plan["lr"] * schedule(step) - rate) <= 1e-9 * plan["lr"] for step, rate in plan["lr_at"])


def test_planned_steps_round_down_each_epoch() -> None:
    """The plans of the golden file, where the batch counts all accumulated examples."""
    for plan, known in TRACES["planned_steps"].items():
        examples, batch, accumulated, epochs = map(int, plan.split("/"))
        assert planned_steps(examples, batch * accumulated, epochs, round_down=True) == known["t_total"]


@pytest.mark.parametrize("shape", get_args(get_type_hints(TrainConfig)["schedule"]))
def test_schedules_start_at_zero_and_end_low(shape: str) -> None:
    """A warm-up starts at 0, reaches 1, and the falling shapes end at 0."""
    schedule = Schedule(shape, 100, 0.1)
    factors = [schedule(step) for step in range(101)]
    assert factors[0] == (1.0 if shape == "none" else 0.0)
    assert factors[10] == pytest.approx(1.0)
    assert factors[99] < 0.02 or shape in ("none", "constant")
