"""`visualbert make-captioner`: an image encoder and a text decoder → a captioner folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from visualbert_core.config import check_range, check_values
from visualbert_core.printable import say


@dataclass(frozen=True, kw_only=True)
class Command:
    """Join an image encoder and a text decoder to a captioner, which transformers opens as a VisionEncoderDecoderModel.

    The start, end and padding token of captions are set in config.json and in generation_config.json. The cross
    attention begins at random, so the captioner must be trained before its captions mean anything.

        visualbert make-captioner --encoder google/vit-base-patch16-224-in21k --decoder gpt2 --out captioner
        visualbert make-captioner --encoder FOLDER --decoder FOLDER --random --out captioner
    """

    encoder: str
    """Folder or Hub id of an image encoder, such as ViT, BEiT, DeiT or Swin."""
    decoder: str
    """Folder or Hub id of a text model that can look at an image, such as BERT, RoBERTa or GPT-2."""
    out: Path
    """New folder."""
    random: bool = False
    """Read only the two configurations, and begin with random weights."""
    seed: int = 0
    """Seed of the weights that begin at random."""
    image_processor: str | None = None
    """Folder or Hub id of the image processor. Default: the encoder's."""
    tokenizer: str | None = None
    """Folder or Hub id of the tokenizer. Default: the decoder's."""

    def __post_init__(self) -> None:
        check_values(self)
        check_range(self, 0, None, "seed")

    def run(self) -> int:
        from visualbert_core.models.captioner.make import make_captioner

        own = {"image_processor": self.image_processor, "tokenizer": self.tokenizer}
        made = make_captioner(self.encoder, self.decoder, self.out, random=self.random, seed=self.seed, **own)
        new = "all begin at random" if self.random else f"{len(made.new)} tensors begin at random"
        say(f"{made.folder}: {made.name}, {made.parameters / 1e6:.1f} M parameters; {new}")
        say("special tokens: " + ", ".join(f"{key} {number}" for key, number in made.tokens.items()))
        return 0
