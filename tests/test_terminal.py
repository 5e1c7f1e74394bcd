"""Foreign text reaches a terminal as harmless text. Here ids, answers, question types and names of files, models and
corpora hold escape sequences and line breaks, and every job runs over them.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from conftest import ROOT, SmallNight, run_here, small_matrix
from layouts import LAYOUTS
from rich.console import Console
from test_report import write_store

from visualbert_core.comparison.gate import Check, Gate, Watched
from visualbert_core.engine.progress import Progress
from visualbert_core.evaluation.run_folder import read_run
from visualbert_core.printable import guard, log_to_stderr, logger, printable, say, say_json, unguarded
from visualbert_core.report import ReportCell, ReportInfo
from visualbert_core.report.ci import junit, markdown
from visualbert_core.report.terminal import print_table

HOSTILE = "a\x1b[2J\x1b]0;t\x07\x9b31m\r\x08\u202e\x7f\tb\nerror: c\u2028d"
"""It clears the screen, renames the window, sets a colour, overwrites text, reverses text, and forges a line."""
# all control characters but \n and \t
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
WEIGHTS = ROOT / "visualbert_core" / "synthetic" / "weights"
PROGRAM = ROOT / "visualbert_core" / "__main__.py"


@dataclass(frozen=True)
class Hostile:
    """Synthetic data with hostile question types and answers in VQA, one hostile image name, a hostile name of a model
    folder, and a night over them."""

    root: Path
    matrix: Path
    night: subprocess.CompletedProcess[str]

    @property
    def store(self) -> Path:
        (manifest,) = self.root.glob("out*/features/*/*/manifest.json")
        return manifest.parent

    @property
    def runs(self) -> list[Path]:
        return sorted(path.parent for path in self.root.glob("out*/runs/*/*/scores.json"))

    @property
    def annotations(self) -> Path:
        return self.root / "synthetic" / "vqa"


@pytest.fixture(scope="module")
def hostile(small_night: SmallNight, tmp_path_factory: pytest.TempPathFactory) -> Hostile:
    root = tmp_path_factory.mktemp("hostile")
    world = shutil.copytree(small_night.out / "synthetic", root / "synthetic")
    annotations = world / "vqa" / "v2_mscoco_val2014_annotations.json"
    document = json.loads(annotations.read_text())
    for record in document["annotations"]:
        record |= {"question_type": HOSTILE, "answer_type": HOSTILE, "multiple_choice_answer": HOSTILE}
    annotations.write_text(json.dumps(document))
    (world / "vqa" / "val2014" / f"{HOSTILE}.jpg").write_bytes(b"no picture")
    model = shutil.copytree(WEIGHTS / "visualbert-vqa", root / HOSTILE)
    words = (model / "answers.txt").read_text().split("\n")
    words[1:] = [word and word + "\x1b[2J\x9b" for word in words[1:]]
    (model / "answers.txt").write_text("\n".join(words))
    sidecar = json.loads((model / "visualbert_core.json").read_text()) | {"feature_space": HOSTILE}
    (model / "visualbert_core.json").write_text(json.dumps(sidecar))
    matrix = small_matrix(synthetic=None, data=str(world), out=str(root / f"out{HOSTILE}"))
    matrix["cells"] = [matrix["cells"][0] | {"model": str(model), "allow_feature_space_mismatch": True}]
    broken = matrix["cells"][0] | {"model": str(root / f"gone{HOSTILE}")}
    matrix["cells"].append(broken)
    matrix["corpora"] = {"vqa-val2014": matrix["corpora"]["vqa-val2014"]}
    path = root / "matrix.yaml"
    path.write_text(yaml.safe_dump(matrix))
    return Hostile(root, path, run_here(ROOT / "jobs" / "nightly.py", path))


def run_job(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run_here(ROOT / "jobs" / f"{name}.py", *arguments)


def evaluate(hostile: Hostile, *more: object) -> subprocess.CompletedProcess[str]:
    """Evaluate again; all parts are done already, so no worker starts."""
    flags = ("--task", "vqa", "--split", "val", "--annotations", hostile.annotations, "--features", hostile.store)
    model = ("--model", hostile.root / HOSTILE, "--allow-feature-space-mismatch", "--shard-size", 5)
    return run_job("evaluate", *flags, *model, "--out", hostile.runs[0].parent, *more)


def score(hostile: Hostile, *more: object) -> subprocess.CompletedProcess[str]:
    flags = ("--task", "vqa", "--split", "val", "--annotations", hostile.annotations)
    return run_job("score", *flags, "--predictions", hostile.runs[0], *more)


def coverage(hostile: Hostile) -> subprocess.CompletedProcess[str]:
    """Score predictions with a hostile unknown id, which gives a table of ids."""
    layout, folder = LAYOUTS["nlvr2"], hostile.root / "nlvr2"
    layout.write(folder)
    (folder / "p.csv").write_text(layout.text() + "\n" + printable(HOSTILE).replace("\\x1b", "\x1b") + ",True\n")
    return run_job(
        "score", "--task", "nlvr2", "--split", "dev", "--annotations", folder, "--predictions", folder / "p.csv"
    )


def extract(hostile: Hostile) -> subprocess.CompletedProcess[str]:
    images = ("--images", hostile.annotations / "val2014", "--detector", WEIGHTS / "detector", "--shard-size", 5)
    return run_job("extract_features", *images, "--out", hostile.store.parents[1], "--corpus", "vqa-val2014")


def importing(hostile: Hostile) -> subprocess.CompletedProcess[str]:
    """Import a TSV with a hostile image id, without the characters that separate fields and rows."""
    source = hostile.root / "features.tsv"
    name = HOSTILE.replace("\t", "").replace("\n", "").replace("\r", "").replace("\u2028", "")
    source.write_text(f"{name}\t640\t480\t1\tAAAA\tAAAA\n")
    return run_here(PROGRAM, "import", "bua-tsv", source, "--out", hostile.root / "imported", "--space", HOSTILE)


def canary(hostile: Hostile) -> subprocess.CompletedProcess[str]:
    return run_here(
        PROGRAM,
        "store",
        "canary",
        hostile.store,
        "--images",
        hostile.annotations / "val2014",
        "--detector",
        WEIGHTS / "detector",
        "-n",
        2,
    )


def ls(hostile: Hostile, *images: str) -> subprocess.CompletedProcess[str]:
    store = write_store(hostile.root / f"store{len(images)}", [HOSTILE, "b"])
    return run_here(PROGRAM, "store", "ls", store.folder, *images)


RUNS: dict[str, Callable[[Hostile], subprocess.CompletedProcess[str]]] = {
    "a night": lambda hostile: hostile.night,
    "an argument that a job has not": lambda hostile: run_job("nightly", hostile.matrix, f"--{HOSTILE}", HOSTILE),
    "an argument that a command has not": lambda hostile: run_here(PROGRAM, "store", "verify", hostile.store, HOSTILE),
    "a dry run": lambda hostile: run_job("nightly", hostile.matrix, "--dry-run"),
    "an extraction": extract,
    "an evaluation": evaluate,
    "scores": score,
    "coverage": coverage,
    "a comparison": lambda hostile: run_job("compare", *hostile.runs[:2]),
    "an import of features": importing,
    "a canary": canary,
    "ls": ls,
    "ls of an image": lambda hostile: ls(hostile, HOSTILE),
    "verify": lambda hostile: run_here(PROGRAM, "store", "verify", hostile.store),
    "info": lambda hostile: run_here(PROGRAM, "store", "info", hostile.store),
    "scores as JSON": lambda hostile: score(hostile, "--json"),
    "an evaluation as JSON": lambda hostile: evaluate(hostile, "--json"),
    "a comparison as JSON": lambda hostile: run_job("compare", *hostile.runs[:2], "--json"),
}
SAY_NOTHING = ("info",)  # these commands print nothing hostile


@pytest.mark.parametrize("what", RUNS)
def test_no_job_lets_a_terminal_obey(hostile: Hostile, what: str) -> None:
    """Only our own line breaks and the tabs of `ls` act on a terminal, on stdout and stderr. The hostile text is
    printed, escaped, and forges no line."""
    done = RUNS[what](hostile)
    for said in (done.stdout, done.stderr):
        assert OBEYED.findall(said) == []
        assert "\t" not in said or what.startswith("ls")
        assert "Traceback" not in said
        assert not [line for line in said.splitlines() if line.startswith("error: c")]
    if what not in SAY_NOTHING:
        assert "\\x1b" in done.stdout + done.stderr or "\\u001b" in done.stdout, (done.stdout, done.stderr)
    if "JSON" in what or what == "info":
        json.loads(done.stdout)


def test_a_long_word_stays_in_its_column(hostile: Hostile) -> None:
    """Question types are escaped before they are aligned, so the numbers of all rows start in one column."""
    table = [line for line in score(hostile).stdout.splitlines() if line.startswith((printable(HOSTILE), "question"))]
    assert len({len(line) for line in table}) == 1 < len(table)


def test_the_terminal_s_table_holds_no_escape_sequence(hostile: Hostile) -> None:
    """On a terminal the table has rich's own escape sequences and none from a title."""
    run = read_run(hostile.runs[0])
    printed = io.StringIO()
    console = Console(file=printed, force_terminal=True, width=200)
    print_table(ReportInfo(HOSTILE, False, 0), [ReportCell(HOSTILE, None, None, {}, run, error=HOSTILE)], console)
    left = re.sub(r"\x1b\[[\d;]*m", "", printed.getvalue())
    assert OBEYED.findall(left) == []
    assert r"\x1b[2J" in left


def test_progress_quotes_without_obeying(capsys: pytest.CaptureFixture[str]) -> None:
    """Progress escapes a corpus in its label and an item in a note."""
    log_to_stderr()
    with Progress(f"features of {HOSTILE}", 1) as progress:
        progress.note(f"quarantined {HOSTILE}")
    said = capsys.readouterr().err
    assert OBEYED.findall(said) == []
    assert said.count("\n") == 2


def test_a_library_logs_and_a_program_shows_the_log() -> None:
    """A program that imports the package gets log records, and Python shows only the warnings among them. Our commands
    show progress too, and mark each warning."""
    stage = (
        "from visualbert_core.engine.progress import Progress\nwith Progress('stage', 1) as p: p.note('look here')\n"
    )
    program = "from visualbert_core.printable import log_to_stderr; log_to_stderr(); log_to_stderr()\n"
    library, shown = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stderr
        for code in (stage, program + stage)
    )
    assert library == "stage: look here\n"
    first, second = shown.splitlines()
    assert first == "WARNING: stage: look here"
    assert second.startswith("stage: 0 of 1, 0.0/s, 0 failed; shards ")


def test_what_libraries_print_is_guarded() -> None:
    """Warnings, log records and the traceback of a crash keep their lines, and every control character is escaped."""
    code = (
        "import logging, sys, warnings; from visualbert_core.errors import end\n"
        f"hostile = {HOSTILE!r}\n"
        "def job():\n"
        "    warnings.warn(hostile); logging.warning(hostile); print(hostile, flush=True); raise ValueError(hostile)\n"
        "end(job)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=False)
    for said in (done.stdout.decode(), done.stderr.decode()):
        assert OBEYED.findall(said) == []
        assert r"\x1b[2J" in said
    assert done.returncode == 1
    assert b"Traceback" in done.stderr


def test_lines_are_for_people_and_json_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    """Text for a reader is one line, or one line per column. JSON for a program reads back unchanged, in ASCII."""
    say(HOSTILE, "b\tc", sep="\t")
    line, rest = capsys.readouterr().out.split("\n")
    assert (line.count("\t"), rest) == (1, "")
    say_json({"a": HOSTILE + "é"})
    said = capsys.readouterr().out
    assert json.loads(said) == {"a": HOSTILE + "é"}
    assert said.isascii()
    assert OBEYED.findall(said) == []


def test_a_bar_writes_past_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that writes its own escape sequences gets the stream behind the guard, or the stream itself. A library's
    progress bar may return to the start of its line."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.StringIO())
    plain = sys.stderr
    assert unguarded(plain) is plain
    guard()
    assert unguarded(sys.stderr) is plain
    sys.stderr.write("\r5 %\x1b[2J a\rb\n")
    assert plain.getvalue() == "\r5 %\\x1b[2J a\\rb\n"  # type: ignore[attr-defined]


def test_ci_gets_neither_sequences_nor_new_lines() -> None:
    """Hostile names and reasons make one table row per metric in summary.md, without markup, and valid XML in
    junit.xml."""
    odd = f"{HOSTILE} | <b> `x` ~~y~~ [z](w)"
    gate = Gate("1", "fail", (Check(Watched(odd, "accuracy", 5.0), "cannot tell", odd),), (odd,))
    text = markdown(odd, gate, {})
    assert OBEYED.findall(text) == []
    assert [line for line in text.splitlines() if line.startswith(("error: c", "<b>"))] == []
    (row,) = [line for line in text.splitlines() if line.startswith("| ❓")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 10
    assert not re.search(r"(?<!\\)[<`~\[]", row)
    xml = junit(odd, gate)
    assert OBEYED.findall(xml.decode()) == []
    case = ElementTree.fromstring(xml)[0][0]
    assert "\n" not in str(case.get("classname"))


def test_a_users_handler_gets_printable_records(caplog: pytest.LogCaptureFixture) -> None:
    """A handler of the user may write to a terminal, or encode strictly: its records are one printable line, too."""
    with caplog.at_level("INFO", logger="visualbert_core"):
        logger("visualbert_core.a_test").warning("image %s", "\x1b[2J\n\udce9")
    (record,) = caplog.records
    assert record.getMessage() == r"image \x1b[2J\n\udce9"
