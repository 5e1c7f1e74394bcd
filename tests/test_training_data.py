"""What a training reads: several stores, row groups, starts from the Hub and from BERT, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SmallNight

from visualbert_core.cli import main
from visualbert_core.engine.shards import Part, ShardFolder, plan
from visualbert_core.errors import ConfigError, StoreError
from visualbert_core.features.store import FeatureStore, encode, store_folder
from visualbert_core.features.stores import JoinedStores, open_stores
from visualbert_core.schema import Regions
from visualbert_core.synthetic import WEIGHTS
from visualbert_core.training import TrainConfig, train

Recipe = Callable[..., TrainConfig]


def written(root: Path, name: str, rows: Sequence[Regions], fingerprint: dict[str, Any], target: int = 5) -> Path:
    """Write a store of these rows, in shards of about `target` images."""
    folder = ShardFolder(store_folder(root, name, fingerprint))
    by_id = {row.image_id: row for row in rows}
    shards = plan(list(by_id), "test", target)
    for shard in shards:
        held = [by_id[image_id] for image_id in shard.items]
        folder.commit(shard, Part(encode(held, fingerprint), len(held), None, 0))
    folder.finish(shards, {"fingerprint": fingerprint, "corpus": name})
    assert isinstance(folder.root, Path)
    return folder.root


@pytest.fixture(scope="module")
def whole(small_night: SmallNight) -> FeatureStore:
    """Return the store of the images of VQA: twelve."""
    (folder,) = (small_night.out / "features" / "vqa-val2014").iterdir()
    return FeatureStore.open(folder)


@pytest.fixture(scope="module")
def halves(whole: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write the images into two stores. One image is in both."""
    root, rows = tmp_path_factory.mktemp("halves"), list(whole.scan())
    return (
        written(root, "first", rows[:7], whole.fingerprint),
        written(root, "second", rows[6:], whole.fingerprint),
    )


@pytest.fixture
def recipe(small_night: SmallNight, whole: FeatureStore, tmp_path: Path) -> Recipe:
    def make(out: str = "out", **changes: Any) -> TrainConfig:
        """Return a short recipe over the questions of the small night."""
        values: dict[str, Any] = {
            "task": "vqa",
            "split": "val",
            "annotations": small_night.out / "synthetic" / "vqa",
            "features": whole.folder,
            "model": WEIGHTS / "visualbert-vqa",
            "out": tmp_path / out,
            "steps": 4,
            "batch_size": 6,
        }
        return TrainConfig(**values | changes)

    return make


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "steps.jsonl").read_text().splitlines()]


def test_two_stores_train_like_one(recipe: Recipe, halves: tuple[Path, Path]) -> None:
    """Over two stores every loss and the validation are those over one store, and the provenance names both stores."""
    one = train(recipe("one", validate_split="val"))
    two = train(recipe("two", features=halves, validate_split="val"))
    assert losses(two.folder) == losses(one.folder)
    assert two.record["validation"] == one.record["validation"]
    features = two.record["provenance"]["data"]["features"]
    assert [features[number]["corpus"] for number in ("1", "2")] == ["first", "second"]
    assert features["1"]["manifest"] == FeatureStore.open(halves[0]).manifest_digest()
    assert features["2"]["detector"]["space"] == one.record["provenance"]["data"]["features"]["detector"]["space"]


def test_a_joined_store_is_a_store(whole: FeatureStore, halves: tuple[Path, Path]) -> None:
    """Regions, boxes and sizes come from the store that has the image, each image once."""
    joined = open_stores(halves)
    assert isinstance(joined, JoinedStores)
    assert len(joined) == len(whole)
    assert sorted(joined.sizes()) == sorted(whole.sizes())
    ids = [*reversed(whole.image_ids), whole.image_ids[0]]
    for found, expected in zip(joined.fetch_many(ids), whole.fetch_many(ids), strict=True):
        assert found.image_id == expected.image_id
        assert found.features.tobytes() == expected.features.tobytes()
    assert joined.boxes(ids[0]).tolist() == whole.boxes(ids[0]).tolist()
    with pytest.raises(StoreError, match=rf"'nowhere' is not in {halves[0]}, {halves[1]}"):
        joined.fetch_many(["nowhere"])


def test_stores_that_do_not_belong_together(whole: FeatureStore, halves: tuple[Path, Path], tmp_path: Path) -> None:
    """Another feature space is refused, and so is an image whose regions differ; another detector is logged."""
    rows = list(whole.scan())
    elsewhere = written(tmp_path, "elsewhere", rows[7:], whole.fingerprint | {"space": "elsewhere"})
    with pytest.raises(StoreError, match=r"first/.* has 256-d features of .*elsewhere/.* has 256-d features of 'el"):
        open_stores((halves[0], elsewhere))
    moved = replace(rows[6], boxes=rows[6].boxes + 1)
    other = written(tmp_path, "other", [moved, *rows[7:]], whole.fingerprint)
    with pytest.raises(StoreError, match=f"image '{moved.image_id}' is in .* with different regions: name only one"):
        open_stores((halves[0], other))


def test_stores_of_two_detectors_are_said(
    whole: FeatureStore, halves: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Stores of one space whose fingerprints differ are read together, and the log names the difference."""
    later = written(tmp_path, "later", list(whole.scan())[7:], whole.fingerprint | {"weights": "others"})
    with caplog.at_level("WARNING", "visualbert_core"):
        open_stores((halves[0], later))
    assert "differ: weights:" in caplog.text
    assert "→ others" in caplog.text


def test_a_list_of_stores_in_yaml_and_as_flags(
    recipe: Recipe, halves: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recipe lists stores, a flag takes several, and `evaluate` scores over them what it scores over one store."""
    config = recipe()
    keys = {name: str(getattr(config, name)) for name in ("task", "split", "annotations", "model")}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(keys | {"steps": 1, "batch_size": 6, "features": [str(each) for each in halves]}))
    assert main(["train", str(path), "--out", str(tmp_path / "a"), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    flags = ["--features", *map(str, halves), "--out", str(tmp_path / "b"), "--json"]
    assert main(["train", str(path), *flags]) == 0
    assert json.loads(capsys.readouterr().out)["provenance"] == listed["provenance"]
    asked = [word for name, value in keys.items() for word in (f"--{name}", value)]
    scores = []
    for name, stores in (("one", [str(config.features)]), ("two", [str(each) for each in halves])):
        assert (
            main(["evaluate", *asked, "--features", *stores, "--out", str(tmp_path / name), "--inline", "--json"]) == 0
        )
        scores.append(json.loads(capsys.readouterr().out)["scores"])
    assert scores[0] == scores[1]
    path.write_text(yaml.safe_dump(keys | {"features": []}))
    with pytest.raises(ConfigError, match="features is empty"):
        main(["train", str(path), "--out", str(tmp_path / "a")])
