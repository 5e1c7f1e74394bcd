"""Train a captioner for one step, as the VisionEncoderDecoder page of Hugging Face's documentation does. Then let it
describe the image in three ways, and open it in two ways.

python examples/captioner_train.py OUT IMAGE "two red circles"
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from captioner_make import write_parts
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel

from visualbert_core import load_model, make_captioner
from visualbert_core.schema import Captioning
from visualbert_core.training import TrainConfig, train

if __name__ == "__main__":
    out, image, caption = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    write_parts(out / "parts")
    folder = make_captioner(out / "parts" / "swin", out / "parts" / "gpt2", out / "captioner").folder

    # Two captions of the image, in COCO's form.
    (out / "images").mkdir()
    shutil.copy(image, out / "images")
    captions = [{"image_id": 1, "caption": text} for text in (caption, f"{caption} and a square")]
    files = {"images": [{"id": 1, "file_name": image.name}], "annotations": captions}
    (out / "captions_train.json").write_text(json.dumps(files))
    data = {"task": "captions", "split": "train", "annotations": out, "images": out / "images"}
    done = train(TrainConfig(model=folder, out=out / "training", steps=1, learning_rate=1e-3, warmup=0, **data))
    print(f"loss {json.loads((done.folder / 'steps.jsonl').read_text())['loss']:.3f}")

    model = VisionEncoderDecoderModel.from_pretrained(done.last).eval()
    image_processor, tokenizer = AutoImageProcessor.from_pretrained(done.last), AutoTokenizer.from_pretrained(done.last)
    pixels = image_processor(Image.open(image).convert("RGB"), return_tensors="pt").pixel_values
    model.save_pretrained(out / "again")
    again = VisionEncoderDecoderModel.from_pretrained(out / "again").eval()
    ways = {"greedy": {}, "beams": {"num_beams": 3}, "sampling": {"do_sample": True, "top_k": 10}}
    for name, settings in ways.items():
        tokens = []
        for network in (model, again):
            torch.manual_seed(0)  # for sampling
            tokens.append(network.generate(pixels, max_new_tokens=12, **settings)[0].tolist())
        if tokens[0] != tokens[1]:
            sys.exit(f"{name}: other tokens after saving")
        print(f"{name}: {tokenizer.decode(tokens[0], skip_special_tokens=True)!r}, the same after saving")
    print("this package opens it, too:", load_model(done.last, Captioning).protocol)
