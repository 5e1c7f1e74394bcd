"""Generative vision-language models: what they are asked, and how their texts and likelihoods become answers."""
