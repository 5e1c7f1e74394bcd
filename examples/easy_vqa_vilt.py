"""Train a small ViLT on easy-VQA from nothing: 4 layers of 96, patches of 8 × 8 pixels. easy_vqa_data.py
writes the folder EASY_VQA.

python examples/easy_vqa_vilt.py EASY_VQA OUT STEPS
"""

import json
import logging
import sys
from pathlib import Path

from transformers import BertTokenizerFast, ViltConfig, ViltImageProcessor, ViltProcessor

from visualbert_core.training import TrainConfig, train

PADDING = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_start(data: Path, folder: Path) -> None:
    """Write what random weights need: sizes with the answers, and the processor with the words."""
    asked = json.loads((data / "v2_OpenEnded_mscoco_train2014_questions.json").read_text())["questions"]
    judged = json.loads((data / "v2_mscoco_train2014_annotations.json").read_text())["annotations"]
    words = sorted({word for each in asked for word in each["question"].replace("?", " ?").split()})
    answers = list(dict.fromkeys(each["multiple_choice_answer"] for each in judged))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*PADDING, *words]) + "\n")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=40)
    ViltProcessor(ViltImageProcessor(size={"shortest_edge": 64}, size_divisor=8), tokenizer).save_pretrained(folder)
    sizes = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 192}
    shapes = {"image_size": 64, "patch_size": 8, "vocab_size": len(tokenizer), "max_position_embeddings": 40}
    names = {"id2label": dict(enumerate(answers)), "label2id": {name: number for number, name in enumerate(answers)}}
    ViltConfig(**sizes, **shapes, **names).save_pretrained(folder)


if __name__ == "__main__":
    logging.basicConfig(level="INFO")
    data, out, steps = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    write_start(data, out / "start")
    source = {"task": "vqa", "split": "train", "annotations": data, "images": data / "train2014"}
    rates = {"learning_rate": 1e-3, "warmup": min(300, steps // 2) / steps, "weight_decay": 0, "batch_size": 64}
    done = train(TrainConfig(model=out / "start", weights="random", out=out, steps=steps, **source, **rates))
    print(f"checkpoint: {done.last}")
