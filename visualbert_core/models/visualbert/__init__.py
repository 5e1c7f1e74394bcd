"""VisualBERT (Li et al. 2019, arXiv:1908.03557): reads text and regions, and answers the four tasks of the paper.

Given the same tensors, its numbers equal those of Hugging Face transformers.

    encoder = InputEncoder("checkpoint/vocab.txt")
    tensors = collate([encoder.encode(example, regions) for example, regions in batch])
    loss = VisualBertForQuestionAnswering(config)(**tensors, labels=targets).loss

    config.py         the sizes of a network
    modeling.py       the trunk
    heads.py          the heads of the four tasks and of pre-training, and their padded batches
    input_checks.py   the checks of the tensors that callers pass
    inputs.py         text and regions → tokens, in the authors' layout
    inference.py      the fast network for answers, over packed sequences; kernels.py holds what depends on the device
    checkpoint/       checkpoint folders
    trainable.py      the `Trainable` contract, with losses.py and masking.py
    predictor.py      the `Model` contract over all of these
"""

from visualbert_core.models.visualbert.checkpoint.metadata import CheckpointMetadata
from visualbert_core.models.visualbert.config import VisualBertConfig
from visualbert_core.models.visualbert.heads import (
    HeadOutput,
    PreTrainingOutput,
    VisualBertForMultipleChoice,
    VisualBertForPreTraining,
    VisualBertForQuestionAnswering,
    VisualBertForRegionToPhraseAlignment,
    VisualBertForVisualReasoning,
    collate,
)
from visualbert_core.models.visualbert.inputs import Encoded, InputEncoder
from visualbert_core.models.visualbert.modeling import VisualBertModel, VisualBertOutput
from visualbert_core.models.visualbert.predictor import VisualBertPredictor

__all__ = [
    "CheckpointMetadata",
    "Encoded",
    "HeadOutput",
    "InputEncoder",
    "PreTrainingOutput",
    "VisualBertConfig",
    "VisualBertForMultipleChoice",
    "VisualBertForPreTraining",
    "VisualBertForQuestionAnswering",
    "VisualBertForRegionToPhraseAlignment",
    "VisualBertForVisualReasoning",
    "VisualBertModel",
    "VisualBertOutput",
    "VisualBertPredictor",
    "collate",
]
