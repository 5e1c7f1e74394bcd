"""A ViLT behind the `Trainable` contract: questions with weighted answers, and statements about two images.

Owns how targets become labels, and the losses, which are those of transformers' ViltForQuestionAnswering (binary
cross-entropy, summed over the answers) and ViltForImagesAndTextClassification (cross-entropy). The patches keep their
raster order, as in `network`: transformers draws their order from the generator that dropout draws from.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from visualbert_core.errors import CheckpointError, ConfigError, InputError
from visualbert_core.models.trainable import Item, Start
from visualbert_core.models.transformers_folder import load_network, opened, read_config
from visualbert_core.models.transformers_training import TransformersTrainable, check_start, set_dropout
from visualbert_core.models.vilt.network import embedded_images
from visualbert_core.models.vilt.predictor import CLASSES, TRUTH, answer_names, check_config
from visualbert_core.models.visualbert.inputs import read_lines
from visualbert_core.provenance import digest_json
from visualbert_core.schema import CaptionPair, Example, Pixels, Question, Statement, Target

INGREDIENT = "training"

_TYPES = "embeddings.token_type_embeddings.weight"
_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Content:
    """What an example becomes. The images are float32 [3, height, width], as the image processor gives them."""

    ids: tuple[int, ...]
    images: tuple[Tensor, ...]
    weights: Mapping[int, float]
    """The index of each answer of a question, or of the truth value of a statement → its weight."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """The tensors of one pass. Shapes: B examples, T word pieces, L labels."""

    ids: Tensor
    """int [B, T]"""
    words: Tensor
    """int [B, T]: 1 for a word piece, 0 for padding."""
    images: tuple[tuple[tuple[tuple[int, int], ...], Tensor], ...]
    """For each size of images: which they are (example, first or second), and their pixels [n, 3, height, width]."""
    labels: Tensor
    """float32 [B, L] for questions, int [B] for statements."""


class ViltTrainable(TransformersTrainable):
    """A ViLT network with its processor."""

    def __init__(self, folder: Path, form: type[Example] | type[CaptionPair], start: Start) -> None:
        """Open a folder. With random weights it needs config.json and the processor alone.

        Raise CheckpointError where it is incomplete, ConfigError where `start` does not fit it.
        """
        found = read_config(folder)
        import transformers  # behind the check that it is installed

        if form not in CLASSES:
            known = ", ".join(each.__name__ for each in CLASSES)
            raise CheckpointError(f"{folder}: ViLT learns {known} and not {form.__name__}")
        assert issubclass(form, Question | Statement)
        check_start(folder, start, answers=form is Question, new_head=True)
        if start.label_smoothing and form is Question:
            raise ConfigError(
                f"label_smoothing {start.label_smoothing:g}: the targets of questions are weights already; leave it out"
            )
        self._form = form
        read = transformers.ViltProcessor.from_pretrained
        self._processor: Any = opened(folder, "the processor", lambda: read(folder, local_files_only=True))
        config: Any = opened(folder, "the configuration", lambda: transformers.ViltConfig.from_pretrained(folder))
        if start.weights != "checkpoint":
            found = self._with_head(config, start.answers)
        elif start.answers is not None:
            raise ConfigError("answers: another list needs a new head: set weights to new-head")
        check_config(folder, found, form)
        set_dropout(config, start.dropout)
        super().__init__(folder, start, lambda: self._opened(config))
        self.terms = ("answers" if form is Question else "statements",)
        self._index = {name: at for at, name in enumerate(answer_names(folder, config, form))}

    def _with_head(self, config: Any, answers: Path | None) -> dict[str, Any]:
        """Give a configuration the labels of a new head. Return it as a dictionary. `answers` is a file of names."""
        names: tuple[str, ...] | None = TRUTH if self._form is Statement else None
        if answers is not None:
            # ViLT's answers are independent, so none stands for the others, as the <unk> of VisualBERT's lists does.
            names = tuple(name for name in read_lines(answers) if name != "<unk>")
        if names is not None:
            config.id2label, config.label2id = dict(enumerate(names)), {name: at for at, name in enumerate(names)}
        if self._form is Statement:
            config.num_images, config.modality_type_vocab_size = 2, 3
        config.architectures = [CLASSES[self._form]]
        return dict(config.to_dict())

    def _opened(self, config: Any) -> Any:
        import transformers

        kind = getattr(transformers, CLASSES[self._form])
        if self._start.weights == "checkpoint":
            return load_network(kind, self._folder, "float32", _CPU, config=config)
        network = kind(config)
        if self._start.weights == "new-head":
            state = load_network(transformers.ViltModel, self._folder, "float32", _CPU).state_dict()
            types = state[_TYPES]
            # The second image of a pair starts with the type of the first, as in ViLT's own code for NLVR2.
            lacking = config.modality_type_vocab_size - len(types)
            state[_TYPES] = torch.cat([types, types[-1:].expand(max(lacking, 0), -1)])
            network.vilt.load_state_dict(state)
        return network

    def fingerprint(self) -> dict[str, Any]:
        """Return the class, the digests of the files that the training starts from, and of the list of answers."""
        return super().fingerprint() | {"answers": digest_json(list(self._index))}

    def has_target(self, target: Target) -> bool:
        """Return whether an answer is in the list. Truth values always are."""
        return any(answer in self._index for answer in target) if isinstance(target, Mapping) else True

    def encode(
        self,
        example: Example | CaptionPair,
        visual: tuple[Pixels, ...],
        target: Target,
        draws: random.Random,
    ) -> Item:
        """Turn an example into an item. A text that is longer than the network's positions loses its end.

        Raise InputError for an image that the image processor refuses.
        """
        assert isinstance(example, Question | Statement)
        most = self.network.config.max_position_embeddings
        with self._lock:
            ids = tuple(self._processor.tokenizer(example.text, truncation=True, max_length=most).input_ids)
        images = tuple(map(self._prepared, visual))
        if isinstance(target, Mapping):
            weights = {self._index[name]: weight for name, weight in target.items() if name in self._index}
        else:
            assert isinstance(target, int)
            weights = {self._index[TRUTH[target]]: 1.0}
        tokens = sum(len(ids) + 1 + self._patches(image) for image in images)
        return Item(example.example_id, tokens, (1,), Content(ids, images, weights))

    def _prepared(self, image: Pixels) -> Tensor:
        process = self._processor.image_processor
        try:  # with a copy, because torch warns of arrays that cannot be written
            found = process(image.rgb.copy(), return_tensors="pt", input_data_format="channels_last")
        except ValueError as error:
            raise InputError(
                f"image {image.image_id!r}: {image.width}×{image.height} pixels are too thin for ViLT ({error}): "
                "remove it from the corpus, and leave out its examples with --allow-missing"
            ) from None
        pixels: Tensor = found["pixel_values"][0]
        return pixels

    def _patches(self, image: Tensor) -> int:
        side: int = self.network.config.patch_size
        return (image.shape[1] // side) * (image.shape[2] // side)

    def prepare(self, items: Sequence[Item]) -> Prepared:
        """Pad the texts of the items, and stack images of one size."""
        contents: list[Content] = [item.content for item in items]
        sizes: dict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)
        for row, content in enumerate(contents):
            for place, image in enumerate(content.images):
                sizes[tuple(image.shape)].append((row, place))
        images = [
            (tuple(places), torch.stack([contents[row].images[place] for row, place in places]))
            for places in sizes.values()
        ]
        return Prepared(*self._texts(contents), tuple(images), self._labels(contents))

    def _texts(self, contents: Sequence[Content]) -> tuple[Tensor, Tensor]:
        rows = [torch.tensor(content.ids) for content in contents]
        padding = self._processor.tokenizer.pad_token_id
        return pad_sequence(rows, True, padding), pad_sequence([torch.ones_like(row) for row in rows], True)

    def _labels(self, contents: Sequence[Content]) -> Tensor:
        if self._form is Statement:
            return torch.tensor([label for content in contents for label in content.weights])
        labels = torch.zeros(len(contents), len(self._index))
        for row, content in zip(labels, contents, strict=True):
            for at, weight in content.weights.items():
                row[at] = weight
        return labels

    def padded(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Return the arguments of the network of transformers, with `labels`. Images are padded at the right and below.

        Images are [B, 3, height, width] for questions and [B, 2, 3, height, width] for statements.
        """
        contents: list[Content] = [item.content for item in items]
        every = [image for content in contents for image in content.images]
        height, width = (max(image.shape[side] for image in every) for side in (1, 2))
        space = [(0, width - image.shape[2], 0, height - image.shape[1]) for image in every]
        pixels = torch.stack([functional.pad(image, pad) for image, pad in zip(every, space, strict=True)])
        mask = torch.stack(
            [functional.pad(torch.ones(image.shape[1:]).long(), pad) for image, pad in zip(every, space, strict=True)]
        )
        if self._form is Statement:
            pixels, mask = (each.view(-1, 2, *each.shape[1:]) for each in (pixels, mask))
        ids, words = self._texts(contents)
        return {
            "input_ids": ids,
            "attention_mask": words,
            "pixel_values": pixels,
            "pixel_mask": mask,
            "labels": self._labels(contents),
        }

    def losses(self, prepared: Prepared) -> Tensor:
        """Return the sum of the losses of the examples: float32 [1]. The loss itself is float32 under autocast too."""
        network = self.network
        device = network.device
        embedded: dict[tuple[int, int], Tensor] = {}
        for places, pixels in prepared.images:
            found = network.vilt.embeddings.dropout(embedded_images(network.vilt, pixels.to(device)))
            embedded |= zip(places, found, strict=True)
        ids, words, labels = (each.to(device) for each in (prepared.ids, prepared.words, prepared.labels))
        pooled = [
            self._pooled(ids, words, [embedded[row, place] for row in range(len(ids))], place + 1)
            for place in range(2 if self._form is Statement else 1)
        ]
        logits = network.classifier(torch.cat(pooled, -1)).float()
        with torch.autocast(device.type, enabled=False):
            if self._form is Statement:
                smoothing = self._start.label_smoothing
                return functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)[None]
            return functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")[None]

    def _pooled(self, ids: Tensor, words: Tensor, images: Sequence[Tensor], kind: int) -> Tensor:
        """Return the pooled vectors [B, H] of texts with the images of one type embedding."""
        mask = pad_sequence([torch.ones(len(image), dtype=torch.long, device=ids.device) for image in images], True)
        pooled: Tensor = self.network.vilt(
            ids,
            attention_mask=words,
            token_type_ids=torch.zeros_like(ids),
            image_embeds=pad_sequence(list(images), True),
            pixel_mask=mask,
            image_token_type_idx=kind,
        ).pooler_output
        return pooled

    def save(self, folder: Path, task: str | None, space: str | None) -> None:
        """Write config.json, float32 weights and the processor into `folder`. The answers are in `id2label`."""
        self.network.save_pretrained(folder)
        self._processor.save_pretrained(folder)
