"""visualbert_core: evaluate region-based vision-and-language models at scale.

 images ──▶ detector ──▶ features ──▶ tasks ──▶ models ──▶ evaluation ──▶ metrics ──▶ report
 files      GPU actor:    Parquet      VQA VCR    VisualBERT  GPU actor:    accuracy,    run folder,
            boxes +       feature      NLVR2      and peers   predictions   recall,      HTML page,
            vectors       store        Flickr30K               in Parquet   error bars   gate

Every stage is a folder or a file of that name. Two of them run on GPUs (detector, evaluation) and have the same shape:
a plan of shards → a pool of Ray actors → one immutable Parquet part per shard → a manifest written last.
That shape is written once, in `cluster.py` and `shards.py`. Everything else is plain Python without Ray.
"""

INGREDIENT = "predictions"

__version__ = "0.1.0"
