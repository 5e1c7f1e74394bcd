"""`visualbert convert`: published weights → a detector folder or a checkpoint folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from visualbert_core.config import check_range, check_values
from visualbert_core.printable import say

_Detector = Literal["vg_c4", "pythia_fpn", "detectron_fpn", "r2c_resnet50"]
_Network = Literal["pretraining", "vqa", "vcr", "nlvr2", "flickr30k_entities"]


@dataclass(frozen=True)
class Detector:
    """Make a detector folder from published weights.

    A file that does not fit is an error, which names the keys that differ.

        visualbert convert detector vg_c4 pytorch_model.bin OUT
        visualbert convert detector pythia_fpn detectron_model.pth OUT
        visualbert convert detector detectron_fpn model_final.pkl OUT
        visualbert convert detector r2c_resnet50 CONVERTED_VCR_CHECKPOINT/detector.safetensors OUT
    """

    name: tyro.conf.Positional[_Detector]
    """The detector."""
    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IN")]
    """The published file, or the folder that holds it."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """New folder, with config.json and model.safetensors."""

    def run(self) -> int:
        from visualbert_core.detector.convert import convert

        return _report(convert(self.name, self.source, self.out))


@dataclass(frozen=True)
class Checkpoint:
    """Make a checkpoint folder from a .th file of VisualBERT's authors.

    The head in the file tells the task. The file for VCR also holds a detector, which is written beside the checkpoint.

        visualbert convert checkpoint vqa_fine_tuned.th OUT
    """

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IN")]
    """A .th file of github.com/uclanlp/visualbert."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """New folder, with config.json, model.safetensors and visualbert_core.json."""
    task: _Network | None = None
    """The task, where the head does not tell it."""
    attention_heads: int | None = None
    """Attention heads of a layer. Default: hidden size / 64."""
    feature_space: str | None = None
    """Name of the feature space that it was trained on, for visualbert_core.json."""

    def __post_init__(self) -> None:
        check_values(self)

    def run(self) -> int:
        from visualbert_core.models.visualbert.checkpoint.convert import convert

        return _report(convert(self.source, self.out, self.task, self.attention_heads, self.feature_space))


@dataclass(frozen=True)
class Bert:
    """Make a checkpoint folder to pre-train from a folder of BERT, as VisualBERT's authors start.

    The trunk and the heads of BERT are kept. The visual projection is random.

        visualbert convert bert BERT OUT --feature-size 2048
    """

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IN")]
    """Folder of a BERT of Hugging Face transformers, such as bert-base-uncased."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """New folder, with config.json, model.safetensors, vocab.txt and visualbert_core.json."""
    feature_size: int
    """Numbers of one region's feature in the store to train on."""
    feature_space: str | None = None
    """Name of the feature space of that store, for visualbert_core.json."""
    seed: int = 0
    """Decides the random weights."""

    def __post_init__(self) -> None:
        check_values(self)
        check_range(self, 1, None, "feature_size")
        check_range(self, 0, None, "seed")

    def run(self) -> int:
        from visualbert_core.models.visualbert.checkpoint.bert import from_bert

        return _report(from_bert(self.source, self.out, self.feature_size, self.feature_space, self.seed))


Command = Detector | Checkpoint | Bert


def _report(text: str) -> int:
    for line in text.split("\n"):
        say(line)
    return 0
