"""Trains a small captioner of the synthetic scenes: an image encoder and a text decoder, joined by cross attention.

The encoder is the image side of `train_image_side` as a SigLIP, and stays as it is. It is rounded to float16 before the
decoder learns, so the encoder of a finished folder is all that is needed to train its decoder again. A BERT of two
layers (Rothe et al. 2020, arXiv:1907.12461, joined such networks first) learns to write what `references.caption` says
of a scene. Each image of a batch comes with several captions, and is computed once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertTokenizer, ViltModel, VisionEncoderDecoderConfig, VisionEncoderDecoderModel

from visualbert_core.models.captioner.training import caption_labels
from visualbert_core.synthetic import references as refer
from visualbert_core.synthetic.language import vocabulary
from visualbert_core.synthetic.scenes import Things
from visualbert_core.synthetic.train_generative import copy_image_side, image_processor, vision_config
from visualbert_core.synthetic.train_image_side import TABLE_STD, PatchLabels, Pictures, learn, shifted

WIDTH, LAYERS, HEADS, INNER = 48, 2, 4, 128
"""The sizes of the decoder. They keep the folder under 1.5 MB in float16, with 1.3 MB in the encoder."""
POSITIONS = 32
SPECIALS = {"decoder_start_token_id": "[CLS]", "eos_token_id": "[SEP]", "pad_token_id": "[PAD]"}
IMAGES, CAPTIONS, RATE = 48, 6, 2e-3
_IDS = {word: index for index, word in enumerate(vocabulary())}


def tokenizer() -> BertTokenizer:
    """Return the tokenizer of the folder: the words of all synthetic texts."""
    return BertTokenizer(dict(_IDS), model_max_length=POSITIONS)


def config() -> VisionEncoderDecoderConfig:
    """Return the sizes and the special tokens: about 0.72 million parameters, seven in eight of them in the encoder."""
    decoder = BertConfig(
        vocab_size=len(_IDS),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        max_position_embeddings=POSITIONS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        is_decoder=True,
        add_cross_attention=True,
    )
    made: Any = VisionEncoderDecoderConfig
    joined: VisionEncoderDecoderConfig = made.from_encoder_decoder_configs(vision_config(), decoder)
    for name, word in SPECIALS.items():
        setattr(joined, name, _IDS[word])
    return joined


def captions(rng: np.random.Generator, things: Sequence[Things]) -> Iterator[str]:
    for scene in things:
        for _ in range(CAPTIONS):
            yield " ".join(map(str, refer.caption(rng, scene)))


def loss(model: Any, images: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of the captions of each image: labels int [B × CAPTIONS, L] for images [B, 3, SIDE, SIDE]."""
    with torch.no_grad():
        seen = model.encoder(pixel_values=images).last_hidden_state
    found: Tensor = model(encoder_outputs=(seen.repeat_interleave(CAPTIONS, 0),), labels=labels).loss
    return found


def encoder_weights(vilt: ViltModel, labels: PatchLabels) -> dict[str, Tensor]:
    """Return the image side as the weights of the encoder, float32, rounded to float16."""
    encoder: Any = VisionEncoderDecoderModel(config()).encoder
    copy_image_side(vilt, labels, encoder)
    return {name: weight.half().float() for name, weight in encoder.state_dict().items()}


def train_captioner(train: Pictures, encoder: Mapping[str, Tensor], seed: int, steps: int) -> VisionEncoderDecoderModel:
    """Train the decoder, and the projection between the two hidden sizes. The encoder keeps its weights."""
    torch.manual_seed(seed)
    model: Any = VisionEncoderDecoderModel(config())
    model.encoder.load_state_dict(encoder)
    model.encoder.requires_grad_(False)
    nn.init.normal_(model.decoder.get_input_embeddings().weight, std=TABLE_STD)
    rng, words = np.random.default_rng([seed, 14]), tokenizer()

    def of_batch(step: int, chosen: np.ndarray) -> Tensor:
        images, _ = shifted(rng, train.pixels[chosen])
        return loss(model, images, caption_labels(words, list(captions(rng, [train.things[i] for i in chosen]))))

    parameters = [p for p in model.parameters() if p.requires_grad]
    learn("captioner", steps, of_batch, parameters, RATE, rng, train, IMAGES)
    trained: VisionEncoderDecoderModel = model
    return trained


def save(weights: dict[str, Tensor], folder: Path) -> None:
    """Write the checkpoint folder of trained weights in float16, with the image processor and the tokenizer."""
    model: Any = VisionEncoderDecoderModel(config())
    model.load_state_dict(weights)
    for name, word in SPECIALS.items():
        setattr(model.generation_config, name, _IDS[word])
    model.half().save_pretrained(folder)
    image_processor().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
