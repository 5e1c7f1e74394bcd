"""The base class of networks that are read from and written to checkpoint folders.

Owns which key of a file becomes which parameter. Published files differ in four harmless ways, which are accepted: an
extra `position_ids` buffer, missing copies of tied weights, a missing `visual_bert.` prefix, half precision. Every
other difference is a CheckpointError. transformers only warns about a missing weight, and a head with random weights
still prints a score. The one exception is a head that the caller declares to be new.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from visualbert_core.errors import CheckpointError
from visualbert_core.io.weights import blocks, unbuilt, without_numbers
from visualbert_core.models.visualbert.checkpoint.files import (
    SAFETENSORS_FILE,
    checkpoint_folder,
    read_weights,
    shown,
    weights_file,
)
from visualbert_core.models.visualbert.config import CONFIG_FILE, VisualBertConfig
from visualbert_core.printable import logger

_LOG = logger(__name__)


class Pretrained(nn.Module):
    """A network that can be read from and written to a checkpoint folder."""

    trunk: ClassVar[str | None] = "visual_bert"
    """The attribute of a head that holds the trunk. None for the trunk itself."""
    tied: ClassVar[Mapping[str, str]] = {}
    """Tied parameters, copy → original. Both names hold the same tensor."""

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        config: VisualBertConfig | None = None,
        new_head: bool = False,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> Self:
        """Read the network of a checkpoint folder or Hub id. It is float32, on the CPU, and in eval mode.

        `config` replaces the configuration of the checkpoint. With `new_head` the file must hold only the trunk.
        Parameters of the head that are missing or have another shape get initial weights. Weights of other heads are
        not used. A log record at INFO lists both. `revision` and `cache_dir` have the meaning that Hugging Face gives
        them. Raise CheckpointError naming the file and the keys or shapes that do not fit.
        """
        folder = checkpoint_folder(source, revision, cache_dir)
        path = weights_file(folder)
        return cls.from_weights(config or VisualBertConfig.from_folder(folder), read_weights(path), path, new_head)

    @classmethod
    def from_weights(
        cls, config: VisualBertConfig, found: dict[str, Tensor], path: Path, new_head: bool = False
    ) -> Self:
        """Build the network with the tensors `found`, which have the names of this file format and come from `path`.

        Raise CheckpointError as `from_pretrained` does, and ValueError for a `new_head` on a trunk.
        """
        if new_head and cls.trunk is None:
            raise ValueError(f"{cls.__name__} has no head that could be new")
        cls._check_sizes(config, found, path)
        with torch.device("cpu") if new_head else unbuilt():
            model = cls(config)
        model.load_state_dict(model._fitted(found, path, new_head), assign=True, strict=not new_head)
        model.tie_weights()
        return model.eval()

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype = torch.float32, without: str | None = None
    ) -> None:
        """Write `config.json` and `model.safetensors`. Both this library and transformers can load them.

        `without` is the name of a module that is not written, such as a head that only a training needs.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"architectures": [type(self).__name__], **self.config.to_dict()}
        config["dtype"] = str(dtype).removeprefix("torch.")
        state = self.state_dict()
        names = [key for key in state if key not in self.tied and not (without and key.startswith(f"{without}."))]
        kept = {key: state[key].to("cpu", dtype).contiguous() for key in names}
        # A reader may have the old file mapped into memory. Replacing the file is safe; writing into it is not.
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            written = Path(temporary) / SAFETENSORS_FILE
            save_file(kept, written, metadata={"format": "pt"})
            written.replace(folder / SAFETENSORS_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def tie_weights(self) -> None:
        """Make every tied name the same parameter as its original."""
        for copy, original in self.tied.items():
            owner, _, name = copy.rpartition(".")
            setattr(self.get_submodule(owner), name, self.get_parameter(original))

    @classmethod
    def _check_sizes(cls, config: VisualBertConfig, found: Mapping[str, Tensor], path: Path) -> None:
        """Compare the sizes of the trunk with the shapes of the weights. Raise CheckpointError if they differ.

        This comes before the network is built, because a wrong size in `config.json` could fill the memory.
        """
        shapes = {key: tuple(value.shape) for key, value in cls._renamed(found).items()}
        trunk = "" if cls.trunk is None else f"{cls.trunk}."
        expected = {f"{trunk}{key}.weight": shape for key, shape in _tables(config).items()}
        if missing := sorted(expected.keys() - shapes.keys()):
            raise CheckpointError(f"{path}: does not fit {cls.__name__}: missing {shown(missing)}")
        differ = [key for key in expected if shapes[key] != expected[key]]
        wrong = [f"{key} {list(shapes[key])} instead of {list(expected[key])}" for key in differ]
        if wrong:
            raise CheckpointError(f"{path}: shapes do not fit {CONFIG_FILE}: {shown(wrong)}")
        (layers,) = blocks(shapes, f"{trunk}encoder.layer.")
        if layers < config.num_hidden_layers:
            stated = f"{CONFIG_FILE} has num_hidden_layers {config.num_hidden_layers}"
            raise CheckpointError(f"{path}: has only {layers} encoder layers, {stated}")

    def _fitted(self, found: dict[str, Tensor], path: Path, new_head: bool) -> dict[str, Tensor]:
        """Return `found` under the names of this network, with the right shapes. Only a new head may be incomplete.

        Raise CheckpointError for a key that is missing or unknown, and for a wrong shape.
        """
        found = self._renamed({key: found[key] for key in found if not key.endswith("position_ids")})
        if integers := without_numbers(found):
            raise CheckpointError(
                f"{path}: weights must be floating-point numbers, these are not: {shown(integers)} (if the checkpoint "
                "is quantised, use the one from before quantisation)"
            )
        for copy, original in self.tied.items():
            if original not in found:
                continue
            if not torch.equal(found.get(copy, found[original]), found[original]):
                raise CheckpointError(f"{path}: {copy} must be a copy of {original} and differs from it")
            found[copy] = found[original]
        expected = self.state_dict()
        if new_head:
            found = self._without_head(found, expected)
        missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
        if new_head:
            missing = [key for key in missing if self._in_trunk(key)]
        if missing or unknown:
            parts = [f"{what} {shown(keys)}" for what, keys in (("missing", missing), ("unknown", unknown)) if keys]
            hint = self._new_head(missing + unknown)
            raise CheckpointError(f"{path}: does not fit {type(self).__name__}: {'; '.join(parts)}{hint}")
        differ = [key for key in sorted(found) if found[key].shape != expected[key].shape]
        wrong = [f"{key} {list(found[key].shape)} instead of {list(expected[key].shape)}" for key in differ]
        if wrong:
            raise CheckpointError(f"{path}: shapes do not fit {CONFIG_FILE}: {shown(wrong)}{self._new_head(differ)}")
        return found

    def _new_head(self, keys: list[str]) -> str:
        """Return what to do where these keys do not fit and all are of the head."""
        if self.trunk is None or any(map(self._in_trunk, keys)):
            return ""
        return " (new_head=True starts a new head on this trunk; in a training, weights: new-head)"

    def _without_head(self, found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of the trunk, and those of the head that fit. Log the others."""
        fits = {key for key in found if key in expected and found[key].shape == expected[key].shape}
        left = {key: value for key, value in found.items() if self._in_trunk(key) or key in fits}
        fresh, dropped = sorted(expected.keys() - left.keys()), sorted(found.keys() - left.keys())
        _LOG.info("%s: fresh %s; not used %s", type(self).__name__, shown(fresh) or "none", shown(dropped) or "none")
        return left

    def _in_trunk(self, key: str) -> bool:
        return key.startswith(f"{self.trunk}.")

    @classmethod
    def _renamed(cls, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Add or remove the prefix of the trunk.

        A trunk is read from the file of a head by removing it. A head accepts a file without it, as transformers writes
        for a bare trunk.
        """
        prefix = "visual_bert."
        if cls.trunk is None:
            inside = {key.removeprefix(prefix): found[key] for key in found if key.startswith(prefix)}
            return inside or dict(found)
        if any(key.startswith(prefix) for key in found):
            return dict(found)
        parts = ("embeddings.", "encoder.", "pooler.", "additional_layer.")
        return {prefix + key if key.startswith(parts) else key: found[key] for key in found}


def _tables(config: VisualBertConfig) -> dict[str, tuple[int, int]]:
    """Return the expected shapes of the matrices that tell the sizes of a trunk."""
    hidden = config.hidden_size
    return {
        "embeddings.word_embeddings": (config.vocab_size, hidden),
        "embeddings.position_embeddings": (config.max_position_embeddings, hidden),
        "embeddings.token_type_embeddings": (config.type_vocab_size, hidden),
        "embeddings.visual_projection": (hidden, config.visual_embedding_dim),
        "encoder.layer.0.intermediate.dense": (config.intermediate_size, hidden),
    }
