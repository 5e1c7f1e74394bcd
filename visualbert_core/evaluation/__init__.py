"""A model over a task over a feature store: joined, predicted in shards on the pool, kept in a run folder, scored."""
