"""The synthetic data: small scenes of coloured shapes, the four benchmarks over these scenes, and tiny weights.

With it a fresh clone runs the whole job without a download. The scores show that the pipeline works. They do not show
how good VisualBERT is on the real benchmarks.

    scenes.py            what is in a scene, and how it is drawn
    language.py          the words: descriptions, numbers, the vocabulary
    questions.py         what VQA and NLVR2 ask about scenes
    references.py        what VCR and Flickr30K Entities ask about scenes
    captions.py          the captions of scenes as a benchmark, with the share of phrases that are true
    files.py             the validation files, in the official layouts
    lessons.py           questions that are made anew at each visit, for `visualbert train`
    training_files.py    python -m visualbert_core.synthetic.training_files: what recipes/four-tasks.yaml learns from
    recipes/             the recipe of VisualBERT
    train.py             python -m visualbert_core.synthetic.train: trains the weights from random ones
    train_detector.py    the training of the detector, and the loop of all trainings here
    train_image_side.py  the training of the layers that see, and what else the models of pixels share
    train_vilt.py        the training of ViLT
    train_generative.py  the training of a small LLaVA
    train_captioner.py   the training of a small captioner
    demo.yaml            the matrix of `visualbert demo`
    weights/             the weights that train.py made: detector/, visualbert-<task>/, vilt-<task>/, vlm/ and
                         captioner/
"""

from pathlib import Path

INGREDIENT = None

DEMO = Path(__file__).with_name("demo.yaml")
"""The matrix of `visualbert demo`."""
WEIGHTS = Path(__file__).with_name("weights")
"""The folder of detector/, visualbert-<task>/, vilt-<task>/, vlm/ and captioner/."""
