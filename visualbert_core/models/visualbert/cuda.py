"""What a GPU needs to be kept busy: attention by variable length, and the whole encoder replayed as one CUDA graph.

A batch of packed questions is a few hundred small kernels, which take longer to launch one by one than to run. A graph
launches them together but is good for one set of sizes only, so sizes are rounded up to a bucket: rows behind the last
token are computed and never read. (CUDA graphs: https://docs.pytorch.org/docs/stable/notes/cuda.html; FlashAttention's
variable-length form: Dao 2023, arXiv:2307.08691.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from visualbert_core.models.visualbert.packing import Packed

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Encode = Callable[[Tensor, Attend, Tensor, Attend], Tensor]
"""hidden [N, H], attention of all tokens, reads [R], attention of the reads → states [R, H]."""
MakeAttend = Callable[[Tensor, Tensor, int, int], Attend]
Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]

# Left alone, torch 2.15 takes cuDNN where the GPU, cuDNN's version and the longest sequence allow it: the kernel would
# depend on what shares a batch. Only of FlashAttention it is known that it reads nothing behind the last end.
_FLASH_FIRST = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def has_variable_length(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether FlashAttention has a kernel: for 16 bits, heads of 8, 16, … 256 and NVIDIA's Ampere or newer."""
    fits = dtype is torch.bfloat16 and head_size % 8 == 0 and head_size <= 256
    return fits and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


@dataclass(frozen=True, eq=False)
class VariableLength:
    """Attention of sequences end to end: `ends` are int32 [B + 1], 0 first, then the end of every sequence."""

    query_ends: Tensor
    key_ends: Tensor
    most_queries: int
    most_keys: int

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """bfloat16 queries [Q, heads, W], keys and values [N, heads, W] → [Q, heads * W]."""
        from torch.nn.attention.varlen import varlen_attn

        ends = self.query_ends, self.key_ends
        with sdpa_kernel(_FLASH_FIRST, set_priority=True):
            mixed = varlen_attn(query, key, value, *ends, self.most_queries, self.most_keys)
        assert isinstance(mixed, Tensor)
        return mixed.flatten(1)


@dataclass(frozen=True)
class _Sizes:
    sequences: int
    tokens: int
    reads: int
    longest: int
    most_reads: int


@dataclass(frozen=True, eq=False)
class _Inputs:
    """Where a recording looks for a batch; what lies behind the batch's own part is computed and never read."""

    hidden: Tensor  # float32 [N, H]
    reads: Tensor  # long [R]
    token_ends: Tensor  # int32 [B + 1]
    read_ends: Tensor  # int32 [B + 1]

    def fill(self, hidden: Tensor, packed: Packed) -> None:
        self.hidden[: len(hidden)].copy_(hidden)
        self.reads[: len(packed.reads)].copy_(packed.reads)
        _fill(self.token_ends, packed.lengths)
        _fill(self.read_ends, packed.read_lengths)


@dataclass(frozen=True, eq=False)
class _Graph:
    """One recording: fill the inputs, replay, take the states."""

    inputs: _Inputs
    replay: Callable[[], None]
    states: Tensor  # float32 [R, H]


class GraphedEncoder:
    """`encode`, recorded once for every bucket of sizes and replayed from then on."""

    def __init__(self, encode: Encode, record: Record, make_attend: MakeAttend = VariableLength) -> None:
        self._encode = encode
        self._make_attend = make_attend
        self._record = record
        self._graphs: dict[_Sizes, _Graph] = {}

    def __call__(self, hidden: Tensor, packed: Packed) -> Tensor:
        """float32 [N, H] → [R, H]; the next call overwrites them."""
        sizes = _Sizes(
            bucket(len(packed.lengths)),
            bucket(len(hidden)),
            bucket(len(packed.reads)),
            bucket(packed.lengths[-1]),
            bucket(max(packed.read_lengths)),
        )
        graph = self._graphs.get(sizes)
        if graph is None:
            graph = self._graphs[sizes] = self._recorded(sizes, hidden, packed)
        graph.inputs.fill(hidden, packed)
        graph.replay()
        return graph.states[: len(packed.reads)]

    def _recorded(self, sizes: _Sizes, hidden: Tensor, packed: Packed) -> _Graph:
        device = hidden.device
        reads = torch.zeros(sizes.reads, dtype=torch.long, device=device)
        ends = [torch.zeros(sizes.sequences + 1, dtype=torch.int32, device=device) for _ in range(2)]
        inputs = _Inputs(hidden.new_zeros(sizes.tokens, hidden.shape[1]), reads, *ends)
        inputs.fill(hidden, packed)  # so that the first runs, too, are of a real batch
        attend = self._make_attend(inputs.token_ends, inputs.token_ends, sizes.longest, sizes.longest)
        attend_reads = self._make_attend(inputs.read_ends, inputs.token_ends, sizes.most_reads, sizes.longest)
        replay, states = self._record(lambda: self._encode(inputs.hidden, attend, inputs.reads, attend_reads))
        return _Graph(inputs, replay, states)


class Recorder:
    """Records a function of static tensors as a CUDA graph; all recordings share one pool of memory."""

    _one_at_a_time = threading.Lock()  # in a process: what torch asks of recordings

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool: Any = None

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """How to run it again, and the tensor in which its result then lies."""
        # streams are the current device's unless told otherwise, and a recording on another's would be empty
        with self._one_at_a_time, torch.cuda.device(self._device):
            # libraries set themselves up in a first run, which must not be recorded
            self._side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._side):
                function()
            torch.cuda.current_stream().wait_stream(self._side)
            graph = torch.cuda.CUDAGraph()
            # thread_local: other threads may go on using the GPU
            with torch.cuda.graph(graph, self._pool, self._side, capture_error_mode="thread_local"):
                result = function()
        self._pool = self._pool or graph.pool()  # not before: the pool of a recording that ran out of memory is dead
        return graph.replay, result


def bucket(size: int) -> int:
    """The next of eight sizes per doubling: at most an eighth is computed for nothing."""
    size = max(size, 1)  # no kernel starts over nothing
    step = 1 << max(0, (size - 1).bit_length() - 4)
    return -(-size // step) * step


def _fill(ends: Tensor, lengths: Sequence[int]) -> None:
    """Ends of the sequences; those that the bucket has too many are empty."""
    values = list(accumulate(lengths, initial=0))
    values += values[-1:] * (len(ends) - len(values))
    host = torch.tensor(values, dtype=torch.int32)
    ends.copy_(host.pin_memory() if ends.is_cuda else host, non_blocking=True)
