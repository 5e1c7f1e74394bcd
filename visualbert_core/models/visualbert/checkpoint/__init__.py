"""Checkpoint folders: reading and writing them.

A folder holds `config.json` and weights as Hugging Face transformers writes them (`files`, `pretrained`). The metadata
file `visualbert_core.json` holds what these two cannot say (`metadata`). `convert` makes such a folder of an original
file of the authors, and `bert` of a folder of BERT, to be pre-trained:

    visualbert convert checkpoint IN.th OUT
    visualbert convert bert IN OUT --feature-size D
"""
