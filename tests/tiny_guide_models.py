"""Tiny checkpoints with random weights, in the folders that transformers writes: a ViLT and a BLIP-2 with OPT.

They stand in tests for the checkpoints that Hugging Face's guide to visual question answering takes from the Hub.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertTokenizerFast,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    PreTrainedTokenizerFast,
    ViltConfig,
    ViltForMaskedLM,
    ViltImageProcessor,
    ViltProcessor,
)

from visualbert_core.synthetic.language import vocabulary

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
QUERY_TOKENS = 3


def write_vilt(folder: Path) -> Path:
    """Write a ViLT that was pre-trained on masked words, so without a head for questions. It reads 32 × 32 pixels."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=40)
    torch.manual_seed(0)
    config = ViltConfig(vocab_size=len(tokenizer), image_size=32, patch_size=16, max_position_embeddings=40, **TINY)
    ViltForMaskedLM(config).save_pretrained(folder)
    ViltProcessor(ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=16), tokenizer).save_pretrained(folder)
    return folder


def write_blip2(folder: Path, query_tokens: int | None = QUERY_TOKENS) -> Path:
    """Write a BLIP-2 whose language model is an OPT. `query_tokens` is what its processor knows of the model."""
    words = ["<pad>", "</s>", "<unk>", "<image>", "Question", ":", "Answer", *vocabulary()[5:]]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(dict.fromkeys(words))}, "<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    named = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "</s>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=["<image>"], **named)
    image = BlipImageProcessor(size={"height": 32, "width": 32})
    Blip2Processor(image, fast, num_query_tokens=query_tokens).save_pretrained(folder)
    text = {"model_type": "opt", "vocab_size": len(fast), "hidden_size": 16, "num_hidden_layers": 2, "ffn_dim": 32}
    text |= {"num_attention_heads": 2, "word_embed_proj_dim": 16, "max_position_embeddings": 64}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    config = Blip2Config(
        # The default initializer_range, 1e-10, would make the model blind.
        vision_config={**TINY, "image_size": 32, "patch_size": 16, "initializer_range": 0.5},
        qformer_config={**TINY, "vocab_size": 8, "encoder_hidden_size": 16, "initializer_range": 0.5},
        text_config={**text, "init_std": 0.5},
        num_query_tokens=QUERY_TOKENS,
        image_token_index=fast.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(config)
    model.language_projection.weight.data *= 50  # so that the text follows the image
    model.save_pretrained(folder)
    return folder
