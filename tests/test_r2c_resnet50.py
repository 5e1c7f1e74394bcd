"""VCR's encoder of given objects: it computes r2c's features, from VCR's metadata to the store."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from published import picture, random_tensor
from safetensors.torch import save_file
from tolerances import close, likely

from visualbert_core.config import ExtractConfig, PoolConfig
from visualbert_core.corpus.images import DecodeError, read_objects
from visualbert_core.detector import ObjectEncoder, load_detector
from visualbert_core.detector.r2c_resnet50 import (
    CLASSES,
    R2CConfig,
    R2CDetector,
    convert,
    inside,
    masks_of,
)
from visualbert_core.engine.pool import Pool
from visualbert_core.errors import CheckpointError, ConfigError
from visualbert_core.features.extract import extract
from visualbert_core.schema import GivenObjects

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "r2c_features.json").read_text())
CONFIG = R2CConfig(blocks=(1, 1, 1, 1), feature_size=24)


def weights() -> dict[str, torch.Tensor]:
    """Return the random weights behind the golden values, under the names of the checkpoint converter."""
    found = {name: random_tensor((seed or [name])[0], shape) for name, shape, *seed in GOLDEN["tensors"]}
    return {name: tensor.long() if name.endswith("tracked") else tensor for name, tensor in found.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("r2c")
    save_file(weights(), root / "detector.safetensors")
    convert(root / "detector.safetensors", CONFIG)[0].save_pretrained(root / "folder")
    return root / "folder"


@pytest.fixture(scope="module")
def detector(folder: Path) -> R2CDetector:
    found = load_detector(folder, "cpu")
    assert isinstance(found, R2CDetector)
    assert isinstance(found, ObjectEncoder)
    return found


def marked(root: Path, index: int) -> tuple[np.ndarray, GivenObjects]:
    """Return a golden image and its objects, read from a metadata file."""
    record = GOLDEN["metadata"][index]
    (root / "image.json").write_text(json.dumps(record))
    return picture(index, record["height"], record["width"]), read_objects(root / "image.json", CLASSES)


@pytest.mark.parametrize("index", range(3))
def test_features_are_r2cs(detector: R2CDetector, tmp_path: Path, index: int) -> None:
    """Metadata and image give the classes, masks, probabilities and features of the published code, with the whole
    image first, for a landscape, a portrait and a strip."""
    answer = GOLDEN["regions"][index]
    pixels, objects = marked(tmp_path, index)
    found = detector.encode([pixels], [objects])[0]
    masks = ["".join(str(int(bit)) for bit in mask.ravel()) for mask in masks_of(objects, 14)]
    assert masks == answer["masks"]
    assert found.labels.tolist() == answer["labels"]
    assert found.boxes.tolist() == objects.boxes.tolist()
    likely(found.scores, answer["scores"])
    close(found.features, answer["features"])


def test_a_batch_changes_nothing(detector: R2CDetector, tmp_path: Path) -> None:
    """Images in a batch give what each gives alone."""
    pixels, objects = marked(tmp_path, 0)
    images = [pixels, pixels[::-1].copy(), pixels[:, ::-1].copy()]
    for image, together in zip(images, detector.encode(images, [objects] * 3), strict=True):
        alone = detector.encode([image], [objects])[0]
        close(together.features, alone.features)


def test_class_and_outline_count(detector: R2CDetector, tmp_path: Path) -> None:
    """The same box with another class or outline has another feature."""
    pixels, objects = marked(tmp_path, 0)
    relabelled = GivenObjects(objects.boxes, objects.labels[[0, 2, 1, 3]], objects.outlines)
    bare = GivenObjects(objects.boxes, objects.labels, (objects.outlines[0], (), (), ()))
    first, second, third = (detector.encode([pixels], [o])[0].features for o in (objects, relabelled, bare))
    assert np.abs(first[1] - second[1]).max() > 1e-2
    assert np.abs(first[1] - third[1]).max() > 1e-2
    close(first[0], second[0])


def test_bare_boxes_are_encoded_as_the_whole_image_is(detector: R2CDetector, tmp_path: Path) -> None:
    """A box without class and outline is encoded with class 0 and a full mask at its own place. Without boxes the
    detector raises ConfigError."""
    pixels, objects = marked(tmp_path, 0)
    (found,) = detector.detect([pixels], [objects.boxes])
    assert found.labels.tolist() == [0, 0, 0, 0]
    np.testing.assert_allclose(found.features[0], detector.encode([pixels], [objects])[0].features[0], atol=1e-2)
    with pytest.raises(ConfigError, match="finds no objects"):
        detector.detect([pixels])


def test_a_polygon_holds_what_is_inside() -> None:
    """A polygon follows the even-odd rule, closes itself, and holds nothing where it is a line. VCR does not depend on
    points on a side."""
    xs, ys = np.meshgrid(np.arange(4) + 0.5, np.arange(4) + 0.5)
    square = np.array([[1, 1], [3, 1], [3, 3], [1, 3]], float)
    assert inside(square, xs, ys).nonzero()[0].tolist() == [1, 1, 2, 2]
    twice = np.concatenate([square, square])
    assert not inside(twice, xs, ys).any()
    assert not inside(square[:2], xs, ys).any()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"names": None}, "not a VCR metadata file"),
        ({"names": ["person"]}, "3 boxes, 1 names and 3 segms"),
        ({"names": ["person", "unicorn", "cat"]}, "names 'unicorn', which is not a class"),
        ({"segms": [[[1, 2, 3]], [], []]}, "not polygons of finite points"),
        ({"segms": [[[[1, 2], [3, float("nan")], [4, 5]]], [], []]}, "not polygons of finite points"),
    ],
)
def test_malformed_objects_are_a_decode_error(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    """Malformed objects are the failure of that image, with the reason."""
    (tmp_path / "a.json").write_text(json.dumps(GOLDEN["metadata"][0] | change))
    with pytest.raises(DecodeError, match=reason):
        read_objects(tmp_path / "a.json", CLASSES)


def test_a_store_is_made_of_vcrs_layout(folder: Path, tmp_path: Path) -> None:
    """An extraction passes classes and outlines on, and an image without them is one failure. Without boxes the job
    ends before it starts."""
    for index, record in enumerate(GOLDEN["metadata"]):
        Image.fromarray(picture(index, record["height"], record["width"])).save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.json").write_text(json.dumps(record))
    (tmp_path / "2.json").write_text(json.dumps({**GOLDEN["metadata"][2], "names": ["unicorn"] * 3}))
    config = ExtractConfig(images=tmp_path, detector=folder, out=tmp_path / "out", boxes="beside")
    with Pool(PoolConfig(inline=True)) as pool:
        store = extract(config, pool)
    assert store.space == "r2c_resnet50"
    assert store.label_names == CLASSES
    for index in range(2):
        row, answer = store.fetch(str(index)), GOLDEN["regions"][index]
        assert row.labels.tolist() == answer["labels"]
        # The store's float16 rounds at 2⁻¹¹ of a number, ten times as coarsely as the network.
        np.testing.assert_allclose(row.features, answer["features"], rtol=1e-3, atol=1e-3)
    assert [failure.message for failure in store.failures()] == [
        "2.json names 'unicorn', which is not a class of the detector"
    ]
    with Pool(PoolConfig(inline=True)) as pool, pytest.raises(ConfigError, match="--boxes beside"):
        extract(dataclasses.replace(config, boxes="none"), pool)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    """A missing tensor and a file of another kind are each named in one line."""
    tensors = weights()
    del tensors["detector.object_embed.weight"]
    save_file(tensors, tmp_path / "detector.safetensors")
    with pytest.raises(CheckpointError, match=r"missing object_embed\.weight"):
        convert(tmp_path / "detector.safetensors", CONFIG)
    (tmp_path / "detector.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="cannot be read"):
        convert(tmp_path / "detector.safetensors", CONFIG)


def test_classes_are_cocos() -> None:
    """The list has 81 classes with the background, each once, in COCO's order."""
    assert len(set(CLASSES)) == len(CLASSES) == 81
    assert [CLASSES.index(name) for name in ("__background__", "person", "trafficlight", "toothbrush")] == [
        0,
        1,
        10,
        80,
    ]
