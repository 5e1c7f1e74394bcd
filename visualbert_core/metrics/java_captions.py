"""METEOR and SPICE of captions, from the Java programs of their authors. No other file runs Java.

METEOR 1.5: Denkowski and Lavie 2014. SPICE: Anderson et al. 2016, arXiv:1607.08822. The user installs Java and PyPI
pycocoevalcap 1.2, which is coco-caption for Python 3. It holds both programs. SPICE downloads Stanford CoreNLP at its
first use. Captions come in as `ptb_tokenizer.tokenize` returns them, as coco-caption gives them to both.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout

from visualbert_core.errors import ConfigError, InputError, first_line

PACKAGE = "pycocoevalcap"
PROGRAMS = {"meteor": "Meteor", "spice": "Spice"}
"""Module of the package → its class with `compute_score(references, candidates)` → (score of the set, of images)."""


def check_programs(names: Sequence[str]) -> None:
    """Raise ConfigError for an unknown program, and where Java or the package is missing."""
    if unknown := [name for name in names if name not in PROGRAMS]:
        raise ConfigError(f"--java {unknown[0]}: no such program; known: {', '.join(PROGRAMS)}")
    missing = ["Java (for example the package default-jre-headless)"] if shutil.which("java") is None else []
    missing += [f"{PACKAGE} (pip install {PACKAGE})"] if importlib.util.find_spec(PACKAGE) is None else []
    if missing:
        raise ConfigError(f"--java {' '.join(names)}: install {' and '.join(missing)}")


def java_scores(
    names: Sequence[str], candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Return "METEOR (Java)" and the like → percent. The mappings go from image to tokenised captions.

    Raises InputError where a program ends with an error.
    """
    given, judges = {name: [text] for name, text in candidates.items()}, {n: list(t) for n, t in references.items()}
    found = {}
    for name in names:
        shown = f"{name.upper()} (Java)"
        module = importlib.import_module(f"{PACKAGE}.{name}.{name}")
        try:
            with redirect_stdout(sys.stderr):  # SPICE reports its download on stdout, where --json has its object
                score, _ = getattr(module, PROGRAMS[name])().compute_score(judges, given)
        # A program that cannot download, start or end well, or that ends early and so answers with an empty line.
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            raise InputError(
                f"{shown}: the program of {PACKAGE} failed: {first_line(error)}; leave {name} out, or look above for "
                "what Java printed"
            ) from error
        found[shown] = 100 * float(score)
    return found
