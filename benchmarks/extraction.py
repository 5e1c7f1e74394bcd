"""Compare extraction with the loops that users write: images a second, ratio, equal regions, time of our stages.

    python benchmarks/extraction.py                                      # fasterrcnn_resnet50_fpn, one CPU thread
    python benchmarks/extraction.py --space vg_c4 --port visual_bert     # beside the code of the published port
    python benchmarks/extraction.py --device cuda --precision bfloat16 --images 512 --batch-size 16

Ours is the `FeatureWorker` of a job, with two shards at once as in a job, from JPEG files to committed parts. The
others go from the same files to one .npy for each image:

- torchvision's detector, called part by part, as a user must to keep each feature with its box;
- for `vg_c4`, the loop of `extracting_data.py` in huggingface/transformers-research-projects, folder visual_bert/.
  `--port` names that folder. Empty modules replace imports that this machine lacks, and Pillow reads the images.

Both sides have the same random weights. Batch norms take the statistics of one image, and output layers are scaled, so
that regions and classes differ. Both have the same images: blurred noise in the shapes of COCO.

All contestants take turns in each round, so that a noisy machine hits all alike. A ratio is the median of the ratios of
the rounds, once by the clock and once by the CPU time of all threads. Other processes disturb CPU time less. No Ray.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
import yaml
from PIL import Image as Pillow
from torch import Tensor, nn
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import FrozenBatchNorm2d, clip_boxes_to_image, nms
from torchvision.transforms.functional import pil_to_tensor

from visualbert_core.corpus.listing import list_images
from visualbert_core.detector import load_detector
from visualbert_core.detector.inference import PRECISIONS
from visualbert_core.detector.torchvision_rcnn import DetectorConfig, TorchvisionRCNN, build
from visualbert_core.detector.vg_c4 import Preprocessing, VgC4, VgC4Config, preprocess
from visualbert_core.detector.vg_c4_network import VgC4Network
from visualbert_core.engine.shards import ShardFolder
from visualbert_core.features.store import FeatureStore
from visualbert_core.features.worker import FeatureWorker, full_fingerprint, plan_images

SHAPES = ((480, 640), (427, 640), (640, 480), (375, 500))  # (height, width): the most frequent in COCO
BUILDERS = {
    "fasterrcnn_resnet50_fpn": {},
    "fasterrcnn_resnet50_fpn_v2": {},
    "tiny_rcnn": {"num_classes": 20},
}
Found = dict[str, tuple[np.ndarray, np.ndarray]]  # image id → boxes [R, 4], features [R, D]
Contestant = Callable[[Path], Found]


def main() -> None:
    flags = parse()
    torch.manual_seed(0)
    torch.set_num_threads(flags.threads)
    device = torch.device(flags.device)
    print(f"{machine(device)}, {flags.threads} thread(s), torch {torch.__version__}, ", end="")
    print(f"torchvision {torchvision.__version__}, Pillow {PIL.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        files = draw(root / "images", flags.images)
        decoders(files[0].read_bytes())
        print(f"{flags.space}, {flags.images} images in batches of {flags.batch_size}, {flags.rounds} round(s)\n")
        make_detector(flags.space, root / "detector")
        ours = Ours(root / "detector", root / "images", flags)
        contestants: dict[str, Contestant] = dict(theirs(flags, root / "detector", files, device))
        contestants[f"visualbert_core {flags.precision}"] = ours
        report(measured(contestants, root / "out", flags.rounds), flags.images)
        ours.shares()
        if device.type == "cuda":
            print(f"GPU busy: {busy(lambda: ours(root / 'out' / 'profiled')):.0%} of the time")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", choices=(*BUILDERS, "vg_c4"), default="fasterrcnn_resnet50_fpn")
    parser.add_argument("--port", type=Path, help="folder visual_bert of transformers-research-projects, for vg_c4")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="of ours; the others are also run in float32"
    )
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


# ---------------------------------------------------------------------------------------------------------------------
# what is read


def draw(folder: Path, count: int) -> list[Path]:
    """Write JPEG files of about 100 kB with coarse and fine detail."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        height, width = SHAPES[number % len(SHAPES)]
        coarse = Pillow.fromarray(rng.integers(0, 256, (height // 24 + 1, width // 24 + 1, 3), np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Pillow.Resampling.BICUBIC)).astype(np.int16)
        pixels = (smooth + rng.normal(0, 7, smooth.shape)).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"image_{number:06}.jpg")
        Pillow.fromarray(pixels).save(paths[-1], quality=90)
    return paths


def decoders(data: bytes, times: int = 20) -> None:
    """Print whether torchvision's decoder gives the same pixels as Pillow, and the time of each."""

    def pillow() -> np.ndarray:
        return np.array(Pillow.open(io.BytesIO(data)).convert("RGB"))

    def other() -> np.ndarray:
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return torchvision.io.decode_jpeg(buffer, torchvision.io.ImageReadMode.RGB).permute(1, 2, 0).numpy()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        equal = "the same" if np.array_equal(pillow(), other()) else "other"
        took = [1000 * median(seconds(decode) for _ in range(times)) for decode in (pillow, other)]
    print(
        f"JPEG of {len(data) / 1000:.0f} kB: Pillow {took[0]:.2f} ms, torchvision.io {took[1]:.2f} ms, {equal} pixels"
    )


def make_detector(space: str, folder: Path) -> None:
    """Write a detector folder with random weights."""
    picture = torch.from_numpy(np.array(Pillow.open(draw(folder.parent / "seen", 1)[0])))[None]
    if space == "vg_c4":
        config = VgC4Config(preprocessing=Preprocessing(resize="interpolate"))
        network = VgC4Network(config.architecture, config.proposals).eval()
        spread = {network.rpn.objectness_logits: 2.0, network.rpn.anchor_deltas: 0.3}
        spread |= {network.heads.cls_score: 2.0, network.heads.bbox_pred: 0.5, network.heads.attr_score: 2.0}
        pixels = preprocess(picture, config.preprocessing)
        size = pixels.shape[2], pixels.shape[3]

        def look() -> None:
            (map_CHW,) = network.trunk(pixels)
            network.describe(map_CHW, network.propose(map_CHW, size))

        settle(network, spread, look)
        VgC4(network, config, "", "cpu").save_pretrained(folder)
        return
    rcnn = DetectorConfig(builder=space, space=space, builder_args=BUILDERS[space])
    model = build(rcnn).eval()
    head, predictor = model.rpn.head, model.roi_heads.box_predictor
    spread = {head.cls_logits: 2.0, head.bbox_pred: 0.3, predictor.cls_score: 2.0, predictor.bbox_pred: 0.5}
    settle(model, spread, lambda: model(list(picture.permute(0, 3, 1, 2).float() / 255)))
    TorchvisionRCNN(model, rcnn, "", "cpu").save_pretrained(folder)


@torch.no_grad()
def settle(network: nn.Module, spread: dict[Any, float], look: Callable[[], Any]) -> None:
    """Set every norm to the statistics of its input in one forward pass (`look`), and scale the layers in `spread`.

    `spread` has the standard deviation that the output of a layer gets. Without this, activations explode and all
    regions are alike.
    """
    handles = []

    def normalise(norm: Any, arguments: tuple[Tensor, ...]) -> None:
        norm.running_mean.copy_(arguments[0].mean((0, 2, 3)))
        norm.running_var.copy_(arguments[0].var((0, 2, 3)))

    def spread_out(layer: Any, arguments: tuple[Tensor, ...], answer: Tensor) -> Tensor | None:
        if layer not in spread:  # the levels of a pyramid share a head, which is scaled once
            return None
        factor = spread.pop(layer) / answer.transpose(0, 1).flatten(1).std(1).mean()
        layer.weight.mul_(factor)
        return answer * factor

    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            handles.append(module.register_forward_pre_hook(normalise))
    handles += [layer.register_forward_hook(spread_out) for layer in spread]
    look()
    for handle in handles:
        handle.remove()


# ---------------------------------------------------------------------------------------------------------------------
# contestants


class Ours:
    """The worker of a job. Two threads run its shards at once, as in a job, so that its stages overlap."""

    def __init__(self, detector: Path, images: Path, flags: argparse.Namespace) -> None:
        self.detector = load_detector(detector, flags.device, flags.precision)
        self.fingerprint = full_fingerprint(self.detector, "none")
        self.batch_size = flags.batch_size
        self.images = list_images(images)
        self.seconds: dict[str, float] = {}
        self.elapsed = 0.0

    def __call__(self, out: Path) -> Found:
        folder = ShardFolder(out)
        worker = FeatureWorker("", out, self.fingerprint, self.batch_size, lambda *_, **__: self.detector)
        shards = plan_images(self.images, self.images.ids, "benchmark", max(1, len(self.images) // 4))
        start = time.perf_counter()
        with ThreadPoolExecutor(2) as calls:
            list(calls.map(worker.run, shards))
        self.elapsed, self.seconds = time.perf_counter() - start, dict(worker.clock.seconds)
        folder.finish(shards, {"corpus": "benchmark", "fingerprint": self.fingerprint})
        store = FeatureStore.open(out)
        return {i: (store.fetch(i).boxes, store.fetch(i).features.astype(np.float32)) for i in store.image_ids}

    def shares(self) -> None:
        """Print the time of each stage in the last round. Stages overlap, so their sum may exceed the whole."""
        print(f"\nstages of the last round, {self.elapsed:.2f} s:")
        for stage, took in self.seconds.items():
            print(f"  {stage:8} {1000 * took / len(self.images):10.2f} ms/image {took / self.elapsed:8.1%}")


def theirs(
    flags: argparse.Namespace, detector: Path, files: list[Path], device: torch.device
) -> Iterator[tuple[str, Contestant]]:
    loaded = load_detector(detector, "cpu")
    if isinstance(loaded, TorchvisionRCNN):
        name, loop = "torchvision, part by part", torchvision_loop(loaded, files, device)
    elif flags.port is not None:
        assert isinstance(loaded, VgC4)
        name, loop = "published port", port_loop(loaded, flags.port, files, device)
    else:
        return
    yield f"{name}, float32", loop
    if flags.precision == "bfloat16":

        def lowered(out: Path) -> Found:
            with torch.autocast(device.type, torch.bfloat16):
                return loop(out)

        yield f"{name}, autocast", lowered


def torchvision_loop(detector: TorchvisionRCNN, files: list[Path], device: torch.device) -> Contestant:
    model, rule = detector.model.to(device), detector.config.selection
    heads = model.roi_heads

    @torch.inference_mode()
    def run(out: Path) -> Found:
        out.mkdir(parents=True)
        found = {}
        for path in files:
            picture = Pillow.open(path).convert("RGB")
            batch, _ = model.transform([pil_to_tensor(picture).to(device).float() / 255])
            maps = model.backbone(batch.tensors)
            maps = {"0": maps} if isinstance(maps, Tensor) else maps
            proposals, _ = model.rpn(batch, maps)
            features = heads.box_head(heads.box_roi_pool(maps, proposals, batch.image_sizes))
            logits, deltas = heads.box_predictor(features)
            scores, labels = logits.float().softmax(-1)[:, 1:].max(-1)
            boxes = heads.box_coder.decode(deltas.float(), proposals)[
                torch.arange(len(labels), device=device), labels + 1
            ]
            boxes = clip_boxes_to_image(boxes, batch.image_sizes[0])
            keep = nms(boxes, scores, rule.nms_iou)
            above = int((scores[keep] >= rule.score_threshold).sum())
            keep = keep[: min(max(above, rule.min_regions), rule.max_regions)]
            boxes = resize_boxes(boxes[keep], batch.image_sizes[0], (picture.height, picture.width))
            found[path.stem] = boxes.cpu().numpy(), features[keep].float().cpu().numpy()
            save(out / path.stem, *found[path.stem])
        return found

    return run


def port_loop(detector: VgC4, port: Path, files: list[Path], device: torch.device) -> Contestant:
    """Return the loop of `Extract.__call__` in `extracting_data.py`: one image a batch, the default of its command."""
    sys.path.insert(0, str(port))
    for name in ("cv2", "wget", "requests"):
        try:
            import_module(name)
        except ImportError:
            sys.modules[name] = types.ModuleType(name)
    cv2: Any = sys.modules["cv2"]
    cv2.imread = lambda path: np.array(Pillow.open(path).convert("RGB"))
    cv2.cvtColor, cv2.COLOR_BGR2RGB = (lambda pixels, _: pixels[:, :, ::-1].copy()), None
    utils, frcnn, images = (import_module(name) for name in ("utils", "modeling_frcnn", "processing_image"))
    config = utils.Config(yaml.safe_load(PORT_CONFIG.format(device=device.type)))
    model = frcnn.GeneralizedRCNN(config)
    model.load_state_dict(dict(zip(model.state_dict(), matched(detector.model, model), strict=True)))
    model.eval()
    read = images.Preprocess(config)

    def run(out: Path) -> Found:
        out.mkdir(parents=True)
        found = {}
        for path in files:
            pixels, sizes, scales = read([str(path)])
            answer = model(
                *(pixels, sizes),
                scales_yx=scales,
                padding="max_detections",
                max_detections=config.MAX_DETECTIONS,
                pad_value=0,
                return_tensors="np",
                location="cpu",
            )
            found[path.stem] = answer["boxes"][0], answer["roi_features"][0]
            save(out / path.stem, *found[path.stem])
        return found

    return run


def matched(ours: VgC4Network, theirs: nn.Module) -> Iterator[Tensor]:
    """Yield our tensors in the order of the port's state dict."""
    from visualbert_core.detector.vg_c4_weights import network_names

    state = ours.state_dict()
    for name in theirs.state_dict():
        (known,) = network_names({name: torch.empty(0)})
        yield state[known]


PORT_CONFIG = """
model: {{device: {device}, pixel_mean: [102.9801, 115.9465, 122.7717], pixel_std: [1.0, 1.0, 1.0], max_pool: true}}
input: {{format: BGR, min_size_test: 600, max_size_test: 1000}}
size_divisibility: 0
pad_value: 0
min_detections: 36
max_detections: 36
backbone: {{freeze_at: 2}}
resnets:
  {{depth: 101, norm: BN, num_groups: 1, out_features: [res4], res2_out_channels: 256, res5_dilation: 2,
    stem_out_channels: 64, stride_in_1x1: true, width_per_group: 64}}
anchor_generator: {{sizes: [[64, 128, 256, 512]], aspect_ratios: [[0.5, 1.0, 2.0]], offset: 0.0}}
proposal_generator: {{hidden_channels: 512, min_size: 0}}
rpn:
  {{batch_size_per_image: 256, bbox_reg_weights: [1.0, 1.0, 1.0, 1.0], boundary_thresh: -1, in_features: [res4],
    iou_labels: [0, -1, 1], iou_thresholds: [0.3, 0.7], loss_weight: 1.0, nms_thresh: 0.7, positive_fraction: 0.5,
    post_nms_topk_test: 300, post_nms_topk_train: 2000, pre_nms_topk_test: 6000, pre_nms_topk_train: 12000,
    smooth_l1_beta: 0.0}}
roi_heads:
  {{in_features: [res4], iou_labels: [0, 1], iou_thresholds: [0.5], num_classes: 1600, positive_fraction: 0.25,
    nms_thresh_test: [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], proposal_append_gt: true, score_thresh_test: 0.2}}
roi_box_head:
  {{attr: true, bbox_reg_weights: [10.0, 10.0, 5.0, 5.0], cls_agnostic_bbox_reg: false, num_attrs: 400,
    pooler_resolution: 14, pooler_sampling_ratio: 0, res5halve: false, smooth_l1_beta: 0.0}}
"""


def save(path: Path, boxes: np.ndarray, features: np.ndarray) -> None:
    np.save(path.with_suffix(".npy"), {"boxes": boxes, "features": features}, allow_pickle=True)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------------------
# what is printed


@dataclass
class Result:
    """The seconds of one contestant in each round, and the regions that it found."""

    found: Found
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def measured(contestants: dict[str, Contestant], out: Path, rounds: int) -> dict[str, Result]:
    """Return the seconds of every round, after one to warm up, and the regions."""
    results: dict[str, Result] = {}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            found = run(out / f"{number} {name}")  # returns arrays in host memory, so the device has finished
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if number:
                results[name].wall.append(wall)
                results[name].cpu.append(cpu)
            else:
                results[name] = Result(found)
    return results


def report(results: dict[str, Result], images: int) -> None:
    base = next(iter(results.values()))
    print(f"{'':42} {'images/s':>9} {'ratio':>7} {'CPU s/image':>12} {'ratio':>7} {'same regions':>14} {'cosine':>8}")
    for name, result in results.items():
        wall, cpu = ratio(base.wall, result.wall), ratio(base.cpu, result.cpu)
        same, cosine = compare(base.found, result.found)
        print(f"{name:42} {images / median(result.wall):9.3f} {wall:6.2f}x ", end="")
        print(f"{median(result.cpu) / images:12.3f} {cpu:6.2f}x {same:>14} {cosine:8.5f}")
    scale = max(np.abs(features).max() for _, features in base.found.values())
    print("same regions: how many of the first line's have one within half a pixel; cosine: the least of these pairs")
    print(f"(the largest feature is {scale:.1f})")


def ratio(base: list[float], took: list[float]) -> float:
    return median(b / s for b, s in zip(base, took, strict=True))


def compare(base: Found, found: Found) -> tuple[str, float]:
    """Count the regions of `base` that are found again, and return the least cosine of the features of these pairs."""
    same = total = 0
    least = 1.0
    for image_id, (expected, reference) in base.items():
        boxes, features = found[image_id]
        far = np.abs(expected[:, None] - boxes[None]).max(2)
        partner = far.argmin(1)
        near = far.min(1) < 0.5
        a, b = reference[near], features[partner[near]]
        cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1) + 1e-12)
        same, total, least = same + int(near.sum()), total + len(near), min(least, float(cosines.min(initial=1.0)))
    return f"{same} of {total}", least


def busy(run: Callable[[], Any]) -> float:
    """Return the share of the time in which the GPU runs a kernel. One stream runs kernels one after the other."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        elapsed = seconds(run)
    return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6 / elapsed


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
