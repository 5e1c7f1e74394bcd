"""Joins an image encoder and a text decoder to a captioner folder that transformers opens.

transformers' own `from_encoder_decoder_pretrained` raises an AttributeError for GPT-2 (seen in 5.23), because the
configuration of GPT-2 does not say whether it is a decoder. Here the configuration is opened first and says it.
transformers also leaves the special tokens to the caller. Here they are set where training and writing look for them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from visualbert_core.errors import CheckpointError
from visualbert_core.models.captioner.folder import REQUIRED, check_decoder, check_vocabulary, tokens_of
from visualbert_core.models.transformers_folder import few, opened, read_config, require_transformers

INGREDIENT = None

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_SAFE = {"trust_remote_code": False}
_WEIGHTS = {"dtype": torch.float32, "output_loading_info": True, **_SAFE}


@dataclass(frozen=True)
class MadeCaptioner:
    """A captioner folder that was just written."""

    folder: Path
    name: str
    """The model types of the encoder and the decoder: "vit + gpt2"."""
    parameters: int
    new: tuple[str, ...]
    """The names of the parameters that begin at random beside those that were read. Empty where all begin at random."""
    tokens: dict[str, int]
    """The numbers of the special tokens that were set."""


def make_captioner(
    encoder: str | Path,
    decoder: str | Path,
    out: str | Path,
    *,
    random: bool = False,
    seed: int = 0,
    image_processor: str | Path | None = None,
    tokenizer: str | Path | None = None,
) -> MadeCaptioner:
    """Join an encoder and a decoder to a captioner in the new folder `out`.

    `encoder` and `decoder` are checkpoint folders or names on the Hugging Face Hub. With `random`, only their
    configurations are read, and all weights begin at random, as `seed` says. Without it, the weights are kept. What the
    two do not have begins at random: the cross attention, a last layer of the decoder and a pooler of the encoder if
    they were saved without, and a projection between two hidden sizes. `image_processor` and `tokenizer` default to
    those of `encoder` and `decoder`.

    Raise CheckpointError where `out` is not empty, a part cannot be read or cannot be joined, or the tokenizer has no
    token that can begin, end or pad a caption.
    """
    require_transformers(encoder)
    import transformers

    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target}: exists and is not empty: name a new folder")
    configs = [_read(transformers.AutoConfig, each, "the configuration") for each in (encoder, decoder)]
    _check_encoder(encoder, configs[0])
    check_decoder(decoder, configs[1])
    images = _read(transformers.AutoImageProcessor, image_processor or encoder, "the image processor")
    words = _read(transformers.AutoTokenizer, tokenizer or decoder, "the tokenizer")
    check_vocabulary(tokenizer or decoder, words, configs[1])
    tokens = _tokens(tokenizer or decoder, words)
    with torch.random.fork_rng(devices=[]):  # the weights are made on the CPU
        torch.manual_seed(seed)
        model: Any
        new: list[str] = []
        if random:
            joined = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(*configs)
            model = transformers.VisionEncoderDecoderModel(joined)
        else:
            model, new = _pretrained(encoder, decoder, *configs)
    for place in (model.config, model.generation_config):
        for key, number in tokens.items():
            setattr(place, key, number)
    if words.pad_token_id is None:
        words.pad_token = words.convert_ids_to_tokens(tokens["pad_token_id"])
    for part in (model.eval(), images, words):
        part.save_pretrained(target)
    name = f"{configs[0].model_type} + {configs[1].model_type}"
    return MadeCaptioner(target, name, sum(each.numel() for each in model.parameters()), tuple(new), tokens)


def _check_encoder(where: object, encoder: Any) -> None:
    """Raise CheckpointError where the network of a configuration does not read pixels alone."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    kind = MODEL_MAPPING.get(type(encoder), None)
    if getattr(kind, "main_input_name", None) != "pixel_values" or not hasattr(encoder, "hidden_size"):
        raise CheckpointError(
            f"{where}: the model type {encoder.model_type} is no image encoder with one hidden size: take "
            "ViT, BEiT, DeiT, Swin or the like"
        )


def _read(kind: Any, source: str | Path, what: str) -> Any:
    """Return what a class of transformers reads of a folder or a name on the Hub. No code of the source is run."""
    if Path(source).is_dir():
        read_config(Path(source))
    elif not _HUB_NAME.fullmatch(str(source)):
        raise CheckpointError(f"{source}: no such folder, and not the form of a name on the Hub (owner/name)")
    return opened(source, what, lambda: kind.from_pretrained(str(source), **_SAFE))


def _tokens(source: str | Path, tokenizer: Any) -> dict[str, int]:
    found = {}
    for key, number in tokens_of(tokenizer).items():
        if number is None:
            does, *names = REQUIRED[key]
            raise CheckpointError(
                f"{source}: the tokenizer has no {does} token for captions: name a {' or '.join(names)} in its "
                "tokenizer_config.json"
            )
        found[key] = number
    return found


def _pretrained(encoder: str | Path, decoder: str | Path, image: Any, text: Any) -> tuple[Any, list[str]]:
    import transformers

    text.is_decoder = text.add_cross_attention = True
    seeing, lacking = _weights(transformers.AutoModel, encoder, image, "the encoder")
    _check_complete(encoder, [name for name in lacking if not name.startswith("pooler.")])
    writing, new = _weights(transformers.AutoModelForCausalLM, decoder, text, "the decoder")
    trunk = f"{writing.base_model_prefix}."
    crossing = ("cross", "encoder_attn")
    _check_complete(decoder, [n for n in new if n.startswith(trunk) and not any(each in n for each in crossing)])
    model: Any = transformers.VisionEncoderDecoderModel(encoder=seeing, decoder=writing)
    projection = [name for name, _ in model.named_parameters() if name.startswith("enc_to_dec_proj")]
    return model, [f"encoder.{name}" for name in lacking] + [f"decoder.{name}" for name in new] + projection


def _weights(kind: Any, source: str | Path, config: Any, what: str) -> tuple[Any, list[str]]:
    """Return a network with the weights of a source, and the names of those that the source lacks."""
    network, found = opened(source, what, lambda: kind.from_pretrained(str(source), config=config, **_WEIGHTS))
    return network, sorted(found["missing_keys"])


def _check_complete(source: str | Path, lacking: list[str]) -> None:
    if lacking:
        raise CheckpointError(
            f"{source}: the weights lack {few(lacking)}: name a complete checkpoint, or begin at random"
        )
