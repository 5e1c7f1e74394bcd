"""Checkpoint folders: `config.json` + `model.safetensors` (or `pytorch_model.bin`) as transformers writes them, and the
sidecar `visualbert_core.json` with what those two cannot say.

Owns which key of a file lands in which parameter. Published files differ in four harmless ways that are accepted: an
extra `position_ids` buffer, absent copies of tied weights, an absent `visual_bert.` prefix, half precision. Every other
difference is a CheckpointError, because a head that silently keeps its random weights still prints a score.
"""

from __future__ import annotations

import json
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from visualbert_core.errors import CheckpointError
from visualbert_core.models.visualbert.config import CONFIG_FILE, VisualBertConfig
from visualbert_core.provenance import digest_file

SAFETENSORS_FILE = "model.safetensors"
TORCH_FILE = "pytorch_model.bin"
SIDECAR_FILE = "visualbert_core.json"
RECIPES = ("original",)


class Pretrained(nn.Module):
    """A network that can be read from and written to a checkpoint folder."""

    trunk: ClassVar[str | None] = "visual_bert"
    """Attribute of a head that holds the trunk; None for the trunk itself."""
    tied: ClassVar[Mapping[str, str]] = {}
    """Parameters that are other names of another parameter: copy → original."""

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """The network of `folder` in float32 on the CPU, in eval mode.

        Raises CheckpointError naming the file and the keys or shapes that do not fit.
        """
        folder = Path(folder)
        with torch.device("meta"):  # no random initialisation of weights that are about to be replaced
            model = cls(VisualBertConfig.from_folder(folder))
        path = weights_file(folder)
        model.load_state_dict(model._fitted(read_weights(path), path), assign=True)
        model.tie_weights()
        return model.eval()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write `config.json` and `model.safetensors` so that this library and transformers load them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"architectures": [type(self).__name__], **self.config.to_dict()}
        config["dtype"] = str(dtype).removeprefix("torch.")
        state = self.state_dict()
        kept = {key: state[key].to("cpu", dtype).contiguous() for key in state if key not in self.tied}
        # A reader may hold the old file mapped into memory: replace it, never write into it.
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

    def _fitted(self, found: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
        """`found` under this network's names, complete and of the right shapes."""
        found = self._renamed({key: found[key] for key in found if not key.endswith("position_ids")})
        for copy, original in self.tied.items():
            if original in found:
                found[copy] = found[original]
        expected = self.state_dict()
        missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
        if missing or unknown:
            parts = [f"{what} {_shown(keys)}" for what, keys in (("missing", missing), ("unknown", unknown)) if keys]
            raise CheckpointError(f"{path}: does not fit {type(self).__name__}: {'; '.join(parts)}")
        shapes = [(key, list(found[key].shape), list(expected[key].shape)) for key in sorted(expected)]
        wrong = [f"{key} {there} instead of {wanted}" for key, there, wanted in shapes if there != wanted]
        if wrong:
            raise CheckpointError(f"{path}: shapes do not fit {CONFIG_FILE}: {_shown(wrong)}")
        return found

    def _renamed(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add or remove the trunk's prefix: a trunk is read out of a head's file, a head accepts a file without it."""
        prefix = "visual_bert."
        if self.trunk is None:
            inside = {key.removeprefix(prefix): found[key] for key in found if key.startswith(prefix)}
            return inside or found
        if any(key.startswith(prefix) for key in found):
            return found
        parts = ("embeddings.", "encoder.", "pooler.")
        return {prefix + key if key.startswith(parts) else key: found[key] for key in found}


def weights_file(folder: str | Path) -> Path:
    """The file with the weights: safetensors where there is one. Raises CheckpointError if there is none."""
    for name in (SAFETENSORS_FILE, TORCH_FILE):
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise CheckpointError(f"{folder}: neither {SAFETENSORS_FILE} nor {TORCH_FILE} is there")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Every tensor of the file, floating ones as float32 in memory of their own. Raises CheckpointError."""
    try:
        found: Any = load_file(path) if path.suffix == ".safetensors" else _torch_load(path)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: cannot be read ({_first_line(error)})") from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path}: must hold named tensors and nothing else")
    # copy: both readers map the file, and weights must survive its replacement.
    return {
        key: value.to(torch.float32, copy=True) if value.is_floating_point() else value for key, value in found.items()
    }


def weights_digest(folder: str | Path) -> str:
    """xxh3-128 of the weights file's bytes, for provenance."""
    return digest_file(weights_file(folder))


def _torch_load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _shown(names: list[str], limit: int = 6) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


@dataclass(frozen=True)
class Sidecar:
    """What a network was trained for. None: not said. `recipe` names the input layout (see `inputs.py`)."""

    task: str | None = None
    recipe: str = "original"
    feature_space: str | None = None
    box_geometry: bool = False

    @classmethod
    def from_folder(cls, folder: str | Path) -> Sidecar:
        """Read the sidecar; the defaults if there is none. Raises CheckpointError naming the file and the key."""
        path = Path(folder) / SIDECAR_FILE
        if not path.exists():
            return cls()
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error})") from None
        if not isinstance(found, dict):
            raise CheckpointError(f"{path}: must be an object with the keys {', '.join(_SIDECAR_TYPES)}")
        for key, value in found.items():
            if key not in _SIDECAR_TYPES:
                nearest = get_close_matches(key, _SIDECAR_TYPES, n=1, cutoff=0.0)[0]
                raise CheckpointError(f"{path}: unknown key {key!r}, the nearest known one is {nearest!r}")
            if not isinstance(value, _SIDECAR_TYPES[key]):
                raise CheckpointError(f"{path}: {key}: {value!r} has the wrong type")
        sidecar = cls(**found)
        if sidecar.recipe not in RECIPES:
            raise CheckpointError(f"{path}: recipe: must be one of {', '.join(RECIPES)}, got {sidecar.recipe!r}")
        return sidecar

    def save(self, folder: str | Path) -> None:
        """Write the sidecar into `folder`."""
        (Path(folder) / SIDECAR_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


_SIDECAR_TYPES = {"task": str | None, "recipe": str, "feature_space": str | None, "box_geometry": bool}
