"""Checkpoint folders: `config.json` and weights as transformers writes them (`files`, `pretrained`), and the sidecar
`visualbert_core.json` with what those two cannot say (`sidecar`). The authors' own files are converted (`convert`):

    visualbert convert checkpoint IN.th OUT
"""
