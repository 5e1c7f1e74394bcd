"""A ViLT checkpoint folder behind the `Model` contract: examples and their pixels in, predictions out.

It answers a `Question` with the classifier of ViltForQuestionAnswering, and a `Statement` with the pair head of
ViltForImagesAndTextClassification. The answers are the names in `id2label` of the folder, and no other list: published
checkpoints have other orders of the same 3,129 answers. The score of an answer is its sigmoid, as in the pipeline
`visual-question-answering` that transformers 5 removed.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from visualbert_core.config import AnsweringConfig
from visualbert_core.errors import CheckpointError, ConfigError, InputError
from visualbert_core.io.documents import brief
from visualbert_core.models.base import NOT_FINITE, Family, ReadsPixels
from visualbert_core.models.transformers_folder import (
    CONFIG_FILE,
    folder_fingerprint,
    load_network,
    opened,
    read_config,
)
from visualbert_core.models.vilt.network import TextAndImage, ViltTrunk
from visualbert_core.schema import CaptionPair, Example, Failure, Pixels, Prediction, Question, RankedAnswer, Statement

if TYPE_CHECKING:
    from visualbert_core.models.trainable import Start
    from visualbert_core.models.vilt.trainable import ViltTrainable

CLASSES: dict[type[Example], str] = {
    Question: "ViltForQuestionAnswering",
    Statement: "ViltForImagesAndTextClassification",
}
"""Form of example → the class of transformers that answers it."""
TRUTH = ("False", "True")
_B32 = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 32, "image_size": 384}

Examined = tuple[Prediction, np.ndarray] | Failure


class ViltPredictor(Family):
    """Answers examples of one form. Threads may share it."""

    visual_source = "pixels"
    called = "ViLT"
    answered = CLASSES
    settings = ("strict_length",)
    reads = ReadsPixels()
    protocol = ""

    def __init__(
        self, folder: Path, form: type[Example], device: torch.device, precision: str, answering: AnsweringConfig
    ) -> None:
        """Open a folder. Callers use `from_pretrained`, which checks the arguments first."""
        config = read_config(folder)
        import transformers  # behind the check that it is installed

        check_config(folder, config, form)
        self.forms = frozenset({form})
        self.name = "ViLT-B/32" if all(config.get(key, value) == value for key, value in _B32.items()) else "ViLT"
        kind = getattr(transformers, CLASSES[form])
        self._network = load_network(kind, folder, precision, device, attn_implementation="eager")
        read = transformers.ViltProcessor.from_pretrained
        processor = opened(folder, "the processor", lambda: read(folder, local_files_only=True))
        self._image_processor, self._tokenizer = processor.image_processor, processor.tokenizer
        self._answers = answer_names(folder, self._network.config, form)
        self._form, self._trunk, self._strict = form, ViltTrunk(self._network.vilt), answering.strict_length
        self._positions = self._network.config.max_position_embeddings
        self._lock = threading.Lock()
        self._fingerprint = {
            "class": CLASSES[form],
            "precision": precision,
            "strict_length": self._strict,
            "image_processor": type(self._image_processor).__name__,
            **folder_fingerprint(folder),
        }

    @classmethod
    def to_train(cls, folder: Path, form: type[Example] | type[CaptionPair], start: Start) -> ViltTrainable:
        """Open a folder to train it. See `trainable.ViltTrainable`."""
        from visualbert_core.models.vilt.trainable import ViltTrainable  # it imports this file

        return ViltTrainable(folder, form, start)

    def predict(self, batch: Sequence[tuple[Example, tuple[Pixels, ...]]]) -> list[Prediction | Failure]:
        """Answer every example, in order. `schema.Prediction` describes the answer of each form.

        An image that is too thin for the image processor gives a `Failure`, and so do scores that are not finite. Raise
        ConfigError under `strict_length` for a text that is longer than the network's positions.
        """
        found = self.examine(batch)
        return [each if isinstance(each, Failure) else each[0] for each in found]

    def examine(self, batch: Sequence[tuple[Example, tuple[Pixels, ...]]]) -> list[Examined]:
        """Answer as `predict` does, and return with each answer its logits: [answers] or [false, true]."""
        sequences, cut, failures = self._sequences(batch)
        able = [index for index in range(len(batch)) if index not in failures]
        if not able:
            return list(failures.values())
        with self._lock:
            logits = self._head([sequence for index in able for sequence in sequences[index]])
        rows = dict(zip(able, logits.float().cpu().numpy(), strict=True))
        return [
            failures[index] if index in failures else self._decoded(example, rows[index], cut[index])
            for index, (example, _) in enumerate(batch)
        ]

    def rank(self, logits: np.ndarray, count: int) -> tuple[RankedAnswer, ...]:
        """Return the `count` best answers to a question with their sigmoids, from the logits of `examine`."""
        order = np.argsort(-logits, kind="stable")[:count]
        return tuple(RankedAnswer(self._answers[number], _sigmoid(logits[number])) for number in order)

    def attend(self, batch: Sequence[tuple[Example, tuple[Pixels, ...]]]) -> list[tuple[np.ndarray, ...]]:
        """Return the attention weights of every example: float32 [layers, heads, L, L] for each of its sequences.

        L is the word pieces, then the class token of the image and its patches row by row. A Statement has a sequence
        for each image. Raise InputError for an image that the image processor refuses.
        """
        sequences, _, failures = self._sequences(batch)
        for failure in failures.values():
            raise InputError(f"{failure.item_id}: {failure.message}")
        return [tuple(map(self._trunk.attentions, sequences[index])) for index in range(len(batch))]

    def _head(self, sequences: list[TextAndImage]) -> Tensor:
        """Return the logits [examples, labels]. The sequences of an example follow each other."""
        pooled = self._trunk.pooled(sequences)
        with torch.inference_mode():
            logits: Tensor = self._network.classifier(pooled.view(len(sequences) // self._images, -1))
        return logits

    @property
    def _images(self) -> int:
        return 2 if self._form is Statement else 1

    def _sequences(
        self, batch: Sequence[tuple[Example, tuple[Pixels, ...]]]
    ) -> tuple[dict[int, list[TextAndImage]], dict[int, bool], dict[int, Failure]]:
        """Return by index in the batch: the sequences, whether the text was cut, and the failures."""
        embedded: dict[int, Tensor | str] = {}
        sequences: dict[int, list[TextAndImage]] = {}
        cut: dict[int, bool] = {}
        failures: dict[int, Failure] = {}
        for index, (example, images) in enumerate(batch):
            assert isinstance(example, Question | Statement)
            ids, cut[index] = self._ids(example)
            for image in images:
                if id(image) not in embedded:
                    embedded[id(image)] = self._embedded(image)
            found = [embedded[id(image)] for image in images]
            refused = [f"image {i.image_id!r}: {e}" for i, e in zip(images, found, strict=True) if isinstance(e, str)]
            if refused:
                failures[index] = Failure(example.example_id, "predict", "ImageSize", refused[0])
            kinds = enumerate(found, start=1)
            sequences[index] = [TextAndImage(ids, image, kind) for kind, image in kinds if isinstance(image, Tensor)]
        return sequences, cut, failures

    def _ids(self, example: Question | Statement) -> tuple[tuple[int, ...], bool]:
        ids = self._tokenizer(example.text).input_ids
        if len(ids) <= self._positions:
            return tuple(ids), False
        if self._strict:
            raise ConfigError(
                f"{example.example_id}: its text has {len(ids)} word pieces, and ViLT reads {self._positions}: leave "
                "out strict_length to cut such texts and count them"
            )
        return tuple(self._tokenizer(example.text, truncation=True, max_length=self._positions).input_ids), True

    def _embedded(self, image: Pixels) -> Tensor | str:
        """Return the embedded image [1 + patches, hidden], or why the image processor refuses the image."""
        try:  # with a copy, because torch warns of arrays that cannot be written
            prepared = self._image_processor(image.rgb.copy(), return_tensors="np", input_data_format="channels_last")
        except ValueError:  # It rounds the sides down to whole patches. One side of an image of 20:1 becomes 0.
            size = f"{image.width}×{image.height} pixels"
            return f"{size} are too thin for ViLT: resized, the shorter side would have less than one patch"
        return self._trunk.embed(prepared["pixel_values"][0])

    def _decoded(self, example: Example, logits: np.ndarray, cut: bool) -> Examined:
        if not np.isfinite(logits).all():
            return Failure(example.example_id, "predict", "NotFinite", NOT_FINITE)
        order = [self._answers.index(name) for name in TRUTH] if self._form is Statement else slice(None)
        logits = logits[order]
        best = int(logits.argmax())
        values = logits.astype(np.float64)
        scores: tuple[float, ...]
        if self._form is Statement:
            powers = np.exp(values - values.max())
            answer, scores = TRUTH[best], tuple((powers / powers.sum()).tolist())
        else:
            answer, scores = self._answers[best], (_sigmoid(values[best]),)
        return Prediction(example.example_id, example.image_ids[0], answer, scores, input_cut=cut), logits


def _sigmoid(logit: float) -> float:
    return float(1 / (1 + np.exp(-np.float64(logit))))


def check_config(folder: Path, config: dict[str, Any], form: type[Example]) -> None:
    """Raise CheckpointError where the network of a folder is of another class, or drops patches."""
    path = folder / CONFIG_FILE
    trained = config.get("architectures") or [CLASSES[form]]
    if CLASSES[form] not in trained:
        raise CheckpointError(
            f"{path}: architectures: a {form.__name__} needs a {CLASSES[form]}, and this is a {brief(trained[0])}"
        )
    if config.get("max_image_length", -1) >= 0:
        raise CheckpointError(
            f"{path}: max_image_length is {config['max_image_length']}: the network would read a random part of each "
            "image; set it to -1, as in the published checkpoints"
        )
    if form is Statement and (config.get("num_images"), config.get("modality_type_vocab_size")) != (2, 3):
        raise CheckpointError(f"{path}: a Statement needs num_images 2 and modality_type_vocab_size 3")


def answer_names(folder: Path, config: Any, form: type[Example]) -> tuple[str, ...]:
    """Return the answers in the order of the logits. Raise CheckpointError where `id2label` does not name them."""
    names = tuple(str(config.id2label.get(number, "")) for number in range(config.num_labels))
    path = folder / CONFIG_FILE
    if form is Statement:
        if names == ("LABEL_0", "LABEL_1"):
            return TRUTH
        if set(names) != set(TRUTH):
            raise CheckpointError(f"{path}: id2label: a Statement needs the names False and True, got {brief(names)}")
        return names
    if all(name == f"LABEL_{number}" for number, name in enumerate(names)) or "" in names:
        raise CheckpointError(f"{path}: id2label does not name the {config.num_labels} answers: add their names")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise CheckpointError(f"{path}: id2label: {brief(twice[0])} is the name of two answers")
    return names
