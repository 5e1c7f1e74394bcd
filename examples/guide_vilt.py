"""Fine-tune ViLT on VQA-style data as Hugging Face's guide does, then ask the new checkpoint and evaluate it.

CHECKPOINT is a ViLT on the Hub or in a folder; the guide takes dandelin/vilt-b32-mlm. The script trains on the first
200 questions of val for 20 epochs, and evaluates on all questions of val in ANNOTATIONS.

python examples/guide_vilt.py CHECKPOINT ANNOTATIONS IMAGES OUT
"""

import json
import logging
import sys
from pathlib import Path

import torch
from transformers import ViltForQuestionAnswering, ViltProcessor

from visualbert_core import EvaluateConfig, Pool, PoolConfig, ask, evaluate, open_task
from visualbert_core.corpus.listing import list_images
from visualbert_core.models.vilt import fine_tune as vilt


def labelled_questions(annotations: Path, images: Path, split: str) -> list[vilt.LabelledQuestion]:
    """Return the questions of a split with the weights of their answers, in the order of the file."""
    task, corpus = open_task("vqa", annotations, split), list_images(images)
    records = json.loads((annotations / f"v2_mscoco_{split}2014_annotations.json").read_text())["annotations"]
    said = {str(record["question_id"]): [each["answer"] for each in record["answers"]] for record in records}
    return [
        vilt.LabelledQuestion(each.text, corpus[each.image_ids[0]], vilt.answer_weights(said[each.example_id]))
        for each in task.examples()
    ]


if __name__ == "__main__":
    logging.basicConfig(level="INFO")
    checkpoint, (annotations, images, out) = sys.argv[1], map(Path, sys.argv[2:])
    questions = labelled_questions(annotations, images, "val")[:200]
    labels = vilt.answer_labels(vilt.answer_list(questions))
    processor = ViltProcessor.from_pretrained(checkpoint)
    model = ViltForQuestionAnswering.from_pretrained(checkpoint, **labels)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    vilt.fine_tune(model, processor, questions, vilt.FineTuning(steps=20 * len(questions) // 4))
    folder = vilt.save(model, processor, out / "vilt-guide")
    for each in ask(folder, questions[0].image.path, questions[0].text, top_k=3):
        print(f"{questions[0].text} {each.answer} ({each.score:.2f})")
    config = EvaluateConfig(task="vqa", split="val", annotations=annotations, images=images, model=folder, out=out)
    with Pool(PoolConfig(inline=True)) as pool:
        run = evaluate(config, pool)
    print(run.scores and run.scores["scores"])
