"""The authors' checkpoints (`vqa_fine_tuned.th`, …) → checkpoint folders.

Owns the parameter names of https://github.com/uclanlp/visualbert, and how the tensors of a file tell its sizes and its
task. The VCR files also hold the detector that was trained with the network. The conversion of transformers drops it,
and without it there are no features for the VCR weights to read. Here it is written to a file of its own, under its
original names.
"""

from __future__ import annotations

import re
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from visualbert_core.errors import CheckpointError
from visualbert_core.models.visualbert.checkpoint.files import SAFETENSORS_FILE, read_weights, shown
from visualbert_core.models.visualbert.checkpoint.metadata import FORMS, CheckpointMetadata
from visualbert_core.models.visualbert.config import VisualBertConfig
from visualbert_core.models.visualbert.heads import NETWORKS as NETWORK_OF_FORM
from visualbert_core.models.visualbert.heads import HeadNetwork, VisualBertForPreTraining
from visualbert_core.printable import printable

DETECTOR_FILE = "detector.safetensors"
NETWORKS: dict[str, type[HeadNetwork]] = {
    "pretraining": VisualBertForPreTraining,
    **{task: NETWORK_OF_FORM[form] for task, form in FORMS.items()},
}
_CLASSES = {1: "vcr", 2: "nlvr2", 3129: "vqa"}
_PREFIXES = {
    "bert.bert.": "visual_bert.",
    "bert.cls.": "cls.",
    "bert.classifier.": "cls.",
    "bert.flickr_attention.": "attention.",
}
_EMBEDDINGS = {
    "token_type_embeddings_visual.": "visual_token_type_embeddings.",
    "position_embeddings_visual.": "visual_position_embeddings.",
    "projection.": "visual_projection.",
}
_HEAD_WIDTH = 64  # the same in every published BERT; no tensor tells the number of attention heads


def convert(
    source: str | Path,
    target: str | Path,
    task: str | None = None,
    attention_heads: int | None = None,
    feature_space: str | None = None,
) -> str:
    """Convert the file `source` into the new folder `target`. Return a few lines that say what was found.

    By default the keys and shapes of the head tell the task, and `attention_heads` is hidden_size / 64. Raise
    CheckpointError if `target` is not empty or `source` is not a VisualBERT of the authors.
    """
    source, target = Path(source), Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target}: exists and is not empty: name a new folder")
    found, detector = original_names(read_weights(source), source)
    task = task or _task(found, source)
    network = NETWORKS[task].from_weights(_config(found, source, attention_heads), found, source)
    network.save_pretrained(target)
    CheckpointMetadata(task=None if task == "pretraining" else task, feature_space=feature_space).save(target)
    if detector:
        save_file(detector, target / DETECTOR_FILE)
    config, count = network.config, sum(parameter.numel() for parameter in network.parameters())
    lines = [
        f"{source} → {target}",
        f"task {task}: {type(network).__name__}, {config.num_hidden_layers} layers of {config.hidden_size}, "
        f"{config.visual_embedding_dim}-d features, {count / 1e6:.1f} M parameters in {SAFETENSORS_FILE}",
    ]
    if detector:
        lines.append(f"its detector: {len(detector)} tensors in {DETECTOR_FILE}")
    beside = "vocab.txt and answers.txt" if task == "vqa" else "vocab.txt"
    lines.append(f"to evaluate it, put {beside} beside it (docs/checkpoints.md)")
    return "\n".join(map(printable, lines))


def original_names(state: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a file into the network, under the names of transformers, and the detector, under its original names.

    Raise CheckpointError if a key belongs to neither.
    """
    network, detector, unknown = {}, {}, []
    for key, value in state.items():
        prefix = next((prefix for prefix in _PREFIXES if key.startswith(prefix)), None)
        if prefix is not None:
            name = _PREFIXES[prefix] + key.removeprefix(prefix)
            parts = re.fullmatch(r"(visual_bert\.embeddings\.)(\w+\.)(\w+)", name)
            network[parts[1] + _EMBEDDINGS.get(parts[2], parts[2]) + parts[3] if parts else name] = value
        elif key.startswith("detector."):
            detector[key] = value.clone()
        else:
            unknown.append(key)
    if unknown or not network:
        what = f"unknown {shown(sorted(unknown))}" if unknown else "no tensors"
        raise CheckpointError(f"{path}: not a checkpoint of the authors' VisualBERT: {what}")
    return network, detector


def _task(found: dict[str, Tensor], path: Path) -> str:
    if "attention.query.weight" in found:
        return "flickr30k_entities"
    if "cls.predictions.bias" in found:
        return "pretraining"
    classes = len(found["cls.weight"]) if "cls.weight" in found else 0
    if classes not in _CLASSES:
        raise CheckpointError(f"{path}: a head of {classes} classes does not tell its task: name it with --task")
    return _CLASSES[classes]


def _config(found: dict[str, Tensor], path: Path, attention_heads: int | None) -> VisualBertConfig:
    """Read the sizes from the shapes of the tensors. The other values are the same in all published checkpoints."""

    def shape(key: str) -> tuple[int, int]:
        tensor = found.get(f"visual_bert.{key}.weight")
        if tensor is None or tensor.dim() != 2:
            raise CheckpointError(f"{path}: visual_bert.{key}.weight is missing or is not a matrix")
        return tensor.shape[0], tensor.shape[1]

    vocab, hidden = shape("embeddings.word_embeddings")
    layers = {int(m[1]) for key in found if (m := re.match(r"visual_bert\.encoder\.layer\.(\d+)\.", key))}
    classes = len(found["cls.weight"]) if "cls.weight" in found else 2
    heads = attention_heads or hidden // _HEAD_WIDTH
    try:
        return VisualBertConfig(
            vocab_size=vocab,
            hidden_size=hidden,
            visual_embedding_dim=shape("embeddings.visual_projection")[1],
            num_hidden_layers=len(layers),
            num_attention_heads=heads,
            intermediate_size=shape("encoder.layer.0.intermediate.dense")[0],
            max_position_embeddings=shape("embeddings.position_embeddings")[0],
            type_vocab_size=shape("embeddings.token_type_embeddings")[0],
            bypass_transformer=any(key.startswith("visual_bert.additional_layer.") for key in found),
            num_labels=classes if classes > 1 else 2,
        )
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
