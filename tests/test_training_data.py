"""What a training reads: several stores, row groups, starts from the Hub and from BERT, and what is refused."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
import yaml
from conftest import SmallNight
from hub_server import COMMIT, hub
from safetensors.torch import load_file
from test_store import FINGERPRINT, row
from test_training import stop_after

from visualbert_core.cli import main
from visualbert_core.engine.shards import Part, ShardFolder, plan
from visualbert_core.errors import CheckpointError, ConfigError, InputError, StoreError, UnfinishedError
from visualbert_core.features.parts import encode
from visualbert_core.features.store import FeatureStore, store_folder
from visualbert_core.features.stores import JoinedStores, open_stores
from visualbert_core.models.visualbert.inputs import Encoded, InputEncoder
from visualbert_core.schema import Question, Regions
from visualbert_core.synthetic import WEIGHTS
from visualbert_core.training import TrainConfig, batches, train
from visualbert_core.training.order import Order, RowGroups

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


def test_an_image_without_scores_may_be_in_two_stores(whole: FeatureStore, tmp_path: Path) -> None:
    """An import without scores stores NaN. Two such stores with equal rows of an image are read as one."""
    rows = [replace(row, scores=np.full_like(row.scores, np.nan)) for row in whole.scan()]
    cuts = (("start", rows[:7]), ("end", rows[6:]))
    both = tuple(written(tmp_path, name, some, whole.fingerprint) for name, some in cuts)
    assert len(open_stores(both)) == len(rows)


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


def test_row_groups_are_those_of_the_files(tmp_path: Path) -> None:
    """The number of a row group tells apart exactly what Parquet keeps in different row groups, in one store or two."""
    rows = [row(f"image{number:03d}", 1 + number % 3) for number in range(300)]
    places = [
        written(tmp_path, name, held, FINGERPRINT, target=150) for name, held in (("a", rows[:200]), ("b", rows[200:]))
    ]
    expected = {}
    for path in (path for place in places for path in FeatureStore.open(place).part_paths):
        file = pq.ParquetFile(str(path))
        for number in range(file.num_row_groups):
            for image_id in file.read_row_group(number, ["image_id"])["image_id"].to_pylist():
                expected[image_id] = (path, number)
    found = open_stores(tuple(places)).row_groups(list(expected)).tolist()
    assert len(set(found)) == len(set(expected.values())) > 4
    assert len(set(zip(found, expected.values(), strict=True))) == len(set(found))


def test_the_order_of_row_groups() -> None:
    """Every epoch holds each example once. At no place more row groups are begun than the buffer holds."""
    of_example = np.repeat(np.arange(40), 25)
    order = Order(1000, 16, 7, RowGroups(of_example, 5))
    for epoch in range(2):
        every = [index for step in range(63) for index in order.batch(epoch * 63 + step)[1]]
        assert sorted(every) == list(range(1000))
        seen = of_example[every]
        first, last = ([np.flatnonzero(seen == group)[at] for group in range(40)] for at in (0, -1))
        begun = (np.arange(1000)[:, None] >= first) & (np.arange(1000)[:, None] <= last)
        assert begun.sum(1).max() == 5
        assert len(set(seen[500:516].tolist())) >= 3
    assert order.batch(0)[1] != order.batch(63)[1]
    # Made by this function on the day that it was written. They never change, or a resumed run would not be the same.
    assert Order(8, 8, 7, RowGroups(np.array([0, 0, 1, 1, 2, 2, 3, 3]), 2)).batch(0)[1] == [7, 4, 6, 5, 2, 0, 3, 1]


@pytest.fixture(scope="module")
def spread(whole: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the images into parts of one or two, so that there are many row groups."""
    return written(tmp_path_factory.mktemp("spread"), "spread", list(whole.scan()), whole.fingerprint, target=1)


def test_row_groups_resume_and_ignore_readers(recipe: Recipe, spread: Path) -> None:
    """A run over row groups that stopped, and one with other threads, end like the uninterrupted run, bit for bit."""
    every: dict[str, Any] = {"features": spread, "shuffle": "row-groups", "shuffle_buffer": 2, "steps": 18}
    one = train(recipe("one", **every))
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 11, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(UnfinishedError):
            train(recipe("two", **every))
    two = train(recipe("two", readers=4, read_ahead=9, **every))
    assert losses(two.folder) == losses(one.folder)
    assert (two.last / "model.safetensors").read_bytes() == (one.last / "model.safetensors").read_bytes()


def test_threads_do_not_decide_what_a_batch_holds(small_night: SmallNight) -> None:
    """Two questions about an image share its features, although another thread has encoded another image between them:
    else its turn would decide the size of a product, and with that the last bits of a training."""
    (folder,) = (small_night.out / "features" / "vqa-val2014").iterdir()
    store = FeatureStore.open(folder)
    image, other = store.fetch_many(store.image_ids[:2])
    encoder = InputEncoder(WEIGHTS / "visualbert-vqa" / "vocab.txt", box_geometry=True)
    first = encoder.encode(Question("1", (image.image_id,), "Is it red?"), [image])
    with ThreadPoolExecutor(1) as pool:
        pool.submit(encoder.encode, Question("2", (other.image_id,), "Is it red?"), [other]).result()
    again = encoder.encode(Question("3", (image.image_id,), "Is it blue?"), [image])
    assert isinstance(first, Encoded)
    assert isinstance(again, Encoded)
    assert first.images[0] is again.images[0]


def test_batches_over_row_groups_ignore_readers(recipe: Recipe, spread: Path) -> None:
    """Batches over row groups that begin in the middle, made by other threads, are those of the whole run, bit for bit.
    They come in another order than without row groups."""
    every: dict[str, Any] = {"features": spread, "shuffle": "row-groups", "shuffle_buffer": 2, "steps": 18}
    one = list(batches(recipe("one", **every)))
    two = list(batches(recipe("two", readers=4, read_ahead=9, **every), first_step=11))
    for expected, found in zip(one[11:], two, strict=True):
        assert (found.step, found.example_ids) == (expected.step, expected.example_ids)
        assert all(torch.equal(tensor, expected.tensors[name]) for name, tensor in found.tensors.items())
    whole = list(batches(recipe("whole", **every | {"shuffle": "whole"})))
    assert [each.example_ids for each in whole] != [each.example_ids for each in one]


def test_a_row_group_is_read_once_in_an_epoch(recipe: Recipe, spread: Path) -> None:
    """In each epoch the store is asked once for each row group, and the regions are those of the images."""
    config = recipe(features=spread, shuffle="row-groups", shuffle_buffer=2, epochs=1, steps=None)
    asked, fetch_many = [], FeatureStore.fetch_many
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureStore, "fetch_many", lambda s, ids: (asked.append(tuple(ids)), fetch_many(s, ids))[1])
        made = list(batches(config))
    store = FeatureStore.open(spread)
    assert len(store.part_paths) >= 6
    assert len(asked) == len(set(store.row_groups(store.image_ids).tolist()))
    assert sorted(image_id for ids in asked for image_id in ids) == store.image_ids
    whole = {i: b for b in batches(recipe(features=spread, epochs=1, steps=None)) for i in b.example_ids}
    for batch in made:
        for at, example_id in enumerate(batch.example_ids):
            other = whole[example_id]
            place = other.example_ids.index(example_id)
            mine, theirs = (b.tensors["visual_embeds"][n] for b, n in ((batch, at), (other, place)))
            length = min(len(mine), len(theirs))
            assert torch.equal(mine[:length], theirs[:length])


def test_row_groups_with_two_images(small_night: SmallNight, tmp_path: Path) -> None:
    """A pair of images is placed by its first image, and gets the features of both."""
    (store,) = (small_night.out / "features" / "nlvr2-dev").iterdir()
    every: dict[str, Any] = {"task": "nlvr2", "split": "dev", "annotations": small_night.out / "synthetic" / "nlvr2"}
    every |= {"model": WEIGHTS / "visualbert-nlvr2", "out": tmp_path, "features": store, "epochs": 1}
    lengths = []
    for shuffle in ("whole", "row-groups"):
        made = list(batches(TrainConfig(**every, shuffle=shuffle, shuffle_buffer=1)))
        regions = {i: b.tensors["visual_attention_mask"][n].sum() for b in made for n, i in enumerate(b.example_ids)}
        lengths.append({example_id: int(count) for example_id, count in regions.items()})
    assert lengths[0] == lengths[1]


def test_a_start_from_the_hub(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Hub id is a start and a model to evaluate: safe files only, its commit recorded, its cache used offline."""
    name, config = "uclanlp/visualbert-vqa", recipe()
    shutil.copytree(WEIGHTS / "visualbert-vqa", tmp_path / "hub" / name)
    for unsafe in ("modeling.py", "training_args.bin"):
        (tmp_path / "hub" / name / unsafe).write_text("code")
    keys = {each: str(getattr(config, each)) for each in ("task", "split", "annotations", "features")}
    asked = [word for key, value in keys.items() for word in (f"--{key}", value)]
    asked += ["--model", name, "--batch-size", "6", "--json"]
    monkeypatch.chdir(tmp_path)
    with hub(tmp_path / "hub", tmp_path / "cache") as sent:
        assert main(["train", *asked, "--steps", "4", "--out", "online"]) == 0
        online = json.loads(capsys.readouterr().out)
        assert sorted(sent) == ["answers.txt", "config.json", "model.safetensors", "visualbert_core.json", "vocab.txt"]
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert main(["train", *asked, "--steps", "4", "--out", "offline"]) == 0
        assert json.loads(capsys.readouterr().out)["provenance"] == online["provenance"]
        assert main(["evaluate", *asked, "--inline", "--out", "runs"]) == 0
        with pytest.raises(CheckpointError, match="uclanlp/other: no such folder, and cannot be downloaded") as caught:
            main(["train", *asked, "--steps", "4", "--out", "other", "--model", "uclanlp/other"])
        assert "\n" not in str(caught.value)
    assert online["model"] == "visualbert-vqa"
    assert online["provenance"]["start"] == {"id": name, "commit": COMMIT}
    record = json.loads((tmp_path / "runs" / "visualbert-vqa__vqa__val" / "run.json").read_text())
    assert record["hub"] == online["provenance"]["start"]
    train(config)
    assert losses(tmp_path / "online") == losses(tmp_path / "offline") == losses(config.out)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """Write a small BERT for pre-training, with the vocabulary of the demo."""
    folder = tmp_path / "hub" / "bert-small"
    words = len((WEIGHTS / "visualbert-vqa" / "vocab.txt").read_text().split())
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=words, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    transformers.BertForPreTraining(config).save_pretrained(folder)
    shutil.copy(WEIGHTS / "visualbert-vqa" / "vocab.txt", folder)
    return folder


@pytest.mark.parametrize("kind", ["BertForPreTraining", "BertForMaskedLM", "BertModel"])
def test_a_bert_starts_a_pre_training(recipe: Recipe, bert: Path, kind: str) -> None:
    """The first loss from a BERT folder is that of transformers' network with BERT's weights at the same names, its
    tables copied for the regions, and the projection of the features that the seed draws."""
    getattr(transformers, kind).from_pretrained(bert).save_pretrained(bert)
    config = recipe(model=bert, objective="masked-words", dropout=0.0, learning_rate=0.0)
    done = train(config)
    held = load_file(bert / "model.safetensors")
    ours = load_file(done.last / "model.safetensors")
    theirs = transformers.VisualBertForPreTraining.from_pretrained(done.last).eval()
    state = {key: torch.zeros_like(value) for key, value in theirs.state_dict().items()}
    for key, value in held.items():
        name = key if key.startswith("cls.") else f"visual_bert.{key.removeprefix('bert.')}"
        if name in state:
            state[name] = value
    tables = "visual_bert.embeddings."
    for table in ("position", "token_type"):
        state[f"{tables}visual_{table}_embeddings.weight"] = state[f"{tables}{table}_embeddings.weight"]
    drawn = [key for key in ours if "visual_projection" in key or (kind != "BertForPreTraining" and "seq_rel" in key)]
    drawn += [key for key in ours if kind == "BertModel" and key.startswith("cls.")]
    drawn += [key for key in ours if kind == "BertForMaskedLM" and "pooler" in key]
    state |= {key: ours[key] for key in drawn}
    state["cls.predictions.decoder.weight"] = state[f"{tables}word_embeddings.weight"]
    state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"]
    theirs.load_state_dict(state)
    first = next(iter(batches(config)))
    with torch.inference_mode():
        loss = theirs(**first.tensors).loss
    assert losses(config.out)[0] == pytest.approx(loss.item(), rel=1e-5)
    metadata = json.loads((done.last / "visualbert_core.json").read_text())
    assert metadata["feature_space"] == "world-tiny-rcnn-fc7"


def test_a_bert_starts_nothing_else(recipe: Recipe, bert: Path) -> None:
    """A BERT from the Hub, by its bare name, starts a pre-training; a fine-tuning from it is refused in one line."""
    with hub(bert.parent, bert.parent / "cache"):
        done = train(recipe(model=Path("bert-small"), objective="masked-words", steps=1))
        assert done.record["model"] == "bert-small"
        with pytest.raises(CheckpointError, match=r"a BERT starts a pre-training only .*convert bert IN OUT"):
            train(recipe("other", model=Path("bert-small"), weights="new-head"))


def test_a_split_without_labels_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    """The questions of a test split have no answers, so nothing can be learnt: one line says so before the first step.
    Masked words of such a split need the answers, too."""
    config = recipe()
    asked = json.loads((config.annotations / "v2_OpenEnded_mscoco_val2014_questions.json").read_text())
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "v2_OpenEnded_mscoco_test2015_questions.json").write_text(
        json.dumps(asked | {"data_subtype": "test2015"})
    )
    for changes in ({}, {"objective": "masked-words", "weights": "random"}):
        with pytest.raises(InputError, match="vqa test has no public labels"):
            train(recipe(split="test", annotations=tmp_path / "test", **changes))
    assert not config.out.exists()
