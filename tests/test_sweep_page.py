"""The page of a sweep: its table, its curves, its links."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean

import pytest
from browser import Browser
from conftest import SmallNight
from test_training_page import browser, recipe, text_of  # noqa: F401  (browser is a fixture)

from visualbert_core.training import TrainConfig, sweep
from visualbert_core.training.grid import FINISHED, Row, Sweep
from visualbert_core.training.log import read_curves
from visualbert_core.training.sweep_page import SWEEP_PAGE, write_sweep_page

GRID = {"learning_rate": [1e-3, 1e30], "seed": [0, 1]}
"""The second rate gives a loss that is not finite."""


@pytest.fixture(scope="module")
def config(small_night: SmallNight, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Return the recipe of a sweep of which two trainings fail."""
    changes = {"steps": 4, "save_every": 4, "own_image_only": True, "skip_bad_batches": 0}
    config = recipe(small_night, tmp_path_factory.mktemp("sweep") / "out", **changes)
    sweep(config, GRID)
    return config


@pytest.fixture(scope="module")
def page(config: TrainConfig) -> str:
    return (config.folder / SWEEP_PAGE).read_text()


def test_the_table_has_means_deviations_and_links(config: TrainConfig, page: str) -> None:
    """A setting has its mean and deviation over seeds. The score of each training leads to its page."""
    record = json.loads((config.folder / "sweep.json").read_text())
    good, bad = record["settings"]
    said = text_of(page)
    assert "Sweep of learning_rate, seed on vqa val" in said
    assert "2 of 4 trainings are finished, 2 failed" in said
    assert f"Best mean: learning_rate=0.001: accuracy {good['mean']:.2f} ± {good['deviation']:.2f} over 2 seeds" in said
    assert bad["mean"] is None
    assert said.count("the loss is") == 2
    links = re.findall(r'href="([^"#]+)"', page)
    assert links == [f"learning_rate={rate}/seed={seed}/training.html" for rate in ("0.001",) for seed in (0, 1)]
    assert all((config.folder / link).exists() for link in links)
    assert str(config.folder.parent) not in page


def test_the_curve_of_a_setting_is_the_mean_over_its_seeds(config: TrainConfig, page: str) -> None:
    """The plot of the loss tells the first and the last mean of the seeds; the failed setting has no line."""
    curves = [read_curves(config.folder / f"learning_rate=0.001/seed={seed}").points for seed in (0, 1)]
    first, last = (fmean(points[place].loss or 0.0 for points in curves) for place in (0, -1))
    (name,) = re.findall(r'aria-label="(Loss [^"]+)"', page)
    assert f"Loss over 4 steps; from {first:.4g} to {last:.4g}" in name
    assert 'aria-label="Score on val over 4 steps' in page


def test_of_many_settings_the_best_are_drawn(small_night: SmallNight, tmp_path: Path) -> None:
    """Without a training that has begun there is a table and no plot; more than four settings are said."""
    grid = {"warmup": [0.0, 0.1, 0.2, 0.3, 0.4]}
    rows = [Row(f"warmup={value:g}", f"warmup={value:g}", {"warmup": value}, FINISHED) for value in grid["warmup"]]
    write_sweep_page(recipe(small_night, tmp_path), Sweep(tmp_path, grid, None, tuple(rows)))
    page = (tmp_path / SWEEP_PAGE).read_text()
    assert "5 of 5 trainings are finished" in page
    assert "<polyline" not in page
    assert 'id="curves"' not in page
    assert re.search(r"<th scope=\"row\">warmup</th><td>0.0, 0.1, 0.2, 0.3, 0.4</td>", page)


def test_it_opens_and_fits(browser: Browser, config: TrainConfig) -> None:  # noqa: F811
    """A browser shows it without a complaint, and nothing is wider than a phone."""
    browser.open(config.folder / SWEEP_PAGE, width=320)
    assert browser.problems == []
    assert browser.run("document.documentElement.scrollWidth") <= 320
