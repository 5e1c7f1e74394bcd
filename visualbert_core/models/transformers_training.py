"""Opens networks of Hugging Face transformers for training, from a checkpoint or from random weights.

Dropout has another name in each configuration of transformers. The names here are those of the image encoders, ViLT
and the text decoders that this package trains.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visualbert_core.errors import ConfigError
from visualbert_core.models.base import ReadsPixels
from visualbert_core.models.trainable import Start
from visualbert_core.models.transformers_folder import folder_fingerprint, load_network

INGREDIENT = "training"

DROPOUTS = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "dropout"),
    *("resid_pdrop", "embd_pdrop", "attn_pdrop", "drop_path_rate"),
)
"""The names of dropout in configurations: of BERT, ViLT and ViT; of SigLIP and BART; of GPT-2; of Swin and BEiT."""
_WEIGHTS = (".safetensors", ".bin")


def check_start(folder: Path, start: Start, *, answers: bool = False, new_head: bool = False) -> None:
    """Raise ConfigError where a recipe asks for what this network does not have."""
    if start.objective != "task":
        raise ConfigError(f"{folder}: objective {start.objective}: this model is trained on a task only; leave it out")
    if start.answers is not None and not answers:
        raise ConfigError(f"{folder}: answers: this network has no list of answers; leave it out")
    if start.weights == "new-head" and not new_head:
        raise ConfigError(f"{folder}: weights new-head: this network has no head apart: set checkpoint or random")


def set_dropout(config: Any, share: float | None) -> None:
    """Set every dropout of a configuration. With None the numbers of the configuration stay."""
    for name in DROPOUTS:
        if share is not None and isinstance(getattr(config, name, None), float | int):
            setattr(config, name, share)


class TransformersTrainable:
    """What the trainables over networks of transformers share. Threads may encode at once; only one may compute."""

    reads = ReadsPixels()

    def __init__(self, folder: Path, start: Start, make: Callable[[], Any]) -> None:
        """Keep the network that `make` makes, in training mode. What starts at random is drawn from the seed alone."""
        self._folder, self._start = folder, start
        with torch.random.fork_rng(devices=[]):  # the weights are made on the CPU
            torch.manual_seed(start.seed)
            self.network: Any = make()
        if start.gradient_checkpointing:
            self.network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.network.requires_grad_(True).train()
        self._lock = threading.Lock()  # a fast tokenizer refuses a second thread (huggingface/tokenizers#537)

    def fingerprint(self) -> dict[str, Any]:
        """Return the class, and the digests of the files of the folder that the training starts from."""
        random, files = self._start.weights == "random", folder_fingerprint(self._folder)["files"]
        read = {name: digest for name, digest in files.items() if not (random and name.endswith(_WEIGHTS))}
        return {"class": type(self.network).__name__, "files": read}

    def saved_weights(self, folder: Path) -> Mapping[str, Tensor]:
        """Return the weights of a checkpoint that `save` wrote, by the names of the network's parameters.

        transformers 5 saves a ViT under the names of older versions, so the names in the file are not those in memory.
        """
        return dict(load_network(type(self.network), folder, "float32", torch.device("cpu")).named_parameters())
