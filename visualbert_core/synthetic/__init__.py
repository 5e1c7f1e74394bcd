"""The embedded synthetic world: small scenes of coloured shapes, the four benchmarks asked about them, tiny weights.

It lets a fresh clone run the whole job for real, without a download. Its scores say that the pipeline works, not how
good VisualBERT is on the real sets.

    scenes.py     what is in a scene and how it is drawn
    language.py   the words: references, counts, the vocabulary
    questions.py  what VQA and NLVR2 ask about scenes
    references.py what VCR and Flickr30K Entities ask about scenes
    files.py      the validation world on disk, in the official file layouts
    train.py      python -m visualbert_core.synthetic.train: the weights, from nothing
    demo.yaml     the matrix of `visualbert demo`
    weights/      the weights that this recipe made: detector/ and visualbert-<task>/
"""

from pathlib import Path

INGREDIENT = None

DEMO = Path(__file__).with_name("demo.yaml")
"""The matrix of `visualbert demo`."""
WEIGHTS = Path(__file__).with_name("weights")
"""detector/ and visualbert-<task>/."""
