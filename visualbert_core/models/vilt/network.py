"""Computes the pooled vector of ViLT for a text and an image, as transformers does, but with ordered patches.

transformers draws the order of the patches from the global random generator, also where nothing is padded (seen in
5.23), so the same input gives other last digits each time. Here the patches keep their raster order, and an image is
embedded once for all its texts. Sequences of similar length share a pass. The last layer computes only the position
that the head reads.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from visualbert_core.float32 import whole_float32

PADDING = 1 / 16
"""The largest share by which the longest sequence of a pass is longer than the shortest."""


@dataclass(frozen=True, eq=False)
class TextAndImage:
    """One sequence of the network. Shapes: P patches, H hidden size."""

    ids: tuple[int, ...]
    """The word pieces, with [CLS] and [SEP]."""
    image: Tensor
    """[1 + P, H]: the class token and the patches, with positions."""
    kind: int
    """The number of the image's type embedding: 1, or 2 for the second image of a pair."""

    @property
    def length(self) -> int:
        return len(self.ids) + len(self.image)


class ViltTrunk:
    """The trunk of a ViLT network of transformers, for inference."""

    def __init__(self, vilt: Any) -> None:
        self.vilt = vilt
        self.weight: Tensor = vilt.embeddings.patch_embeddings.projection.weight

    @torch.inference_mode()
    def embed(self, pixels: np.ndarray) -> Tensor:
        """Return the embedded image [1 + P, H] of float32 [3, height, width], as the image processor gives it."""
        with whole_float32():
            image = torch.from_numpy(pixels)[None].to(self.weight.device, self.weight.dtype)
            return embedded_images(self.vilt, image)[0]

    @torch.inference_mode()
    def pooled(self, sequences: Sequence[TextAndImage]) -> Tensor:
        """Return the pooled vectors [len(sequences), H] in the order of the sequences."""
        found: dict[int, Tensor] = {}
        with whole_float32():
            for rows in passes([sequence.length for sequence in sequences]):
                found |= zip(rows, self._pass([sequences[row] for row in rows]), strict=True)
        return torch.stack([found[row] for row in range(len(sequences))])

    @torch.inference_mode()
    def attentions(self, sequence: TextAndImage) -> np.ndarray:
        """Return the attention weights of a sequence, text first: float32 [layers, heads, L, L]."""
        ids = torch.tensor([sequence.ids], device=self.weight.device)
        with whole_float32():
            found = self.vilt(
                ids,
                attention_mask=torch.ones_like(ids),
                token_type_ids=torch.zeros_like(ids),
                image_embeds=sequence.image[None],
                pixel_mask=torch.ones(1, len(sequence.image), dtype=torch.long, device=ids.device),
                image_token_type_idx=sequence.kind,
                output_attentions=True,
            )
        return torch.cat(found.attentions).float().cpu().numpy()

    def _pass(self, sequences: Sequence[TextAndImage]) -> Tensor:
        states = pad_sequence([self._embedded(sequence) for sequence in sequences], batch_first=True)
        lengths = torch.tensor([sequence.length for sequence in sequences], device=states.device)
        mask = None
        if int(lengths.min()) < states.shape[1]:
            mask = (torch.arange(states.shape[1], device=states.device) < lengths[:, None])[:, None, None]
        layers = self.vilt.encoder.layer
        for number, layer in enumerate(layers, start=1):
            states = _layer(layer, states, mask, only_first=number == len(layers))
        pooled: Tensor = self.vilt.pooler(self.vilt.layernorm(states))
        return pooled

    def _embedded(self, sequence: TextAndImage) -> Tensor:
        embeddings = self.vilt.embeddings
        text = embeddings.text_embeddings(torch.tensor([sequence.ids], device=self.weight.device))[0]
        kinds = embeddings.token_type_embeddings.weight
        return torch.cat([text + kinds[0], sequence.image + kinds[sequence.kind]])


def embedded_images(vilt: Any, pixels: Tensor) -> Tensor:
    """Return the class token and the patches with their positions, [B, 1 + P, H], of images of one size.

    `pixels` is float [B, 3, height, width].
    """
    embeddings = vilt.embeddings
    patches = embeddings.patch_embeddings(pixels)
    table = embeddings.position_embeddings[:, 1:]
    side = embeddings.config.image_size // embeddings.config.patch_size
    grid = table.transpose(1, 2).view(1, -1, side, side)
    places = functional.interpolate(grid, size=patches.shape[2:], mode="bilinear", align_corners=True)
    first = (embeddings.cls_token + embeddings.position_embeddings[:, :1]).expand(len(pixels), -1, -1)
    return torch.cat([first, (patches + places).flatten(2).transpose(1, 2)], 1)


def passes(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the indices of the sequences that share a pass, the shortest sequences first."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    while order:
        longest = lengths[order[0]] * (1 + PADDING)
        rows = list(itertools.takewhile(lambda row: lengths[row] <= longest, order))  # noqa: B023, used at once
        yield rows
        order = order[len(rows) :]


def _layer(layer: Any, states: Tensor, mask: Tensor | None, only_first: bool) -> Tensor:
    """Compute one layer [B, L, H] → [B, L, H], or → [B, 1, H] for the first position alone."""
    attention = layer.attention.attention

    def heads(each: Tensor) -> Tensor:
        return each.view(len(each), -1, attention.num_attention_heads, attention.attention_head_size).transpose(1, 2)

    normed = layer.layernorm_before(states)
    asking, states = (normed[:, :1], states[:, :1]) if only_first else (normed, states)
    query, key, value = attention.query(asking), attention.key(normed), attention.value(normed)
    context = functional.scaled_dot_product_attention(heads(query), heads(key), heads(value), mask)
    states = states + layer.attention.output.dense(context.transpose(1, 2).flatten(2))
    output: Tensor = layer.output(layer.intermediate(layer.layernorm_after(states)), states)
    return output
