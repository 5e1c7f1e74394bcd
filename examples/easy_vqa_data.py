"""Write easy-VQA as the official files of VQA v2 and folders of images, and print the commands that follow.

easy-VQA (PyPI package easy-vqa, MIT) has 5,000 images of one shape, 48,248 questions and 13 answers. Its test set
becomes val. An image keeps its number. Its one answer stands for all ten annotators.

python examples/easy_vqa_data.py FOLDER
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import easy_vqa

YES_NO = ("yes", "no")
DETECTOR = "visualbert_core/synthetic/weights/detector"
NEXT = """visualbert extract --images {0}/val2014 --detector {1} --out {0}/features
visualbert evaluate --task vqa --split val --annotations {0} --features STORE --model FOLDER --out {0}/runs
python examples/easy_vqa_vilt.py {0} {0}/vilt 4000
visualbert evaluate --task vqa --split val --annotations {0} --images {0}/val2014 \\
    --model {0}/vilt/checkpoints/step-00004000 --out {0}/runs"""


def write(folder: Path, split: str, questions: tuple[Sequence[str], ...], images: Mapping[int, str]) -> None:
    """Write the images, the questions and the annotations of one split."""
    subset = f"{split}2014"
    (folder / subset).mkdir(parents=True, exist_ok=True)
    for number, path in images.items():
        shutil.copyfile(path, folder / subset / f"COCO_{subset}_{number:012d}.png")
    asked, judged = [], []
    for number, (text, answer, image) in enumerate(zip(*questions, strict=True)):
        names = {"question_id": number, "image_id": image}
        asked.append(names | {"question": text})
        kinds = {"question_type": " ".join(text.split()[:2]), "answer_type": "yes/no" if answer in YES_NO else "other"}
        ten = [{"answer_id": each, "answer": answer, "answer_confidence": "yes"} for each in range(1, 11)]
        judged.append(names | kinds | {"multiple_choice_answer": answer, "answers": ten})
    head = {"data_type": "easy-vqa", "data_subtype": f"easy-vqa {split}", "task_type": "Open-Ended"}
    questions_file = folder / f"v2_OpenEnded_mscoco_{subset}_questions.json"
    questions_file.write_text(json.dumps(head | {"questions": asked}))
    (folder / f"v2_mscoco_{subset}_annotations.json").write_text(json.dumps(head | {"annotations": judged}))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    write(folder, "train", easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths())
    write(folder, "val", easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths())
    print(NEXT.format(folder, DETECTOR))
