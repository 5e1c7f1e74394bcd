"""Generative vision-language models: what they are asked, and how their texts and likelihoods become answers.

protocol.py       how a model is asked: presets, defaults of the families, the line that reports print
question.py, statement.py, multiple_choice.py, grounding.py, captioning.py
                  one form of example each: prompts, and answers out of what came back; pure, without torch
asked.py          what these files give to a network, and what they get back
box_formats.py    how families write boxes
inputs.py         prompts and images → tensors
image_encoder.py  an image is encoded once for all its rows
network.py        the network: writes texts, scores texts
model.py          the `Model` contract over all of these
"""
