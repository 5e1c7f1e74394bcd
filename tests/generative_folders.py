"""Tiny generative vision-language models with random weights, saved as transformers saves them.

Their answers are nonsense. They differ from image to image and from question to question, which the tests need.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = (
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<image>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
WORDS = (
    *("Question:", "Answer:", "Short", "short", "answer:", "what", "is", "the", "this?", "it", "red?", "left", "cat"),
    *("True", "False", "yes", "no", "two", "blue", "USER:", "ASSISTANT:", "answer", "en", "detect", "a", "of", "?"),
    *("red", "green", "dog", "on", "in", "true", "false", "Casey", "Riley", "person", "and", "."),
)
CHAT = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE {% else %}"
    "{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
)
TEXT: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SPREAD = {"initializer_range": 0.4}


def tokenizer(extra: tuple[str, ...] = ()) -> Any:
    """Return a tokenizer of whole words, split at blanks."""
    names = (*SPECIAL, "\n", *WORDS, *extra)
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    inner.decoder = decoders.Fuse()
    found = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    found.add_special_tokens({"additional_special_tokens": [*SPECIAL[4:], *extra]})
    return found


def _saved(folder: Path, network: Any, processor: Any) -> Path:
    network.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_blip2(folder: Path, t5: bool = False, queries: int | None = 4, **changes: Any) -> Path:
    """Write a BLIP-2 with an OPT or a T5 language model. `queries` is what the processor says about image tokens."""
    torch.manual_seed(0)
    words = tokenizer()
    vision = {"image_size": 32, "patch_size": 8, **TEXT, **SPREAD}  # the default of 1e-10 would make it blind
    qformer = {**TEXT, **SPREAD, "vocab_size": 50, "encoder_hidden_size": 32}
    text: dict[str, Any] = {"vocab_size": len(words), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if t5:
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
        text |= {"model_type": "t5", **sizes, "initializer_factor": 1.5, "feed_forward_proj": "gated-gelu"}
    else:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64}
        text |= {
            "model_type": "opt",
            **sizes,
            "word_embed_proj_dim": 32,
            "init_std": 0.4,
            "max_position_embeddings": 64,
        }
    config = transformers.Blip2Config(
        vision_config=vision,
        qformer_config=qformer,
        text_config=text | changes,
        num_query_tokens=4,
        image_token_index=words.convert_tokens_to_ids("<image>"),
        initializer_range=0.4,
    )
    images = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    processor = transformers.Blip2Processor(images, words, num_query_tokens=queries)
    return _saved(folder, transformers.Blip2ForConditionalGeneration(config), processor)


def write_llava(folder: Path, chat: bool = True, side: int = 32, read: int = -1) -> Path:
    """Write a LLaVA: a CLIP encoder, of which a Llama reads the layer `read`.

    An image becomes `side` × `side` pixels, in patches of 8.
    """
    torch.manual_seed(0)
    words = tokenizer()
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(image_size=side, patch_size=8, **TEXT, initializer_range=0.4),
        text_config=transformers.LlamaConfig(
            vocab_size=len(words), **TEXT, **SPREAD, bos_token_id=1, eos_token_id=2, pad_token_id=0
        ),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=read,
    )
    crop = {"height": side, "width": side}
    images = transformers.CLIPImageProcessor(size={"shortest_edge": side}, crop_size=crop)
    processor = transformers.LlavaProcessor(
        images,
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT.replace("IMAGE", "<image>") if chat else None,
    )
    return _saved(folder, transformers.LlavaForConditionalGeneration(config), processor)


def write_qwen(folder: Path, pixels: int = 112 * 112) -> Path:
    """Write a Qwen2.5-VL, which reads an image of up to `pixels` pixels in as many patches as it has."""
    torch.manual_seed(0)
    words = tokenizer()
    number = words.convert_tokens_to_ids
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(words),
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            **TEXT,
            **SPREAD,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "rope_scaling": {
                "type": "mrope",
                "mrope_section": [part * TEXT["hidden_size"] // 32 for part in (1, 1, 2)],
                "rope_type": "default",
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": TEXT["hidden_size"],
            "out_hidden_size": TEXT["hidden_size"],
            "num_heads": 4,
            "intermediate_size": 64,
            "fullatt_block_indexes": [1],
            "window_size": 112,
        },
        image_token_id=number("<|image_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
    )
    images = transformers.Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=pixels)
    videos = transformers.Qwen2VLVideoProcessor()
    template = CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = transformers.Qwen2_5_VLProcessor(images, words, videos, chat_template=template)
    processor.image_token = "<|image_pad|>"
    return _saved(folder, transformers.Qwen2_5_VLForConditionalGeneration(config), processor)


def write_paligemma(folder: Path) -> Path:
    """Write a PaliGemma: a SigLIP encoder and a Gemma, whose prompt is read in both directions."""
    torch.manual_seed(0)
    words = tokenizer()
    images = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    processor = transformers.PaliGemmaProcessor(images, words)
    config = transformers.PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8, **TEXT},
        text_config={
            "model_type": "gemma",
            "vocab_size": len(words),
            "num_key_value_heads": 2,
            "head_dim": 8,
            **TEXT,
            **SPREAD,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "hidden_activation": "gelu",
        },
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vocab_size=len(words),
        projection_dim=32,
    )
    return _saved(folder, transformers.PaliGemmaForConditionalGeneration(config), processor)


WRITERS = {
    "blip2-opt": write_blip2,
    "blip2-t5": lambda folder: write_blip2(folder, t5=True),
    "llava": write_llava,
    "qwen2.5-vl": write_qwen,
    "paligemma": write_paligemma,
}
