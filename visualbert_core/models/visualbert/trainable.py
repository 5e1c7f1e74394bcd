"""A VisualBERT behind the `Trainable` contract: it opens a folder to train, encodes targets, and saves checkpoints.

Owns how each form of target becomes labels of its head, and what a checkpoint of a training holds. The head's losses
are in `losses.py`.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from visualbert_core.errors import CheckpointError, ConfigError
from visualbert_core.models.base import ReadsRegions
from visualbert_core.models.trainable import Item, Start
from visualbert_core.models.visualbert.checkpoint.bert import bert_config, bert_network, is_bert
from visualbert_core.models.visualbert.checkpoint.files import SAFETENSORS_FILE, weights_digest
from visualbert_core.models.visualbert.checkpoint.metadata import CheckpointMetadata
from visualbert_core.models.visualbert.config import VisualBertConfig
from visualbert_core.models.visualbert.heads import NETWORKS, HeadNetwork, VisualBertForPreTraining, collate
from visualbert_core.models.visualbert.inference import READS, Packed, pack
from visualbert_core.models.visualbert.inputs import GEOMETRY_SIZE, VOCAB_FILE, Encoded
from visualbert_core.models.visualbert.losses import (
    TERM,
    Content,
    Labels,
    add_head,
    grounding_loss,
    located,
    losses,
    packed_labels,
    padded_labels,
    read_states,
    save_head,
    saved_head,
    share_modules,
)
from visualbert_core.models.visualbert.masking import cut_pair, mask_pieces
from visualbert_core.models.visualbert.modeling import VisualBertModel
from visualbert_core.models.visualbert.predictor import (
    ANSWERS_FILE,
    UNKNOWN_ANSWER,
    answer_list,
    check_features,
    checkpoint_encoder,
    read_answers,
)
from visualbert_core.provenance import digest_file, digest_json
from visualbert_core.schema import (
    CaptionPair,
    Example,
    Grounding,
    MultipleChoice,
    NamedRegions,
    Question,
    Regions,
    Statement,
    Target,
)

INGREDIENT = "training"

WORDS = "masked-words"


Prepared = tuple[Packed, Labels]
"""The tensors of one pass."""


class VisualBertTrainable:
    """One network of `heads` with its vocabulary. Threads may encode at once; only one may compute."""

    def __init__(self, folder: Path, form: type[Example] | type[CaptionPair], start: Start) -> None:
        """Open a folder. With random weights it needs no weights: `config.json`, `vocab.txt` and, for questions, the
        answers. Raise CheckpointError where it is incomplete, ConfigError where `start` does not fit it."""
        self._folder, self._form, self._start = folder, form, start
        if form is not CaptionPair and form not in NETWORKS:
            raise CheckpointError(f"{folder}: VisualBERT learns {', '.join(each.__name__ for each in NETWORKS)}")
        self._words = words = form is CaptionPair or start.objective == WORDS
        if start.label_smoothing and not words and form in (Question, Grounding):
            raise ConfigError(
                f"label_smoothing {start.label_smoothing:g}: the targets of {_TERM[form]} are shares already; it is "
                "for choices, statements and masked words"
            )
        self._bert = is_bert(folder)
        self._metadata = CheckpointMetadata.from_folder(folder)
        config = self._bert_config() if self._bert else VisualBertConfig.from_folder(folder)
        if start.dropout is not None:
            config = replace(config, hidden_dropout_prob=start.dropout, attention_probs_dropout_prob=start.dropout)
        # A pair of texts, a choice and a statement have a second term: whether the text is true, or of the image.
        alone = form in (Question, Grounding)
        self.terms: tuple[str, ...] = (("words",) if alone else ("words", "pairs")) if words else (_TERM[form],)
        self._answers = () if words or form is not Question else self._read_answers(config)
        if start.answers is not None and self._answers:
            config = replace(config, num_labels=len(self._answers), id2label=None)
        elif form is Statement:
            config = replace(config, num_labels=2, id2label=None)
        self._index = {answer: at for at, answer in enumerate(self._answers) if answer != UNKNOWN_ANSWER}
        self._encoder = checkpoint_encoder(folder, config, self._metadata)
        self.network = self._opened(VisualBertForPreTraining if words else NETWORKS[form], config)  # type: ignore[index]
        self._grounding = start.grounding > 0
        if self._grounding:
            if words or form not in (Question, Statement):
                raise ConfigError("grounding: only questions and statements have this term, and no masked words")
            add_head(self.network, config, start.seed)
            self.terms = (*self.terms, TERM)
        size = config.visual_embedding_dim - (GEOMETRY_SIZE if self._metadata.box_geometry else 0)
        self.reads = ReadsRegions(size, self._metadata.feature_space)

    def _bert_config(self) -> VisualBertConfig:
        """Return the configuration for features of the store. Raise CheckpointError unless this is a pre-training."""
        if not self._words or self._start.weights == "new-head" or self._start.features is None:
            raise CheckpointError(
                f"{self._folder}: a BERT starts a pre-training only (task caption-pairs, or objective masked-words); "
                "for anything else make a VisualBERT of it first: `visualbert convert bert IN OUT`"
            )
        size, space = self._start.features
        self._metadata = replace(self._metadata, feature_space=space)
        return bert_config(self._folder, size)

    def _read_answers(self, config: VisualBertConfig) -> tuple[str, ...]:
        """Read the answers that the network can give: the list of `start`, or else the list of the folder."""
        if self._start.answers is None:
            return read_answers(self._folder, config)
        if self._start.weights == "checkpoint":
            raise ConfigError("answers: another list needs a new head: set weights to new-head")
        return answer_list(self._start.answers)

    def _opened(self, kind: type[HeadNetwork], config: VisualBertConfig) -> HeadNetwork:
        """Return the network in training mode. Whatever starts at random is drawn from the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._start.seed)
            if self._start.weights == "random":
                return kind(config).train()
            if self._bert:
                return bert_network(self._folder, config, self._start.seed)[0].train()
            if self._start.weights == "checkpoint":
                return kind.from_pretrained(self._folder, config=config).train()
            # `from_pretrained(new_head=True)` would keep a head that fits, with rows that stand for other answers.
            network = kind(config)
            network.visual_bert = VisualBertModel.from_pretrained(self._folder, config=config)
            network.tie_weights()
            return network.train()

    def share(self, other: VisualBertTrainable) -> None:
        """Use the trunk of `other`, and its head for phrases where both have one.

        Raise ConfigError where the networks differ in size, or read text or features differently.
        """
        if self._reading() != other._reading():
            raise ConfigError(
                f"{self._folder} and {other._folder} cannot share a trunk: config.json, vocab.txt and the metadata "
                "must be equal but for the answers"
            )
        share_modules(self.network, other.network)

    def _reading(self) -> tuple[Any, ...]:
        config = replace(self.network.config, num_labels=2, id2label=None)
        return config, digest_file(self._folder / VOCAB_FILE), self._metadata.inputs

    def fingerprint(self) -> dict[str, Any]:
        """Return the digests of what the training starts from."""
        return {
            "class": type(self.network).__name__,
            **self._metadata.inputs,
            "weights": None if self._start.weights == "random" else weights_digest(self._folder),
            "config": digest_json(self.network.config.to_dict()),
            "vocab": digest_file(self._folder / VOCAB_FILE),
            "answers": digest_json(self._answers) if self._answers else None,
        }

    def has_target(self, target: Target) -> bool:
        """Return whether an answer is in the list, or a region shows a phrase. Other targets always teach something."""
        if isinstance(target, Mapping):
            return any(answer in self._index for answer in target)
        return bool(target.any()) if isinstance(target, np.ndarray) else True

    def encode(
        self, example: Example | CaptionPair, visual: tuple[Regions, ...], target: Target, draws: random.Random
    ) -> Item:
        """Turn an example into an item. Raise CheckpointError if the features do not have `reads.size` numbers."""
        check_features(self._folder, self.reads.size, visual)
        content = self._masked(example, visual, target, draws) if self._words else self._asked(example, visual, target)
        tokens = sum(len(each.input_ids) + len(each.rows) for each in content.sequences)
        counts: tuple[int, ...] = (1,)
        if content.hidden is not None:
            counts = (len(content.hidden), 1) if len(self.terms) == 2 else (len(content.hidden),)
        return Item(example.example_id, tokens, counts, content)

    def ground(self, item: Item, example: Example | CaptionPair, named: NamedRegions) -> Item:
        """Add to an item which regions its words name."""
        content: Content = item.content
        assert isinstance(example, Question | Statement)
        found = located(self._encoder, example, content.sequences[0], named)
        counts = (*item.counts, int(len(found.positions) > 0))
        return replace(item, counts=counts, content=replace(content, named=found))

    def _asked(self, example: Example | CaptionPair, visual: tuple[Regions, ...], target: Target) -> Content:
        assert not isinstance(example, CaptionPair)
        sequences = self._encoder.sequences(example, visual)
        if isinstance(target, Mapping):
            known = {self._index[answer]: weight for answer, weight in target.items() if answer in self._index}
            return Content(sequences, soft=known)
        if isinstance(target, np.ndarray):
            return Content(sequences, shares=target)
        assert isinstance(target, int)
        return Content(sequences, label=target)

    def _masked(
        self, example: Example | CaptionPair, visual: tuple[Regions, ...], target: Target, draws: random.Random
    ) -> Content:
        """Mask the text of an example, in the order of the authors' draws. `target` comes from `Task.told`."""
        encoder, label = self._encoder, None
        if isinstance(example, CaptionPair):
            own = self._start.own_caption_label
            label = own if example.own else 1 - own
            texts = (encoder.words(example.first), encoder.words(example.second))
            first, second = cut_pair(*texts, encoder.max_length - 3, self._start.pair_cut)
            # The authors' cut may leave a long first text whole. Their network has a position for each of its pieces.
            sequence = encoder.pair(first[: encoder.num_positions - 3 - len(second)], second, visual[0])
        elif isinstance(example, Question):
            assert isinstance(target, str)
            # The authors join a string with spaces, as if it were a list of words: "r e d".
            answer = [*target] if self._start.answer_letters else target.split(" ")
            sequence = encoder.told(example, answer, visual)
        elif isinstance(example, MultipleChoice):
            chosen = draws.randrange(len(example.choices))
            label = int(chosen == target)
            sequence = encoder.sequences(example, visual)[chosen]
        else:
            (sequence,) = encoder.sequences(example, visual)
            label = target if isinstance(target, int) else None
        shown, hidden = mask_pieces(sequence.input_ids, draws, encoder.mask, encoder.vocab_size, encoder.ends)
        # A padded batch asks for phrases only where they are answered.
        return Content((replace(sequence, input_ids=shown, phrases=None),), label=label, hidden=hidden)

    def prepare(self, items: Sequence[Item]) -> Prepared:
        """Pack the sequences of the items, and bring the targets into the order of the pack."""
        contents: list[Content] = [item.content for item in items]
        pairs = [(sequence, content) for content in contents for sequence in content.sequences]
        packed = pack([sequence for sequence, _ in pairs], [self._read(*pair) for pair in pairs])
        labels = packed_labels(contents, packed, len(self._answers), self._form is MultipleChoice)
        if self._grounding:
            named = [contents[at].named for at in packed.order]
            shares = [torch.zeros(0, 0) if each is None else torch.from_numpy(each.shares) for each in named]
            labels = replace(labels, named=tuple(shares))
        return packed, labels

    def _read(self, sequence: Encoded, content: Content) -> Sequence[int]:
        """Return the positions whose last states the loss reads."""
        if content.hidden is not None:
            return (0, *content.hidden) if len(self.terms) == 2 else tuple(content.hidden)
        read = READS[type(self.network)](sequence)
        if content.named is None or not content.named.positions:
            return read
        text = len(sequence.input_ids)
        return (*read, *content.named.positions, *range(text, text + len(sequence.rows)))

    def padded(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Return the tensors of `heads.collate`, with `labels` and, for pairs, `sentence_image_labels`.

        The term grounding is not among them.
        """
        contents: list[Content] = [item.content for item in items]
        nested = self._form is MultipleChoice and not self._words
        tensors = collate([c.sequences if nested else c.sequences[0] for c in contents])
        return tensors | padded_labels(contents, tensors, len(self._answers))

    def losses(self, prepared: Prepared) -> Tensor:
        """Return the sum of each term: float32 [terms]. The heads compute in float32 under autocast too."""
        device, smoothing = next(self.network.parameters()).device, self._start.label_smoothing
        packed, labels = prepared[0].to(device), replace(prepared[1].to(device), smoothing=smoothing)
        states = read_states(self.network.visual_bert, packed, self._start.gradient_checkpointing).float()
        with torch.autocast(device.type, enabled=False):
            if not labels.named:
                return torch.stack(losses(self.network, states, packed, labels))
            asked = states.index_select(0, torch.from_numpy(packed.read_starts).to(device))
            named = grounding_loss(self.network, states, packed, labels.named)
            return torch.stack([*losses(self.network, asked, packed, labels), self._start.grounding * named])

    def saved_weights(self, folder: Path) -> Mapping[str, Tensor]:
        """Return the weights of a checkpoint that `save` wrote. The file has the names of the network."""
        weights = load_file(folder / SAFETENSORS_FILE)
        return weights | saved_head(folder) if self._grounding else weights

    def save(self, folder: Path, task: str | None, space: str | None) -> None:
        """Write config.json, float32 weights, vocab.txt, the answers and the metadata into `folder`."""
        self.network.save_pretrained(folder, without=TERM)
        if self._grounding:
            save_head(self.network, folder)
        shutil.copyfile(self._folder / VOCAB_FILE, folder / VOCAB_FILE)
        if self._answers and self._answers[0] == UNKNOWN_ANSWER:
            (folder / ANSWERS_FILE).write_text("".join(f"{each}\n" for each in self._answers), encoding="utf-8")
        replace(self._metadata, task=None if self._words else task, feature_space=space).save(folder)


_TERM: dict[type, str] = {
    Question: "answers",
    MultipleChoice: "choices",
    Statement: "statements",
    Grounding: "phrases",
}
"""Form of example → the name of the one term of its loss."""
