"""docs/how-to/prompts.md prints the protocols and the formats of boxes as the package has them."""

from __future__ import annotations

import pytest
from conftest import ROOT

from visualbert_core.config import AnsweringConfig
from visualbert_core.models.generative.box_formats import FORMATS
from visualbert_core.models.generative.protocol import PRESETS, resolve
from visualbert_core.schema import Question, Statement

PAGE = (ROOT / "docs" / "how-to" / "prompts.md").read_text()


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset: str) -> None:
    """The row of a preset and a language model has the line that stands under the score."""
    for t5, kind in ((False, "OPT"), (True, "FlanT5")):
        line = str(resolve(Question, "blip-2", False, t5, AnsweringConfig(preset=preset)))  # type: ignore[arg-type]
        shown = line.removeprefix(f"{preset}: ")
        assert any(f"| `{preset}` | {language} | `{shown}` |" in PAGE for language in (kind, "both"))


@pytest.mark.parametrize("form", [Question, Statement])
def test_defaults(form: type) -> None:
    """The defaults of models with and without a chat template are on the page, and those of PaliGemma."""
    kinds = {("any", True): "with a chat template", ("any", False): "without one", ("paligemma", False): "PaliGemma"}
    for (model_type, chat), row in kinds.items():
        if form is Question or model_type == "any":
            assert f"| {row} | `{resolve(form, model_type, chat, False, AnsweringConfig())}` |" in PAGE


def test_box_formats() -> None:
    """Every format has a row with its prompt."""
    for name, style in FORMATS.items():
        assert f"| `{name}` | `{style.prompt}` |" in PAGE
