"""Train a small ViLT on easy-VQA from nothing: 4 layers of 96, patches of 8 × 8 pixels. easy_vqa_data.py
writes the folder EASY_VQA.

python examples/easy_vqa_vilt.py EASY_VQA OUT STEPS
"""

import logging
import sys
from pathlib import Path

import torch
from guide_vilt import labelled_questions
from transformers import BertTokenizerFast, ViltConfig, ViltForQuestionAnswering, ViltImageProcessor, ViltProcessor

from visualbert_core.models.vilt import fine_tune as vilt

SEED, PADDING = 0, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

if __name__ == "__main__":
    logging.basicConfig(level="INFO")
    torch.set_num_threads(1)  # more threads would change the last bits
    data, out, steps = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    questions = labelled_questions(data, data / "train2014", "train")
    words = sorted({word for each in questions for word in each.text.replace("?", " ?").split()})
    out.mkdir(parents=True, exist_ok=True)
    (out / "vocab.txt").write_text("\n".join([*PADDING, *words]) + "\n")
    tokenizer = BertTokenizerFast(str(out / "vocab.txt"), model_max_length=40)
    processor = ViltProcessor(ViltImageProcessor(size={"shortest_edge": 64}, size_divisor=8), tokenizer)
    sizes = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 192}
    shapes = {"image_size": 64, "patch_size": 8, "vocab_size": len(tokenizer), "max_position_embeddings": 40}
    torch.manual_seed(SEED)
    model = ViltForQuestionAnswering(ViltConfig(**sizes, **shapes, **vilt.answer_labels(vilt.answer_list(questions))))
    settings = vilt.FineTuning(steps=steps, batch_size=16, learning_rate=1e-3, warmup=min(300, steps // 2), seed=SEED)
    vilt.fine_tune(model, processor, questions, settings)
    print(f"{vilt.save(model, processor, out)}: {sum(each.numel() for each in model.parameters()):,} parameters")
