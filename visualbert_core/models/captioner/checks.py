"""What the folder of a captioner must say before a caption is written, and what its parts must be.

The joined model of transformers keeps the numbers of its special tokens in two files. Training reads config.json, and
writing reads generation_config.json. A folder that lacks one of the numbers, or has two different ones, fails late or
writes other captions than it was trained for.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visualbert_core.errors import CheckpointError
from visualbert_core.models.transformers_folder import CONFIG_FILE, opened
from visualbert_core.models.writing import SPECIAL

GENERATION_FILE = "generation_config.json"
REQUIRED = {
    "decoder_start_token_id": ("start", "cls_token", "bos_token"),
    "eos_token_id": ("end", "sep_token", "eos_token"),
    "pad_token_id": ("padding", "pad_token", "eos_token"),
}
"""Key → what the token does in a caption, and which tokens of a tokenizer can do it, the first choice first."""


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
    places = [settings, config, config.decoder]
    found = {
        key: next((value for each in places if (value := getattr(each, key, None)) is not None), None)
        for key in (*SPECIAL, "pad_token_id")
    }
    _check_one_start(folder, settings, config)
    if found["eos_token_id"] is not None:
        ends = found["eos_token_id"]
        found["eos_token_id"] = sorted(ends) if isinstance(ends, list | tuple) else [ends]
    _check_tokens(folder, found, config.decoder.vocab_size, tokenizer)
    return found


def check_parts(where: object, config: Any) -> None:
    """Raise CheckpointError where the decoder of a joined configuration does not look at the image."""
    check_decoder(where, config.decoder)
    if (
        not getattr(config.decoder, "add_cross_attention", False)
        or getattr(config.decoder, "is_decoder", True) is False
    ):
        raise CheckpointError(
            f"{where}: {CONFIG_FILE}: its decoder has no cross attention, so it would ignore the image: is_decoder and "
            "add_cross_attention must be true, and the weights trained with them"
        )


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


def check_encoder(where: object, encoder: Any) -> None:
    """Raise CheckpointError where the network of a configuration does not read pixels alone."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    kind = MODEL_MAPPING.get(type(encoder), None)
    if getattr(kind, "main_input_name", None) != "pixel_values" or not hasattr(encoder, "hidden_size"):
        raise CheckpointError(
            f"{where}: the model type {encoder.model_type} is no image encoder with one hidden size: take "
            "ViT, BEiT, DeiT, Swin or the like"
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


def _check_one_start(folder: Path, settings: Any, config: Any) -> None:
    key = "decoder_start_token_id"
    writing, training = getattr(settings, key, None), getattr(config, key, None)
    if None not in (writing, training) and writing != training:
        raise CheckpointError(
            f"{folder}: {key} is {training} in {CONFIG_FILE}, which training reads, and {writing} in "
            f"{GENERATION_FILE}, which writing reads: set both to the token with which the training captions began"
        )


def _check_tokens(folder: Path, found: Mapping[str, Any], vocabulary: int, tokenizer: Any) -> None:
    suggested = tokens_of(tokenizer)
    for key, (does, *_) in REQUIRED.items():
        token = suggested[key]
        hint = "" if token is None else f", for example to {token} ({tokenizer.convert_ids_to_tokens(token)})"
        if found[key] is None:
            raise CheckpointError(
                f"{folder}: neither {GENERATION_FILE} nor {CONFIG_FILE} names the {does} token of captions: set {key} "
                f"in both{hint}"
            )
        for number in found[key] if isinstance(found[key], list) else [found[key]]:
            if not 0 <= number < vocabulary:
                raise CheckpointError(
                    f"{folder}: {key} is {number}, and the decoder has {vocabulary:,} tokens: set {key} in "
                    f"{GENERATION_FILE} and {CONFIG_FILE}{hint}"
                )
