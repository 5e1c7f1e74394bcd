"""Stages that compute on many workers, each shard exactly once.

`shards` is the protocol on disk, `pool` runs a stage on Ray actors or in this process, `scheduler` decides what happens
when something fails, `bisection` finds the item that ends a process, `worker_process` is what an actor holds.
"""
