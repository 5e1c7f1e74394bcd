"""A training loop of your own: plain PyTorch over the batches of a recipe, with transformers' network.

python examples/own_loop.py ANNOTATIONS STORE MODEL
"""

import sys
from pathlib import Path

import torch
from transformers import VisualBertForQuestionAnswering

from visualbert_core import TrainConfig
from visualbert_core.training import batches

if __name__ == "__main__":
    annotations, features, model = map(Path, sys.argv[1:])
    network = VisualBertForQuestionAnswering.from_pretrained(model, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-5)
    recipe = TrainConfig(
        task="vqa", split="val", annotations=annotations, features=features, model=model, out=Path("unused"), steps=4
    )
    for batch in batches(recipe):
        loss = network(**batch.tensors).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {batch.step}, {len(batch.example_ids)} examples, loss {loss.item():.3f}")
