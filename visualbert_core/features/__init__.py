"""Features: the store of regions in Parquet (`store.py`), and the jobs that fill it (`extract.py`, `importers/`)."""
