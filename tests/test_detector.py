"""The torchvision detector: each feature is the box head's output at its box, and does not depend on the batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tolerances import close, likely, rounding
from torchvision.models.detection import FasterRCNN
from torchvision.ops import box_iou

from visualbert_core.detector import load_detector
from visualbert_core.detector.tiny_rcnn import tiny_rcnn
from visualbert_core.detector.torchvision_rcnn import DetectorConfig, Selection, TorchvisionRCNN, build
from visualbert_core.errors import CheckpointError
from visualbert_core.synthetic.scenes import Scene, make_scene
from visualbert_core.synthetic.train_detector import LABELS, label_of

WEIGHTS = Path(__file__).parents[1] / "visualbert_core" / "synthetic" / "weights" / "detector"


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene((17, index)) for index in range(6)]


@pytest.fixture(scope="module")
def detector() -> TorchvisionRCNN:
    return TorchvisionRCNN.from_pretrained(WEIGHTS, "cpu")


def test_things_are_found_where_they_are(detector: TorchvisionRCNN, scenes: list[Scene]) -> None:
    """The committed weights find nearly all things in unseen scenes, with shape and colour."""
    found = total = 0
    for scene, detection in zip(scenes, detector.detect([s.pixels for s in scenes]), strict=True):
        overlap = box_iou(torch.tensor([t.box for t in scene.things]), torch.from_numpy(detection.boxes)) >= 0.5
        labels = torch.from_numpy(detection.labels)[None] == torch.tensor([[label_of(t)] for t in scene.things])
        found += int((overlap & labels).any(1).sum())
        total += len(scene.things)
    assert found >= 0.95 * total


def test_a_feature_is_the_box_heads_output_at_its_box(scenes: list[Scene]) -> None:
    """With proposals as boxes, a second pooling at the stored boxes gives the stored features and labels."""
    config = DetectorConfig(
        builder="tiny_rcnn",
        space="test",
        builder_args={"num_classes": len(LABELS)},
        selection=Selection(score_threshold=0.0, min_regions=5, max_regions=20, box_kind="proposal"),
    )
    torch.manual_seed(0)
    detector = TorchvisionRCNN(build(config), config, "", "cpu")
    pixels = [s.pixels for s in scenes[:2]]
    own = detector.detect(pixels)
    again = detector.detect(pixels, [d.boxes for d in own])
    for a, b in zip(own, again, strict=True):
        assert len(a.boxes) >= 5
        close(b.features, a.features)
        # Random weights hardly separate the classes. Where two are equally likely, rounding chooses.
        likely(b.scores[a.labels == b.labels], a.scores[a.labels == b.labels])
        assert (a.labels == b.labels).mean() >= 0.8


def test_boxes_and_scores_are_torchvisions_own(detector: TorchvisionRCNN, scenes: list[Scene]) -> None:
    """The composed parts give the boxes, classes and scores of torchvision's whole forward pass, for all confident
    detections."""
    model: FasterRCNN = detector.model
    with torch.inference_mode():
        reference = model([torch.from_numpy(scenes[0].pixels.copy()).permute(2, 0, 1).float() / 255])[0]
    mine = detector.detect([scenes[0].pixels])[0]
    sure = mine.scores > 0.9
    assert sure.any()
    for box, label, score in zip(mine.boxes[sure], mine.labels[sure], mine.scores[sure], strict=True):
        gap = (reference["boxes"] - torch.from_numpy(box)).abs().amax(1) + (reference["labels"] != int(label))
        assert gap.min() < rounding(mine.boxes)
        likely(reference["scores"][gap.argmin()], score)


def test_a_feature_pyramid_gives_its_own_box_heads_output() -> None:
    """A stock torchvision detector with a feature pyramid gives the output of its box head in its own forward pass."""
    config = DetectorConfig(
        builder="fasterrcnn_mobilenet_v3_large_320_fpn",
        space="test",
        selection=Selection(score_threshold=0.0, nms_iou=1.0, max_regions=1000, box_kind="proposal"),
        # This value is not torchvision's default, so the check below can fail.
        norm_eps=0.003,
    )
    torch.manual_seed(0)
    detector = TorchvisionRCNN(build(config), config, "", "cpu")
    pooled: list[torch.Tensor] = []
    detector.model.roi_heads.box_head.register_forward_hook(lambda *call: pooled.append(call[2]))
    picture = np.random.default_rng(0).integers(0, 255, (120, 200, 3), np.uint8)
    with torch.inference_mode():
        detector.model([torch.from_numpy(picture).permute(2, 0, 1).float() / 255])
    found = detector.detect([picture])[0]
    assert detector.feature_size == found.features.shape[1] == 1024
    assert len(pooled[0]) > 10
    # Random weights score all proposals alike. Where rounding decides which of two proposals suppresses the other, a
    # feature has no partner.
    off = torch.cdist(torch.from_numpy(found.features), pooled[0], p=torch.inf)
    for nearest in (off.amin(0), off.amin(1)):
        assert (nearest < rounding(found.features)).float().mean() > 0.9
    assert (found.boxes >= 0).all()
    assert (found.boxes <= [200, 120, 200, 120]).all()
    assert {m.eps for m in detector.model.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {0.003}


def test_batch_mates_change_nothing(detector: TorchvisionRCNN, scenes: list[Scene]) -> None:
    """An image has the same regions alone and in a batch of its shape, because a CPU runs each image through the
    network alone."""
    pixels = [s.pixels for s in scenes]
    together = detector.detect(pixels)
    for image, batched in zip(pixels, together, strict=True):
        alone = detector.detect([image])[0]
        np.testing.assert_array_equal(alone.labels, batched.labels)
        close(alone.boxes, batched.boxes)
        close(alone.features, batched.features)


def test_images_of_two_shapes_are_refused(detector: TorchvisionRCNN, scenes: list[Scene]) -> None:
    """A batch of two shapes is refused, because padding would let the border of an image into its features."""
    with pytest.raises(ValueError, match="one shape"):
        detector.detect([scenes[0].pixels, scenes[1].pixels[:200]])


def test_given_boxes_are_kept_as_they_are(detector: TorchvisionRCNN, scenes: list[Scene]) -> None:
    """Given boxes come back unchanged and in order, with a feature each, also for images of another size."""
    boxes = np.array([[0, 0, 300, 180], [10, 20, 60, 90]], np.float32)
    image = np.zeros((180, 300, 3), np.uint8)
    detection = detector.detect([image], [boxes])[0]
    np.testing.assert_array_equal(detection.boxes, boxes)
    assert detection.features.shape == (2, 256)


def test_selection_keeps_between_min_and_max(scenes: list[Scene], detector: TorchvisionRCNN) -> None:
    """Where NMS leaves enough boxes, their number stays in the configured range, and the scores descend."""
    config = DetectorConfig(
        builder="tiny_rcnn",
        space="test",
        builder_args=dict(detector.config.builder_args),
        selection=Selection(score_threshold=0.999, nms_iou=1.0, min_regions=7, max_regions=9),
    )
    picky = TorchvisionRCNN(detector.model, config, "", "cpu")
    for detection in picky.detect([s.pixels for s in scenes]):
        assert 7 <= len(detection.boxes) <= 9
        assert (np.diff(detection.scores) <= 0).all()


def test_the_fingerprint_sees_what_changes_a_feature(tmp_path: Path, detector: TorchvisionRCNN) -> None:
    """Other weights change the fingerprint, and saving and loading does not."""
    detector.save_pretrained(tmp_path / "same", torch.float16)
    assert load_detector(tmp_path / "same", "cpu").fingerprint() == detector.fingerprint()
    with torch.no_grad():
        changed = tiny_rcnn(**detector.config.builder_args)
    TorchvisionRCNN(changed, detector.config, "", "cpu").save_pretrained(tmp_path / "other", torch.float16)
    assert load_detector(tmp_path / "other", "cpu").fingerprint() != detector.fingerprint()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "not a detector folder"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0trunc"), "not a detector folder"),
        (lambda f: _edit(f, builder="fasterrcnn_resnet"), "unknown detector builder 'fasterrcnn_resnet'"),
        (lambda f: _edit(f, space_name="x"), "unknown key 'space_name'; did you mean 'space'?"),
        (lambda f: _edit(f, builder_args={"num_classes": 5}), "does not fit builder"),
        (lambda f: _edit(f, builder_args={"classes": 5}), "builder 'tiny_rcnn'"),
    ],
)
def test_a_bad_folder_is_one_line(tmp_path: Path, detector: TorchvisionRCNN, damage: object, message: str) -> None:
    """A fault in a detector folder ends in one line."""
    folder = tmp_path / "detector"
    detector.save_pretrained(folder)
    damage(folder)  # type: ignore[operator]
    with pytest.raises(CheckpointError) as raised:
        load_detector(folder, "cpu")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
