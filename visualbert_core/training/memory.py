"""What happens where a pass does not fit into memory: on a GPU passes are halved, on a CPU an error names the settings.

Each term of a loss is divided by what the whole batch counts, so smaller passes give the same step, except for the
draws of dropout. The smaller size stays for the rest of the training, and a checkpoint records it.
"""

from __future__ import annotations

from collections.abc import Callable

from visualbert_core.errors import ConfigError
from visualbert_core.printable import logger
from visualbert_core.training.recipe import TrainConfig
from visualbert_core.training.step import Outcome, Prepared, ShortMemoryError

_LOG = logger(__name__)


class PassSize:
    """The largest number of tokens in a pass. It halves where a device has too little memory."""

    def __init__(self, config: TrainConfig, halves: bool = True) -> None:
        """`halves` is False where several workers compute: the others would wait for the one that begins anew."""
        self.tokens = config.tokens_per_pass
        self._config, self._halves, self._cut_before = config, halves, 0

    def take(self, batch: Prepared, step: Callable[[Prepared], Outcome], prepare: Callable[[int], Prepared]) -> Outcome:
        """Take a step with passes that fit. `prepare` makes the batch of a step anew, in passes of `tokens`.

        Raise ConfigError where passes cannot become smaller, or where the memory of the host ends.
        """
        if batch.step < self._cut_before:  # a thread made this batch before the size was halved
            batch = prepare(batch.step)
        while (outcome := self._tried(batch, step)) is None:
            batch = prepare(batch.step)
        return outcome

    def _tried(self, batch: Prepared, step: Callable[[Prepared], Outcome]) -> Outcome | None:
        """Return None where the passes were halved. The error, which holds the tensors of the pass, is gone then."""
        try:
            return step(batch)
        except ShortMemoryError as error:
            self._halve(batch, error.of_host)
        return None

    def _halve(self, batch: Prepared, of_host: bool) -> None:
        held = min(self.tokens, batch.tokens)
        where = "host" if of_host else "device"
        said = f"step {batch.step + 1}: {held:,} tokens at once do not fit into the memory of the {where}"
        divisible = len(batch.passes) < len(batch.example_ids)
        if of_host or not self._halves or not divisible:
            raise ConfigError(f"{said}: {self._advice(divisible)}")
        self.tokens = max(1, held // 2)
        self._cut_before = batch.step + 1 + self._config.read_ahead
        _LOG.warning("%s; from here on a pass has at most %s", said, f"{self.tokens:,}")

    def _advice(self, divisible: bool) -> str:
        ways = []
        if not self._config.gradient_checkpointing:
            ways.append("set --gradient-checkpointing, which goes on here with the same results")
        if divisible:
            ways.append("lower --tokens-per-pass for a new --out")
        return ", or ".join(ways) or "a pass has one example, so it needs more memory"
