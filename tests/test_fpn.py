"""The pyramid detectors give the published programs' regions, whatever the batch, and also for given boxes. The golden
values come from the published programs (golden/README.md)."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from published import picture, random_tensor
from tolerances import close, doubt, likely, paired
from torchvision.ops import nms

from visualbert_core.config import ExtractConfig, PoolConfig
from visualbert_core.detector import load_detector
from visualbert_core.detector.class_nms import confidences
from visualbert_core.detector.convert import convert
from visualbert_core.detector.fpn import (
    DETECTRON,
    PYTHIA,
    STRIDES,
    FPNConfig,
    FPNDetector,
    half_open,
    pool,
    resize,
    resize_scale,
)
from visualbert_core.detector.fpn_weights import convert_detectron, convert_pythia
from visualbert_core.detector.weight_loading import read_entries
from visualbert_core.engine.pool import Pool
from visualbert_core.errors import CheckpointError
from visualbert_core.features.extract import extract
from visualbert_core.provenance import differences

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "fpn_features.json").read_text())
TINY: dict[str, Any] = {
    "blocks": (1, 1, 1, 1),
    "pyramid_size": 8,
    "feature_size": 16,
    "num_classes": 12,
    "pre_nms_top_n": 60,
    "post_nms_top_n": 40,
    "min_size": 96,
    "max_size": 160,
    "num_regions": 20,
}
CONFIGS = {
    "pythia_fpn": dataclasses.replace(PYTHIA, **TINY, groups=4, group_width=2, num_proposals=100),
    "detectron_fpn": dataclasses.replace(DETECTRON, **TINY, group_width=4, num_proposals=40),
}
CONVERTERS: dict[str, Callable[[Path, FPNConfig], tuple[FPNDetector, list[str]]]] = {
    "pythia_fpn": convert_pythia,
    "detectron_fpn": convert_detectron,
}
SPACES = sorted(CONFIGS)


def weights(space: str) -> dict[str, torch.Tensor]:
    """Return the random weights behind the golden values, under their published names."""
    return {name: random_tensor((seed or [name])[0], shape) for name, shape, *seed in GOLDEN[space]["tensors"]}


def publish(space: str, path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Write weights in the authors' file format, with the further entries that the published files have."""
    if space == "pythia_fpn":
        anchors = {"rpn.anchor_generator.cell_anchors.0": torch.zeros(3, 4)}
        torch.save({"model": tensors | anchors, "iteration": 9}, path)
    else:
        blobs = {name: tensor.numpy() for name, tensor in tensors.items()}
        # The published pickles hold more than the detector's weights. The converter must skip these entries.
        more = {"fc6_w_momentum": blobs["fc6_w"], "lr": np.float32(0.1), "conv5_mask_w": np.zeros((2, 2), np.float32)}
        path.write_bytes(pickle.dumps({"blobs": blobs | more, "cfg": "MODEL: {}\n"}, protocol=2))
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Convert and save a detector folder for each space."""
    root = tmp_path_factory.mktemp("fpn")
    for space in SPACES:
        found, _ = CONVERTERS[space](publish(space, root / f"{space}.in", weights(space)), CONFIGS[space])
        found.save_pretrained(root / space)
    return {space: root / space for space in SPACES}


@pytest.fixture(params=SPACES)
def detector(request: pytest.FixtureRequest, folders: dict[str, Path]) -> FPNDetector:
    found = load_detector(folders[request.param], "cpu")
    assert isinstance(found, FPNDetector)
    return found


def test_regions_are_the_published_programs(detector: FPNDetector) -> None:
    """From weights in the published format, the boxes, classes, confidences and features equal the published program's
    in order, up to rounding."""
    for (seed, height, width), answer in zip(GOLDEN["pictures"], GOLDEN[detector.space]["regions"], strict=True):
        found = detector.detect([picture(seed, height, width)])[0]
        mine, theirs = paired(found.boxes, found.scores, answer["boxes"])
        close(found.features[mine], np.array(answer["features"])[theirs])
        if "scores" in answer:
            likely(found.scores[mine], np.array(answer["scores"])[theirs])
        if "labels" in answer:
            assert found.labels[mine].tolist() == np.array(answer["labels"])[theirs].tolist()


def test_pixels_are_resized_as_by_opencv() -> None:
    """Resizing takes steps of exactly 1 / scale, as OpenCV does; torch's bilinear resize differs by whole grey
    levels."""
    image = torch.tensor(GOLDEN["resize"]["image"], dtype=torch.float32)[None]
    for answer in GOLDEN["resize"]["answers"]:
        np.testing.assert_allclose(resize(image, answer["scale"])[0], answer["pixels"], atol=2e-3)


@pytest.mark.parametrize(
    ("shape", "scale"),
    [((480, 640), 800 / 480), ((600, 1100), 1333 / 1100), ((600, 1000), 800 / 600), ((1600, 1600), 0.5)],
)
def test_the_short_side_grows_to_800_and_the_long_one_to_1333_at_most(shape: tuple[int, int], scale: float) -> None:
    """The scale follows the rule of both programs at the published sizes, and 1333.3 pixels still count as 1333."""
    assert resize_scale(shape, PYTHIA) == scale


def test_a_batch_changes_nothing(detector: FPNDetector) -> None:
    """An image has the same regions alone and in a batch of its shape, because a CPU runs each image through the
    network alone."""
    images = [picture(seed, 60, 80) for seed in range(3)]
    for image, together in zip(images, detector.detect(images), strict=True):
        alone = detector.detect([image])[0]
        close(together.boxes, alone.boxes)
        close(together.features, alone.features)
        assert together.labels.tolist() == alone.labels.tolist()
    with pytest.raises(ValueError, match="one shape"):
        detector.detect([images[0], images[1][:40]])


def test_given_boxes_get_the_features_of_proposals_there(detector: FPNDetector) -> None:
    """A region is its proposal, so pooling again at the stored boxes gives the stored features, in the order of the
    boxes."""
    image = picture(5, 64, 90)
    own = detector.detect([image])[0]
    order = np.arange(len(own.boxes))[::-1].copy()
    again = detector.detect([image], [own.boxes[order]])[0]
    assert again.boxes.tolist() == own.boxes[order].tolist()
    assert again.labels.tolist() == own.labels[order].tolist()
    close(again.features, own.features[order])
    assert (again.scores >= own.scores[order] - doubt(own.scores[order])).all()
    assert detector.detect([image], [np.zeros((0, 4), np.float32)])[0].features.shape == (0, 16)


def test_a_box_is_pooled_from_the_level_of_its_size() -> None:
    """Sides of 112, 224 and 448 pixels, the last pixel included, are the smallest of the next coarser level."""
    maps = [torch.full((1, 1, 512 // stride, 512 // stride), float(level)) for level, stride in enumerate(STRIDES[:4])]
    sides = [1.0, 111.0, 112.0, 223.0, 224.0, 447.0, 448.0, 500.0]
    boxes = torch.tensor([[0, 0, side - 1, side - 1] for side in sides])
    assert pool(maps, [boxes])[:, 0, 0, 0].tolist() == pytest.approx([0, 0, 1, 1, 2, 2, 3, 3])


def naive(boxes: torch.Tensor, scores: torch.Tensor, iou: float) -> torch.Tensor:
    """Return each box's best score by the published loop, one class at a time."""
    best = torch.zeros(len(boxes))
    for of_class in scores.T:
        keep = nms(half_open(boxes), of_class, iou)
        best[keep] = torch.maximum(best[keep], of_class[keep])
    return best


@pytest.mark.parametrize("sharpness", [0.1, 3.0, 12.0])
@pytest.mark.parametrize("wanted", [1, 20, 200])
def test_suppression_of_all_classes_at_once_equals_the_loop(sharpness: float, wanted: int) -> None:
    """The suppression of all classes at once gives the best proposals of the loop with exactly its values, for flat and
    peaked scores."""
    random = torch.Generator().manual_seed(int(sharpness * 10))
    corners = torch.rand(120, 2, generator=random) * 100
    boxes = torch.cat([corners, corners + 5 + torch.rand(120, 2, generator=random) * 50], 1)
    scores = (torch.randn(120, 60, generator=random) * sharpness).softmax(1)
    expected = naive(boxes, scores, 0.5)
    found = confidences(half_open(boxes), scores, 0.5, wanted)
    best = expected.sort(descending=True, stable=True).indices[:wanted]
    assert found.sort(descending=True, stable=True).indices[:wanted].tolist() == best.tolist()
    assert found[best].tolist() == expected[best].tolist()


def test_no_proposal_has_no_confidence() -> None:
    """An image without a proposal gives an empty answer and no crash."""
    assert confidences(torch.zeros(0, 4), torch.zeros(0, 5), 0.5, 10).tolist() == []


def test_every_parameter_of_the_recipe_is_in_the_fingerprint(folders: dict[str, Path], detector: FPNDetector) -> None:
    """The fingerprint has every parameter of the recipe, so two recipes never share a store."""
    json.dumps(detector.fingerprint())
    assert {f.name for f in dataclasses.fields(FPNConfig)} - detector.fingerprint().keys() == {"labels"}
    first, second = (load_detector(folders[space], "cpu").fingerprint() for space in SPACES)
    assert differences(first, second)


def test_published_recipes() -> None:
    """The defaults are the published numbers, repeated here so that none changes unnoticed."""
    assert (PYTHIA.feature_size, PYTHIA.num_regions, PYTHIA.num_classes, PYTHIA.pyramid_size) == (2048, 100, 1601, 512)
    assert (DETECTRON.feature_size, DETECTRON.num_regions, DETECTRON.num_classes) == (1024, 150, 81)
    assert {PYTHIA.min_size, DETECTRON.min_size} == {800}
    assert {PYTHIA.max_size, DETECTRON.max_size} == {1333}


@pytest.mark.parametrize("space", SPACES)
def test_other_weights_are_refused(space: str, tmp_path: Path) -> None:
    """A missing tensor, a tensor of the wrong shape and a file of another kind are each refused in one line."""
    tensors = weights(space)
    name = next(name for name in tensors if "fc7" in name)
    lacking = publish(space, tmp_path / "lacking", {key: value for key, value in tensors.items() if key != name})
    with pytest.raises(CheckpointError, match=rf"lacking: not weights of {space}: it lacks {name}"):
        CONVERTERS[space](lacking, CONFIGS[space])
    odd = publish(space, tmp_path / "odd", tensors | {name: torch.zeros(3, 3)})
    with pytest.raises(CheckpointError, match=r"odd: does not fit its network: fc7.* is \[3, 3\], not"):
        CONVERTERS[space](odd, CONFIGS[space])
    (tmp_path / "other").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="other"):
        CONVERTERS[space](tmp_path / "other", CONFIGS[space])


def test_a_folder_is_not_overwritten(folders: dict[str, Path], tmp_path: Path) -> None:
    """A second conversion into the same folder is refused."""
    source = publish("pythia_fpn", tmp_path / "in", weights("pythia_fpn"))
    with pytest.raises(CheckpointError, match="not empty"):
        convert("pythia_fpn", source, folders["pythia_fpn"])


class _Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_runs_no_code(tmp_path: Path) -> None:
    """An entry other than an array, text or a number is refused by name before it is called."""
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"blobs": {"a": _Attack(tmp_path / "ran")}}, protocol=2))
    why = r"bad\.pkl: cannot be read \(UnpicklingError: it asks for .*only arrays of numbers"
    with pytest.raises(CheckpointError, match=why):
        read_entries(tmp_path / "bad.pkl", "blobs")
    assert not (tmp_path / "ran").exists()


def test_a_store_is_made_with_it(folders: dict[str, Path], tmp_path: Path) -> None:
    """Extraction runs with a converted folder and stores the golden features."""
    (tmp_path / "images").mkdir()
    Image.fromarray(picture(0, 70, 50)).save(tmp_path / "images" / "a.png")
    config = ExtractConfig(images=tmp_path / "images", detector=folders["pythia_fpn"], out=tmp_path / "out")
    with Pool(PoolConfig(inline=True)) as pool:
        store = extract(config, pool)
    assert store.space == "pythia_fpn"
    expected = GOLDEN["pythia_fpn"]["regions"][0]["features"]
    # The store rounds to float16, at 2⁻¹¹ of a number. That is ten times as coarse as the network's rounding.
    np.testing.assert_allclose(store.fetch("a").features, expected, rtol=1e-3, atol=1e-3)
