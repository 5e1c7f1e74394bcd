"""visualbert_core: evaluate region-based vision-and-language models at scale.

 images ──▶ detector ──▶ features ──▶ tasks ──▶ models ──▶ evaluation ──▶ metrics ──▶ report
 files      GPU actor:    Parquet      VQA VCR    VisualBERT  GPU actor:    accuracy,    run folder,
            boxes +       feature      NLVR2      and peers   predictions   recall,      HTML page,
            vectors       store        Flickr30K               in Parquet   error bars   gate

Every stage is a folder of that name. Two stages run on GPUs (detector, evaluation). Both have the same shape: a plan of
shards → a pool of Ray actors → one immutable Parquet part per shard → a manifest, which is written last. That shape is
written once, in `engine/`. All other code is plain Python without Ray.

The names of `__all__` are the public API. The commands of `visualbert` call the same functions. A name is imported at
its first use, so that `import visualbert_core` is quick and imports neither torch nor Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visualbert_core.comparison.compare import compare
    from visualbert_core.config import EvaluateConfig, ExtractConfig, PoolConfig
    from visualbert_core.detector import load_detector
    from visualbert_core.engine.pool import Pool
    from visualbert_core.evaluation.ask import ask
    from visualbert_core.evaluation.run import evaluate
    from visualbert_core.evaluation.run_folder import read_run
    from visualbert_core.evaluation.score import read_prediction_set, score
    from visualbert_core.features.extract import extract
    from visualbert_core.features.store import FeatureStore
    from visualbert_core.models import load_model
    from visualbert_core.models.captioner.make import make_captioner
    from visualbert_core.tasks import Task, open_task
    from visualbert_core.training import TrainConfig, train

INGREDIENT = "predictions"

__version__ = "0.1.0"

__all__ = [
    "EvaluateConfig",
    "ExtractConfig",
    "FeatureStore",
    "Pool",
    "PoolConfig",
    "Task",
    "TrainConfig",
    "ask",
    "compare",
    "evaluate",
    "extract",
    "load_detector",
    "load_model",
    "make_captioner",
    "open_task",
    "read_prediction_set",
    "read_run",
    "score",
    "train",
]

_MODULES = {
    "EvaluateConfig": "config",
    "ExtractConfig": "config",
    "FeatureStore": "features.store",
    "Pool": "engine.pool",
    "PoolConfig": "config",
    "Task": "tasks",
    "TrainConfig": "training",
    "ask": "evaluation.ask",
    "compare": "comparison.compare",
    "evaluate": "evaluation.run",
    "extract": "features.extract",
    "load_detector": "detector",
    "load_model": "models",
    "make_captioner": "models.captioner.make",
    "open_task": "tasks",
    "read_prediction_set": "evaluation.score",
    "read_run": "evaluation.run_folder",
    "score": "evaluation.score",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
