"""What is fast on which device. On GPUs: attention over sequences of variable length, and the whole encoder replayed as
one CUDA graph. On CPUs: products with weights in oneDNN's layout.

A batch of packed questions is a few hundred small kernels. Launching them one by one takes longer than running them. A
CUDA graph launches all of them together (https://docs.pytorch.org/docs/stable/notes/cuda.html). But a graph fits only
the sizes it was recorded with. So sizes are rounded up to a bucket, and a batch fills the first rows of its bucket. The
other rows are computed and never read. Attention is FlashAttention's variable-length form (Dao 2023, arXiv:2307.08691).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from visualbert_core.models.visualbert.modeling import ACTIVATION

if TYPE_CHECKING:
    from visualbert_core.models.visualbert.inference import Packed

Dense = Callable[[Tensor], Tensor]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(queries [Q, heads, W], keys and values [N, heads, W]) → [Q, heads * W]."""
Encode = Callable[[Tensor, Attend, Tensor, Attend], Tensor]
"""(hidden [N, H], attention of all tokens, reads [R], attention of the read tokens) → states [R, H]."""
MakeAttend = Callable[[Tensor, Tensor, int, int], Attend]
Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]

# By default torch 2.15 takes cuDNN if the GPU, the cuDNN version and the longest sequence allow it. The kernel would
# then depend on the other sequences of a batch. FlashAttention is also the only kernel that is known to read nothing
# after the last end.
_FLASH_FIRST = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def has_variable_length(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Return whether FlashAttention has a kernel for bfloat16 here.

    It needs a head size of 8, 16, … 256, and an NVIDIA GPU of the Ampere generation or newer.
    """
    fits = dtype is torch.bfloat16 and head_size % 8 == 0 and head_size <= 256
    return fits and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def variable_length(query_ends: Tensor, key_ends: Tensor, most_queries: int, most_keys: int) -> Attend:
    """Return attention within each of the sequences that lie end to end, for bfloat16.

    `query_ends` and `key_ends` are int32 [B + 1]: 0, then the end of every sequence.
    """

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        with sdpa_kernel(_FLASH_FIRST, set_priority=True):
            mixed = varlen_attn(query, key, value, query_ends, key_ends, most_queries, most_keys)
        assert isinstance(mixed, Tensor)
        return mixed.flatten(1)

    return attend


@dataclass(frozen=True, eq=False)
class _Inputs:
    """The tensors from which a recording takes its batch. Rows after the end of the batch are never read."""

    hidden: Tensor  # float32 [N, H]
    reads: Tensor  # long [R]
    token_ends: Tensor  # int32 [B + 1]
    read_ends: Tensor  # int32 [B + 1]

    def fill(self, hidden: Tensor, packed: Packed) -> None:
        """Copy a batch into the tensors. A recording keeps their addresses, so they are never replaced."""
        self.hidden[: len(hidden)].copy_(hidden)
        self.reads[: len(packed.reads)].copy_(packed.reads)
        _fill(self.token_ends, packed.lengths)
        _fill(self.read_ends, packed.read_lengths)


class GraphedEncoder:
    """Runs `encode` as a CUDA graph: records it once for each bucket of sizes, then replays it."""

    def __init__(self, encode: Encode, record: Record, make_attend: MakeAttend = variable_length) -> None:
        self._encode, self._record, self._make_attend = encode, record, make_attend
        self._recordings: dict[tuple[int, ...], tuple[_Inputs, Callable[[], None], Tensor]] = {}

    def __call__(self, hidden: Tensor, packed: Packed) -> Tensor:
        """Encode float32 [N, H] → [R, H]. The next call overwrites the result."""
        exact = len(packed.lengths), len(hidden), len(packed.reads), packed.lengths[-1], max(packed.read_lengths)
        sizes = tuple(map(bucket, exact))
        if sizes not in self._recordings:
            self._recordings[sizes] = self._recorded(sizes, hidden, packed)
        inputs, replay, states = self._recordings[sizes]
        inputs.fill(hidden, packed)
        replay()
        return states[: len(packed.reads)]

    def _recorded(
        self, sizes: tuple[int, ...], hidden: Tensor, packed: Packed
    ) -> tuple[_Inputs, Callable[[], None], Tensor]:
        """Return the inputs of a recording, the call that replays it, and its states: float32 [R, H]."""
        sequences, tokens, reads, longest, most_reads = sizes
        inputs = _Inputs(
            hidden.new_zeros(tokens, hidden.shape[1]),
            packed.reads.new_zeros(reads),
            *(packed.reads.new_zeros(sequences + 1, dtype=torch.int32) for _ in range(2)),
        )
        # A recording first runs the encoder once. That run should see a real batch and not only zeros.
        inputs.fill(hidden, packed)
        attend = self._make_attend(inputs.token_ends, inputs.token_ends, longest, longest)
        attend_reads = self._make_attend(inputs.read_ends, inputs.token_ends, most_reads, longest)
        return inputs, *self._record(lambda: self._encode(inputs.hidden, attend, inputs.reads, attend_reads))


class Recorder:
    """Records a function of static tensors as a CUDA graph. All recordings of a `Recorder` share one memory pool."""

    _one_at_a_time = threading.Lock()  # torch allows one recording at a time in a process

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool: Any = None

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Record `function`. Return a call that runs it again, and the tensor that then holds its result."""
        # A stream belongs to the current device by default. A recording on a stream of the wrong device would be empty.
        with self._one_at_a_time, torch.cuda.device(self._device):
            # CUDA libraries set themselves up in the first run. A recording must not contain that.
            self._side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._side):
                function()
            torch.cuda.current_stream().wait_stream(self._side)
            graph = torch.cuda.CUDAGraph()
            # "thread_local" lets other threads use the GPU during the recording.
            with torch.cuda.graph(graph, self._pool, self._side, capture_error_mode="thread_local"):
                result = function()
        # Keep the pool only after a recording has succeeded: the pool of one that ran out of memory cannot be used.
        self._pool = self._pool or graph.pool()
        return graph.replay, result


def bucket(size: int) -> int:
    """Round `size` up to one of eight sizes per doubling. At most one eighth of the work is then wasted."""
    size = max(size, 1)  # a kernel over zero rows cannot be launched
    step = 1 << max(0, (size - 1).bit_length() - 4)
    return -(-size // step) * step


def _fill(ends: Tensor, lengths: Sequence[int]) -> None:
    """Write the ends of the sequences into `ends`. The bucket may have more sequences; these stay empty."""
    values = list(accumulate(lengths, initial=0))
    values += values[-1:] * (len(ends) - len(values))
    host = torch.tensor(values, dtype=torch.int32)
    ends.copy_(host.pin_memory() if ends.is_cuda else host, non_blocking=True)


# ---------------------------------------------------------------------------------------------------------------------
# products


def dense(*layers: nn.Linear, dtype: torch.dtype, act: str | None = None) -> Dense:
    """Join `layers`, which take the same input, into one product, followed by an activation."""
    weight = _joined([layer.weight.detach() for layer in layers]).to(dtype)
    bias = _joined([layer.bias.detach() for layer in layers]).to(dtype)
    packed = weight.device.type == "cpu" and _onednn_pays(dtype)
    return (_onednn_dense if packed else _plain_dense)(weight, bias, act)


def _joined(parts: list[Tensor]) -> Tensor:
    """Join tensors. A single one is not copied: the weights of a file are mapped, and workers of a node share them."""
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _plain_dense(weight: Tensor, bias: Tensor, act: str | None) -> Dense:
    if act is None:
        return lambda inputs: functional.linear(inputs, weight, bias)
    activate = ACTIVATION[act]
    return lambda inputs: activate(functional.linear(inputs, weight, bias))


def _onednn_dense(weight: Tensor, bias: Tensor, act: str | None) -> Dense:
    """Reorder the weights once into oneDNN's layout, whose product computes the activation inside."""
    # oneDNN chooses the layout for 1,024 rows, about twenty questions. Any number gives right results.
    packed, (name, algorithm) = torch.ops.mkldnn._reorder_linear_weight(weight, 1024), _ONEDNN_ACTIVATION[act]
    return lambda inputs: torch.ops.mkldnn._linear_pointwise(inputs, packed, bias, name, [], algorithm)


_ONEDNN_ACTIVATION = {
    None: ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "relu": ("relu", ""),
}


def _onednn_pays(dtype: torch.dtype) -> bool:
    """Return whether packed weights are faster here than torch's default, and torch has the operators for them.

    The operators are private to torch and may disappear. On AMD CPUs torch uses MKL, which keeps to narrower vector
    code there. With AVX-512 a prototype with oneDNN was twice as fast. With AVX2 alone both libraries are equally fast,
    and oneDNN's GELU is slower.
    """
    operators = hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    if not operators or "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return False
    # For bfloat16, oneDNN asks the CPU on its own and may see less than torch: if `ONEDNN_MAX_CPU_ISA` limits it, or if
    # the CPU has only a part of AVX-512.
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
