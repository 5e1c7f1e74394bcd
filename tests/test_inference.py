"""What all detectors share between weights and answers: folded norms, bfloat16, RoIAlign on a CPU, odd image shapes."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import test_fpn
import test_r2c_resnet50
import test_vg_c4
import torch
from pretend_gpu import DEVICE, pretend_gpu
from published import picture
from safetensors.torch import load_file, save_file
from tolerances import close, relative
from torch import nn
from torchvision import ops
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign, box_iou

from visualbert_core.detector import Detection, Detector, load_detector
from visualbert_core.detector.inference import PRECISIONS, Columns, cast_to_bfloat16, detect_in_slices, prepare
from visualbert_core.detector.r2c_resnet50 import convert as convert_r2c
from visualbert_core.detector.roi_align import pool_as, roi_align
from visualbert_core.detector.torchvision_rcnn import DetectorConfig, build
from visualbert_core.detector.vg_c4 import Preprocessing
from visualbert_core.detector.vg_c4_weights import convert as convert_vg_c4
from visualbert_core.errors import ConfigError
from visualbert_core.synthetic.scenes import make_scene

CPU = torch.device("cpu")
WORLD = Path(__file__).parents[1] / "visualbert_core" / "synthetic" / "weights" / "detector"
SPACES = ("torchvision", "vg_c4", "pythia_fpn", "detectron_fpn", "r2c_resnet50")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write a small detector folder of every kind."""
    root = tmp_path_factory.mktemp("detectors")
    for space in test_fpn.SPACES:
        source = test_fpn.publish(space, root / f"{space}.in", test_fpn.weights(space))
        test_fpn.CONVERTERS[space](source, test_fpn.CONFIGS[space])[0].save_pretrained(root / space)
    save_file(test_r2c_resnet50.weights(), root / "r2c.safetensors")
    convert_r2c(root / "r2c.safetensors", test_r2c_resnet50.CONFIG)[0].save_pretrained(root / "r2c_resnet50")
    (root / "vg.pkl").write_bytes(pickle.dumps({"model": test_vg_c4.published_weights()}))
    published, _ = convert_vg_c4(root / "vg.pkl")
    small = test_vg_c4.with_config(published, preprocessing=Preprocessing(short_side=96, long_side=160))
    small.save_pretrained(root / "vg_c4")
    return {space: root / space for space in SPACES} | {"torchvision": WORLD}


def given(image: np.ndarray) -> np.ndarray:
    """Return two boxes: the whole image and its middle."""
    whole = np.array([[0, 0, image.shape[1], image.shape[0]]], np.float32)
    return np.concatenate([whole, whole / 2 + whole[:, [2, 3, 2, 3]] / 4])


def answers(detector: Detector, images: Sequence[np.ndarray]) -> list[Detection]:
    """Return what a detector finds. The encoder of given objects finds nothing, so it is given objects."""
    return detector.detect(images, [given(i) for i in images] if detector.space == "r2c_resnet50" else None)


@pytest.mark.parametrize("space", SPACES)
def test_a_batch_on_a_cpu_changes_no_bit(space: str, folders: dict[str, Path]) -> None:
    """Detections and parts have the same bytes at any batch size, on any CPU. Each image goes through the network
    alone, in the same shapes and with the same number of threads, so images never share a matrix product."""
    detector = load_detector(folders[space], "cpu")
    images = [picture(seed, 60, 80) for seed in range(3)]
    for image, together in zip(images, answers(detector, images), strict=True):
        (alone,) = answers(detector, [image])
        for name in ("boxes", "labels", "scores", "features"):
            np.testing.assert_array_equal(getattr(together, name), getattr(alone, name))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1), (3, 2000)])
def test_odd_shapes_are_answered(space: str, shape: tuple[int, int], folders: dict[str, Path]) -> None:
    """Images of one pixel or of one line of pixels give finite features; a crash would lose a whole shard."""
    (found,) = answers(load_detector(folders[space], "cpu"), [np.full((*shape, 3), 90, np.uint8)])
    assert np.isfinite(found.features).all()
    assert found.features.shape[0] == len(found.boxes) == len(found.labels) == len(found.scores)
    assert np.isfinite(found.boxes).all()


@pytest.mark.parametrize("space", SPACES)
def test_an_odd_image_leaves_no_trace(space: str, folders: dict[str, Path]) -> None:
    """An image gets the same bits before and after a line of pixels. torchvision's pooler would keep the scales of the
    first image."""
    image = picture(1, 60, 80)
    (before,) = answers(load_detector(folders[space], "cpu"), [image])
    detector = load_detector(folders[space], "cpu")
    answers(detector, [np.zeros((1, 900, 3), np.uint8)])
    (after,) = answers(detector, [image])
    np.testing.assert_array_equal(before.features, after.features)


@pytest.mark.parametrize("space", SPACES)
def test_answering_leaves_the_weights_alone(space: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Saving a detector after it has answered images writes the weights that were loaded."""
    detector = load_detector(folders[space], "cpu")
    answers(detector, [picture(1, 60, 80)])
    detector.save_pretrained(tmp_path / "out")  # type: ignore[attr-defined]
    before, after = (load_file(folder / "model.safetensors") for folder in (folders[space], tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor.float(), after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("space", SPACES)
def test_bfloat16_is_close_and_another_store(space: str, folders: dict[str, Path]) -> None:
    """bfloat16 changes the features of the same boxes only a little, and the fingerprint names the precision. The
    fingerprint of float32 names none, so that older stores keep their folder."""
    image = picture(1, 60, 80)
    full, low = (load_detector(folders[space], "cpu", precision) for precision in ("float32", "bfloat16"))
    assert "precision" not in full.fingerprint()
    assert low.fingerprint() == full.fingerprint() | {"precision": "bfloat16"}
    (a,), (b,) = (detector.detect([image], [given(image)]) for detector in (full, low))
    assert {b.features.dtype, b.boxes.dtype, b.scores.dtype} == {np.dtype(np.float32)}
    # bfloat16 rounds at 2⁻⁹ in each of about 50 layers, and the CPU chooses the order of sums: 0.0012 and 0.043 were
    # seen.
    assert cosines(a.features, b.features).min() > 0.995
    assert not np.array_equal(a.features, b.features)
    np.testing.assert_allclose(a.scores, b.scores, atol=0.1)


def test_a_trained_detector_finds_the_same_in_bfloat16() -> None:
    """In bfloat16 the committed detector finds nearly all regions again, with almost the same box and the same
    label."""
    full, low = (load_detector(WORLD, "cpu", precision) for precision in ("float32", "bfloat16"))
    found = close = 0
    for index in range(4):
        scene = make_scene((17, index)).pixels
        (a,), (b,) = full.detect([scene]), low.detect([scene])
        overlap, partner = box_iou(torch.from_numpy(a.boxes), torch.from_numpy(b.boxes)).max(1)
        near = (overlap.numpy() > 0.9) & (a.labels == b.labels[partner.numpy()])
        assert np.median(cosines(a.features[near], b.features[partner.numpy()[near]])) > 0.999
        found, close = found + len(near), close + int(near.sum())
    assert close > 0.9 * found


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    products: np.ndarray = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return products


@pytest.mark.parametrize("space", SPACES)
def test_another_precision_is_refused(space: str, folders: dict[str, Path]) -> None:
    """An unknown precision is refused by name, before anything is computed."""
    with pytest.raises(ConfigError, match="precision 'float16' is not one of float32, bfloat16"):
        load_detector(folders[space], "cpu", "float16")


@pytest.mark.parametrize(
    "builder",
    ["fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_fpn", "tiny_rcnn"],
)
def test_norms_go_into_their_convolutions(builder: str) -> None:
    """No norm is left in any of torchvision's detectors, and backbone and heads return the same values as before."""
    arguments = {"num_classes": 5} if builder == "tiny_rcnn" else {}
    torch.manual_seed(0)
    model = build(DetectorConfig(builder=builder, space="test", builder_args=arguments)).eval()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]
    for norm in norms:
        for values, low, high in ((norm.weight, 0.3, 0.7), (norm.bias, -0.1, 0.1), (norm.running_mean, -0.1, 0.1)):
            nn.init.uniform_(values, low, high)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
    folded = prepare(model, CPU)
    assert norms
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]
    pixels = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        before, after = (
            [m] if isinstance(m, torch.Tensor) else list(m.values())
            for m in (model.backbone(pixels), folded.backbone(pixels))
        )
        for a, b in zip(before, after, strict=True):
            close(b, a)
        size = 5 if builder == "tiny_rcnn" else 7
        pooled = torch.randn(2, before[0].shape[1], size, size)
        close(folded.roi_heads.box_head(pooled), model.roi_heads.box_head(pooled))


def test_what_follows_no_convolution_is_not_folded() -> None:
    """A norm that follows no convolution stays a norm."""
    network = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.BatchNorm2d(2)).eval()
    network[2].running_mean.fill_(3)
    x = torch.randn(1, 2, 4, 4)
    assert isinstance(prepare(network, CPU)[2], nn.BatchNorm2d)
    close(prepare(network, CPU)(x), network(x).detach())


def test_lowered_parts_take_and_give_float32() -> None:
    """A lowered chain of modules computes in bfloat16, takes and returns float32, and keeps the structure of nested
    tensors."""

    class Fork(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, list[torch.Tensor]]:
            assert x.dtype == torch.bfloat16
            return {"maps": [x, x.argmax(1)]}

    first, last = nn.Conv2d(2, 3, 1), Fork()
    cast_to_bfloat16(first, last)
    found = last(first(torch.randn(1, 2, 4, 4)))
    assert [t.dtype for t in found["maps"]] == [torch.float32, torch.int64]


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_regions_are_aligned_as_by_torchvision(samples: int) -> None:
    """RoIAlign equals torchvision's for regions inside, across and far outside the border, for thin regions and for
    none."""
    random = np.random.default_rng(0)
    maps = torch.from_numpy(random.normal(size=(2, 5, 13, 17)).astype(np.float32))
    corners = random.uniform(-40, 150, (60, 2))
    boxes = np.concatenate([corners, corners + random.uniform(-2, 60, (60, 2))], 1)
    rois = torch.from_numpy(np.concatenate([random.integers(0, 2, (60, 1)), boxes], 1).astype(np.float32))
    expected = ops.roi_align(maps, rois, 7, 1 / 8, samples)
    close(roi_align(maps, rois, 7, 1 / 8, samples), expected)
    assert roi_align(maps, rois[:0], 7, 1 / 8, samples).shape == (0, 5, 7, 7)


def test_levels_are_torchvisions() -> None:
    """Boxes of all sizes are pooled from the level that torchvision's own pooler chooses, where one level is not pooled
    from."""
    random = np.random.default_rng(1)
    sizes = {"0": (64, 96), "1": (32, 48), "2": (16, 24), "3": (8, 12), "pool": (4, 6)}
    maps = {name: torch.from_numpy(random.normal(size=(1, 4, *s)).astype(np.float32)) for name, s in sizes.items()}
    corners = random.uniform(0, 100, (80, 2))
    boxes = torch.from_numpy(np.concatenate([corners, corners + random.uniform(1, 280, (80, 2))], 1).astype(np.float32))
    pooler = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    expected = pooler(maps, [boxes], [(250, 380)])
    close(pool_as(pooler, maps, [boxes], (256, 384)), expected)


def test_float32_is_no_tf32() -> None:
    """While a detector answers, neither cuDNN nor a matrix product may round to TF32, whatever the caller or the
    container chose. Afterwards every setting is as before."""

    def settings() -> tuple[bool, str, bool]:
        return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision(), torch.is_inference_mode_enabled()

    def answer(*_: object) -> list[Columns]:
        seen.append(settings())
        return []

    seen: list[tuple[bool, str, bool]] = []
    torch.set_float32_matmul_precision("high")
    try:
        detect_in_slices(answer, torch.device("cpu"), [picture(0, 4, 4)], None)
        assert seen == [(False, "highest", True)]
        assert settings() == (True, "high", False)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU: see the next one")
@pytest.mark.parametrize("given_boxes", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("space", SPACES)
def test_a_detector_keeps_to_its_gpu(space: str, precision: str, given_boxes: bool, folders: dict[str, Path]) -> None:
    """On a GPU, current or not, no operation mixes devices and no answer is read before it has arrived. The features
    equal those of single images on a CPU, unless rounding changes a choice."""
    images = [picture(seed, 60, 80) for seed in range(2 if precision == "float32" else 1)]
    boxes = [given(i) for i in images] if given_boxes or space == "r2c_resnet50" else None
    expected = load_detector(folders[space], "cpu", precision).detect(images, boxes)
    with pretend_gpu():
        found = load_detector(folders[space], str(DEVICE), precision).detect(images, boxes)
    for a, b in zip(found, expected, strict=True):
        assert a.features.shape == b.features.shape
        scale = np.abs(b.features).max()
        assert (np.abs(a.features - b.features).max(1) < 0.02 * scale).mean() > 0.9


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("space", SPACES)
def test_gpu_equals_cpu(space: str, folders: dict[str, Path]) -> None:
    """Given boxes have the same features on a GPU as on the CPU, up to the rounding of float32."""
    images = [picture(seed, 60, 80) for seed in range(3)]
    boxes = [given(i) for i in images]
    expected, found = (load_detector(folders[space], d).detect(images, boxes) for d in ("cpu", "cuda"))
    for a, b in zip(found, expected, strict=True):
        assert np.abs(a.features - b.features).max() < relative() * np.abs(b.features).max()
