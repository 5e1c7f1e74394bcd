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
    from visualbert_core.comparison.compare import compare as compare
    from visualbert_core.config import EvaluateConfig as EvaluateConfig
    from visualbert_core.config import ExtractConfig as ExtractConfig
    from visualbert_core.config import PoolConfig as PoolConfig
    from visualbert_core.detector import load_detector as load_detector
    from visualbert_core.engine.pool import Pool as Pool
    from visualbert_core.evaluation.ask import ask as ask
    from visualbert_core.evaluation.run import evaluate as evaluate
    from visualbert_core.evaluation.run_folder import read_run as read_run
    from visualbert_core.evaluation.score import read_prediction_set as read_prediction_set
    from visualbert_core.evaluation.score import score as score
    from visualbert_core.features.extract import extract as extract
    from visualbert_core.features.store import FeatureStore as FeatureStore
    from visualbert_core.models import load_model as load_model
    from visualbert_core.models.captioner.make import make_captioner as make_captioner
    from visualbert_core.tasks import Task as Task
    from visualbert_core.tasks import open_task as open_task
    from visualbert_core.training import TrainConfig as TrainConfig
    from visualbert_core.training import train as train

INGREDIENT = "predictions"

__version__ = "0.1.0"

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
"""Name → the module that it is in."""
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
