"""Captioners: an image encoder and a text decoder joined, as transformers' VisionEncoderDecoderModel has them.

Any encoder of pixels may be joined with any decoder that has cross attention (Rothe et al. 2020, arXiv:1907.12461, for
texts; Li et al. 2021, arXiv:2109.10282, for images). `predictor` describes images with a finished captioner, `make`
joins two networks, and `training` has the labels and the loss.
"""

INGREDIENT = "predictions"
