"""Configs that contradict the weights beside them, and files that are not weights, are refused in one line, at once,
before any memory is allocated.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from visualbert_core.detector import load_detector
from visualbert_core.detector.fpn import FPNConfig, FPNDetector, FPNNetwork
from visualbert_core.detector.r2c_resnet50 import R2CConfig, R2CDetector, R2CNetwork
from visualbert_core.detector.tiny_rcnn import tiny_rcnn
from visualbert_core.detector.torchvision_rcnn import DetectorConfig, TorchvisionRCNN
from visualbert_core.detector.vg_c4 import VgC4, VgC4Config
from visualbert_core.detector.vg_c4_network import Architecture, VgC4Network
from visualbert_core.errors import CheckpointError
from visualbert_core.io import lfs
from visualbert_core.models.visualbert import (
    VisualBertConfig,
    VisualBertForMultipleChoice,
    VisualBertForVisualReasoning,
    VisualBertModel,
)
from visualbert_core.schema import Question, Statement

HUGE = 10**9
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 4512\n"


@contextmanager
def refused(*says: str) -> Iterator[None]:
    """Assert that the block raises a one-line CheckpointError with these words, within seconds and without much
    memory."""
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError) as raised:
        yield
    for part in says:
        assert part in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 800
    assert time.monotonic() - start < 5  # alone it takes under a second; a busy machine needs more
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def edit(path: Path, change: Callable[[Any], None]) -> None:
    """Change a JSON file in place."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


# ---------------------------------------------------------------------------------------------------------------------
# VisualBERT


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    config = VisualBertConfig(
        vocab_size=30,
        hidden_size=16,
        visual_embedding_dim=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=20,
    )
    VisualBertForVisualReasoning(config).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("new_head", [False, True])
@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("num_hidden_layers", 10**6, "has only 2 encoder layers, config.json has num_hidden_layers 1000000"),
        ("num_hidden_layers", 3, "has only 2 encoder layers, config.json has num_hidden_layers 3"),
        ("hidden_size", HUGE, "word_embeddings.weight [30, 16] instead of [30, 1000000000]"),
        ("vocab_size", HUGE, "word_embeddings.weight [30, 16] instead of [1000000000, 16]"),
        ("intermediate_size", HUGE, "intermediate.dense.weight [24, 16] instead of [1000000000, 16]"),
        ("visual_embedding_dim", HUGE, "visual_projection.weight [16, 8] instead of [16, 1000000000]"),
        ("max_position_embeddings", HUGE, "position_embeddings.weight [20, 16] instead of [1000000000, 16]"),
        ("type_vocab_size", HUGE, "token_type_embeddings.weight [2, 16] instead of [1000000000, 16]"),
        ("hidden_size", 2**62, "hidden_size: must be at most 2,147,483,648"),
        ("hidden_size", 10**30, "hidden_size: an integer of"),
        ("num_attention_heads", 10**6, "hidden_size: must be a multiple of num_attention_heads"),
    ],
)
def test_weights_refute_sizes(checkpoint: Path, key: str, value: int, says: str, new_head: bool) -> None:
    """A size that the weights do not have is refused from the header of the weights file, with a new head as well."""
    edit(checkpoint / "config.json", lambda values: values.update({key: value}))
    with refused(says):
        VisualBertForVisualReasoning.from_pretrained(checkpoint, new_head=new_head)


def test_a_trunk_is_checked_too(checkpoint: Path) -> None:
    """A trunk that is read alone, or from a torch file, is checked in the same way."""
    edit(checkpoint / "config.json", lambda values: values.update(num_hidden_layers=10**6))
    with refused("has only 2 encoder layers"):
        VisualBertModel.from_pretrained(checkpoint)
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    with refused("pytorch_model.bin: has only 2 encoder layers"):
        VisualBertForVisualReasoning.from_pretrained(checkpoint)


def test_labels_that_no_weight_counts(checkpoint: Path) -> None:
    """The weights of a head with one score per choice do not show the number of labels, so a billion labels is refused
    as such."""
    edit(checkpoint / "config.json", lambda values: (values.pop("id2label"), values.update(num_labels=HUGE)))
    with refused("num_labels: must be at most 1,000,000, got 1000000000"):
        VisualBertForMultipleChoice.from_pretrained(checkpoint)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
@pytest.mark.parametrize("key", ["cls.weight", "visual_bert.embeddings.word_embeddings.weight"])
def test_integers_are_no_weights(checkpoint: Path, key: str, dtype: torch.dtype) -> None:
    """Quantised weights are refused by name, because their integers are not the values that they encode."""
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    weights[key] = weights[key].to(dtype)
    save_file(weights, path)
    with refused("weights must be floating-point numbers", f"{key} {str(dtype).removeprefix('torch.')}"):
        VisualBertForVisualReasoning.from_pretrained(checkpoint)


@pytest.mark.parametrize("text", ['{"model_type":' * 100_000, "[" * 100_000, '{"hidden_size": ' + "9" * 10_000 + "}"])
@pytest.mark.parametrize("name", ["config.json", "visualbert_core.json"])
def test_hostile_documents(checkpoint: Path, name: str, text: str) -> None:
    """Nesting that overflows a stack and integers of thousands of digits are one-line errors in each file of a
    folder."""
    from visualbert_core.models.visualbert import VisualBertPredictor

    (checkpoint / name).write_text(text)
    with refused(name):
        VisualBertPredictor.from_pretrained(checkpoint, Statement, device="cpu")


def test_a_key_that_stands_twice_in_a_config(checkpoint: Path) -> None:
    """A key that occurs twice in a config is refused with both lines, because the reader cannot know which value is
    meant."""
    path = checkpoint / "config.json"
    path.write_text(path.read_text().replace('"hidden_size": 16', '"hidden_size": 16,\n  "hidden_size": 32'))
    with refused("hidden_size: the key stands in line", "and again in line"):
        VisualBertForVisualReasoning.from_pretrained(checkpoint)


# ---------------------------------------------------------------------------------------------------------------------
# detectors


def tiny(folder: Path) -> None:
    arguments = {"num_classes": 3, "feature_size": 8}
    config = DetectorConfig(builder="tiny_rcnn", space="s", builder_args=arguments)
    TorchvisionRCNN(tiny_rcnn(**arguments), config, "", "cpu").save_pretrained(folder)


def vg_c4(folder: Path) -> None:
    architecture = Architecture(blocks=(1, 1, 1, 1), width=4, rpn_channels=8, num_objects=3, num_attributes=2)
    config = VgC4Config(architecture=architecture)
    VgC4(VgC4Network(architecture, config.proposals), config, "", "cpu").save_pretrained(folder)


def fpn(folder: Path) -> None:
    config = FPNConfig(
        blocks=(1, 1, 1, 1), groups=1, group_width=4, pyramid_size=8, feature_size=16, num_classes=3, num_regions=5
    )
    FPNDetector(FPNNetwork(config), config, "", "cpu").save_pretrained(folder)


def r2c(folder: Path) -> None:
    config = R2CConfig(blocks=(1, 1, 1, 1), feature_size=8)
    R2CDetector(R2CNetwork(config), config, "", "cpu").save_pretrained(folder)


KINDS: dict[str, Callable[[Path], None]] = {"tiny": tiny, "vg_c4": vg_c4, "fpn": fpn, "r2c": r2c}


@pytest.fixture(scope="module")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detectors")
    for name, make in KINDS.items():
        make(folder / name)
    return folder


def changed(detectors: Path, kind: str, to: Path, change: Callable[[Any], None]) -> Path:
    """Copy a detector folder with a changed config; the weights are a link."""
    to.mkdir()
    (to / "model.safetensors").symlink_to(detectors / kind / "model.safetensors")
    (to / "config.json").write_text((detectors / kind / "config.json").read_text())
    edit(to / "config.json", change)
    return to


def put(place: str, value: object) -> Callable[[Any], None]:
    """Return a function that sets `a.b` of a config."""

    def change(values: Any) -> None:
        *path, last = place.split(".")
        for part in path:
            values = values[part]
        values[last] = value

    return change


@pytest.mark.parametrize(
    ("kind", "place", "value", "says"),
    [
        ("tiny", "builder_args.num_classes", HUGE, "does not fit builder 'tiny_rcnn'"),
        ("tiny", "builder_args.feature_size", HUGE, "does not fit builder"),
        ("tiny", "builder_args.feature_size", 10**17, "config.json: "),
        ("tiny", "builder_args.roi_size", 10**5, "does not fit builder"),
        ("tiny", "builder_args.num_classes", -1, "config.json: "),
        ("tiny", "builder_args.num_classes", "three", "config.json: "),
        ("tiny", "builder_args.image_size", HUGE, "pixels a side: a side must be 1 to 10,000"),
        ("tiny", "builder", "fasterrcnn_resnet50_fpn", "does not fit builder 'fasterrcnn_resnet50_fpn'"),
        ("tiny", "norm_eps", -1, "norm_eps is -1.0: it must be at least 0"),
        ("tiny", "selection.nms_iou", 1.5, "selection: nms_iou is 1.5: it must be at most 1"),
        ("tiny", "selection.max_regions", 0, "selection: max_regions is 0: it must be at least 1"),
        (
            "vg_c4",
            "architecture.blocks",
            [1, 1, 10**7, 1],
            "blocks is [1, 1, 10000000, 1], the weights have [1, 1, 1, 1]",
        ),
        ("vg_c4", "architecture.blocks", [], "blocks is [], the weights have [1, 1, 1, 1]"),
        ("vg_c4", "architecture.width", HUGE, "config.json: Storage size calculation overflowed"),
        ("vg_c4", "architecture.width", 8, "model.safetensors: does not fit builder 'vg_c4'"),
        ("vg_c4", "architecture.num_objects", HUGE, "heads.cls_score.weight is [4, 128], not [1000000001, 128]"),
        ("vg_c4", "preprocessing.short_side", HUGE, "short_side is 1000000000: it must be at most 10000"),
        ("vg_c4", "preprocessing.mean", [1.0], "mean is [1.0]: it must be three numbers"),
        ("vg_c4", "preprocessing.std", [1.0, 0.0, 1.0], "std is [1.0, 0.0, 1.0]: it must be three positive numbers"),
        ("vg_c4", "proposals.post_nms", -1, "post_nms is -1: it must be at least 1"),
        ("fpn", "blocks", [10**7, 1, 1, 1], "blocks is [10000000, 1, 1, 1], the weights have [1, 1, 1, 1]"),
        ("fpn", "feature_size", HUGE, "does not fit builder 'pythia_fpn'"),
        ("fpn", "feature_size", 10**12, "config.json: "),
        ("fpn", "groups", HUGE, "does not fit builder"),
        ("fpn", "max_size", HUGE, "max_size is 1000000000: it must be at most 10000"),
        ("fpn", "num_regions", 0, "num_regions is 0: it must be at least 1"),
        ("r2c", "blocks", [1, 10**7, 1, 1], "blocks is [1, 10000000, 1, 1], the weights have [1, 1, 1, 1]"),
        ("r2c", "feature_size", HUGE, "does not fit builder 'r2c_resnet50'"),
        ("r2c", "width", HUGE, "width is 1000000000: it must be at most 10000"),
        ("r2c", "mask_size", 10**6, "mask_size is 1000000: it must be at most 512"),
        ("r2c", "feature_size", 10**30, "feature_size: an integer of"),
    ],
)
def test_weights_refute_a_detectors_sizes(
    detectors: Path, tmp_path: Path, kind: str, place: str, value: object, says: str
) -> None:
    """Layers and sizes that contradict the weights, and image sizes that fit into no memory, are refused by name."""
    folder = changed(detectors, kind, tmp_path / "detector", put(place, value))
    with refused(str(folder), says):
        load_detector(folder, "cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_an_unchanged_detector_opens(detectors: Path, tmp_path: Path, kind: str) -> None:
    """The unchanged detector opens with all its weights, so the tests above fail because of their change alone."""
    folder = changed(detectors, kind, tmp_path / "detector", lambda values: None)
    network = load_detector(folder, "cpu").model  # type: ignore[attr-defined]
    held = load_file(folder / "model.safetensors")
    state: dict[str, Tensor] = network.state_dict()
    assert all(torch.equal(state[name], held[name]) for name in held)
    assert not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))


@pytest.mark.parametrize("kind", KINDS)
def test_integers_are_no_weights_of_a_detector(detectors: Path, tmp_path: Path, kind: str) -> None:
    """Integers in place of weights are refused by name, because they would be read as other numbers."""
    folder = changed(detectors, kind, tmp_path / "detector", lambda values: None)
    weights = load_file(folder / "model.safetensors")
    key = next(iter(sorted(weights)))
    weights[key] = weights[key].to(torch.int8)
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors")
    with refused(f"{key} int8 instead of floating-point numbers"):
        load_detector(folder, "cpu")


# ---------------------------------------------------------------------------------------------------------------------
# Git LFS


@pytest.mark.parametrize(
    "name", ["config.json", "visualbert_core.json", "model.safetensors", "vocab.txt", "answers.txt"]
)
def test_pointers_in_a_checkpoint(tmp_path: Path, name: str) -> None:
    """Each file that a clone without `git lfs pull` lacks is named, with a remedy."""
    from test_visualbert_predictor import write

    from visualbert_core.models.visualbert import VisualBertPredictor

    folder = write(tmp_path, "vqa")
    (folder / name).write_bytes(POINTER)
    with refused(f"{folder / name}: {lfs.REASON}"):
        VisualBertPredictor.from_pretrained(folder, Question, device="cpu")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_pointers_under_other_names(checkpoint: Path, name: str) -> None:
    """Pointers in place of torch files and of shards' indices are named too."""
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / name).write_bytes(POINTER)
    with refused(f"{checkpoint / name}: {lfs.REASON}"):
        VisualBertForVisualReasoning.from_pretrained(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_pointers_in_a_detector(detectors: Path, tmp_path: Path, name: str) -> None:
    """Pointers in a detector's folder are named too."""
    folder = changed(detectors, "tiny", tmp_path / "detector", lambda values: None)
    (folder / name).unlink()
    (folder / name).write_bytes(POINTER)
    with refused(f"{folder / name}: {lfs.REASON}"):
        load_detector(folder, "cpu")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("in.bin", "vg_c4"), ("in.pkl", "vg_c4"), ("in.pkl", "detectron_fpn"), ("in.safetensors", "r2c_resnet50")],
)
def test_pointers_to_convert(tmp_path: Path, name: str, kind: str) -> None:
    """Pointers in place of published weights are named before a conversion, in each format."""
    from visualbert_core.detector.convert import convert

    (tmp_path / name).write_bytes(POINTER)
    with refused(f"{tmp_path / name}: {lfs.REASON}"):
        convert(kind, tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()
