"""Hugging Face's guide to visual question answering, from soft targets to answers, with tiny models and on a CPU."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import easy_vqa
import pytest
import tiny_guide_models as tiny
import torch
from conftest import ROOT, SmallNight, run_here
from PIL import Image as Pillow
from transformers import ViltForQuestionAnswering, ViltProcessor

from visualbert_core import ask, open_task
from visualbert_core.config import AnsweringConfig
from visualbert_core.errors import InputError
from visualbert_core.models import load_trainable
from visualbert_core.models.trainable import Start
from visualbert_core.schema import Question
from visualbert_core.tasks.vqa import soft_answers
from visualbert_core.training import TrainConfig, batches, train

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def vilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_vilt(tmp_path_factory.mktemp("vilt") / "vilt-mlm")


def test_weights_are_those_of_the_guides_data() -> None:
    """An answer weighs 0.3 for each annotator and at most 1, in the order of the file."""
    said = ["at table", "down", "skateboard", "down", "down", "down", "table", "down", "down", "down"]
    # The first record of Graphcore/vqa, as the guide prints it.
    assert soft_answers(said) == pytest.approx({"at table": 0.3, "down": 1.0, "skateboard": 0.3, "table": 0.3})
    assert list(soft_answers(said)) == ["at table", "down", "skateboard", "table"]


def test_the_steps_are_those_of_the_guides_trainer(vilt: Path, small_night: SmallNight, tmp_path: Path) -> None:
    """Every step has the loss of transformers' Trainer with the guide's settings, where a batch holds all questions."""
    from transformers import DefaultDataCollator, Trainer, TrainingArguments

    world = small_night.out / "synthetic" / "vqa"
    guide = runpy.run_path(str(EXAMPLES / "guide_vilt.py"))
    guide["write_first"](world, 6, tmp_path / "first")
    answers = (tmp_path / "first" / "answers.txt").read_text().splitlines()
    settings = guide["GUIDE"] | {"batch_size": 6, "learning_rate": 5e-3, "epochs": None, "steps": 6, "dropout": 0.0}
    config = TrainConfig(
        task="vqa",
        split="val",
        annotations=tmp_path / "first",
        images=world / "val2014",
        model=vilt,
        weights="new-head",
        answers=tmp_path / "first" / "answers.txt",
        out=tmp_path / "out",
        **settings,
    )
    model = load_trainable(vilt, Question, Start(weights="new-head", answers=config.answers, dropout=0.0)).network
    assert list(model.config.id2label.values()) == answers
    (batch,) = batches(replace(config, steps=1))
    rows = [{name: tensor[number] for name, tensor in batch.tensors.items()} for number in range(6)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=6,
        learning_rate=5e-3,
        logging_steps=1,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, data_collator=DefaultDataCollator(), train_dataset=rows)
    trainer.train()
    theirs = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    train(config)
    ours = [json.loads(line)["loss"] for line in (tmp_path / "out" / "steps.jsonl").read_text().splitlines()]
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert ours[-1] < 0.9 * ours[0]


def test_a_fine_tuned_vilt_is_asked_and_evaluated(
    vilt: Path, small_night: SmallNight, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first half of the guide runs: the new checkpoint opens in transformers and here, answers a question that it
    was trained on, and is evaluated. `ask` gives the scores that the guide computes by hand, and says what it cut."""
    world = small_night.out / "synthetic" / "vqa"
    done = run_here(EXAMPLES / "guide_vilt.py", vilt, world, world / "val2014", tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("*__vqa__val")
    scores = json.loads((run / "scores.json").read_text())["scores"]
    assert str(scores) in done.stdout

    (folder,) = (tmp_path / "vilt-guide" / "checkpoints").iterdir()
    image = world / "val2014" / "COCO_val2014_000000000001.jpg"
    model, processor = ViltForQuestionAnswering.from_pretrained(folder), ViltProcessor.from_pretrained(folder)
    question = "how many circles are there?"
    with Pillow.open(image) as picture, torch.no_grad():
        logits = model(**processor(picture.convert("RGB"), question, return_tensors="pt")).logits[0]
    scored = zip(logits.sigmoid().tolist(), model.config.id2label.values(), strict=True)
    theirs = sorted(scored, reverse=True)[:3]
    ours = ask(folder, image, question, top_k=3)
    assert [each.answer for each in ours] == [answer for _, answer in theirs]
    assert [each.score for each in ours] == pytest.approx([score for score, _ in theirs], abs=1e-5)

    assert ask(folder, image, "is there a red circle? " * 20)
    assert "the text is longer than the model can read: its end was cut off" in caplog.text
    with pytest.raises(InputError, match=r"its text has .* word pieces, and ViLT reads 40"):
        ask(folder, image, "is there a red circle? " * 20, answering=AnsweringConfig(strict_length=True))


def test_blip2_answers_as_the_guide_asks(tmp_path: Path, small_night: SmallNight) -> None:
    """The second half of the guide runs, its answers follow the image, and an ignored image is refused. `ask` gives the
    same texts."""
    images = sorted((small_night.out / "synthetic" / "vqa" / "val2014").iterdir())[:3]
    model, text = tiny.write_blip2(tmp_path / "blip2"), "how many circles are there?"
    done = [run_here(EXAMPLES / "guide_blip2.py", model, image, text) for image in images]
    assert [each.returncode for each in done] == [0, 0, 0]
    assert all(each.stdout.startswith("BLIP-2: ") for each in done)
    assert not any("Question" in each.stdout for each in done)
    assert len({each.stdout for each in done}) > 1
    blind = tiny.write_blip2(tmp_path / "blind", query_tokens=None)
    with pytest.raises(SystemExit, match="its processor writes 0 image tokens, its model reads 3"):
        run_script(EXAMPLES / "guide_blip2.py", blind, images[0], text)
    guide = AnsweringConfig(preset="hf-guide")
    ours = [ask(model, image, text, answering=guide) for image in images]
    assert [f"BLIP-2: {each.answer}\n" for (each,) in ours] == [each.stdout for each in done]


def run_script(script: Path, *arguments: object) -> None:
    """Run a script in this process and let it end as it does, with its message."""
    import runpy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        runpy.run_path(str(script), run_name="__main__")


def test_easy_vqa_becomes_official_files(tmp_path: Path) -> None:
    """The converted questions, images and answers are those of the package, and open as a benchmark of VQA v2."""
    run_script(EXAMPLES / "easy_vqa_data.py", tmp_path)
    task = open_task("vqa", tmp_path, "val")
    texts, answers, images = easy_vqa.get_test_questions()
    examples = list(task.examples())
    assert [each.text for each in examples] == texts  # type: ignore[union-attr]
    assert [task.gold(each.example_id) for each in examples] == answers
    paths = easy_vqa.get_test_image_paths()
    for number in (0, 1, 4_000, 9_672):
        copy = tmp_path / "val2014" / f"{examples[number].image_ids[0]}.png"
        assert copy.read_bytes() == Path(paths[images[number]]).read_bytes()
    assert len(list((tmp_path / "val2014").iterdir())) == 1_000
    assert len(list((tmp_path / "train2014").iterdir())) == 4_000
    assert sum(1 for _ in open_task("vqa", tmp_path, "train").examples()) == 38_575
