"""How a generative model is asked and how its text becomes an answer: presets, defaults, and the printed line.

Scores of one checkpoint under two protocols differ by points, so reports print the protocol under each score.
Sources of the presets:

hf-guide      the guide "Visual Question Answering" of Hugging Face's documentation: greedy, ten new tokens
blip2-paper   Li et al. 2023, arXiv:2301.12597, section 4.1: five beams, length penalty -1; OPT and FlanT5 have
              different prompts
lavis         github.com/salesforce/LAVIS at 506965b: one prompt for both, a cleaned question, length penalty 0 for OPT

The prompts for captions: "a photo of" is that of LAVIS and of the BLIP-2 paper, whose captions have up to 30 tokens.
Chat models get the sentence that LLaVA-1.5 was trained with (arXiv:2310.03744, the prompt of its caption data).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from visualbert_core.config import AnsweringConfig
from visualbert_core.errors import ConfigError
from visualbert_core.io.documents import brief
from visualbert_core.schema import Captioning, Example, Grounding, MultipleChoice, Question, Statement


@dataclass(frozen=True)
class Decoding:
    """How a text is written. Nothing is drawn by chance."""

    beams: int = 1
    length_penalty: float = 1.0
    max_new_tokens: int = 10
    min_new_tokens: int = 0

    def settings(self) -> dict[str, Any]:
        """Return every setting of transformers' GenerationConfig that could change a text."""
        return {
            "do_sample": False,
            "num_beams": self.beams,
            "length_penalty": self.length_penalty,
            "early_stopping": False,
            "max_new_tokens": self.max_new_tokens,
            "min_new_tokens": self.min_new_tokens,
            "repetition_penalty": 1.0,
            "encoder_repetition_penalty": 1.0,
            "no_repeat_ngram_size": 0,
            "encoder_no_repeat_ngram_size": 0,
            "use_cache": True,
        }

    def __str__(self) -> str:
        search = "greedy" if self.beams == 1 else f"{self.beams} beams, length penalty {self.length_penalty:g}"
        least = f"at least {self.min_new_tokens} and " if self.min_new_tokens else ""
        return f"{search}, {least}at most {self.max_new_tokens} new tokens"


@dataclass(frozen=True)
class Protocol:
    """One complete way to ask. `prompt` holds {} in the place of the question. For a caption it is the whole text."""

    prompt: str
    answer_by: Literal["generate", "likelihood"] = "generate"
    normalise: Literal["sum", "mean"] = "mean"
    post: Literal["raw", "first-line"] = "raw"
    decoding: Decoding = Decoding()
    clean: bool = False
    """Whether the question is lower-cased and stripped of punctuation, as LAVIS does."""
    preset: str | None = None

    def ask(self, text: str) -> str:
        """Return the prompt for a question."""
        return self.prompt.replace("{}", cleaned(text) if self.clean else text)

    def answer(self, text: str) -> str:
        """Return the answer that a generated text holds. It may be empty."""
        if self.post == "first-line":
            text = text.strip().partition("\n")[0]
        return text.strip()

    def __str__(self) -> str:
        name = f"{self.preset}: " if self.preset else ""
        asked = f'"{printed(self.prompt)}"' + (", question cleaned as in LAVIS" if self.clean else "")
        if self.answer_by == "likelihood":
            return f"{name}{asked}, likelihood, {self.normalise} over tokens"
        return f"{name}{asked}, generate, {self.decoding}, {self.post}"


def cleaned(question: str) -> str:
    """Return a question as LAVIS's BlipQuestionProcessor prepares it: lower case, few marks, 50 words."""
    text = re.sub(r"[.!\"()*#:;~]", "", question.lower()).rstrip(" ")
    return " ".join(text.split(" ")[:50])


def printed(text: str) -> str:
    """Return a prompt on one line."""
    return text.replace("\n", "\\n")


def _hf_guide(t5: bool) -> Protocol:
    return Protocol("Question: {} Answer:", decoding=Decoding(max_new_tokens=10))


def _blip2_paper(t5: bool) -> Protocol:
    prompt = "Question: {} Short answer:" if t5 else "Question: {} Answer:"
    return Protocol(prompt, decoding=Decoding(beams=5, length_penalty=-1.0, max_new_tokens=10))


def _lavis(t5: bool) -> Protocol:
    decoding = Decoding(beams=5, length_penalty=-1.0 if t5 else 0.0, max_new_tokens=10, min_new_tokens=1)
    return Protocol("Question: {} Short answer:", decoding=decoding, clean=True)


PRESETS: Mapping[str, Callable[[bool], Protocol]] = {
    "hf-guide": _hf_guide,
    "blip2-paper": _blip2_paper,
    "lavis": _lavis,
}
"""Name → the protocol of a checkpoint with, or without, a T5 language model. All are for questions (VQA v2)."""

CAPTION = Decoding(max_new_tokens=30)
"""How captions are written, where the user does not say."""

CHAT: dict[type[Example], Protocol] = {
    Question: Protocol(
        "{}\nAnswer the question using a single word or phrase.",
        post="first-line",
        decoding=Decoding(max_new_tokens=16),
    ),
    Statement: Protocol(
        "{} Is this statement about the two images true or false? Answer True or False.", answer_by="likelihood"
    ),
    MultipleChoice: Protocol("{}", answer_by="likelihood"),
    Grounding: Protocol("{}", decoding=Decoding(max_new_tokens=64)),
    Captioning: Protocol("Provide a one-sentence caption for the provided image.", post="first-line", decoding=CAPTION),
}
"""The defaults of models with a chat template."""
PLAIN: dict[type[Example], Protocol] = CHAT | {
    Question: Protocol("Question: {} Answer:", post="first-line"),
    Statement: Protocol("Question: {} Is this statement true or false? Answer:", answer_by="likelihood"),
    Captioning: Protocol("a photo of", post="first-line", decoding=CAPTION),
}
"""The defaults of models that continue a bare text."""
FAMILIES: Mapping[str, Mapping[type[Example], Protocol]] = {
    "paligemma": {
        Question: Protocol("answer en {}", post="first-line", decoding=Decoding(max_new_tokens=32)),
        Captioning: Protocol("caption en", post="first-line", decoding=CAPTION),
    },
    "florence2": {Captioning: Protocol("<CAPTION>", post="first-line", decoding=CAPTION)},
}
"""`model_type` → the prompts that a family was trained with (google-research/big_vision at 0127fb6; the documentation
of Florence-2 in transformers)."""


WRITTEN = frozenset({"post", "beams", "length_penalty", "max_new_tokens"})
"""The settings of a text that the model writes."""
SCORED = frozenset({"normalise"})
"""The settings of an answer whose likelihood counts."""
OWN: Mapping[type[Example], frozenset[str]] = {
    Question: frozenset(),
    Captioning: frozenset(),
    Statement: frozenset({"pair"}),
    MultipleChoice: frozenset({"people"}),
    Grounding: frozenset({"box_format"}),
}
"""The settings that one form has."""


def resolve(form: type[Example], model_type: str, chat: bool, t5: bool, answering: AnsweringConfig) -> Protocol:
    """Return the protocol in force: the user's settings over the preset, or over the defaults of the family.

    Raise ConfigError for a preset where the examples are no questions, for a prompt that does not fit the form, for
    settings that exclude each other, and for those that change nothing.
    """
    if answering.prompt is not None and ("{}" in answering.prompt) == (form is Captioning):
        fault = (
            "a caption has no question, so leave out {}"
            if form is Captioning
            else "it must hold {} once, in the place of the question"
        )
        raise ConfigError(f"prompt is {brief(answering.prompt)}: {fault}")
    if answering.preset is not None:
        if form is not Question:
            raise ConfigError(f"preset {answering.preset} is for questions (VQA v2): a {form.__name__} has none")
        found = replace(PRESETS[answering.preset](t5), preset=answering.preset)
    else:
        found = FAMILIES.get(model_type, {}).get(form) or (CHAT if chat else PLAIN)[form]
    decoding = replace(found.decoding, **chosen(answering, Decoding))
    changed = replace(found, decoding=decoding, **(chosen(answering, Protocol) | {"preset": found.preset}))
    if found.preset is not None and changed != found:
        changed = replace(changed, preset=f"{found.preset}, changed")
    needs = None if form is Grounding else "likelihood" if form in (Statement, MultipleChoice) else "generate"
    if needs is not None and changed.answer_by != needs:
        raise ConfigError(f"answer_by {changed.answer_by}: a {form.__name__} is answered by {needs}; leave it out")
    _refuse_without_effect(form, changed, answering)
    return changed


def _refuse_without_effect(form: type[Example], protocol: Protocol, answering: AnsweringConfig) -> None:
    """Raise ConfigError for a setting that changes no answer. Its user believes that it does."""
    how = SCORED if protocol.answer_by == "likelihood" else WRITTEN
    known = {"preset", "prompt", "answer_by", "strict_length"} | how | OWN[form]
    known -= {"post"} if form is Grounding else set()  # a box is found anywhere in a text
    for each in fields(answering):
        if each.name not in known and getattr(answering, each.name) is not None:
            raise ConfigError(
                f"{each.name} has no effect where a {form.__name__} is answered by {protocol.answer_by}: leave it out"
            )
    if answering.length_penalty is not None and protocol.decoding.beams == 1:
        raise ConfigError("length_penalty has no effect on a greedy search: leave it out, or set beams")


def chosen(answering: AnsweringConfig, kind: type[Any]) -> dict[str, Any]:
    """Return the settings of the user that `kind` has, too, by name."""
    names = {each.name for each in fields(kind)} & {each.name for each in fields(answering)}
    return {name: value for name in sorted(names) if (value := getattr(answering, name)) is not None}
