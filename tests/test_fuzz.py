"""Damaged files of every format: each case gives a score or one line that names the file, never a traceback or a hang.

A case is a small correct set of files in which one file is damaged. It depends only on the format's name and the case's
number, so `check(FORMATS["nlvr2 records"], 1234, folder)` repeats a failure.
"""

from __future__ import annotations

import json
import random
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from layouts import LAYOUTS

from visualbert_core.errors import VisualBertCoreError
from visualbert_core.evaluation.score import Mode, describe, read_prediction_set, score
from visualbert_core.tasks import Task, open_task

CASES = 2_000  # for each format, the same in every run
SECONDS = 5  # CPU time of this process for one case; a normal case takes a millisecond

Mutation = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Format:
    """One file of a benchmark's layout: an annotation file, or the submission."""

    name: str
    task: str
    file: str


SUBMISSION = "predictions"
FORMATS = {
    of.name: of
    for of in (
        Format("vqa questions", "vqa", "v2_OpenEnded_mscoco_val2014_questions.json"),
        Format("vqa annotations", "vqa", "v2_mscoco_val2014_annotations.json"),
        Format("vqa submission", "vqa", SUBMISSION),
        Format("vcr records", "vcr", "val.jsonl"),
        Format("vcr submission", "vcr", SUBMISSION),
        Format("nlvr2 records", "nlvr2", "dev.json"),
        Format("nlvr2 phenomena", "nlvr2", "annotated_dev_examples.txt"),
        Format("nlvr2 submission", "nlvr2", SUBMISSION),
        Format("flickr30k_entities images", "flickr30k_entities", "test.txt"),
        Format("flickr30k_entities captions", "flickr30k_entities", "Sentences/5.txt"),
        Format("flickr30k_entities boxes", "flickr30k_entities", "Annotations/5.xml"),
        Format("flickr30k_entities submission", "flickr30k_entities", SUBMISSION),
    )
}

# ---------------------------------------------------------------------------------------------------------------------
# Mutations.

_SCALAR = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?|true|false|null|(?<=[,>/ ])[A-Za-z_]+')
_KEY = re.compile(rb'"\w+"(?=: )')
_DEPTH = 20_000
_ODD = (
    *(b"null", b"true", b"-1", b"0", b"1.5", b"3", b'""', b'"x"', b"[]", b"{}", b"[[]]", b'[{"a": 1}]', b"", b" "),
    *(b"1e400", b"-1e400", b"NaN", b"-Infinity", b"9" * 5000, b"9" * 400, b"0x10", b"1_000", b"1e-400", b"-0", b"True"),
    *(b'"\\ud800"', b'"\\u0000"', b'"a\\nb"', "é".encode(), "٣".encode(), "\u2028".encode(), b"\x00", b"\xff", b"\r"),
    *(b"[" * _DEPTH, b"[" * _DEPTH + b"]" * _DEPTH, b'{"a":' * _DEPTH, b"<a>" * _DEPTH, b'"%s"' % (b"x" * 3000)),
    *(b"[/EN#", b"[/EN#1/people", b"]", b"</object>", b"<bndbox/>", b"&a;", b"<!--", b"<![CDATA[", b"," * 99, b"\n"),
)
# An XML bomb ("billion laughs"): each entity consists of ten copies of the entity before.
_BOMB = b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">' + b"".join(
    b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 10) for i in range(9)
)


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8)) if data else 0):
        changed[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(changed)


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(_ODD) + data[at:]


def _cut(data: bytes, rng: random.Random) -> bytes:
    start, stop = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:start] + data[stop:]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    start, stop = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:stop] + data[start:stop] * rng.choice((1, 1, 2, 30)) + data[stop:]


def _value(data: bytes, rng: random.Random) -> bytes:
    """Replace one value by an odd value of any type."""
    found = list(_SCALAR.finditer(data))
    if not found:
        return data
    at = rng.choice(found)
    return data[: at.start()] + rng.choice(_ODD) + data[at.end() :]


def _key(data: bytes, rng: random.Random) -> bytes:
    """Repeat a key, with an odd value first, or rename it."""
    found = list(_KEY.finditer(data))
    if not found:
        return data
    at = rng.choice(found)
    twice = at[0] + b": " + rng.choice(_ODD) + b", " + at[0]
    return data[: at.start()] + rng.choice((twice, b'"other"')) + data[at.end() :]


def _lines(data: bytes, rng: random.Random) -> bytes:
    """Shuffle the lines, repeat, remove or add one, or change their ends."""
    found = data.split(b"\n")
    at = rng.randrange(len(found))
    return b"\n".join(
        rng.choice(
            (
                rng.sample(found, len(found)),
                [*found, found[at]],
                found[:at] + found[at + 1 :],
                [found[at]],
                [line + b"\r" for line in found],
                [*found[:at], b"", *found[at:]],
            )
        )
    )


def _encoding(data: bytes, rng: random.Random) -> bytes:
    text = data.decode()
    return rng.choice(
        (b"\xef\xbb\xbf" + data, text.encode("utf-16"), text.encode("latin-1"), text.encode("utf-32"), data + b"\xc3")
    )


def _whole(data: bytes, rng: random.Random) -> bytes:
    """Replace the whole file, or put a NUL or an XML bomb before it."""
    return rng.choice((b"", b"\n", b" ", b"\x00" * 64, b"\x00" + data, rng.randbytes(200), _BOMB + b"]>" + data, *_ODD))


MUTATIONS: tuple[Mutation, ...] = (
    *(_truncate, _flip, _insert, _cut, _repeat, _value, _value, _value, _key, _lines, _encoding, _whole),
)

# ---------------------------------------------------------------------------------------------------------------------
# Cases.


MODES: tuple[Mode, ...] = ("strict", "partial", "official")


def check(of: Format, number: int, folder: Path, task: Task | None = None) -> bool:
    """Return whether case `number` gave a score. Fail where it gave neither a score nor one line with a file's name.

    `folder` holds the correct files. The caller may pass `task` where the annotation files stay undamaged.
    """
    case, layout = f"{of.name} {number}", LAYOUTS[of.task]
    rng = random.Random(case)
    (folder / of.file).write_bytes(rng.choice(MUTATIONS)(content(of), rng))
    try:
        with at_most(SECONDS, case):
            document = scored(task or open_task(of.task, folder, layout.split), folder, rng.choice(MODES))
    except VisualBertCoreError as error:
        message = str(error)
        assert len(message.splitlines()) == 1, f"{case}: {message!r} is not one line"
        assert str(folder) in message, f"{case}: {message!r} names no file"
        return False
    except Exception as error:
        raise AssertionError(f"{case}: {type(error).__name__} {str(error)[:200]}") from error
    assert document["ranges" if document["partial"] else "scores"], f"{case}: a document without a score"
    return True


def scored(task: Task, folder: Path, mode: Mode) -> dict[str, Any]:
    """Do what the score job does, except printing."""
    answers = read_prediction_set(task, folder / SUBMISSION, "", mode)
    answers.coverage.table()
    document = score(task, answers, "", mode)
    json.dumps(document, allow_nan=False)
    "\n".join(describe(document, task))
    return document


def content(of: Format) -> bytes:
    layout = LAYOUTS[of.task]
    return (layout.text() if of.file == SUBMISSION else layout.files[of.file]).encode()


@contextmanager
def at_most(seconds: int, what: str) -> Iterator[None]:
    """Fail after `seconds` of CPU time. The load of the machine does not count."""

    def stop(signum: int, frame: FrameType | None) -> None:
        pytest.fail(f"{what}: still at it after {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_give_a_score_or_one_line(memory: Path, name: str) -> None:
    """Two thousand damaged files of each format give a score or one line."""
    of = FORMATS[name]
    layout = LAYOUTS[of.task]
    (layout.write(memory) / SUBMISSION).write_text(layout.text(), encoding="utf-8")
    task = open_task(of.task, memory, layout.split) if of.file == SUBMISSION else None
    results = sum(check(of, number, memory, task) for number in range(CASES))
    # If no mutation did harm, or every one did, the cases would test nothing.
    assert 0.01 * CASES < results < 0.9 * CASES
