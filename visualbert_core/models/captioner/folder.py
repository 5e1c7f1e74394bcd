"""Opens what a captioner folder holds beside its weights: configuration, image processor, tokenizer, special tokens.

Image processor and tokenizer are opened apart: transformers' AutoProcessor gives the tokenizer alone (seen in 5.23).

The joined model of transformers keeps the numbers of its special tokens in two files. Training reads config.json, and
writing reads generation_config.json. A folder that lacks one of the numbers, or has two different ones, fails late or
writes other captions than it was trained for. So this file checks them first.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from visualbert_core.errors import CheckpointError
from visualbert_core.models.transformers_folder import CONFIG_FILE, opened, read_config
from visualbert_core.models.writing import SPECIAL

POOLER = "encoder.pooler."
"""The names of weights that no caption depends on. A ViT may be saved without them."""
GENERATION_FILE = "generation_config.json"
_LOCAL = {"local_files_only": True, "trust_remote_code": False}
REQUIRED = {
    "decoder_start_token_id": ("start", "cls_token", "bos_token"),
    "eos_token_id": ("end", "sep_token", "eos_token"),
    "pad_token_id": ("padding", "pad_token", "eos_token"),
}
"""Key → what the token does in a caption, and which tokens of a tokenizer can do it, the first choice first."""


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
    decoder = config.decoder
    check_decoder(folder, decoder)
    if not getattr(decoder, "add_cross_attention", False) or getattr(decoder, "is_decoder", True) is False:
        raise CheckpointError(
            f"{folder}: {CONFIG_FILE}: its decoder has no cross attention, so it would ignore the image: is_decoder "
            "and add_cross_attention must be true, and the weights trained with them"
        )
    images: Any = transformers.AutoImageProcessor
    texts: Any = transformers.AutoTokenizer
    image_processor: Any = opened(folder, "the image processor", lambda: images.from_pretrained(folder, **_LOCAL))
    tokenizer: Any = opened(folder, "the tokenizer", lambda: texts.from_pretrained(folder, **_LOCAL))
    check_vocabulary(folder, tokenizer, decoder)
    return Parts(config, image_processor, tokenizer, special_tokens(folder, config, tokenizer))


def tokens_of(tokenizer: Any) -> dict[str, int | None]:
    """Return the number of the start, end and padding token that a tokenizer suggests; None where it has no such token.

    BERT begins with [CLS] and ends with [SEP]. GPT-2 has a single special token, which begins, ends and pads.
    """
    return {
        key: next((i for name in names if (i := getattr(tokenizer, f"{name}_id", None)) is not None), None)
        for key, (_, *names) in REQUIRED.items()
    }


def special_tokens(folder: Path, config: Any, tokenizer: Any) -> dict[str, Any]:
    """Return the numbers of the special tokens of a folder, by their names in GenerationConfig.

    generation_config.json counts before config.json, and that before its decoder. Raise CheckpointError where the
    start, end or padding token is missing or outside the vocabulary, or where the two files name two start tokens.
    """
    from transformers import GenerationConfig

    settings: Any = None
    if (folder / GENERATION_FILE).is_file():
        settings = opened(folder, GENERATION_FILE, lambda: GenerationConfig.from_pretrained(folder))
    key = "decoder_start_token_id"
    writing, training = getattr(settings, key, None), getattr(config, key, None)
    if None not in (writing, training) and writing != training:
        raise CheckpointError(
            f"{folder}: {key} is {training} in {CONFIG_FILE}, which training reads, and {writing} in "
            f"{GENERATION_FILE}, which writing reads: set both to the token with which the training captions began"
        )
    places = (settings, config, config.decoder)
    found: dict[str, Any] = {
        key: next((value for each in places if (value := getattr(each, key, None)) is not None), None)
        for key in (*SPECIAL, "pad_token_id")
    }
    for key, token in tokens_of(tokenizer).items():
        numbers = found[key] if isinstance(found[key], list | tuple) else [found[key]]
        hint = "" if token is None else f", for example to {token} ({tokenizer.convert_ids_to_tokens(token)})"
        if found[key] is None:
            raise CheckpointError(
                f"{folder}: neither {GENERATION_FILE} nor {CONFIG_FILE} names the {REQUIRED[key][0]} token of "
                f"captions: set {key} in both{hint}"
            )
        for number in numbers:
            if not 0 <= number < config.decoder.vocab_size:
                raise CheckpointError(
                    f"{folder}: {key} is {number}, and the decoder has {config.decoder.vocab_size:,} tokens: set {key} "
                    f"in {GENERATION_FILE} and {CONFIG_FILE}{hint}"
                )
        if key == "eos_token_id":
            found[key] = sorted(numbers)
    return found


def check_decoder(where: object, decoder: Any) -> None:
    """Raise CheckpointError where the network of a configuration is no decoder that can look at an image."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(decoder), None)
    # Some decoders take the states of an image as a further argument, and ignore them.
    if kind is None or "encoder_hidden_states" not in inspect.signature(kind.forward).parameters:
        raise CheckpointError(
            f"{where}: the model type {decoder.model_type} has no cross attention in transformers, so it cannot "
            "see an image: take BERT, RoBERTa, GPT-2 or another decoder that has it"
        )


def check_vocabulary(where: object, tokenizer: Any, decoder: Any) -> None:
    """Raise CheckpointError where the tokenizer has more tokens than the decoder."""
    if len(tokenizer) > decoder.vocab_size:
        raise CheckpointError(
            f"{where}: the tokenizer has {len(tokenizer):,} tokens and the decoder {decoder.vocab_size:,}: take the "
            "tokenizer of the decoder"
        )


def positions(decoder: Any) -> int | None:
    """Return how many tokens a decoder can read; None where its configuration sets no limit."""
    most = getattr(decoder, "max_position_embeddings", None)
    # RoBERTa numbers its positions from the padding token on.
    return most - decoder.pad_token_id - 1 if most is not None and "roberta" in decoder.model_type else most
