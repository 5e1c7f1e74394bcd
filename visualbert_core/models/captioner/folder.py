"""Opens the parts of a captioner folder beside its weights: configuration, image processor, tokenizer, special tokens.

Image processor and tokenizer are opened apart: transformers' AutoProcessor gives the tokenizer alone (seen in 5.23).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from visualbert_core.models.captioner.checks import check_parts, check_vocabulary, special_tokens
from visualbert_core.models.transformers_folder import CONFIG_FILE, opened, read_config

POOLER = "encoder.pooler."
"""The names of weights that no caption depends on. A ViT may be saved without them."""
_LOCAL = {"local_files_only": True, "trust_remote_code": False}


@dataclass(frozen=True, eq=False)
class Parts:
    """What a captioner folder holds beside its weights."""

    config: Any
    image_processor: Any
    tokenizer: Any
    special: dict[str, Any]
    """The numbers of the special tokens, by their names in GenerationConfig."""

    def pixels(self, rgb: np.ndarray) -> Tensor:
        """Return the pixels, float32 [3, height, width], that the encoder reads of uint8 [H, W, 3]."""
        # Without the format, an image of three rows would be taken for one with its colours in front. The copy is there
        # because torch warns of arrays that cannot be written.
        found = self.image_processor(rgb.copy(), return_tensors="pt", input_data_format="channels_last")
        pixels: Tensor = found["pixel_values"][0]
        return pixels


def open_parts(folder: Path) -> Parts:
    """Open a folder. Raise CheckpointError where it is incomplete or contradicts itself."""
    read_config(folder)
    import transformers  # behind the check that it is installed

    config: Any = opened(folder, CONFIG_FILE, lambda: transformers.AutoConfig.from_pretrained(folder, **_LOCAL))
    check_parts(folder, config)
    images: Any = transformers.AutoImageProcessor
    texts: Any = transformers.AutoTokenizer
    image_processor: Any = opened(folder, "the image processor", lambda: images.from_pretrained(folder, **_LOCAL))
    tokenizer: Any = opened(folder, "the tokenizer", lambda: texts.from_pretrained(folder, **_LOCAL))
    check_vocabulary(folder, tokenizer, config.decoder)
    return Parts(config, image_processor, tokenizer, special_tokens(folder, config, tokenizer))
