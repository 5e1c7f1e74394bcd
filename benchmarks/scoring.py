"""Measure how fast VQA v2 is scored: this package beside the official program, on files of the size of VQA v2 val.

    python benchmarks/scoring.py --official CHECKOUT [--python2 PYTHON] [--questions N] [--repeats N]

CHECKOUT is a checkout of github.com/GT-Vision-Lab/VQA (tested with commit a013f0043c1e). This repository keeps nothing
of it. The program is for Python 2. With `--python2`, that interpreter runs it unchanged. Without it, the program is
translated for this Python, in the temporary folder. Tabs become eight columns of spaces, as in Python 2, and `print x`
becomes `print(x)`. Division and rounding need no change: the program writes float() where it matters, and the scores
are compared unrounded. Without `--official`, only our program runs.

The programs take turns, `--repeats` times, each in a new process. The time is from the start of Python to the scores.
It includes reading the questions, the annotations and the predictions, and checking that every question has a
prediction.

The files are made up, with a fixed seed. A third of the questions have ten equal answers, and the others two to four
different ones. Answers are drawn from a Zipf distribution over 100,000 strings. A tenth of the strings have marks,
articles, number words or capitals, as work for the normaliser.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
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


# What each process runs. Python 2 and 3 must both read START, END and the official program. The official program rounds
# to `n` decimals. n=20 changes no float, so `percents` (question_id → percent) is unrounded.
START = f"""
import json, resource, sys, time
program, folder, root = sys.argv[1:]
questions, annotations, predictions = [folder + "/" + name for name in {[QUESTIONS, ANNOTATIONS, PREDICTIONS]}]
"""
PROGRAMS = {
    "ours": """
sys.path.insert(0, root)
from pathlib import Path
from visualbert_core.tasks import judge
from visualbert_core.tasks.vqa import VqaTask
task = VqaTask(Path(folder), "val")
scores = judge(task, task.read_submission(Path(predictions)))
task.official(scores)
percents = {score.unit_id: 100 * score.value for score in scores}
""",
    "official": """
sys.path.insert(0, folder + "/official")
from vqa import VQA
from vqaEval import VQAEval
vqa = VQA(annotations, questions)
evaluation = VQAEval(vqa, vqa.loadRes(predictions, questions), n=20)
evaluation.evaluate()
percents = evaluation.evalQA
""",
}
END = """
print("\\n%r %r" % (time.time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
with open(folder + "/" + program + ".json", "w") as file:
    json.dump(percents, file)
"""


def main() -> int:
    """Make the files, run the programs in turn, print the table. Return 1 if any score differs."""
    arguments = _parse()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(folder, arguments.questions)
        programs = ["ours"]
        if arguments.official:
            copy_official(arguments.official, folder / "official", translated=arguments.python2 is None)
            programs.append("official")
        size = sum((folder / file).stat().st_size for file in (QUESTIONS, ANNOTATIONS, PREDICTIONS)) / 1e6
        print(f"{arguments.questions:,} questions, {size:.0f} MB of JSON, {arguments.repeats} runs of each in turn")
        runs: dict[str, list[dict[str, float]]] = {program: [] for program in programs}
        for _ in range(arguments.repeats):
            for program in programs:
                runs[program].append(measure(program, folder, arguments.python2))
        return report(runs, folder)


def make_files(folder: Path, questions: int) -> None:
    """Write the three files for so many `questions`, three for each image."""
    rng = np.random.default_rng(SEED)
    words = [_word(rng, i) for i in range(WORDS)]
    about = '{"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": "val2014", '
    # Written record by record: on Linux, the peak of a child process starts with the memory of this process.
    with ExitStack() as stack:
        asked, annotated, predicted = (
            stack.enter_context((folder / name).open("w")) for name in (QUESTIONS, ANNOTATIONS, PREDICTIONS)
        )
        asked.write(about + '"task_type": "Open-Ended", "questions": [')
        annotated.write(about + '"annotations": [')
        predicted.write("[")
        for i in range(questions):
            for file, record in zip((asked, annotated, predicted), _records(rng, words, i), strict=True):
                file.write((", " if i else "") + json.dumps(record))
        asked.write("]}")
        annotated.write("]}")
        predicted.write("]")


def _records(rng: np.random.Generator, words: list[str], i: int) -> tuple[dict[str, Any], ...]:
    """Return a question, its annotation and its prediction."""
    key = {"image_id": 1 + i // 3, "question_id": (1 + i // 3) * 1000 + i % 3}
    said = _ten_answers(rng, words)
    question_type, answer_type = TYPES[int(rng.integers(len(TYPES)))]
    annotators = [{"answer": a, "answer_confidence": "yes", "answer_id": n} for n, a in enumerate(said, start=1)]
    types = {"question_type": question_type, "answer_type": answer_type, "multiple_choice_answer": said[0]}
    guess = said[int(rng.integers(10))] if rng.random() < 0.7 else words[_zipf(rng)]
    return (
        key | {"question": f"{question_type} thing number {i % 5000}?"},
        types | {"answers": annotators} | key,
        {"question_id": key["question_id"], "answer": guess},
    )


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


def copy_official(checkout: Path, to: Path, translated: bool) -> None:
    """Copy the two official modules into a folder, unchanged or translated to Python 3."""
    to.mkdir()
    for name in ("PythonHelperTools/vqaTools/vqa.py", "PythonEvaluationTools/vqaEvaluation/vqaEval.py"):
        text = (checkout / name).read_text(encoding="utf-8")
        if translated:
            text = re.sub(r"(?m)^( *)print (.*?);?$", r"\1print(\2)", text.expandtabs(8))
        (to / Path(name).name).write_text(text, encoding="utf-8")


def measure(program: str, folder: Path, python2: str | None) -> dict[str, float]:
    """Run a program in a new process. Return the seconds from its start to the scores, and its peak of memory."""
    python = python2 if python2 and program == "official" else sys.executable
    command = [python, "-W", "ignore", "-c", START + PROGRAMS[program] + END, program, str(folder), str(ROOT)]
    start = time.time()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    end, kilobytes = map(float, done.stdout.splitlines()[-1].split())
    return {"seconds": end - start, "megabytes": kilobytes / (1e6 if sys.platform == "darwin" else 1e3)}


def report(runs: dict[str, list[dict[str, float]]], folder: Path) -> int:
    """Print medians, the ratio of each pair of runs, and whether the scores are the same floats."""
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


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, help="a checkout of github.com/GT-Vision-Lab/VQA")
    parser.add_argument("--python2", help="a Python 2.7 to run that checkout as it is")
    parser.add_argument("--questions", type=int, default=VQA_VAL, help="how many questions (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each program (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
