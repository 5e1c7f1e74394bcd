"""A generative vision-language model of transformers with two verbs: write a text, or score given texts.

Every model type that AutoModelForImageTextToText knows can be opened. A folder's own generation settings never decide:
its `generation_config.json` may hold sampling, a penalty or a ban on repetition, which transformers applies silently,
and BLIP-2 takes those of its language model and not its own. Only the numbers of special tokens are taken from there.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visualbert_core.errors import CheckpointError
from visualbert_core.float32 import whole_float32
from visualbert_core.models.generative.asked import Asked, Outcome
from visualbert_core.models.generative.image_encoder import SharedImages, embed_by_products, leave_out_unread_layers
from visualbert_core.models.generative.inputs import Inputs, Tensors, passes
from visualbert_core.models.generative.protocol import Decoding
from visualbert_core.models.transformers_folder import load_network, opened
from visualbert_core.models.writing import SPECIAL, write

IGNORED = -100


class GenerativeNetwork:
    """The configuration and the processor of a folder. The weights are read at the first batch.

    A driver that only asks what a model is does not read 15 GB.
    """

    def __init__(self, folder: Path, precision: str, device: torch.device) -> None:
        """Open a folder. Raise CheckpointError where its configuration or its processor cannot be read."""
        from transformers import AutoConfig

        read = AutoConfig.from_pretrained
        self.config = opened(
            folder, "config.json", lambda: read(folder, local_files_only=True, trust_remote_code=False)
        )
        text = self.config.get_text_config()
        self.encoder_decoder = bool(text.is_encoder_decoder or self.config.is_encoder_decoder)
        self.inputs = Inputs(folder, self.config, self.encoder_decoder)
        self.positions: int | None = None if self.encoder_decoder else getattr(text, "max_position_embeddings", None)
        self._folder, self._precision, self._device = folder, precision, device
        self._loaded: Any = None
        self._images = SharedImages()

    @torch.inference_mode()
    def write(
        self, prompts: Sequence[Tensors], asked: Sequence[Asked], decoding: Decoding
    ) -> list[tuple[Outcome, float | None]]:
        """Return the text of each prompt, and its probability where the search is greedy."""
        found: dict[int, tuple[Outcome, float | None]] = {}
        for rows in passes(prompts):
            batch = self._on_device(self.inputs.collated([prompts[row] for row in rows]))
            with self._sharing(prompts, rows, [_shown(each) for each in asked]):
                found |= zip(rows, self._written(batch, decoding), strict=True)
        return [found[row] for row in range(len(prompts))]

    @torch.inference_mode()
    def score(self, prompts: Sequence[Tensors], asked: Sequence[Asked]) -> list[Outcome]:
        """Return the log-likelihood of each continuation of each prompt."""
        rows: list[tuple[int, list[int]]] = []
        for number, (prompt, each) in enumerate(zip(prompts, asked, strict=True)):
            rows += [(number, self.inputs.continuation(prompt, text)) for text in each.continuations]
        shown = [_shown(asked[number]) for number, _ in rows]
        values = (self._translated if self.encoder_decoder else self._continued)(prompts, rows, shown)
        outcomes = []
        for number, _ in enumerate(asked):
            own = [(value, len(ids)) for value, (of, ids) in zip(values, rows, strict=True) if of == number]
            sums, tokens = zip(*own, strict=True)
            outcomes.append(Outcome(log_likelihoods=sums, tokens=tokens))
        return outcomes

    @cached_property
    def special_tokens(self) -> dict[str, Any]:
        """Return the numbers of the tokens that begin, end and pad a text, of the folder's generation settings.

        A model may have several tokens that end a text. The tokenizer knows only one of them.
        """
        from transformers import GenerationConfig

        path = self._folder / "generation_config.json"
        held: Any = self.config.get_text_config()
        if path.is_file():
            held = opened(self._folder, path.name, lambda: GenerationConfig.from_pretrained(self._folder))
        found = {name: getattr(held, name, None) for name in SPECIAL}
        ends = found["eos_token_id"] if isinstance(found["eos_token_id"], list) else [found["eos_token_id"]]
        ends = sorted({end for end in (*ends, self.inputs.tokenizer.eos_token_id) if end is not None})
        if self.encoder_decoder and found["decoder_start_token_id"] is None:
            found["decoder_start_token_id"] = getattr(self.config.get_text_config(), "decoder_start_token_id", None)
        if not ends:
            raise CheckpointError(
                f"{self._folder}: neither the tokenizer nor generation_config.json names an end token"
            )
        return found | {"eos_token_id": ends, "pad_token_id": self.inputs.pad}

    @property
    def _network(self) -> Any:
        if self._loaded is None:
            from transformers import AutoModelForImageTextToText

            settings: Any = {"trust_remote_code": False}
            try:
                self._loaded = load_network(
                    AutoModelForImageTextToText, self._folder, self._precision, self._device, **settings
                )
            except torch.OutOfMemoryError:
                raise CheckpointError(
                    f"{self._folder}: the weights do not fit into the memory of {self._device} in {self._precision}: "
                    "use bfloat16 or a larger device; one model takes one device"
                ) from None
            embed_by_products(self._loaded)
            leave_out_unread_layers(self._loaded)
            self._images.attach(self._loaded)
        return self._loaded

    def _sharing(
        self, prompts: Sequence[Tensors], rows: Sequence[int], shown: Sequence[Hashable]
    ) -> AbstractContextManager[None]:
        """Return the context in which the rows of a pass share their images."""
        sizes = {
            tuple(len(prompts[row][name]) for row in rows) for name, each in prompts[rows[0]].items() if each.ndim > 1
        }
        return self._images.shared([shown[row] for row in rows], sizes)

    def _on_device(self, batch: Tensors) -> Tensors:
        dtype = self._network.dtype
        return {
            name: each.to(self._device, dtype if each.is_floating_point() else None) for name, each in batch.items()
        }

    def _written(self, batch: Tensors, decoding: Decoding) -> list[tuple[Outcome, float | None]]:
        # The first token of an encoder-decoder's output is the start token.
        start = 1 if self.encoder_decoder else batch["input_ids"].shape[1]
        found = write(self._network, batch, self.special_tokens, decoding, start)
        texts = [self.inputs.tokenizer.decode(each.ids, skip_special_tokens=False) for each in found]
        return [
            (Outcome(self._plain(text), cut=each.cut), each.probability)
            for text, each in zip(texts, found, strict=True)
        ]

    def _plain(self, text: str) -> str:
        """Return a text without the special tokens that mean nothing. Tokens that mark places stay."""
        tokenizer = self.inputs.tokenizer
        for token in {tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token} - {None}:
            text = text.replace(token, "")
        return text

    def _continued(
        self, prompts: Sequence[Tensors], rows: Sequence[tuple[int, list[int]]], shown: Sequence[Hashable]
    ) -> list[float]:
        extended = [self.inputs.extended(prompts[number], ids) for number, ids in rows]
        found: dict[int, float] = {}
        for group in passes(extended):
            batch = self._on_device(self.inputs.collated([extended[row] for row in group]))
            kept = max(len(rows[row][1]) for row in group) + 1
            few = "logits_to_keep" in inspect.signature(self._network.forward).parameters
            with whole_float32(), self._sharing(extended, group, shown):
                logits = self._network(**batch, **({"logits_to_keep": kept} if few else {})).logits
            for row, values in zip(group, logits[:, -kept:].float(), strict=True):
                ids = rows[row][1]
                found[row] = _likelihood(values[-len(ids) - 1 : -1], ids)
        return [found[row] for row in range(len(rows))]

    def _translated(
        self, prompts: Sequence[Tensors], rows: Sequence[tuple[int, list[int]]], shown: Sequence[Hashable]
    ) -> list[float]:
        found: dict[int, float] = {}
        sources = [prompts[number] for number, _ in rows]
        for group in passes(sources):
            batch = self._on_device(self.inputs.collated([sources[row] for row in group]))
            longest = max(len(rows[row][1]) for row in group)
            padded = [rows[row][1] + [IGNORED] * (longest - len(rows[row][1])) for row in group]
            with whole_float32(), self._sharing(sources, group, shown):
                logits = self._network(**batch, labels=torch.tensor(padded, device=self._device)).logits
            for row, values in zip(group, logits.float(), strict=True):
                found[row] = _likelihood(values[: len(rows[row][1])], rows[row][1])
        return [found[row] for row in range(len(rows))]


def _shown(asked: Asked) -> Hashable:
    """Return what is equal for prompts that show the same images."""
    return tuple(map(id, asked.images))


def _likelihood(logits: Tensor, ids: Sequence[int]) -> float:
    """Return the log-likelihood of the tokens `ids`, of which each row of logits [tokens, vocabulary] gives one."""
    chosen = logits.log_softmax(-1).gather(1, torch.tensor(ids, device=logits.device)[:, None])
    return float(chosen.double().sum())
