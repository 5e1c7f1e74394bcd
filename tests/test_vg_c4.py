"""`vg_c4` compared with the published programs: it loads their weights and finds their boxes, labels, attributes and
features.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tolerances import close, likely, paired, rounding
from torchvision.ops import nms

from visualbert_core.cli import main
from visualbert_core.detector import load_detector
from visualbert_core.detector.class_nms import confidences
from visualbert_core.detector.resize import pillow_bilinear
from visualbert_core.detector.vg_c4 import Preprocessing, Selection, VgC4, VgC4Config, preprocess, resized, select
from visualbert_core.detector.vg_c4_network import Described
from visualbert_core.detector.weight_loading import read_weights
from visualbert_core.errors import CheckpointError, ConfigError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "vg_c4.json").read_text())


def published_weights(
    attributes: int = 12,
    *,
    width: int = 8,
    blocks: tuple[int, ...] = (3, 4, 6, 3),
    rpn: int = 16,
    objects: int = 30,
    anchors: tuple[int, ...] = (24, 48, 96, 160),
) -> dict[str, np.ndarray]:
    """Draw random weights of a narrow network under the published names, from NumPy's frozen generator."""
    draw = np.random.RandomState(7)
    state: dict[str, np.ndarray] = {}

    def dense(name: str, *shape: int, gain: float = 2.0, centred: bool = False) -> None:
        values = draw.standard_normal(shape) * np.sqrt(gain / np.prod(shape[1:]))
        # after a ReLU every value is positive: without centring the regions of an image would hardly differ
        if centred:
            values -= values.mean(1, keepdims=True)
        state[f"{name}.weight"] = values.astype(np.float32)

    def biased(name: str, *shape: int, gain: float = 2.0, centred: bool = False) -> None:
        dense(name, *shape, gain=gain, centred=centred)
        state[f"{name}.bias"] = draw.uniform(-0.1, 0.1, shape[0]).astype(np.float32)

    def norm(name: str, channels: int, scale: float = 1.0) -> None:
        for part, low, high in (("weight", 0.8, 1.2), ("bias", -0.1, 0.1), ("running_mean", -0.1, 0.1)):
            values = draw.uniform(low, high, channels) * (scale if part == "weight" else 1.0)
            state[f"{name}.{part}"] = values.astype(np.float32)
        state[f"{name}.running_var"] = draw.uniform(0.8, 1.2, channels).astype(np.float32)

    dense("backbone.stem.conv1", width, 3, 7, 7, gain=1 / 1500)
    norm("backbone.stem.conv1.norm", width)
    inputs = width
    for stage, count in enumerate(blocks, start=2):
        planes = width << (stage - 2)
        for block in range(count):
            name = f"backbone.res{stage}.{block}" if stage < 5 else f"roi_heads.res5.{block}"
            for index, shape in enumerate(((planes, inputs, 1, 1), (planes, planes, 3, 3), (4 * planes, planes, 1, 1))):
                dense(f"{name}.conv{index + 1}", *shape, gain=3.0, centred=True)
                norm(f"{name}.conv{index + 1}.norm", shape[0], scale=0.5 if index == 2 else 1.0)
            if block == 0:
                dense(f"{name}.shortcut", 4 * planes, inputs, 1, 1, gain=3.0, centred=True)
                norm(f"{name}.shortcut.norm", 4 * planes, scale=0.5)
            inputs = 4 * planes
    cells = [(size / ratio**0.5, size * ratio**0.5) for size in anchors for ratio in (0.5, 1.0, 2.0)]
    state["proposal_generator.anchor_generator.cell_anchors.0"] = np.array(
        [[-w / 2, -h / 2, w / 2, h / 2] for w, h in cells], np.float32
    )
    biased("proposal_generator.rpn_head.conv", rpn, 16 * width, 3, 3)
    biased("proposal_generator.rpn_head.objectness_logits", len(cells), rpn, 1, 1, gain=4.0)
    biased("proposal_generator.rpn_head.anchor_deltas", 4 * len(cells), rpn, 1, 1, gain=0.05)
    features, heads = 32 * width, "roi_heads.box_predictor"
    biased(f"{heads}.cls_score", objects + 1, features, gain=32.0, centred=True)
    # makes the background the best class of some of the regions that are kept
    state[f"{heads}.cls_score.bias"][-1] += 5
    biased(f"{heads}.bbox_pred", 4 * objects, features, gain=0.5)
    if attributes:
        dense(f"{heads}.cls_embedding", objects + 1, features // 8)
        biased(f"{heads}.fc_attr", features // 4, features + features // 8, centred=True)
        biased(f"{heads}.attr_score", attributes + 1, features // 4, gain=270.0, centred=True)
    return state


def published_config(**changes: Any) -> dict[str, Any]:
    """Return a `config.yaml` for that network, with the keys that Hugging Face's code reads."""
    tree: dict[str, Any] = {
        "model": {"pixel_mean": [102.9801, 115.9465, 122.7717], "pixel_std": [1.0, 1.0, 1.0], "max_pool": True},
        "resnets": {"stride_in_1x1": True, "num_groups": 1},
        "proposal_generator": {"min_size": 0},
        "anchor_generator": {"sizes": [[24, 48, 96, 160]], "aspect_ratios": [[0.5, 1.0, 2.0]], "offset": 0.0},
        "rpn": {
            "nms_thresh": 0.7,
            "pre_nms_topk_test": 1000,
            "post_nms_topk_test": 150,
            "bbox_reg_weights": [1.0, 1.0, 1.0, 1.0],
        },
        "roi_heads": {"nms_thresh_test": [0.3, 0.5, 0.7, 0.9]},
        "roi_box_head": {
            "cls_agnostic_bbox_reg": False,
            "pooler_resolution": 14,
            "res5halve": False,
            "bbox_reg_weights": [10.0, 10.0, 5.0, 5.0],
        },
        "input": {"format": "BGR", "min_size_test": 160, "max_size_test": 256},
        "min_detections": 36,
        "max_detections": 36,
        "size_divisibility": 0,
    }
    for name, value in changes.items():
        branch, _, leaf = name.rpartition("__")
        (tree[branch] if branch else tree)[leaf] = value
    return tree


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """Draw an image of rectangles on noise, uint8 [H, W, 3] RGB."""
    draw = np.random.RandomState(seed)
    pixels = draw.randint(0, 60, (height, width, 3))
    for _ in range(12):
        y, x = draw.randint(0, height), draw.randint(0, width)
        pixels[y : y + draw.randint(8, height), x : x + draw.randint(8, width)] += draw.randint(-120, 160, 3)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def overlapping(seed: int, proposals: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw boxes of a few objects, [P, 4] in 200 × 200 pixels, and their probabilities [P, C + 1] with the background
    last."""
    draw = np.random.RandomState(seed)
    things = draw.uniform(0, 120, (6, 2))[draw.randint(0, 6, proposals)]
    corners = things + draw.uniform(0, 25, (proposals, 2))
    boxes = np.concatenate([corners, corners + draw.uniform(20, 75, (proposals, 2))], axis=1)
    odds = np.exp(3 * draw.standard_normal((proposals, classes + 1)))
    return boxes.astype(np.float32), (odds / odds.sum(1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convert a detector folder with the command, from files in Hugging Face's layout."""
    published, out = tmp_path_factory.mktemp("published"), tmp_path_factory.mktemp("detectors") / "vg_c4"
    state = {name: torch.from_numpy(values) for name, values in published_weights().items()}
    state["backbone.stem.conv1.norm.num_batches_tracked"] = torch.tensor(3)
    torch.save(state, published / "pytorch_model.bin")
    (published / "config.yaml").write_text(yaml.safe_dump(published_config()))
    (published / "objects_vocab.txt").write_text("".join(f"Thing {i},synonym\n" for i in range(30)))
    assert main(["convert", "detector", "vg_c4", str(published), str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def detector(folder: Path) -> VgC4:
    found = load_detector(folder, "cpu")
    assert isinstance(found, VgC4)
    return found


def with_config(detector: VgC4, **changes: Any) -> VgC4:
    return VgC4(detector.model, dataclasses.replace(detector.config, **changes), "", "cpu")


@pytest.mark.parametrize("golden", GOLDEN["images"], ids=lambda golden: f"{golden['picture']}")
@pytest.mark.parametrize("as_loaded", [True, False], ids=["as loaded", "made ready"])
def test_regions_are_hugging_faces(
    folder: Path, golden: dict[str, Any], as_loaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Boxes, classes, attributes, probabilities and features equal the published program's up to rounding. This holds
    for its layers, and for folded norms in another memory order. Where scores tie, rounding may change order or cut."""
    if as_loaded:
        monkeypatch.setattr("visualbert_core.detector.folder.prepare", lambda network, device: network)
    (found,) = load_detector(folder, "cpu").detect([picture(*golden["picture"])])
    assert found.attributes is not None
    assert found.attribute_scores is not None
    mine, theirs = paired(found.boxes, found.scores, golden["boxes"])
    expected = {name: np.array(golden[name])[theirs] for name in ("labels", "attributes", "scores", "attribute_scores")}
    # The second of 30 classes has a far lower score in these images, so rounding cannot change the best class.
    np.testing.assert_array_equal(found.labels[mine], expected["labels"])
    np.testing.assert_array_equal(found.attributes[mine], expected["attributes"])
    likely(found.scores[mine], expected["scores"])
    likely(found.attribute_scores[mine], expected["attribute_scores"])
    off = np.abs(found.features.mean(1)[mine] - np.array(golden["feature_means"])[theirs])
    # the rounding follows the size of the features that are added, because some means are 0
    assert off.max() < rounding(found.features)
    for row, values in golden["features"].items():
        if int(row) in theirs:
            close(found.features[mine[theirs.index(int(row))]], values)
    assert (found.labels.dtype, found.features.dtype, found.boxes.dtype) == (np.int16, np.float32, np.float32)


def test_batch_mates_change_nothing(detector: VgC4) -> None:
    """An image has the same regions alone and in a batch of images of its shape, because on a CPU each goes through the
    network alone."""
    images = [picture(seed, 150, 200) for seed in range(3)]
    for image, batched in zip(images, detector.detect(images), strict=True):
        (alone,) = detector.detect([image])
        np.testing.assert_array_equal(alone.labels, batched.labels)
        close(alone.boxes, batched.boxes)
        close(alone.features, batched.features)
    with pytest.raises(ValueError, match="one shape"):
        detector.detect([images[0], images[1][:99]])


def test_given_boxes_are_pooled_as_they_are(detector: VgC4) -> None:
    """The detector's own proposals, given as boxes, get the same features, labels and attributes, and the boxes stay as
    given."""
    image = picture(3, 160, 200)  # the size that the network sees, because scaling would round the boxes
    proposals = with_config(detector, selection=Selection(box_kind="proposal"))
    (own,) = proposals.detect([image])
    (again,) = proposals.detect([image], [own.boxes[::-1].copy()])
    np.testing.assert_array_equal(again.boxes, own.boxes[::-1])
    np.testing.assert_array_equal(again.labels, own.labels[::-1])
    np.testing.assert_array_equal(again.attributes, own.attributes[::-1])  # type: ignore[index]
    close(again.features, own.features[::-1])
    (none,) = detector.detect([image], [np.zeros((0, 4), np.float32)])
    assert none.features.shape == (0, 256)


def test_given_boxes_follow_the_resize(detector: VgC4) -> None:
    """Boxes in pixels of an image twice as large as the network's input are pooled at half their coordinates."""
    image, boxes = picture(4, 320, 400), np.array([[40, 60, 300, 240], [7, 0, 399, 31]], np.float32)
    (found,) = detector.detect([image], [boxes])
    with torch.inference_mode():
        maps = detector.model.trunk(preprocess(torch.from_numpy(image[None]), detector.config.preprocessing))
        expected = detector.model.describe(maps[0], torch.from_numpy(boxes) / 2)
    close(found.features, expected.features)


@pytest.mark.parametrize(
    ("before", "after"),
    [((480, 640), (600, 800)), ((500, 90), (300, 54)), ((333, 500), (161, 237)), ((64, 64), (64, 9)), ((1, 7), (3, 1))],
)
def test_pillow_resize_is_pillows(before: tuple[int, int], after: tuple[int, int]) -> None:
    """No level of a pixel differs from Pillow's resize, whether the image grows or shrinks."""
    images = np.random.RandomState(1).randint(0, 256, (2, *before, 3)).astype(np.uint8)
    mine = pillow_bilinear(torch.from_numpy(images).permute(0, 3, 1, 2), *after).permute(0, 2, 3, 1)
    for image, found in zip(images, mine, strict=True):
        theirs = Image.fromarray(image)
        # newer versions of Pillow may resize the height first
        for size in ((after[1], before[0]), (after[1], after[0])):
            theirs = theirs.resize(size, Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(found, np.asarray(theirs))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((480, 640), (600, 800)),
        ((640, 480), (800, 600)),
        ((500, 500), (600, 600)),
        ((200, 640), (313, 1000)),
        ((427, 640), (600, 899)),
        ((1, 1), (600, 600)),
        ((2, 4000), (3, 1000)),
    ],
)
def test_sizes_follow_the_published_rule(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    """The short side becomes 600 and the long side at most 1000, halves round up, and thin images keep the pixels that
    max pooling needs."""
    assert resized(*shape, 600, 1000) == expected


def test_a_sliver_has_regions(detector: VgC4) -> None:
    """A thin image, on which the published programs crash, gives finite features."""
    (found,) = detector.detect([picture(6, 9, 4000)[:2]])
    assert len(found.features) > 0
    assert np.isfinite(found.features).all()


@pytest.mark.parametrize("case", GOLDEN["best_class"], ids=lambda case: f"{case['overlapping']}-{case['regions']}")
def test_best_class_selection_is_py_bottom_up_attentions(case: dict[str, Any]) -> None:
    """The loop over thresholds keeps what the published script keeps, also where no threshold leaves enough regions."""
    boxes, probabilities = overlapping(*case["overlapping"])
    rule = Selection(min_regions=case["regions"], max_regions=case["regions"])
    kept, scores, chosen = select(_regions(boxes, probabilities), (200, 200), (200, 200), rule)
    assert kept.tolist() == case["kept"]
    np.testing.assert_array_equal(scores, probabilities[kept, :-1].max(1))
    np.testing.assert_allclose(chosen, boxes[kept].clip(0, 200))


@pytest.mark.parametrize("case", GOLDEN["class_wise"], ids=lambda case: f"{case['overlapping']}-{case['regions']}")
def test_class_wise_selection_is_caffes(case: dict[str, Any]) -> None:
    """The selection keeps what the original Caffe program keeps: 10 to 100 regions, for fewer, as many and more
    candidates than the bounds."""
    boxes, probabilities = overlapping(*case["overlapping"])
    low, high = case["regions"]
    rule = Selection(rule="class-wise", box_kind="proposal", nms_iou=(0.3,), min_regions=low, max_regions=high)
    kept, scores, chosen = select(_regions(boxes, probabilities), (200, 200), (100, 100), rule)
    assert sorted(kept.tolist()) == sorted(case["kept"])
    assert (np.diff(scores) <= 0).all()
    np.testing.assert_allclose(chosen, boxes[kept] / 2)


def _regions(boxes: np.ndarray, probabilities: np.ndarray) -> Described:
    boxes_P4, scores_PC = torch.from_numpy(boxes), torch.from_numpy(probabilities[:, :-1])
    scores_P, labels_P = scores_PC.max(1)
    return Described(boxes_P4, boxes_P4, boxes_P4, scores_PC, scores_P, labels_P, None, None)


def test_batched_suppression_is_the_loop_over_classes() -> None:
    """One suppression over all classes keeps what torchvision's keeps class by class, with equal scores too."""
    boxes, probabilities = (torch.from_numpy(values) for values in overlapping(11, 80, 25))
    probabilities = (probabilities * 50).ceil() / 50
    survives = torch.zeros_like(probabilities)
    for index in range(probabilities.shape[1]):
        survives[nms(boxes, probabilities[:, index], 0.4), index] = 1
    found = confidences(boxes, probabilities, 0.4, wanted=len(boxes))
    torch.testing.assert_close(found, (probabilities * survives).amax(1))


def test_the_fingerprint_sees_what_changes_a_feature(detector: VgC4, folder: Path, tmp_path: Path) -> None:
    """The fingerprint changes with the selection or the weights, and stays the same with other names and after saving
    and loading."""
    assert detector.names.labels[3] == "thing 3"
    detector.save_pretrained(tmp_path / "same")
    assert load_detector(tmp_path / "same", "cpu").fingerprint() == load_detector(folder, "cpu").fingerprint()
    before = with_config(detector).fingerprint()
    assert json.loads(json.dumps(before))["preprocessing"]["color_order"] == "BGR"
    assert with_config(detector, labels=("other",)).fingerprint() == before
    for changes in (
        {"preprocessing": dataclasses.replace(detector.config.preprocessing, color_order="RGB")},
        {"proposals": dataclasses.replace(detector.config.proposals, post_nms=149)},
        {"selection": dataclasses.replace(detector.config.selection, box_kind="proposal")},
        {"space": "vg_c4_adaptive"},
    ):
        assert with_config(detector, **changes).fingerprint() != before
    changed = copy.deepcopy(detector.model)
    with torch.no_grad():
        changed.bn1.bias += 1
    VgC4(changed, detector.config, "", "cpu").save_pretrained(tmp_path / "other")
    other = load_detector(tmp_path / "other", "cpu").fingerprint()
    assert other != load_detector(folder, "cpu").fingerprint()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_detectron2_pickles_hold_the_same_network(detector: VgC4, tmp_path: Path, protocol: int) -> None:
    """A `.pkl` of NumPy arrays, as py-bottom-up-attention publishes it, gives the same weights with its own recipe."""
    path, out = tmp_path / "faster_rcnn_from_caffe_attr.pkl", tmp_path / "out"
    path.write_bytes(pickle.dumps({"model": published_weights(), "__author__": "someone"}, protocol))
    assert main(["convert", "detector", "vg_c4", str(path), str(out)]) == 0
    found = load_detector(out, "cpu")
    assert isinstance(found, VgC4)
    assert found.config.preprocessing == Preprocessing()
    assert found.config.selection == Selection()
    for name, tensor in detector.model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(found.model.state_dict()[name], tensor, rtol=0, atol=0)


def test_weights_without_attributes(tmp_path: Path) -> None:
    """`faster_rcnn_from_caffe.pkl` has no attribute head, so its detections have no attributes; anchors may be
    missing."""
    state = published_weights(attributes=0, anchors=(64, 128, 256, 512))
    anchors = state.pop("proposal_generator.anchor_generator.cell_anchors.0")
    (tmp_path / "in.pkl").write_bytes(pickle.dumps({"model": state}))
    assert main(["convert", "detector", "vg_c4", str(tmp_path / "in.pkl"), str(tmp_path / "out")]) == 0
    found = load_detector(tmp_path / "out", "cpu")
    assert isinstance(found, VgC4)
    torch.testing.assert_close(found.model.cell_anchors, torch.from_numpy(anchors))
    small = dataclasses.replace(found.config.preprocessing, short_side=160)
    (detection,) = with_config(found, preprocessing=small).detect([picture(0, 160, 160)])
    assert detection.attributes is None
    assert detection.attribute_scores is None


class _Runs:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (_Runs(os.mkdir, "HERE"), "posix.mkdir"),
        (np.array([_Runs(os.mkdir, "HERE")], object), "posix.mkdir"),
        (_Runs(getattr, "text", "upper"), "getattr"),
        (torch.zeros(2), "torch"),
        (np.array([{}], object), "'a' is a ndarray, not a tensor"),
        ("text", "'a' is a str, not a tensor"),
    ],
    ids=["call", "call in an array", "getattr", "torch", "objects", "text"],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_a_pickle_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any, message: str, protocol: int
) -> None:
    """Anything but arrays of numbers in a `.pkl` is refused by name and is not called."""
    path = tmp_path / "in.pkl"
    data = pickle.dumps({"model": {"a": value}}, protocol)
    path.write_bytes(data)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as raised:
        read_weights(path, under="model")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == [path]


def test_cut_pickles_are_one_line(tmp_path: Path) -> None:
    """A `.pkl` that is cut at any place is refused."""
    data = pickle.dumps({"model": {"a": np.arange(6, dtype=np.float32)}, "__author__": "x"}, 2)
    path = tmp_path / "in.pkl"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"in\.pkl: cannot be read \("):
            read_weights(path, under="model")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"weights": lambda s: s.pop("backbone.stem.conv1.weight")}, "conv1.weight is missing"),
        ({"weights": lambda s: s.pop("backbone.res3.1.conv2.norm.bias")}, "missing layer2.1.bn2.bias"),
        ({"weights": lambda s: s.update(extra=torch.zeros(1))}, "unknown extra"),
        ({"config": {"resnets__stride_in_1x1": False}}, "resnets.stride_in_1x1 is False"),
        ({"config": {"input": {"format": "BGR"}}}, "input.min_size_test is missing"),
        ({"config": {"rpn__nms_thresh": "x"}}, "nms_iou: expected float"),
        ({"config": {"anchor_generator__sizes": [[32, 64]]}}, "cell_anchors is [12, 4], not [6, 4]"),
        ({"config": {"roi_heads__nms_thresh_test": []}}, "nms_iou of best-class cannot be []"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path: Path, damage: dict[str, Any], message: str) -> None:
    """Weights or a config.yaml of another network are refused, and the error names what differs."""
    state = {name: torch.from_numpy(values) for name, values in published_weights().items()}
    damage.get("weights", lambda s: None)(state)
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(published_config(**damage.get("config", {}))))
    with pytest.raises(CheckpointError) as raised:
        main(["convert", "detector", "vg_c4", str(tmp_path), str(tmp_path / "out")])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_conversion_overwrites_nothing(folder: Path, tmp_path: Path) -> None:
    """A target folder that is not empty and a missing source are refused."""
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        main(["convert", "detector", "vg_c4", str(tmp_path), str(folder)])
    with pytest.raises(CheckpointError, match=r"folder with pytorch_model\.bin"):
        main(["convert", "detector", "vg_c4", str(tmp_path / "nowhere"), str(tmp_path / "out")])


def test_a_rule_has_its_thresholds() -> None:
    """Class-wise suppression has one threshold, so the several thresholds of the default are refused."""
    with pytest.raises(ConfigError, match="class-wise"):
        Selection(rule="class-wise")
    assert VgC4Config().selection.nms_iou == (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
