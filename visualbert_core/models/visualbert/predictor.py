"""A VisualBERT checkpoint folder behind the `Model` contract: examples and their regions in, predictions out.

Owns the decoding of the logits of each task, and the checks that a folder fits its task. A folder holds `config.json`,
weights, `vocab.txt`, and optionally the metadata file `visualbert_core.json`. For VQA it also holds the answers in the
order of the weights: `answers.txt` as published with Pythia (https://github.com/facebookresearch/mmf), or the names in
`id2label`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from visualbert_core.config import AnsweringConfig
from visualbert_core.errors import CheckpointError
from visualbert_core.float32 import whole_float32
from visualbert_core.io.documents import brief
from visualbert_core.models.base import NOT_FINITE, Family, ReadsRegions
from visualbert_core.models.trainable import Start
from visualbert_core.models.visualbert.checkpoint.files import weights_digest
from visualbert_core.models.visualbert.checkpoint.metadata import CheckpointMetadata, published_space
from visualbert_core.models.visualbert.config import CONFIG_FILE, VisualBertConfig
from visualbert_core.models.visualbert.heads import NETWORKS, collate
from visualbert_core.models.visualbert.inference import PRECISIONS, InferenceNetwork
from visualbert_core.models.visualbert.inputs import (
    GEOMETRY_SIZE,
    VOCAB_FILE,
    Encoded,
    InputEncoder,
    read_lines,
    repeated,
)
from visualbert_core.models.visualbert.modeling import VisualBertModel
from visualbert_core.printable import logger
from visualbert_core.provenance import digest_file, digest_json
from visualbert_core.schema import (
    CaptionPair,
    Example,
    Failure,
    Grounding,
    Prediction,
    Question,
    RankedAnswer,
    Regions,
    Statement,
)

if TYPE_CHECKING:
    from visualbert_core.models.visualbert.trainable import VisualBertTrainable

ANSWERS_FILE = "answers.txt"
UNKNOWN_ANSWER = "<unk>"
_PADDED_TO = (64, 128)  # some tools pad the word table to a multiple of this, because GPUs multiply whole blocks
_LOG = logger(__name__)


class VisualBertPredictor(Family):
    """Answers examples of one form. Threads may share it: one batch computes while other threads prepare theirs."""

    visual_source = "regions"
    called = "VisualBERT"
    answered = NETWORKS
    precisions = PRECISIONS
    reads: ReadsRegions
    name = "VisualBERT"
    protocol = ""

    def __init__(
        self, folder: Path, form: type[Example], device: torch.device, precision: str, _: AnsweringConfig
    ) -> None:
        """Open a folder. Callers use `from_pretrained`, which checks the arguments first."""
        sidecar = CheckpointMetadata.from_folder(folder)
        if sidecar.form is not None and sidecar.form is not form:
            raise CheckpointError(
                f"{folder}: trained for {sidecar.task}, so it answers {sidecar.form.__name__} and not {form.__name__}: "
                "give a checkpoint of this task"
            )
        config = VisualBertConfig.from_folder(folder)
        if form is Statement and config.num_labels != 2:
            raise CheckpointError(f"{folder / CONFIG_FILE}: num_labels: a Statement needs 2, got {config.num_labels}")
        self._folder, self._form, self.forms = folder, form, frozenset({form})
        self._answers = read_answers(folder, config) if form is Question else ()
        self._unanswerable = np.array([answer == UNKNOWN_ANSWER for answer in self._answers], dtype=bool)
        self._encoder = checkpoint_encoder(folder, config, sidecar)
        self._network = InferenceNetwork(NETWORKS[form].from_pretrained(folder), precision, device)
        self._lock = threading.Lock()
        # The encoder appends the numbers of the box geometry, so the store does not hold them.
        size = config.visual_embedding_dim - (GEOMETRY_SIZE if sidecar.box_geometry else 0)
        likely = published_space(folder, form, config) if sidecar.feature_space is None else None
        self.reads = ReadsRegions(size, sidecar.feature_space, likely)
        self._fingerprint = {
            "class": NETWORKS[form].__name__,
            **sidecar.inputs,
            "precision": precision,
            "weights": weights_digest(folder),
            "config": digest_json(config.to_dict()),
            "vocab": digest_file(folder / VOCAB_FILE),
            "answers": digest_json(self._answers) if self._answers else None,
        }

    @classmethod
    def to_train(cls, folder: Path, form: type[Example] | type[CaptionPair], start: Start) -> VisualBertTrainable:
        """Open a folder to train it. See `trainable.VisualBertTrainable`."""
        from visualbert_core.models.visualbert.trainable import VisualBertTrainable  # it imports this file

        return VisualBertTrainable(folder, form, start)

    def predict(self, batch: Sequence[tuple[Example, tuple[Regions, ...]]]) -> list[Prediction | Failure]:
        """Answer every example, in order. `schema.Prediction` describes the answer of each form.

        Ties go to the lowest index. Raise CheckpointError if the features do not have `reads.size` numbers.
        """
        found = self.examine(batch)
        return [each if isinstance(each, Failure) else each[0] for each in found]

    def examine(
        self, batch: Sequence[tuple[Example, tuple[Regions, ...]]]
    ) -> list[tuple[Prediction, np.ndarray] | Failure]:
        """Answer as `predict` does, and return with each answer the logits of which it is the largest.

        They are [answers], [choices], [false, true] or [phrases, regions]. The logit of `<unk>`, which is never
        answered, is -inf.
        """
        for example, regions in batch:
            self._check(example, regions)
        if not batch:
            return []
        items = [self._encoder.sequences(example, regions) for example, regions in batch]
        packed = self._network.prepare([sequence for item in items for sequence in item])
        with self._lock:
            logits = iter(self._network(packed))
        rows = [torch.cat([next(logits) for _ in item]).numpy() for item in items]
        return [self._decoded(*item, row) for item, row in zip(batch, rows, strict=True)]

    def rank(self, logits: np.ndarray, count: int) -> tuple[RankedAnswer, ...]:
        """Return the `count` likeliest answers to a question with their probabilities, from the logits of `examine`.

        `<unk>` is never one of them.
        """
        probabilities = _softmax(logits)
        order = [number for number in np.argsort(-logits, kind="stable") if not self._unanswerable[number]]
        return tuple(RankedAnswer(self._answers[number], float(probabilities[number])) for number in order[:count])

    def attend(self, batch: Sequence[tuple[Example, tuple[Regions, ...]]]) -> list[tuple[np.ndarray, ...]]:
        """Return the attention weights of every example: float32 [layers, heads, L, L] for each of its sequences.

        L is the tokens of the text, then the regions (see `inputs`). A MultipleChoice has one sequence for each choice,
        every other form has one. The weights are those of the whole network in float32, which is read again for this:
        the network that answers skips positions that no answer needs. Raise CheckpointError as `predict` does.
        """
        for example, regions in batch:
            self._check(example, regions)
        trunk = VisualBertModel.from_pretrained(self._folder).eval().to(self._network.device)
        if trunk.config.bypass_transformer:
            raise CheckpointError(f"{self._folder}: bypass_transformer: its layers attend over different lengths")
        return [
            tuple(_attention(trunk, sequence) for sequence in self._encoder.sequences(example, regions))
            for example, regions in batch
        ]

    def _check(self, example: Example, regions: tuple[Regions, ...]) -> None:
        if not isinstance(example, self._form):
            raise TypeError(f"{self._folder} answers a {self._form.__name__}, got a {type(example).__name__}")
        check_features(self._folder, self.reads.size, regions)

    def _decoded(
        self, example: Example, regions: tuple[Regions, ...], logits: np.ndarray
    ) -> tuple[Prediction, np.ndarray] | Failure:
        """Return the answer to one example and the logits that decide it, or a `Failure` if these are not finite."""
        if isinstance(example, Question):
            # The authors' accuracy masks <unk> too. Their writer of test submissions does not.
            logits = np.where(self._unanswerable, -np.inf, logits)
        # The answer is the largest logit. NaN anywhere makes the maximum NaN, so one check of the maximum is enough. An
        # image without regions has no logits and is answered with no box.
        if logits.size and not np.isfinite(logits.max(-1)).all():
            return Failure(example.example_id, "predict", "NotFinite", NOT_FINITE)
        answer, scores = self._answer(example, regions, logits)
        return Prediction(example.example_id, example.image_ids[0], answer, scores), logits

    def _answer(
        self, example: Example, regions: tuple[Regions, ...], logits: np.ndarray
    ) -> tuple[Any, tuple[float, ...]]:
        """Return the `answer` and the `scores` of a prediction."""
        probabilities = _softmax(logits)
        if isinstance(example, Grounding):
            boxes = regions[0].boxes.astype(np.float64).round(2)
            ranked = boxes[np.argsort(-logits, kind="stable")].tolist()
            return ranked, tuple(probabilities.max(-1, initial=0.0).tolist())
        best = int(logits.argmax())
        if isinstance(example, Question):
            return self._answers[best], (float(probabilities[best]),)
        return ("False", "True")[best] if isinstance(example, Statement) else best, tuple(probabilities.tolist())


def check_features(folder: Path, size: int, regions: Sequence[Regions]) -> None:
    """Raise CheckpointError if the features do not have `size` numbers."""
    for image in regions:
        if (held := image.features.shape[1]) != size:
            raise CheckpointError(
                f"{folder} needs {size}-d features, the store holds {held}-d: extract features with the detector that "
                "this checkpoint was trained with"
            )


def checkpoint_encoder(folder: Path, config: VisualBertConfig, sidecar: CheckpointMetadata) -> InputEncoder:
    """Open the vocabulary of a folder. Raise CheckpointError if it does not fit the word table of the weights."""
    encoder = InputEncoder(folder / VOCAB_FILE, num_positions=config.max_position_embeddings, **sidecar.inputs)
    pieces, rows = encoder.vocab_size, config.vocab_size
    if pieces != rows and rows not in {pieces + -pieces % multiple for multiple in _PADDED_TO}:
        raise CheckpointError(
            f"{folder / VOCAB_FILE}: {pieces} word pieces, but {CONFIG_FILE} has vocab_size {rows}: use the vocabulary "
            "of this checkpoint"
        )
    if pieces != rows:
        _LOG.warning("%s: %d word pieces, padded to %d rows in the weights", folder / VOCAB_FILE, pieces, rows)
    return encoder


def read_answers(folder: Path, config: VisualBertConfig) -> tuple[str, ...]:
    """Return the answers in the order of the weights, from `answers.txt` or else from `id2label`."""
    path = folder / ANSWERS_FILE
    if path.exists():
        answers = answer_list(path)
        if len(answers) != config.num_labels:
            raise CheckpointError(
                f"{path}: {len(answers)} answers, but {CONFIG_FILE} has {config.num_labels} labels: use the list of "
                "this checkpoint"
            )
        return answers
    if config.id2label is None:
        raise CheckpointError(
            f"{folder}: the answers are missing: add {ANSWERS_FILE}, or name them in id2label of {CONFIG_FILE}"
        )
    if twice := repeated(config.id2label):
        raise CheckpointError(f"{folder / CONFIG_FILE}: id2label: {twice}, counted from 1")
    return config.id2label


def answer_list(path: Path) -> tuple[str, ...]:
    """Read a file of answers, one a line."""
    answers = tuple(read_lines(path))
    # LXMERT's list has the same answers in another order, without <unk>. With it a good checkpoint scores almost 0.
    if answers[0] != UNKNOWN_ANSWER:
        raise CheckpointError(
            f"{path}: line 1 must be {UNKNOWN_ANSWER}, got {brief(answers[0])}: use the list of this checkpoint"
        )
    if twice := repeated(answers):
        raise CheckpointError(f"{path}: {twice}: not the list that the weights were trained with")
    return answers


def _attention(trunk: VisualBertModel, sequence: Encoded) -> np.ndarray:
    inputs = collate([sequence])
    inputs.pop("region_to_phrase_position", None)  # of the head, not of the trunk
    with torch.inference_mode(), whole_float32():
        output = trunk(
            **{name: each.to(next(trunk.parameters()).device) for name, each in inputs.items()}, output_attentions=True
        )
    return torch.cat(output.attentions).float().cpu().numpy()


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities over the last axis, which may have no values."""
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, initial=-np.inf, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))
