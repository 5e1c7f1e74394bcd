"""VisualBERT: text and regions in, the four tasks' answers out, numerically equal to Hugging Face transformers.

    encoder = InputEncoder("checkpoint/vocab.txt")
    tensors = collate([encoder.encode(example, regions) for example, regions in batch])
    loss = VisualBertForQuestionAnswering(config)(**tensors, labels=targets).loss

`config` is the shape, `modeling` the trunk, `heads` the tasks and pre-training, `arguments` what a forward accepts,
`checkpoint` the files, `inputs` the authors' layouts, `predictor` all of it behind the `Model` contract.
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
)
from visualbert_core.models.visualbert.inputs import Encoded, InputEncoder
from visualbert_core.models.visualbert.modeling import VisualBertModel, VisualBertOutput
from visualbert_core.models.visualbert.packing import collate
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
