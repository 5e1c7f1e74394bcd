"""Owns the evaluation: a model answers a task's examples about images, and the answers are kept and scored.

The examples are cut into shards, and the workers of a pool predict the shards. A run folder keeps the predictions and
the scores.
"""
