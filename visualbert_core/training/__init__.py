"""Trains models: optimisers and schedules, as the authors of VisualBERT used them and as torch has them."""

INGREDIENT = "training"
