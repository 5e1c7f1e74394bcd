"""Small image encoders and text decoders with random weights, made on the spot as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

WORDS = (
    "a",
    "red",
    "green",
    "circle",
    "square",
    "dog",
    "cat",
    "is",
    "left",
    "of",
    "the",
    "two",
    ".",
    "on",
    "in",
    "blue",
)
ENCODERS = ("vit", "beit", "deit", "swin")
DECODERS = ("bert", "gpt2", "roberta")
# With the default of 0.02, a tiny network hardly looks at its input.
_SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "initializer_range": 0.3}
_TINY = {"hidden_size": 32, **_SIZES}
_IMAGE = {"image_size": 32, "patch_size": 8}


def write_encoder(folder: Path, kind: str) -> Path:
    """Write an encoder of a kind in ENCODERS that reads 32 × 32 pixels, with its image processor."""
    torch.manual_seed(0)
    size = {"height": 32, "width": 32}
    images: Any = transformers.ViTImageProcessor(size=size)
    if kind == "vit":
        network: Any = transformers.ViTModel(transformers.ViTConfig(**_IMAGE, **_TINY))
    elif kind == "beit":
        network = transformers.BeitModel(
            transformers.BeitConfig(**_IMAGE, **_TINY, use_absolute_position_embeddings=True)
        )
        images = transformers.BeitImageProcessor(size=size, crop_size=size)
    elif kind == "deit":
        network = transformers.DeiTModel(transformers.DeiTConfig(**_IMAGE, **_TINY))
        images = transformers.DeiTImageProcessor(size=size, crop_size=size)
    else:
        stages = {"embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4, "initializer_range": 0.3}
        network = transformers.SwinModel(transformers.SwinConfig(image_size=32, patch_size=4, **stages))
    network.save_pretrained(folder)
    images.save_pretrained(folder)
    return folder


def write_decoder(folder: Path, kind: str) -> Path:
    """Write a text model of a kind in DECODERS, as it is pre-trained: it knows no images. With its tokenizer."""
    torch.manual_seed(1)
    words = _tokenizer(folder, kind)
    shared = {"vocab_size": len(words)}
    if kind == "bert":
        network: Any = transformers.BertForMaskedLM(
            transformers.BertConfig(**shared, **_TINY, max_position_embeddings=40)
        )
    elif kind == "gpt2":
        ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
        sizes = {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 40, "initializer_range": 0.3}
        network = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shared, **sizes, **ends))
    else:
        ends = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
        sizes = {"max_position_embeddings": 42, "type_vocab_size": 1}
        network = transformers.RobertaForMaskedLM(transformers.RobertaConfig(**shared, **_TINY, **sizes, **ends))
    network.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def _tokenizer(folder: Path, kind: str) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "bert":
        vocabulary = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
        (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
        return transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    special = ["<|endoftext|>"] if kind == "gpt2" else ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    inner = ByteLevelBPETokenizer()
    inner.train_from_iterator([" ".join(WORDS)], vocab_size=300, special_tokens=special, show_progress=False)
    if kind == "gpt2":
        named = dict.fromkeys(("bos_token", "eos_token", "unk_token"), special[0])
        return PreTrainedTokenizerFast(tokenizer_object=inner._tokenizer, **named)
    inner._tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    named = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner._tokenizer, cls_token="<s>", sep_token="</s>", mask_token="<mask>", **named
    )
