"""Turns prompts with images into the tensors of a generative model, and pads them as the kind of model needs.

The processor of the folder prepares the prompts of a batch in one call, if each prompt gets the tensors that it gets
alone. The padding of that call is cut off, and the padding for the network is done here. A processor pads as its own
settings say, and published folders are wrong about it: the answers then change with the batch (transformers issues on
LLaVA and Qwen2.5-VL report scores that fell with a larger batch). Decoder-only models are padded on the left.
Encoder-decoder models are padded on the right, because the relative positions of T5 would see image and text further
apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from visualbert_core.errors import CheckpointError
from visualbert_core.models.generative.asked import Asked
from visualbert_core.models.transformers_folder import opened

Tensors = dict[str, Tensor]
SIMILAR = 1 / 2
"""The largest share by which the longest prompt of a pass is longer than the shortest. Each pass reads all weights for
every new token, so a little padding costs less than a further pass."""
_SHAPES = ((64, 96), (150, 60), (64, 96), (90, 90))
"""Heights and widths of the images with which a processor is tried."""
_BEHIND = {"attention_mask": 1}
"""Values of tensors behind the prompt, where a continuation follows; 0 for all others."""
_PALIGEMMA = {"token_type_ids": 1}
"""PaliGemma reads its prompt in both directions. 1 marks what follows it; with 0 the continuation would see itself."""


class Inputs:
    """The processor of a folder, and how prompts become tensors."""

    def __init__(self, folder: Path, config: Any, encoder_decoder: bool) -> None:
        """Open the processor. Raise CheckpointError where it is missing, or where it does not show an image."""
        import transformers

        read: Any = transformers.AutoProcessor.from_pretrained
        processor = opened(
            folder, "the processor", lambda: read(folder, local_files_only=True, trust_remote_code=False)
        )
        if not (hasattr(processor, "image_processor") and hasattr(processor, "tokenizer")):
            raise CheckpointError(
                f"{folder}: the processor is a {type(processor).__name__}, and a model that reads images and writes "
                "text needs an image processor and a tokenizer: add processor_config.json or preprocessor_config.json"
            )
        self.folder, self.processor, self.encoder_decoder = folder, processor, encoder_decoder
        self.tokenizer = processor.tokenizer
        self.chat = getattr(processor, "chat_template", None) is not None
        self.model_type: str = config.model_type
        self._image_token = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
        self._queries = getattr(config, "num_query_tokens", None)
        self._together = False

    def one(self, asked: Asked) -> Tensors:
        """Return the tensors of one prompt, a batch of one, without padding."""
        return self._processed([asked])

    def prepared(self, asked: Sequence[Asked]) -> list[Tensors | ValueError]:
        """Return for each prompt what `one` returns, or the error that it raises."""
        if self._together and len(asked) > 1:
            try:
                return list(self._split(asked, self._processed(asked, padding=True)))
            except ValueError:
                pass  # The calls below find whose image is refused.
        found: list[Tensors | ValueError] = []
        for each in asked:
            try:
                found.append(self.one(each))
            except ValueError as error:  # Qwen's image processor refuses an image of more than 200:1.
                found.append(error)
        return found

    def check_image(self, asked: Asked) -> None:
        """Raise CheckpointError where a prompt shows none of its images, or where the processor cannot prepare it.

        A prompt without image tokens gives answers that ignore the image, and no error. The processor is also tried
        with several prompts at once, to learn whether `prepared` may do so.
        """
        what = "a prompt with an image" + ("" if self.chat else ", without a chat template (chat_template.jinja),")
        found = opened(self.folder, what, lambda: self.one(asked))
        self._together = self._equal_together(asked)
        if self._image_token is None:
            return
        count, images = int((found["input_ids"] == self._image_token).sum()), len(asked.images)
        if count < images:
            chat = "its chat template has none" if self.chat else "it has no chat template (chat_template.jinja)"
            hint = "num_query_tokens is missing in its processor_config.json" if self._queries else chat
            raise CheckpointError(
                f"{self.folder}: the processor puts {count} image tokens into a prompt of {images} images, so the "
                f"images would be ignored: {hint}"
            )
        if self._queries is not None and count != self._queries * images:
            raise CheckpointError(
                f"{self.folder}: the processor puts {count} image tokens into a prompt of {images} images, and "
                f"config.json has num_query_tokens {self._queries}: set num_query_tokens of processor_config.json to it"
            )

    def continuation(self, prompt: Tensors, text: str) -> list[int]:
        """Return the tokens of a text that follows a prompt. A blank comes first, unless the prompt ends in one."""
        end = self.tokenizer.decode(prompt["input_ids"][0, -1:])
        blank = "" if self.encoder_decoder or end != end.rstrip() or self.chat else " "
        ids: list[int] = self.tokenizer(blank + text, add_special_tokens=False).input_ids
        return ids

    def extended(self, prompt: Tensors, ids: Sequence[int]) -> Tensors:
        """Return the tensors of a prompt that the tokens `ids` follow."""
        length = prompt["input_ids"].shape[1]
        extended = dict(prompt)
        for name, each in prompt.items():
            if name == "input_ids":
                extended[name] = torch.cat([each, torch.tensor([list(ids)], dtype=each.dtype)], 1)
            elif _follows_text(name, each, length):
                known = _BEHIND | (_PALIGEMMA if self.model_type == "paligemma" else {})
                shape = (1, len(ids), *each.shape[2:])
                # A mask of which text sees which image has more dimensions: what follows sees what the last word saw.
                more = each[:, -1:].expand(shape) if each.ndim > 2 else each.new_full(shape, known.get(name, 0))
                extended[name] = torch.cat([each, more], 1)
        return extended

    def collated(self, prompts: Sequence[Tensors]) -> Tensors:
        """Return one batch of several prompts, padded on the side that the kind of model needs."""
        longest = max(prompt["input_ids"].shape[1] for prompt in prompts)
        batch = {}
        for name, first in prompts[0].items():
            if not _follows_text(name, first, prompts[0]["input_ids"].shape[1]):
                batch[name] = torch.cat([prompt[name] for prompt in prompts])
                continue
            value = self.pad if name == "input_ids" else 0
            rows = []
            for prompt in prompts:
                missing = longest - prompt[name].shape[1]
                sides = (0, missing) if self.encoder_decoder else (missing, 0)
                rows.append(functional.pad(prompt[name], (*(0, 0) * (prompt[name].ndim - 2), *sides), value=value))
            batch[name] = torch.cat(rows)
        return batch

    @property
    def pad(self) -> int:
        """Return the number of the padding token. The attention mask hides it, so any token will do."""
        return int(self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0)

    def _processed(self, asked: Sequence[Asked], **settings: Any) -> Tensors:
        images = [[Image.fromarray(image) for image in each.images] for each in asked]
        texts = [self._text(each) for each in asked]
        found = self.processor(images=images, text=texts, return_tensors="pt", **settings)
        return {name: each for name, each in found.items() if isinstance(each, Tensor) and name != "labels"}

    def _equal_together(self, asked: Asked) -> bool:
        """Return whether one call for several prompts gives the tensors of a call for each.

        The prompts have other lengths and images of other shapes. So a processor that pads images to the largest of
        the batch, or cuts each image into as many tiles as the largest has, is found.
        """
        trial = [
            replace(asked, prompt=f"{asked.prompt}{' is' * number}", images=(_pattern(*shape),) * len(asked.images))
            for number, shape in enumerate(_SHAPES)
        ]
        try:
            alone = [opened(self.folder, "a prompt", partial(self.one, each)) for each in trial]
            found = opened(self.folder, "several prompts", lambda: self._processed(trial, padding=True))
            return all(map(_equal, alone, self._split(trial, found)))
        except (CheckpointError, ValueError):  # Some processors have no padding token, or take one prompt only.
            return False

    def _split(self, asked: Sequence[Asked], batch: Tensors) -> list[Tensors]:
        """Return the tensors of each prompt of a batch, without padding. Raise ValueError where they cannot be told."""
        kept = (
            batch["attention_mask"].bool()
            if "attention_mask" in batch
            else torch.ones(batch["input_ids"].shape, dtype=torch.bool)
        )
        images = [len(each.images) for each in asked]
        sizes = {len(asked): [1] * len(asked), sum(images): images}
        if (grids := batch.get("image_grid_thw")) is not None and len(grids) == sum(images):  # Qwen: grids of patches
            patches = [int(own.prod(-1).sum()) for own in torch.split(grids, images)]
            sizes.setdefault(sum(patches), patches)
        rows: list[Tensors] = [{} for _ in asked]
        for name, each in batch.items():
            if len(each) not in sizes:
                raise ValueError(f"{name} has {len(each)} rows for {len(asked)} prompts")
            parts = torch.split(each, sizes[len(each)])
            if _follows_text(name, parts[0], kept.shape[1]):
                parts = tuple(part[:, own] for part, own in zip(parts, kept, strict=True))
            for row, part in zip(rows, parts, strict=True):
                row[name] = part
        return rows

    def _text(self, asked: Asked) -> str:
        if not self.chat:
            return asked.prompt
        content = [{"type": "image"} for _ in asked.images] + [{"type": "text", "text": asked.prompt}]
        messages = [{"role": "user", "content": content}]
        text: str = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return text


def _pattern(height: int, width: int) -> np.ndarray:
    return (np.arange(height * width * 3) % 251).astype(np.uint8).reshape(height, width, 3)


def _equal(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(each, other[name]) for name, each in one.items())


def passes(prompts: Sequence[Tensors]) -> Iterator[list[int]]:
    """Yield the indices of the prompts that share a pass: of similar length, with images of equal shapes.

    The shortest come first. What a prompt shares a pass with depends on the batch alone, not on the machine.
    """

    def shapes(prompt: Tensors) -> tuple[Any, ...]:
        length = prompt["input_ids"].shape[1]
        return tuple((n, tuple(t.shape[1:])) for n, t in prompt.items() if not _follows_text(n, t, length))

    order = sorted(range(len(prompts)), key=lambda row: (str(shapes(prompts[row])), prompts[row]["input_ids"].shape[1]))
    held: list[int] = []
    for row in order:
        first = prompts[held[0]] if held else prompts[row]
        longest = first["input_ids"].shape[1] * (1 + SIMILAR)
        if held and (shapes(first) != shapes(prompts[row]) or prompts[row]["input_ids"].shape[1] > longest):
            yield held
            held = []
        held.append(row)
    if held:
        yield held


def _follows_text(name: str, tensor: Tensor, length: int) -> bool:
    """Return whether a tensor has a value for each token of the prompt."""
    return "pixel" not in name and tensor.ndim > 1 and tensor.shape[0] == 1 and tensor.shape[1] == length
