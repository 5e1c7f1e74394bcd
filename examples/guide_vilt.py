"""Fine-tune ViLT on VQA-style data as Hugging Face's guide does, then ask the new checkpoint and evaluate it.

CHECKPOINT is a ViLT on the Hub or in a folder; the guide takes dandelin/vilt-b32-mlm. It learns the first 200
questions of val for 20 epochs, and is evaluated on all of them.

python examples/guide_vilt.py CHECKPOINT ANNOTATIONS IMAGES OUT
"""

import json
import logging
import sys
from pathlib import Path

from huggingface_hub import snapshot_download

from visualbert_core import EvaluateConfig, Pool, PoolConfig, ask, evaluate, open_task
from visualbert_core.training import TrainConfig, train

GUIDE = {"batch_size": 4, "learning_rate": 5e-5, "warmup": 0, "weight_decay": 0, "epsilon": 1e-8}
GUIDE |= {"epochs": 20, "save_every": 1000}
FILES = {"questions": "v2_OpenEnded_mscoco_val2014_questions.json", "annotations": "v2_mscoco_val2014_annotations.json"}


def write_first(annotations: Path, count: int, folder: Path) -> None:
    """Write the first questions as official files, and their answers in the order of the file as answers.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {key: json.loads((annotations / name).read_text()) for key, name in FILES.items()}
    first = document["questions"]["questions"] = document["questions"]["questions"][:count]
    records = {each["question_id"]: each for each in document["annotations"]["annotations"]}
    chosen = document["annotations"]["annotations"] = [records[each["question_id"]] for each in first]
    for key, name in FILES.items():
        (folder / name).write_text(json.dumps(document[key]))
    answers = dict.fromkeys(each["answer"] for record in chosen for each in record["answers"])
    (folder / "answers.txt").write_text("\n".join(answers) + "\n")


if __name__ == "__main__":
    logging.basicConfig(level="INFO")
    checkpoint, (annotations, images, out) = sys.argv[1], map(Path, sys.argv[2:])
    write_first(annotations, 200, out / "first")
    start = checkpoint if Path(checkpoint).is_dir() else snapshot_download(checkpoint)
    new = {"model": Path(start), "weights": "new-head", "answers": out / "first" / "answers.txt"}
    data = {"task": "vqa", "split": "val", "images": images}
    folder = train(TrainConfig(annotations=out / "first", out=out / "vilt-guide", **data, **new, **GUIDE)).last
    question = next(open_task("vqa", annotations, "val").examples())
    for each in ask(folder, next(images.glob(f"{question.image_ids[0]}.*")), question.text, top_k=3):
        print(f"{question.text} {each.answer} ({each.score:.2f})")
    config = EvaluateConfig(annotations=annotations, model=folder, out=out, **data)
    with Pool(PoolConfig(inline=True)) as pool:
        print(evaluate(config, pool).scores["scores"])
