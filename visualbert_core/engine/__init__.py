"""The engine of both GPU stages: many workers compute shards, and each shard counts exactly once.

`shards` is the protocol on disk. `pool` runs a stage on Ray actors or in this process. `scheduler` decides what happens
after a failure. `bisection` finds the item that ends a process.
"""
