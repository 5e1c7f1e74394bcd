"""How fast VQA v2 is scored: this package beside the official program, on the same files of the size of VQA v2 val.

    python benchmarks/scoring.py --official CHECKOUT_OF_GT-Vision-Lab/VQA [--questions N] [--repeats N]

Each program runs in a process of its own, in turn, `--repeats` times: from starting Python to the score, so reading the
questions, the annotations and the predictions, and checking that every question has one, are in it. Without
`--official` ours runs alone. Nothing of the official program (tested with commit a013f0043c1e) is kept here; being
Python 2, it is translated into the temporary folder first: tabs become spaces, eight columns each as Python 2 counts
them, and `print x` becomes `print(x)`. Division and rounding need no change: both write float() where it matters, and
scores are compared before they are rounded.

The files are made up, with a fixed seed: a third of the questions have ten equal answers, the others two to four
different ones, answers are drawn from a Zipf distribution over 100,000 strings, a tenth of them with marks, articles,
number words or capitals for the normaliser to work on.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
VQA_VAL = 214_354
QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"
PREDICTIONS = "predictions.json"
WORDS = 100_000
SEED = 20170
TYPES = [("what", "other"), ("what color is the", "other"), ("is the", "yes/no"), ("how many", "number")]


def main() -> int:
    """Make the files, run both programs in turn, print the table; 1 if any score differs."""
    arguments = _parse()
    if arguments.child:
        return _child(*arguments.child)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(folder, arguments.questions)
        programs = ["ours"]
        if arguments.official:
            translate(arguments.official, folder / "official")
            programs.append("official")
        size = sum((folder / file).stat().st_size for file in (QUESTIONS, ANNOTATIONS, PREDICTIONS)) / 1e6
        print(f"{arguments.questions:,} questions, {size:.0f} MB of JSON, {arguments.repeats} runs of each in turn")
        runs: dict[str, list[dict[str, float]]] = {program: [] for program in programs}
        for _ in range(arguments.repeats):
            for program in programs:
                runs[program].append(measure(program, folder))
        return report(runs, folder)


def make_files(folder: Path, questions: int) -> None:
    """The three files of `questions` questions, three an image."""
    rng = np.random.default_rng(SEED)
    words = [_word(rng, i) for i in range(WORDS)]
    about: dict[str, Any] = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": "val2014"}
    asked, annotated, predicted = [], [], []
    for i in range(questions):
        key = {"image_id": 1 + i // 3, "question_id": (1 + i // 3) * 1000 + i % 3}
        said = _ten_answers(rng, words)
        question_type, answer_type = TYPES[int(rng.integers(len(TYPES)))]
        asked.append(key | {"question": f"{question_type} thing number {i % 5000}?"})
        records = [{"answer": a, "answer_confidence": "yes", "answer_id": n} for n, a in enumerate(said, start=1)]
        types = {"question_type": question_type, "answer_type": answer_type, "multiple_choice_answer": said[0]}
        annotated.append(types | {"answers": records} | key)
        guess = said[int(rng.integers(10))] if rng.random() < 0.7 else words[_zipf(rng)]
        predicted.append({"question_id": key["question_id"], "answer": guess})
    question_file = about | {"task_type": "Open-Ended", "questions": asked}
    (folder / QUESTIONS).write_text(json.dumps(question_file))
    (folder / ANNOTATIONS).write_text(json.dumps(about | {"annotations": annotated}))
    (folder / PREDICTIONS).write_text(json.dumps(predicted))


def _word(rng: np.random.Generator, i: int) -> str:
    plain = ["yes", "no", "2", "white", "red", "man"][i] if i < 6 else "".join(rng.choice(list("aeiklmnorstu"), 6))
    rough = ["the {}", "{}.", "{}, too", "two-{}", "1,000 {}", "{}/none", "a {}'s", "{} (dont)"]
    return str(rng.choice(rough)).format(plain.capitalize()) if i >= 6 and rng.random() < 0.1 else plain


def _zipf(rng: np.random.Generator) -> int:
    return int(rng.zipf(1.3) - 1) % WORDS


def _ten_answers(rng: np.random.Generator, words: list[str]) -> list[str]:
    if rng.random() < 1 / 3:
        return [words[_zipf(rng)]] * 10
    different = [words[_zipf(rng)] for _ in range(int(rng.integers(2, 5)))]
    return [different[min(int(rng.geometric(0.6)) - 1, len(different) - 1)] for _ in range(10)]


def translate(checkout: Path, to: Path) -> None:
    """The two official modules as Python 3, in a folder to import them from."""
    to.mkdir()
    for name in ("PythonHelperTools/vqaTools/vqa.py", "PythonEvaluationTools/vqaEvaluation/vqaEval.py"):
        text = (checkout / name).read_text(encoding="utf-8").expandtabs(8)
        (to / Path(name).name).write_text(re.sub(r"(?m)^( *)print (.*?);?$", r"\1print(\2)", text), encoding="utf-8")


def measure(program: str, folder: Path) -> dict[str, float]:
    """One run in a new process: seconds from its start until it had the scores, and the most memory it held."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", program, str(folder)]
    start = time.time()
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    end, megabytes = map(float, done.stdout.splitlines()[-1].split())
    return {"seconds": end - start, "megabytes": megabytes}


def report(runs: dict[str, list[dict[str, float]]], folder: Path) -> int:
    """Medians, the ratio of each pair of runs, and whether the scores are the same floats."""
    print(f"{'':10} {'seconds (median, range)':>28} {'peak memory':>12}")
    for program, measured in runs.items():
        seconds = [run["seconds"] for run in measured]
        spread = f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
        print(f"{program:10} {spread:>28} {max(run['megabytes'] for run in measured):>9,.0f} MB")
    if "official" not in runs:
        print("the official program was not run: name a checkout of github.com/GT-Vision-Lab/VQA with --official")
        return 0
    pairs = zip(runs["official"], runs["ours"], strict=True)
    ratios = [official["seconds"] / ours["seconds"] for official, ours in pairs]
    print(f"ratio: {statistics.median(ratios):.1f} times as fast ({min(ratios):.1f} to {max(ratios):.1f})")
    scores = {program: json.loads((folder / f"{program}.json").read_text()) for program in runs}
    differing = [key for key, value in scores["official"].items() if scores["ours"].get(key) != value]
    equal = not differing and len(scores["ours"]) == len(scores["official"])
    print("every question's score is the same float" if equal else f"{len(differing):,} scores differ: {differing[:5]}")
    return 0 if equal else 1


def _child(program: str, folder: str) -> int:
    percents = {"ours": score_ours, "official": score_officially}[program](Path(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    print(f"\n{time.time()} {peak}")
    (Path(folder) / f"{program}.json").write_text(json.dumps(percents))
    return 0


def score_ours(folder: Path) -> dict[str, float]:
    """question_id → percent."""
    sys.path.insert(0, str(ROOT))
    from visualbert_core.tasks import judge
    from visualbert_core.tasks.vqa import VqaTask

    task = VqaTask(folder, "val")
    scores = judge(task, task.read_submission(folder / PREDICTIONS))
    task.official(scores)
    return {score.unit_id: 100 * score.value for score in scores}


def score_officially(folder: Path) -> dict[str, float]:
    """question_id → percent, unrounded: rounding to 20 decimals leaves a float alone."""
    sys.path.insert(0, str(folder / "official"))
    from vqa import VQA  # type: ignore[import-not-found]
    from vqaEval import VQAEval  # type: ignore[import-not-found]

    vqa = VQA(str(folder / ANNOTATIONS), str(folder / QUESTIONS))
    evaluation = VQAEval(vqa, vqa.loadRes(str(folder / PREDICTIONS), str(folder / QUESTIONS)), n=20)
    evaluation.evaluate()
    return {str(question_id): percent for question_id, percent in evaluation.evalQA.items()}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, help="a checkout of github.com/GT-Vision-Lab/VQA")
    parser.add_argument("--questions", type=int, default=VQA_VAL, help="how many questions (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each program (default: %(default)s)")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
