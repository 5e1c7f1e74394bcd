"""A folder of BERT (Devlin et al. 2019, arXiv:1810.04805) → a VisualBERT to be pre-trained, as the authors start.

The trunk and both heads of BERT's pre-training are kept. The visual type and position tables are copies of the text
tables. The visual projection is random, because BERT has none. (github.com/uclanlp/visualbert at 2a9e8bd58a20.)
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor

from visualbert_core.errors import CheckpointError
from visualbert_core.io.documents import read_json
from visualbert_core.models.visualbert.checkpoint.files import read_weights, shown, weights_file
from visualbert_core.models.visualbert.checkpoint.metadata import CheckpointMetadata
from visualbert_core.models.visualbert.config import CONFIG_FILE, VisualBertConfig
from visualbert_core.models.visualbert.heads import VisualBertForPreTraining
from visualbert_core.models.visualbert.inputs import VOCAB_FILE
from visualbert_core.printable import printable

INGREDIENT = "training"

BERT = "bert"
"""The `model_type` of a BERT."""
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""The names in checkpoints that were converted from TensorFlow, such as bert-base-uncased."""
_TABLES = "visual_bert.embeddings."
_PROJECTION = (f"{_TABLES}visual_projection.weight", f"{_TABLES}visual_projection.bias")
_POOLER = ("visual_bert.pooler.dense.weight", "visual_bert.pooler.dense.bias")
"""What a BERT lacks that was trained on masked words alone."""
_COPIES = (f"{_TABLES}visual_token_type_embeddings.weight", f"{_TABLES}visual_position_embeddings.weight")


def from_bert(
    source: str | Path, target: str | Path, feature_size: int, feature_space: str | None = None, seed: int = 0
) -> str:
    """Convert the folder `source` of a BERT into the new folder `target`. Return a few lines that say what was found.

    `feature_size` is D of the features to be read. What BERT does not have is drawn from `seed`: the visual projection
    and, for a BERT without them, the heads and the pooler. Raise CheckpointError if `target` is not empty or `source`
    is not a BERT.
    """
    source, target = Path(source), Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target}: exists and is not empty: name a new folder")
    config = bert_config(source, feature_size)
    network, random = bert_network(source, config, seed)
    network.save_pretrained(target)
    CheckpointMetadata(feature_space=feature_space).save(target)
    beside = f"put {VOCAB_FILE} beside it"
    if (source / VOCAB_FILE).is_file():
        shutil.copyfile(source / VOCAB_FILE, target / VOCAB_FILE)
        beside = f"{VOCAB_FILE} copied"
    lines = (
        f"{source} → {target}",
        f"{config.num_hidden_layers} layers of {config.hidden_size}, {feature_size}-d features; {beside}",
        f"random, from seed {seed}: {shown(random)}",
    )
    return "\n".join(map(printable, lines))


def is_bert(folder: Path) -> bool:
    """Return whether a folder holds a BERT by its config.json."""
    held = read_json(folder / CONFIG_FILE, CheckpointError)
    return isinstance(held, dict) and held.get("model_type") == BERT


def bert_network(folder: Path, config: VisualBertConfig, seed: int) -> tuple[VisualBertForPreTraining, list[str]]:
    """Return the network with the tensors of the BERT in a folder, and the names of the tensors that are random.

    Raise CheckpointError if they are not those of a BERT with these sizes.
    """
    path = weights_file(folder)
    found = _renamed(read_weights(path), path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = VisualBertForPreTraining(config)
    expected = network.state_dict()
    drawn = [key for key in sorted(expected.keys() - found.keys()) if key not in _COPIES]
    lacking = [key for key in drawn if key.startswith("visual_bert.") and key not in (*_PROJECTION, *_POOLER)]
    wrong = [key for key in found if key not in expected or found[key].shape != expected[key].shape]
    if lacking or wrong:
        parts = [f"{what} {shown(sorted(k))}" for what, k in (("missing", lacking), ("unfit", wrong)) if k]
        raise CheckpointError(f"{path}: not the BERT of its {CONFIG_FILE}: {'; '.join(parts)}")
    network.load_state_dict(expected | found)
    network.tie_weights()
    # The constructor made copies too, but of random tables.
    network.visual_bert.embeddings.copy_text_tables()
    return network, [key for key in drawn if key not in network.tied]


def _renamed(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the tensors under the names of a VisualBERT for pre-training."""
    prefix = "bert." if any(key.startswith("bert.") for key in state) else ""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        for old, new in _OLD_NAMES.items():
            key = key.replace(old, new)
        if key.endswith("position_ids") or key.startswith("cls.predictions.decoder."):
            continue  # a buffer, and copies of tied weights
        if key.startswith("cls."):
            found[key] = value
        elif key.startswith(prefix):
            found[f"visual_bert.{key.removeprefix(prefix)}"] = value
    if not any(key.startswith(_TABLES) for key in found):
        raise CheckpointError(f"{path}: not a BERT: no tensor is named {prefix}embeddings.…")
    words = found.get(f"{_TABLES}word_embeddings.weight")
    if words is not None:
        found["cls.predictions.decoder.weight"] = words
    if "cls.predictions.bias" in found:
        found["cls.predictions.decoder.bias"] = found["cls.predictions.bias"]
    return found


def bert_config(folder: Path, feature_size: int) -> VisualBertConfig:
    """Return the configuration of a VisualBERT with the sizes of the BERT in a folder. Raise CheckpointError."""
    return VisualBertConfig.from_folder(folder, BERT, visual_embedding_dim=feature_size, num_labels=2, id2label=None)
