"""Small ViLT checkpoint folders with random weights, made on the spot as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "is", "the", "what", "it", "red", "left", "cat", "?", "a", "of")
ANSWERS = ("yes", "no", "2", "red", "cat")
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 16,
    "initializer_range": 0.5,  # With the default of 0.02, a tiny network hardly looks at its input.
}
PAIR = {"num_images": 2, "modality_type_vocab_size": 3, "id2label": {0: "False", 1: "True"}}


def write_vilt(folder: Path, kind: str = "ViltForQuestionAnswering", sides: int = 64, **changes: Any) -> Path:
    """Write a checkpoint folder and return it. `sides` is the shorter side to which images are resized."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    named: dict[str, Any] = {"id2label": dict(enumerate(ANSWERS))} if kind == "ViltForQuestionAnswering" else PAIR
    config = transformers.ViltConfig(**{"vocab_size": len(WORDS), **TINY, **named, **changes})
    getattr(transformers, kind)(config).save_pretrained(folder)
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    images = transformers.ViltImageProcessor(size={"shortest_edge": sides}, size_divisor=16)
    transformers.ViltProcessor(images, tokenizer).save_pretrained(folder)
    return folder
