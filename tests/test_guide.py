"""Hugging Face's guide to visual question answering, from soft targets to answers, with tiny models and on a CPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

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
from visualbert_core.models.vilt.fine_tune import (
    FineTuning,
    LabelledQuestion,
    answer_labels,
    answer_list,
    answer_weights,
    encode,
    fine_tune,
    save,
)
from visualbert_core.schema import Image

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def vilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_vilt(tmp_path_factory.mktemp("vilt") / "vilt-mlm")


@pytest.fixture
def questions(small_night: SmallNight) -> list[LabelledQuestion]:
    """Return questions about two images of other shapes than the model's, with answers of several weights."""
    images = sorted((small_night.out / "synthetic" / "vqa" / "val2014").iterdir())[:2]
    first, second = (Image(path.stem, str(path)) for path in images)
    return [
        LabelledQuestion("how many circles are there?", first, {"2": 1.0, "3": 0.3}),
        LabelledQuestion("what color is the square?", second, {"red": 0.6, "orange": 0.6, "2": 0.3}),
        LabelledQuestion("is there a red circle?", first, {"yes": 1.0}),
        LabelledQuestion("is there a red circle?", second, {"no": 0.9}),
    ]


def opened(vilt: Path, questions: Sequence[LabelledQuestion]) -> tuple[Any, Any]:
    """Open the pre-trained checkpoint for these questions. The new head is the same at every call."""
    torch.manual_seed(1)
    labels = answer_labels(answer_list(questions))
    return ViltForQuestionAnswering.from_pretrained(vilt, **labels), ViltProcessor.from_pretrained(vilt)


def test_weights_are_those_of_the_guides_data() -> None:
    """An answer weighs 0.3 for each annotator and at most 1, in the order of the file."""
    said = ["at table", "down", "skateboard", "down", "down", "down", "table", "down", "down", "down"]
    # The first record of Graphcore/vqa, as the guide prints it.
    assert answer_weights(said) == pytest.approx({"at table": 0.3, "down": 1.0, "skateboard": 0.3, "table": 0.3})
    assert list(answer_weights(said)) == ["at table", "down", "skateboard", "table"]


def test_answers_keep_the_order_of_the_file(vilt: Path, questions: list[LabelledQuestion], tmp_path: Path) -> None:
    """The answers of a saved checkpoint are numbered by their first appearance, and not by the order of a set."""
    assert answer_list(questions) == ("2", "3", "red", "orange", "yes", "no")
    folder = save(*opened(vilt, questions), tmp_path / "saved")
    config = json.loads((folder / "config.json").read_text())
    assert list(config["id2label"].values()) == ["2", "3", "red", "orange", "yes", "no"]
    assert config["label2id"] == {"2": 0, "3": 1, "red": 2, "orange": 3, "yes": 4, "no": 5}


def test_the_loss_is_summed_over_answers_and_averaged_over_questions(
    vilt: Path, questions: list[LabelledQuestion]
) -> None:
    """The loss is binary cross-entropy with the weights as targets, times the number of answers, as transformers has
    it."""
    model, processor = opened(vilt, questions)
    batch = encode(model, processor, questions)
    weights = [[1, 0.3, 0, 0, 0, 0], [0.3, 0, 0.6, 0.6, 0, 0], [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0.9]]
    assert torch.equal(batch["labels"], torch.tensor(weights))
    with torch.no_grad():
        logits = model.eval()(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits.double()
    targets = batch["labels"].double()
    entropy = -(targets * logits.sigmoid().log() + (1 - targets) * (-logits).sigmoid().log())
    losses = fine_tune(model, processor, questions, FineTuning(steps=1))
    assert losses == pytest.approx([float(entropy.sum(1).mean())], rel=1e-5)


def test_the_steps_are_those_of_the_guides_trainer(
    vilt: Path, questions: list[LabelledQuestion], tmp_path: Path
) -> None:
    """Every step has the loss of transformers' Trainer with the guide's settings, where a batch holds all questions."""
    from transformers import DefaultDataCollator, Trainer, TrainingArguments

    model, processor = opened(vilt, questions)
    batch = encode(model, processor, questions)
    rows = [{name: tensor[number] for name, tensor in batch.items()} for number in range(len(questions))]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=4,
        learning_rate=5e-3,
        logging_steps=1,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model, args=arguments, data_collator=DefaultDataCollator(), train_dataset=rows, processing_class=processor
    )
    trainer.train()
    theirs = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    ours = fine_tune(*opened(vilt, questions), questions, FineTuning(steps=6, learning_rate=5e-3))
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert ours[-1] < 0.9 * ours[0]


def test_the_same_seed_trains_the_same_weights(vilt: Path, questions: list[LabelledQuestion]) -> None:
    """Two trainings give the same bits. Another seed takes other batches and gives other weights."""

    def trained(seed: int) -> list[torch.Tensor]:
        model, processor = opened(vilt, questions)
        fine_tune(model, processor, questions, FineTuning(steps=6, batch_size=3, learning_rate=1e-2, seed=seed))
        return [weight.detach() for weight in model.parameters()]

    first, again, other = trained(1), trained(1), trained(2)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not all(torch.equal(*pair) for pair in zip(first, other, strict=True))


def test_every_question_is_seen_before_one_is_seen_again(vilt: Path, questions: list[LabelledQuestion]) -> None:
    """The batches of an epoch hold each question once, and the last batch may be smaller."""
    from visualbert_core.models.vilt.fine_tune import _batches

    batches = list(_batches(5, FineTuning(steps=6, batch_size=2)))
    assert [len(batch) for batch in batches] == [2, 2, 1, 2, 2, 1]
    for epoch in (batches[:3], batches[3:]):
        assert sorted(chain.from_iterable(epoch)) == [0, 1, 2, 3, 4]


def test_questions_that_cannot_be_learnt_are_refused(vilt: Path, questions: list[LabelledQuestion]) -> None:
    """No questions, or an answer that the model does not have, is an error of one line before the first step."""
    model, processor = opened(vilt, questions[:1])
    with pytest.raises(InputError, match="there is no question to train on"):
        fine_tune(model, processor, [], FineTuning(steps=1))
    with pytest.raises(InputError, match="'what color is the square\\?': the model has no answer 'red'"):
        fine_tune(model, processor, questions, FineTuning(steps=1))


def test_a_fine_tuned_vilt_is_asked_and_evaluated(
    vilt: Path, small_night: SmallNight, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first half of the guide runs: the new checkpoint opens in transformers and here, answers a question that it
    was trained on, and is evaluated. `ask` gives the scores that the guide computes by hand, and says what it cut."""
    world = small_night.out / "synthetic" / "vqa"
    done = run_here(EXAMPLES / "guide_vilt.py", vilt, world, world / "val2014", tmp_path)
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "vilt-guide__vqa__val" / "scores.json").read_text())["scores"]
    assert str(scores) in done.stdout

    folder, image = tmp_path / "vilt-guide", world / "val2014" / "COCO_val2014_000000000001.jpg"
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
