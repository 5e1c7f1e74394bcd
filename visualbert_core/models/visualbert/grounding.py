"""The further term `grounding` of a question or a statement: attention from its phrases to the regions that they name.

The loss is that of phrases and regions in Flickr30K Entities, with the same head (Li et al. 2019, arXiv:1908.03557),
over the states of the same sequence. It is for training only: no answer needs the head. 12-in-1 (arXiv:1912.02315)
supervises alignment beside answers for the same reason: a network that finds what a sentence is about learns sooner
whether it is true.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from visualbert_core.models.visualbert.config import VisualBertConfig
from visualbert_core.models.visualbert.heads import HeadNetwork, RegionToPhraseAttention
from visualbert_core.models.visualbert.inputs import Encoded, InputEncoder, pythia_tokens
from visualbert_core.models.visualbert.losses import Named, divergence
from visualbert_core.models.visualbert.modeling import initialize
from visualbert_core.models.visualbert.packing import Packed
from visualbert_core.schema import NamedRegions, Question, Statement

INGREDIENT = "training"

TERM = "grounding"
FILE = "grounding.safetensors"


def add_head(network: nn.Module, config: VisualBertConfig, seed: int) -> None:
    """Give a network the head of the term. Its weights are random at every start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = RegionToPhraseAttention(config)
        initialize(head, config)
    network.add_module(TERM, head)


def share_modules(network: HeadNetwork, other: HeadNetwork) -> None:
    """Give a network the trunk of `other`, and its head for phrases where both have one."""
    network.visual_bert = other.visual_bert
    network.tie_weights()  # the vocabulary head has the word embeddings of the trunk
    ours, theirs = _phrase_head(network), _phrase_head(other)
    if ours is not None and theirs is not None:
        network.add_module(ours, other.get_submodule(theirs))


def _phrase_head(network: nn.Module) -> str | None:
    """Return the name of the head that compares phrases with regions."""
    found = (name for name, module in network.named_children() if isinstance(module, RegionToPhraseAttention))
    return next(found, None)


def located(encoder: InputEncoder, example: Question | Statement, sequence: Encoded, named: NamedRegions) -> Named:
    """Return the last word piece of each phrase, with the regions of the sequence. Phrases behind the cut are lost.

    Text that ends with a phrase has as many pieces as the position of its last piece, because [CLS] has position 0.
    """
    words = example.text.split(" ")
    last = len(sequence.input_ids) - 2
    positions, kept = [], []
    for number, phrase in enumerate(named.phrases):
        text = " ".join(words[: phrase.stop]).rstrip(".,;:!?")
        if isinstance(example, Question):
            text = " ".join(pythia_tokens(text))
        position = len(encoder.words(text))
        if position <= last and named.shares[number].any():
            positions.append(position)
            kept.append(number)
    return Named(tuple(positions), named.shares[kept][:, sequence.rows])


def grounding_loss(network: nn.Module, states: Tensor, packed: Packed, shares: Sequence[Tensor]) -> Tensor:
    """Return the sum of the divergences of all phrases.

    A sequence reads the state of its head, then those of its K phrases and V regions. `shares` holds float32 [K, V] of
    each sequence of the pack, with K = 0 where it reads nothing more.
    """
    head = network.get_submodule(TERM)
    assert isinstance(head, RegionToPhraseAttention)
    sums = [states.new_zeros((), dtype=torch.float32)]
    for read, wanted in zip(states.split_with_sizes(packed.read_lengths), shares, strict=True):
        phrases = len(wanted)
        if phrases:
            query, key = head.query(read[1 : 1 + phrases]), head.key(read[1 + phrases :])
            sums.append(divergence(query @ key.T / query.shape[-1] ** 0.5, wanted.to(states.device)))
    return torch.stack(sums).sum()


def save_head(network: nn.Module, folder: Path) -> None:
    """Write the head beside a checkpoint. Its file is read only to go on with a training."""
    state = network.get_submodule(TERM).state_dict()
    save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, folder / FILE)


def saved_head(folder: Path) -> dict[str, Tensor]:
    """Return the weights of the head by their names in the network."""
    return {f"{TERM}.{name}": value for name, value in load_file(folder / FILE).items()}
