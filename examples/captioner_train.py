"""Train a captioner for one step, as the VisionEncoderDecoder page of Hugging Face's documentation does. Then let it
describe the image in three ways, save it, and open it again.

python examples/captioner_train.py OUT IMAGE "two red circles"
"""

import sys
from pathlib import Path

import torch
from captioner_make import write_parts
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel

from visualbert_core import load_model, make_captioner
from visualbert_core.models.captioner.training import caption_labels, caption_loss
from visualbert_core.schema import Captioning

if __name__ == "__main__":
    out, image, caption = Path(sys.argv[1]), Image.open(sys.argv[2]).convert("RGB"), sys.argv[3]
    write_parts(out / "parts")
    folder = make_captioner(out / "parts" / "swin", out / "parts" / "gpt2", out / "captioner").folder
    model = VisionEncoderDecoderModel.from_pretrained(folder)
    image_processor, tokenizer = AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    # One step on two captions of the image. The shorter one is padded with -100, which has no loss.
    pixels = image_processor([image, image], return_tensors="pt").pixel_values
    labels = caption_labels(tokenizer, [caption, f"{caption} and a square"])
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    loss = caption_loss(model, pixels, labels)
    loss.backward()
    optimizer.step()
    print(f"loss {loss.item():.3f}")

    model.eval().save_pretrained(folder)
    again = VisionEncoderDecoderModel.from_pretrained(folder).eval()
    ways = {"greedy": {}, "beams": {"num_beams": 3}, "sampling": {"do_sample": True, "top_k": 10}}
    for name, settings in ways.items():
        tokens = []
        for network in (model, again):
            torch.manual_seed(0)  # for sampling
            tokens.append(network.generate(pixels[:1], max_new_tokens=12, **settings)[0].tolist())
        if tokens[0] != tokens[1]:
            sys.exit(f"{name}: other tokens after saving")
        print(f"{name}: {tokenizer.decode(tokens[0], skip_special_tokens=True)!r}, the same after saving")
    print("this package opens it, too:", load_model(folder, Captioning).protocol)
