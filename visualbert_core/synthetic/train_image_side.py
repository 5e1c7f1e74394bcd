"""Trains the image side that the small models of pixels share: what each patch of a scene shows.

A small transformer that sees questions alone learns colours and never shapes. So its first layers first learn from
dense labels: a patch tells whether the centre of a thing lies in it, where, and the colour, shape and size of the thing
that covers it. The layers are those of ViLT (Kim et al. 2021, arXiv:2102.03334). `train_vilt` adds words and further
layers; `train_generative` copies the layers into a SigLIP tower. Both pack all texts about an image into one row, so
that training computes the image once for all of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as resize
from transformers import ViltConfig, ViltModel

from visualbert_core.synthetic.language import vocabulary
from visualbert_core.synthetic.scenes import COLORS, RADII, SHAPES, SIZE, Scene, Things
from visualbert_core.synthetic.train_detector import descend

SIDE, PATCH = 128, 16
GRID = SIDE // PATCH
WIDTH, HEADS, INNER = 128, 4, 256
SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "image_size": SIDE,
    "patch_size": PATCH,
}
"""The sizes of the image side, in the words of transformers."""
IMAGE_LAYERS = 4
"""The number of layers that learn from dense labels."""
SHIFT = 8  # pixels of the reduced image: no thing leaves it
BATCH, LEARNING_RATE, WEIGHT_DECAY, WARMUP, CLIP = 64, 1e-3, 0.02, 100, 1.0
TABLE_STD, QUERY_STD = 0.1, 0.06
"""How far words and the queries of new layers start from zero, in both models: with 0.02 they find nothing alike."""
HIDDEN = -1e4
"""What is added to an attention score where a token does not see another token."""
KINDS = (tuple(COLORS), tuple(SHAPES), tuple(RADII))
_WORD = re.compile(r"[a-z0-9]+|[.,?]")


@dataclass(frozen=True)
class Pictures:
    """Training scenes as models of pixels see them: uint8 [N, 3, SIDE, SIDE], and the things in each."""

    pixels: Tensor
    things: tuple[Things, ...]

    def __len__(self) -> int:
        return len(self.things)


def pictures(scenes: Sequence[Scene]) -> Pictures:
    """Reduce scenes to SIDE × SIDE pixels as the image processors of transformers do."""
    rows = [torch.from_numpy(scene.pixels).permute(2, 0, 1) for scene in scenes]
    small = [
        resize.resize(torch.stack(rows[start : start + 64]), [SIDE, SIDE], resize.InterpolationMode.BICUBIC)
        for start in range(0, len(rows), 64)
    ]
    return Pictures(torch.cat(small), tuple(scene.things for scene in scenes))


def normalised(pixels: Tensor) -> Tensor:
    """Return pixels as the network reads them: float32 from -1 to 1."""
    return pixels.float() / 127.5 - 1


def shifted(rng: np.random.Generator, pixels: Tensor) -> tuple[Tensor, np.ndarray]:
    """Shift each image by up to SHIFT pixels, so that things lie anywhere in a patch.

    Return the network's input, float32 [B, 3, SIDE, SIDE], and the shifts (x, y) in pixels, int [B, 2].
    """
    wide = nn.functional.pad(normalised(pixels), (SHIFT,) * 4, mode="reflect")
    moves = rng.integers(-SHIFT, SHIFT + 1, size=(len(pixels), 2))
    corners = (SHIFT - moves).tolist()
    rows = [image[:, y : y + SIDE, x : x + SIDE] for image, (x, y) in zip(wide, corners, strict=True)]
    return torch.stack(rows), moves


class PatchLabels(nn.Module):
    """The head of the dense labels. It is used in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.head = nn.Linear(WIDTH, 3 + sum(map(len, KINDS)))

    def loss(self, hidden: Tensor, things: Sequence[Things], moves: np.ndarray) -> Tensor:
        """Return the loss of patches [B, GRID², WIDTH]: centres, their places, and what covers the patches."""
        values = self.head(self.norm(hidden)).float().flatten(0, 1)
        labels = patch_labels(things, moves)
        centre = labels.centre.bool()
        loss: Tensor = 4 * nn.functional.binary_cross_entropy_with_logits(values[:, 0], labels.centre)
        loss = loss + 2 * (values[centre, 1:3] - labels.place[centre]).abs().mean()
        for logits, kind in zip(values[:, 3:].split([len(k) for k in KINDS], 1), labels.kinds, strict=True):
            loss = loss + nn.functional.cross_entropy(logits, kind, ignore_index=-1)
        return loss

    @torch.no_grad()
    def directions(self) -> dict[str, Tensor]:
        """Return word → the direction of length 1 in which a patch tells that colour, shape or size: float [WIDTH]."""
        rows = nn.functional.normalize(self.head.weight[3:] * self.norm.weight, dim=1)
        return dict(zip((word for kind in KINDS for word in kind), rows, strict=True))


@dataclass(frozen=True)
class Labels:
    """Labels of all patches of a batch: float [P], float [P, 2], and three times int [P] with -1 for no thing."""

    centre: Tensor
    place: Tensor
    kinds: tuple[Tensor, ...]


def patch_labels(things: Sequence[Things], moves: np.ndarray) -> Labels:
    count = len(things)
    centre = np.zeros((count, GRID, GRID), np.float32)
    place = np.zeros((count, GRID, GRID, 2), np.float32)
    kinds = np.full((3, count, GRID, GRID), -1)
    for row, (scene, move) in enumerate(zip(things, moves, strict=True)):
        for thing in scene:
            box = (np.array(thing.box).reshape(2, 2) * SIDE / SIZE + move) / PATCH
            (x0, y0), (x1, y1) = np.clip(np.round(box), 0, GRID).astype(int)  # patches whose middle the box covers
            middle = box.mean(0)
            x, y = np.clip(middle, 0, GRID - 1e-3).astype(int)
            centre[row, y, x] = 1
            place[row, y, x] = middle - (x + 0.5, y + 0.5)
            for kind, names, value in zip(kinds, KINDS, (thing.color, thing.shape, thing.size), strict=True):
                kind[row, y0:y1, x0:x1] = kind[row, y, x] = names.index(value)
    return Labels(
        torch.from_numpy(centre).flatten(),
        torch.from_numpy(place).flatten(0, 2),
        tuple(torch.from_numpy(kind).flatten() for kind in kinds),
    )


def config(vocab_size: int, layers: int, **others: Any) -> ViltConfig:
    return ViltConfig(
        vocab_size=vocab_size,
        num_hidden_layers=layers,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **SIZES,
        **others,
    )


def patches(vilt: Any, images: Tensor) -> Tensor:
    """Return the embedded patches, row by row: [B, GRID², WIDTH]."""
    embeddings = vilt.embeddings
    embedded = embeddings.patch_embeddings.projection(images).flatten(2).transpose(1, 2)
    placed: Tensor = embedded + embeddings.position_embeddings[:, 1:] + embeddings.token_type_embeddings.weight[1]
    return placed


def seen(vilt: Any, images: Tensor) -> Tensor:
    """Return what the image layers make of the patches alone: [B, GRID², WIDTH]."""
    hidden = patches(vilt, images)
    for layer in vilt.encoder.layer[:IMAGE_LAYERS]:
        hidden = layer(hidden)[0]
    return hidden


def train_image_side(train: Pictures, layers: int, seed: int, cycles: Sequence[int]) -> tuple[ViltModel, PatchLabels]:
    """Train the image layers of a ViLT of `layers` layers. Return it, and the head of the dense labels.

    `cycles` are the steps of each cycle of the learning rate. A second cycle, a warm restart (Loshchilov and Hutter
    2017, arXiv:1608.03983), still improves the shapes.
    """
    torch.manual_seed(seed)
    vilt, labels = ViltModel(config(len(vocabulary()), layers)), PatchLabels()
    for number, steps in enumerate(cycles):
        _cycle(train, vilt, labels, np.random.default_rng([seed, 5 + number]), steps)
    return vilt, labels


def _cycle(train: Pictures, vilt: ViltModel, labels: PatchLabels, rng: np.random.Generator, steps: int) -> None:
    def loss(step: int, chosen: np.ndarray) -> Tensor:
        images, moves = shifted(rng, train.pixels[chosen])
        return labels.loss(seen(vilt, images), [train.things[i] for i in chosen], moves)

    learn("image side", steps, loss, [*vilt.parameters(), *labels.parameters()], LEARNING_RATE, rng, train, BATCH)


def learn(
    label: str,
    steps: int,
    loss: Callable[[int, np.ndarray], Tensor],
    parameters: Sequence[nn.Parameter],
    rate: float,
    rng: np.random.Generator,
    train: Pictures,
    size: int,
) -> None:
    """Go down `loss(step, chosen)` in bfloat16, by AdamW: linear warm-up, then a cosine to 2 %.

    `chosen` are the indices of `size` pictures.
    """

    def factor(step: int) -> float:
        if step < WARMUP:
            return (step + 1) / WARMUP
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(steps - WARMUP, 1)))

    def in_bfloat16(step: int, chosen: np.ndarray) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss(step, chosen)

    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    descend(label, steps, _batches(rng, len(train), size, steps), in_bfloat16, optimizer, schedule, CLIP)


def _batches(rng: np.random.Generator, count: int, size: int, steps: int) -> Iterator[np.ndarray]:
    """Yield the indices of each batch, epoch after epoch."""
    order = np.empty(0, int)
    for _ in range(steps):
        if len(order) < size:
            order = rng.permutation(count)
        yield order[:size]
        order = order[size:]


@dataclass(frozen=True)
class PackedTexts:
    """The texts of each row one behind the other. Shapes: B rows, K texts a row, W tokens a row."""

    ids: Tensor
    """int [B, W]; 0 behind the last text."""
    text: Tensor
    """int [B, W]: the number of the text that a token belongs to; -1 behind the last text."""
    place: Tensor
    """int [B, W]: the place of a token in its text."""
    first: Tensor
    """int [B, K]: the place in the row where a text begins."""

    def sees(self) -> Tensor:
        """Return which token sees which, bool [B, W, W]: each sees its own text."""
        return (self.text[:, :, None] == self.text[:, None, :]) & (self.text >= 0)[:, None, :]


def pack(rows: Sequence[Sequence[Sequence[int]]]) -> PackedTexts:
    """Pack texts of token ids. Each row has the same number of texts."""
    text = [[[number] * len(ids) for number, ids in enumerate(row)] for row in rows]
    place = [[range(len(ids)) for ids in row] for row in rows]
    first = [[sum(map(len, row[:number])) for number in range(len(row))] for row in rows]
    return PackedTexts(padded(rows, 0), padded(text, -1), padded(place, 0), torch.tensor(first))


def padded(rows: Sequence[Sequence[Sequence[int]]], fill: int) -> Tensor:
    """Return the values of all texts of a row, one behind the other, and `fill` behind them: int [B, W]."""
    flat = [torch.tensor([value for values in row for value in values]) for row in rows]
    return nn.utils.rnn.pad_sequence(flat, batch_first=True, padding_value=fill)


def split(text: str) -> list[str]:
    """Return the lower-cased words and marks of a text."""
    return _WORD.findall(text.lower())
