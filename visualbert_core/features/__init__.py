"""regions → Parquet: the feature store (`store.py`) and the job that fills it (`extract.py`)."""
