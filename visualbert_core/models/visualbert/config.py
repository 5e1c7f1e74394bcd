"""The sizes of a VisualBERT network, as `config.json` holds them.

Owns reading, checking and writing that file. The network is VisualBERT (Li et al. 2019,
https://arxiv.org/abs/1908.03557). Key names and defaults are those of transformers `VisualBertConfig`. transformers
also writes many keys that do not shape the network. Reading ignores them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from visualbert_core.errors import CheckpointError
from visualbert_core.io.documents import brief, read_json

MODEL_TYPE = "visual_bert"
CONFIG_FILE = "config.json"
ACTIVATIONS = ("gelu", "gelu_new", "relu")


@dataclass(frozen=True)
class VisualBertConfig:
    """The sizes of a VisualBERT. Raises ValueError naming the key if a value makes no sense.

    `id2label` holds the answers in order of their index. None stands for the default names LABEL_0, LABEL_1, ….
    `pad_token_id` says which word vector starts at zero and stays zero. It has no other effect. The default of
    transformers is 1, but the padding token of BERT is 0. Set it to 0 to train from scratch.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    visual_embedding_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    bypass_transformer: bool = False
    special_visual_initialize: bool = True
    pad_token_id: int | None = 1
    num_labels: int = 2
    id2label: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, kind in ((each.name, each.type) for each in fields(self)):
            value = getattr(self, name)
            if kind == "int":
                _require(type(value) is int and value > 0, self, name, "a positive whole number")
                # A wrong size shows when the weights are compared with it. A wrong number of labels may not: some heads
                # have no tensor of that size, and their label list would fill the memory.
                most = _MOST_LABELS if name == "num_labels" else 2**31
                _require(value <= most, self, name, f"at most {most:,}")
            elif kind == "bool":
                _require(type(value) is bool, self, name, "true or false")
            elif kind == "float" and "dropout" in name:
                _require(_is_real(value) and 0 <= value < 1, self, name, "in [0, 1)")
            elif kind == "float":
                _require(_is_real(value) and value > 0, self, name, "a positive number")
        _require(self.hidden_act in ACTIVATIONS, self, "hidden_act", f"one of {', '.join(ACTIVATIONS)}")
        divides = self.hidden_size % self.num_attention_heads == 0
        _require(divides, self, "hidden_size", f"a multiple of num_attention_heads ({self.num_attention_heads})")
        pad = self.pad_token_id
        known = pad is None or (type(pad) is int and 0 <= pad < self.vocab_size)
        _require(known, self, "pad_token_id", "null or an index of the vocabulary")
        named = self.id2label is None or len(self.id2label) == self.num_labels
        _require(named, self, "num_labels", "the number of labels in id2label")

    @classmethod
    def from_folder(cls, folder: str | Path, model_type: str = MODEL_TYPE, **changes: Any) -> VisualBertConfig:
        """Read the `config.json` of a network of this type, with `changes` in place of some of its values.

        Raise CheckpointError naming the file and the key if it is missing or wrong.
        """
        path = Path(folder) / CONFIG_FILE
        found = read_json(path, CheckpointError)
        if not isinstance(found, dict) or found.get("model_type") != model_type:
            kind = found.get("model_type") if isinstance(found, dict) else type(found).__name__
            raise CheckpointError(f"{path}: model_type must be {model_type!r}, got {brief(kind)}")
        known = {each.name: found[each.name] for each in fields(cls) if each.name in found.keys() - changes}
        try:
            if known.get("id2label") is not None:
                known["id2label"], known["num_labels"] = _ordered(known["id2label"])
            return cls(**known | changes)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return the keys as transformers writes them. transformers counts the labels in `id2label`."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("num_labels", "id2label")}
        labels = self.id2label or tuple(f"LABEL_{i}" for i in range(self.num_labels))
        return {
            "model_type": MODEL_TYPE,
            **values,
            "id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)},
        }


_MOST_LABELS = 1_000_000


def _ordered(labels: Any) -> tuple[tuple[str, ...] | None, int]:
    """Return the labels by index, and their number. Return None for the default names LABEL_i of transformers."""
    try:
        by_index = {int(index): str(label) for index, label in labels.items()}
        names = tuple(by_index[i] for i in range(len(labels)))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError("id2label: must map 0, 1, 2, … to the names of the labels") from None
    nameless = all(name == f"LABEL_{i}" for i, name in enumerate(names))
    return (None if nameless else names), len(names)


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)  # numpy's float64 is a float


def _require(good: bool, config: VisualBertConfig, name: str, expected: str) -> None:
    if not good:
        raise ValueError(f"{name}: must be {expected}, got {brief(getattr(config, name))}")
