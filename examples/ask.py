"""Ask VisualBERT a question about an image, whose regions a detector finds. Print the best three answers.

python examples/ask.py MODEL DETECTOR IMAGE "how many circles are there?"
"""

import sys

from visualbert_core import ask

if __name__ == "__main__":
    model, detector, image, question = sys.argv[1:]  # a model that reads pixels needs no detector
    for each in ask(model, image, question, top_k=3, detector=detector):
        print(f"{each.score:.0%} {each.answer}")
