"""Converts the published weights of `pythia_fpn` and `detectron_fpn` into an `FPNDetector`; it knows their keys.

MMF publishes `detectron_model.pth`. Its keys are the names of maskrcnn-benchmark. Detectron publishes
`model_final.pkl`. Its keys are the names of Caffe2 blobs. `fpn.py` has both recipes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from visualbert_core.detector.folder import load_weights, without_counters
from visualbert_core.detector.fpn import DETECTRON, PYTHIA, FPNConfig, FPNDetector, FPNNetwork
from visualbert_core.detector.weight_loading import read_entries, tensors
from visualbert_core.errors import CheckpointError
from visualbert_core.io.weights import unbuilt


def convert_pythia(source: Path, config: FPNConfig = PYTHIA) -> tuple[FPNDetector, list[str]]:
    """Return the detector in `detectron_model.pth`, a torch file with the names of maskrcnn-benchmark, and notes on it.

    Raise CheckpointError where the file is of another kind or holds another network.
    """
    # torch's `DistributedDataParallel` puts "module." before every name that it saves.
    found = {key.removeprefix("module."): value for key, value in read_entries(source, "model").items()}
    return _converted(found, _pythia_key, config, source)


def convert_detectron(source: Path, config: FPNConfig = DETECTRON) -> tuple[FPNDetector, list[str]]:
    """Return the detector in Detectron's `model_final.pkl`, and notes on it.

    Raise CheckpointError where the file is of another kind or holds another network.
    """
    blobs = read_entries(source, "blobs", pickled=True)
    detector, notes = _converted(blobs, partial(_detectron_key, blocks=config.blocks), config, source)
    # Detectron folds the statistics of its norms into their scales and biases: mean 0 and variance 1 are left.
    for name, value in detector.model.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.fill_(float(name.endswith("var")))
    return detector, notes


def _converted(
    found: Mapping[str, Any], key_of: Callable[[str], str], config: FPNConfig, source: Path
) -> tuple[FPNDetector, list[str]]:
    """Make a detector of the weights `found`, in which a parameter of the network has the name `key_of(parameter)`."""
    with unbuilt():
        network = FPNNetwork(config)
    keys = {name: key_of(name) for name in without_counters(network.state_dict())}
    if missing := sorted(set(keys.values()) - found.keys()):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(f"{source}: not weights of {config.builder}: it lacks {', '.join(missing[:3])}{more}")
    state = tensors({name: found[key] for name, key in keys.items()}, source)
    load_weights(network, state, source, "its network")
    note = f"{config.feature_size}-d features of {config.space}; config.json has the recipe"
    return FPNDetector(network, config, "", "cpu"), [note]


def _pythia_key(name: str) -> str:
    """Return maskrcnn-benchmark's name of a parameter of `FPNNetwork`."""
    top, _, rest = name.partition(".")
    if top == "body":
        return f"backbone.body.{rest}" if rest.startswith("layer") else f"backbone.body.stem.{rest}"
    if top == "fpn":
        kind, level, _, parameter = rest.split(".")
        return f"backbone.fpn.fpn_{kind.removesuffix('_blocks')}{int(level) + 1}.{parameter}"
    if top == "rpn":
        return f"rpn.head.{rest.replace('conv.0.0.', 'conv.')}"
    return f"roi_heads.box.{'predictor' if top == 'cls_score' else 'feature_extractor'}.{name}"


def _detectron_key(name: str, blocks: Sequence[int]) -> str:
    """Return Detectron's blob for a parameter of `FPNNetwork`.

    Detectron has no statistics of norms. They get the blob of the scale beside them, so that they have its shape.
    """
    module, _, parameter = name.rpartition(".")
    suffix = "b" if parameter == "bias" else "w"
    norm = "bn_b" if parameter == "bias" else "bn_s"
    match module.split("."):
        case ["body", "conv1"]:
            return "conv1_w"
        case ["body", "bn1"]:
            return f"res_conv1_{norm}"
        case ["body", layer, block, "downsample", index]:
            return f"res{int(layer[-1]) + 1}_{block}_branch1_{norm if index == '1' else suffix}"
        case ["body", layer, block, part]:
            branch = "abc"[int(part[-1]) - 1]
            return f"res{int(layer[-1]) + 1}_{block}_branch2{branch}_{norm if part.startswith('bn') else suffix}"
        case ["fpn", kind, level, _]:
            stage = f"res{int(level) + 2}_{blocks[int(level)] - 1}_sum"
            if kind == "layer_blocks":
                return f"fpn_{stage}_{suffix}"
            return f"fpn_inner_{stage}_{suffix}" if level == "3" else f"fpn_inner_{stage}_lateral_{suffix}"
        case ["rpn", "conv", *_]:
            return f"conv_rpn_fpn2_{suffix}"
        case ["rpn", head]:
            return f"rpn_{head}_fpn2_{suffix}"
    return f"{module}_{suffix}"
