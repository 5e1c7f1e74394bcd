"""Write what a small VisualBERT needs to learn easy-VQA from random weights: sizes, words and answers. Print the
commands that follow. easy_vqa_data.py writes the folder EASY_VQA.

python examples/easy_vqa_start.py EASY_VQA OUT
"""

import json
import sys
from pathlib import Path

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
DETECTOR = "visualbert_core/synthetic/weights/detector"
SPACE, FEATURE_SIZE = "world-tiny-rcnn-fc7", 256  # of that detector
NEXT = """visualbert extract --images {0}/train2014 --detector {2} --out {0}/features
visualbert extract --images {0}/val2014 --detector {2} --out {0}/features
visualbert train examples/easy_vqa.yaml --annotations {0} --features TRAIN_STORE --model {1} --out {0}/training
visualbert evaluate --task vqa --split val --annotations {0} --features VAL_STORE --model CHECKPOINT --out {0}/runs
visualbert evaluate … --visual wrong-image"""

if __name__ == "__main__":
    data, out = map(Path, sys.argv[1:])
    asked = json.loads((data / "v2_OpenEnded_mscoco_train2014_questions.json").read_text())["questions"]
    judged = json.loads((data / "v2_mscoco_train2014_annotations.json").read_text())["annotations"]
    words = [*SPECIAL, *sorted({word for each in asked for word in each["question"].replace("?", " ?").split()})]
    answers = ["<unk>", *sorted({each["multiple_choice_answer"] for each in judged})]
    sizes = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 192}
    # With BERT's 0.02, words are too weak beside the features of this detector.
    config = {"model_type": "visual_bert", **sizes, "visual_embedding_dim": FEATURE_SIZE, "initializer_range": 0.1}
    config |= {"vocab_size": len(words), "max_position_embeddings": 32, "pad_token_id": 0, "num_labels": len(answers)}
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config | {"special_visual_initialize": False}, indent=1))
    (out / "visualbert_core.json").write_text(json.dumps({"task": "vqa", "feature_space": SPACE}))
    (out / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    (out / "answers.txt").write_text("".join(f"{answer}\n" for answer in answers))
    print(f"{len(words)} words, {len(answers)} answers\n{NEXT.format(data, out, DETECTOR)}")
