"""`visualbert ask`: a question about one image → the answers of a model. No Ray."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from visualbert_core.commands.declarations import Flat
from visualbert_core.config import AnsweringConfig
from visualbert_core.io.locations import Location
from visualbert_core.printable import say_result


@dataclass(frozen=True, kw_only=True)
class Command:
    """Ask a model a question about an image, or whether a statement about two images is true.

    Prints the best answers, each behind its score. The score of a classifier is a probability; a model that writes text
    may have none.

        visualbert ask --model FOLDER --image photo.jpg "how many people are there?"
        visualbert ask --model FOLDER --image photo.jpg --detector FOLDER "what is on the left?"
        visualbert ask --model FOLDER --image left.jpg --image right.jpg "both images show a dog"
    """

    question: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="QUESTION")]
    """The question about one image, or the statement about two."""
    model: Path
    """Checkpoint folder."""
    image: tyro.conf.UseAppendAction[tuple[str, ...]]
    """Image file or s3:// address; with --features, the id of an image. Twice for a statement: the left image, then the
    right one."""
    detector: Path | None = None
    """Detector folder, for a model that reads regions. The detector runs on these images."""
    features: Location | None = None
    """Feature store that holds the images, for a model that reads regions. In place of --detector."""
    top_k: int = 3
    """Print this many answers. There may be fewer: a model that writes text gives one."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format in which the model computes, as for `visualbert evaluate`."""
    answering: Flat[AnsweringConfig] = field(default_factory=AnsweringConfig)
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        from visualbert_core.evaluation.ask import ask

        answers = ask(
            self.model,
            self.image,
            self.question,
            self.top_k,
            detector=self.detector,
            features=self.features,
            precision=self.precision,
            answering=self.answering,
        )
        asked = {"model": str(self.model), "images": self.image, "question": self.question}
        ranked = [{"answer": each.answer, "score": each.score} for each in answers]
        lines = (each.answer if each.score is None else f"{each.score:<9.3g} {each.answer}" for each in answers)
        say_result(self.json, asked | {"answers": ranked}, lines)
        return 0
