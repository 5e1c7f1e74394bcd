"""Checkpoint folders: reading and writing them.

A folder holds `config.json` and weights as Hugging Face transformers writes them (`files`, `pretrained`). The metadata
file `visualbert_core.json` holds what these two cannot say (`metadata`). `convert` makes such a folder of an original
file of the authors:

    visualbert convert checkpoint IN.th OUT
"""
