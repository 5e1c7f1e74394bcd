"""Ask BLIP-2, which was not trained on the questions, as Hugging Face's guide to visual question answering does.

MODEL is a folder or a name on the Hub: the guide takes Salesforce/blip2-opt-2.7b. Three lines differ from the guide,
because transformers 5 has changed: `dtype` was `torch_dtype`, `infer_device` is gone, and `generate` returns the prompt
before the answer.

python examples/guide_blip2.py BLIP2 IMAGE "how many circles are there?"
"""

import sys

import torch
from PIL import Image
from transformers import AutoProcessor, Blip2ForConditionalGeneration

if __name__ == "__main__":
    name, path, question = sys.argv[1:]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.float32
    processor = AutoProcessor.from_pretrained(name)
    model = Blip2ForConditionalGeneration.from_pretrained(name, dtype=dtype).to(device)

    image = Image.open(path).convert("RGB")
    prompt = f"Question: {question} Answer:"
    inputs = processor(image, text=prompt, return_tensors="pt").to(device, dtype)
    shown = int((inputs["input_ids"] == model.config.image_token_id).sum())
    if shown != model.config.num_query_tokens:  # without these tokens the model ignores the image, and does not say so
        sys.exit(f"{name}: its processor writes {shown} image tokens, its model reads {model.config.num_query_tokens}")
    generated_ids = model.generate(**inputs, max_new_tokens=10)
    answer_ids = generated_ids[:, inputs["input_ids"].shape[1] :]
    print("BLIP-2:", processor.batch_decode(answer_ids, skip_special_tokens=True)[0].strip())
