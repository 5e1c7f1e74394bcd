"""Packed inference compared with the padded networks, which other tests compare with transformers.

Networks are tiny and random. Sequences are random too: text of 2 to 12 tokens, and images of 1 to 9 regions that
several sequences share. A test that needs a GPU is skipped without one.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pretend_gpu import DEVICE, OnGPU, PretendGPU, held, pretend_gpu
from tolerances import SHALLOW, likely, rounding
from torch import Tensor
from torch.nn import functional

from visualbert_core.errors import ConfigError
from visualbert_core.models.visualbert import VisualBertConfig, inference, kernels
from visualbert_core.models.visualbert.checkpoint.metadata import FORMS
from visualbert_core.models.visualbert.checkpoint.pretrained import Pretrained
from visualbert_core.models.visualbert.heads import collate
from visualbert_core.models.visualbert.inference import PRECISIONS, Groups, InferenceNetwork, pack
from visualbert_core.models.visualbert.inputs import Encoded
from visualbert_core.models.visualbert.kernels import GraphedEncoder, bucket, has_variable_length
from visualbert_core.models.visualbert.predictor import NETWORKS, VisualBertPredictor
from visualbert_core.schema import Question, Regions

SIZE = 6  # numbers per feature
CONFIG = VisualBertConfig(
    vocab_size=30,
    hidden_size=16,
    visual_embedding_dim=SIZE,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=20,
    num_labels=5,
    initializer_range=0.3,
)
Item = tuple[Encoded, ...]


def network(task: str, **changes: Any) -> Pretrained:
    torch.manual_seed(4)
    config = replace(CONFIG, **changes) if task == "vqa" else replace(CONFIG, num_labels=2, **changes)
    made = NETWORKS[FORMS[task]](config).eval()
    with torch.no_grad():  # norms and biases must not be the identity, or a norm that is left out would change nothing
        for name, parameter in made.named_parameters():
            if "LayerNorm" in name or "bias" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    return made


def images(seed: int, count: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(int(rng.integers(1, 10)), SIZE)).astype(np.float16) for _ in range(count)]


def sequence(task: str, rng: np.random.Generator, pool: list[np.ndarray], text: int | None = None) -> Encoded:
    text = int(rng.integers(2, 13)) if text is None else text
    ids = rng.integers(5, CONFIG.vocab_size, text).tolist()
    types = sorted(rng.integers(0, 2, text).tolist())
    chosen = [pool[int(i)] for i in rng.integers(0, len(pool), 2 if task == "nlvr2" else 1)]
    total = sum(map(len, chosen))
    rows = np.sort(rng.choice(total, size=int(rng.integers(1, total + 1)), replace=False))
    encoded = Encoded(ids, types, tuple(chosen), rows, rng.integers(0, 2, len(rows)))
    if task == "vcr":
        mentions = tuple(tuple(rng.integers(0, text, rng.integers(0, 4)).tolist()) for _ in rows)
        return replace(encoded, mentions=mentions)
    if task == "flickr30k_entities":
        return replace(encoded, phrases=tuple(rng.integers(0, text, rng.integers(0, 4)).tolist()))
    return encoded


def draw(task: str, seed: int, count: int) -> list[Item]:
    """Draw a batch of examples with their sequences: four that share an image for multiple choice, one otherwise."""
    rng, pool = np.random.default_rng(seed), images(seed)
    if task != "vcr":
        return [(sequence(task, rng, pool),) for _ in range(count)]
    return [tuple(sequence(task, rng, [pool[i % len(pool)]]) for _ in range(4)) for i in range(count)]


def padded(made: Pretrained, task: str, batch: list[Item]) -> list[np.ndarray]:
    """Return the padded network's logits of each sequence, without the padding."""
    with torch.inference_mode():
        logits = made(**collate([item if task == "vcr" else item[0] for item in batch])).logits
    if task == "vcr":
        return [value[None].numpy() for value in logits.flatten()]
    if task == "flickr30k_entities":
        shapes = [(len(s.phrases or ()), len(s.rows)) for (s,) in batch]
        return [row[:k, :v].numpy() for row, (k, v) in zip(logits, shapes, strict=True)]
    return [row.numpy() for row in logits]


def packed(made: Pretrained, batch: list[Item], precision: str = "float32") -> list[np.ndarray]:
    ready = InferenceNetwork(made, precision)
    return [logits.numpy() for logits in ready(ready.prepare([s for item in batch for s in item]))]


def largest_difference(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    assert [part.shape for part in found] == [part.shape for part in expected]
    return max((float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True) if a.size), default=0.0)


def tolerance(expected: list[np.ndarray]) -> float:
    """Return the sum that roundings of such logits may reach, from the largest logit of all examples."""
    return max(1e-5, rounding(np.concatenate([part.ravel() for part in expected]), SHALLOW))


@pytest.mark.parametrize("task", FORMS)
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 9))
def test_packed_equals_padded(task: str, seed: int, count: int) -> None:
    """Packed logits equal the padded network's, in its order, for batches of one sequence, of one shape and of many
    shapes."""
    made, batch = network(task), draw(task, seed, count)
    expected = padded(made, task, batch)
    assert largest_difference(packed(made, batch), expected) < tolerance(expected)


@pytest.mark.parametrize("change", [{"hidden_act": "gelu_new"}, {"hidden_act": "relu"}, {"bypass_transformer": True}])
@pytest.mark.parametrize("task", FORMS)
def test_packed_equals_padded_in_other_shapes(task: str, change: dict[str, Any]) -> None:
    """Packed logits equal the padded ones for other activations, and for late fusion of text and regions."""
    made, batch = network(task, **change), draw(task, 3, 7)
    expected = padded(made, task, batch)
    assert largest_difference(packed(made, batch), expected) < tolerance(expected)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("task", FORMS)
def test_onednn_weights(task: str, act: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in oneDNN's layout, with the activation inside the product, give the same logits. This holds on any CPU
    with the operators, also where the package does not use them by default."""
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        pytest.skip("this torch has no oneDNN operators")
    if precision == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN computes bfloat16 with AVX-512 or AMX only")
    made, batch = network(task, hidden_act=act), draw(task, 5, 7)
    monkeypatch.setattr(kernels, "_onednn_pays", lambda dtype: False)
    plain = packed(made, batch, precision)
    monkeypatch.setattr(kernels, "_onednn_pays", lambda dtype: True)
    monkeypatch.setattr(kernels, "_plain_dense", None)
    spread = max(1.0, float(np.concatenate([part.ravel() for part in plain]).std()))
    allowed = tolerance(plain) if precision == "float32" else 0.05 * spread
    assert largest_difference(packed(made, batch, precision), plain) < allowed


def test_where_onednn_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN is used with AVX-512 only, because with AVX2 the default library is as fast."""
    for capability, expected in (("AVX512", True), ("AVX2", False), ("DEFAULT", False)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        assert kernels._onednn_pays(torch.float32) is expected


def test_numbers_of_numpy_configure_a_network() -> None:
    """A float64 of NumPy is a float; a truth value is no number."""
    assert VisualBertConfig(hidden_dropout_prob=np.float64(0.2), layer_norm_eps=np.float64(1e-6)).layer_norm_eps < 1e-5
    with pytest.raises(ValueError, match="layer_norm_eps: must be a positive number, got True"):
        VisualBertConfig(layer_norm_eps=True)


def test_one_layer_keeps_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product of one layer holds no copy of the weights, which workers of a node share where a file is mapped."""
    layer = torch.nn.Linear(3, 2)
    held: list[int] = []
    monkeypatch.setattr(kernels, "_onednn_pays", lambda dtype: False)
    monkeypatch.setattr(kernels, "_plain_dense", lambda *both: held.extend(each.data_ptr() for each in both[:2]))
    kernels.dense(layer, dtype=torch.float32)
    assert held == [layer.weight.data_ptr(), layer.bias.data_ptr()]


def test_where_onednn_computes_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU may have AVX-512 for torch and not for oneDNN (`ONEDNN_MAX_CPU_ISA`, or a partial AVX-512). It computes
    bfloat16 with torch's default library, because oneDNN's operators would raise."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for supported in (False, True):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda supported=supported: supported)
        assert kernels._onednn_pays(torch.float32) is True
        assert kernels._onednn_pays(torch.bfloat16) is supported


@pytest.mark.parametrize("task", FORMS)
def test_bfloat16_stays_close(task: str) -> None:
    """bfloat16 products with float32 residuals move logits by a few hundredths of their spread (0.008 to 0.017 were
    seen), and logits stay float32."""
    made, batch = network(task), draw(task, 11, 40)
    exact, found = (np.concatenate([part.ravel() for part in packed(made, batch, p)]) for p in PRECISIONS)
    assert found.dtype == np.float32
    assert 0 < np.abs(found - exact).mean() < 0.05 * exact.std()


def test_precisions_that_do_not_exist(tmp_path: Path) -> None:
    """An unknown precision is refused by name."""
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, got 'float16'"):
        InferenceNetwork(network("vqa"), "float16")
    with pytest.raises(ConfigError, match="unknown precision 'half': VisualBERT computes in float32 or bfloat16"):
        VisualBertPredictor.from_pretrained(tmp_path, Question, precision="half")


def test_an_image_is_sent_once() -> None:
    """Sequences with the same array share its rows, and equal arrays of two images stay separate."""
    first, second = images(1, 2)
    twin = first.copy()
    rng = np.random.default_rng(0)
    batch = [sequence("vqa", rng, [image]) for image in (first, second, first, twin, first)]
    found = pack(batch, [(0,)] * len(batch))
    assert len(found.features) == 2 * len(first) + len(second)
    assert found.features.dtype == torch.float16
    for place, original in enumerate(found.order):
        stop = sum(len(batch[i].rows) for i in found.order[: place + 1])
        rows = found.feature_rows[stop - len(batch[original].rows) : stop]
        assert torch.equal(found.features[rows], torch.from_numpy(batch[original].features))


def test_nan_features_spoil_their_own_example_only() -> None:
    """A NaN in a region makes the logits of its example NaN and does not change the others."""
    made = network("vqa")
    rng, pool = np.random.default_rng(0), images(2, 3)
    good = [(sequence("vqa", rng, [image]),) for image in pool]
    bad = (Encoded([2, 7, 3], [0] * 3, (np.full((2, SIZE), np.nan, np.float16),), np.arange(2), np.zeros(2, int)),)
    *others, spoilt = packed(made, [*good, bad])
    assert np.isnan(spoilt).all()
    expected = packed(made, good)
    assert largest_difference(others, expected) < tolerance(expected)  # one row more changes the order of the sums


def test_features_of_two_sizes_are_refused() -> None:
    """A batch with two feature sizes is refused."""
    one, other = (Encoded([2, 3], [0, 0], (np.ones((1, d)),), np.arange(1), np.zeros(1, int)) for d in (4, 5))
    with pytest.raises(ValueError, match=r"a batch needs one feature size, got \[4, 5\]"):
        pack([one, other], [(0,), (0,)])


def test_no_autograd_state() -> None:
    """Logits have no autograd graph, even if gradients are enabled and the network's parameters require them."""
    made = network("nlvr2")
    ready = InferenceNetwork(made)
    with torch.enable_grad():
        found = ready(ready.prepare([s for item in draw("nlvr2", 0, 3) for s in item]))
    assert not any(logits.requires_grad for logits in found)
    assert all(parameter.grad is None for parameter in made.parameters())


def test_threads_share_a_predictor(tmp_path: Path) -> None:
    """Batches from several threads at once give the answers and scores of the same batches one after another. They
    agree up to rounding, because a library may use another number of its own threads when several threads call it."""
    network("vqa").save_pretrained(tmp_path)
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", *"abcd", *map(str, range(20)))
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    (tmp_path / "answers.txt").write_text("<unk>\n0\n1\n2\n3\n")
    model = VisualBertPredictor.from_pretrained(tmp_path, Question, "cpu")
    rng = np.random.default_rng(0)
    batches = []
    for number, image in enumerate(images(9, 12)):
        R = len(image)
        boxes, labels, scores = np.zeros((R, 4), np.float32), np.zeros(R, np.int16), np.ones(R, np.float32)
        regions = Regions(f"i{number}", 9, 9, boxes, labels, scores, image, "")
        texts = [" ".join(rng.choice(list("abcd"), int(rng.integers(1, 9)))) for _ in range(5)]
        batches.append([(Question(f"{number}/{i}", (f"i{number}",), t), (regions,)) for i, t in enumerate(texts)])
    expected = [prediction for batch in batches for prediction in model.predict(batch)]
    with ThreadPoolExecutor(4) as threads:
        found = [prediction for predictions in threads.map(model.predict, batches) for prediction in predictions]
    assert [(p.example_id, p.answer) for p in found] == [(p.example_id, p.answer) for p in expected]
    likely([p.scores for p in found], [p.scores for p in expected], SHALLOW)


# ---------------------------------------------------------------------------------------------------------------------
# graphs: sizes are rounded on any device in the same way, and a stand-in takes the place of recording


class ByEnds:
    """Compute attention like `kernels.variable_length`, in a loop; rows after the last end stay undefined (NaN)."""

    def __init__(self, query_ends: Tensor, key_ends: Tensor, most_queries: int, most_keys: int) -> None:
        self.ends, self.most = (query_ends, key_ends), (most_queries, most_keys)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mixed = torch.full_like(query, float("nan"))
        for (q, r), (k, m) in zip(*(pairwise(ends.tolist()) for ends in self.ends), strict=True):
            assert r - q <= self.most[0]
            assert m - k <= self.most[1]
            if r > q:
                parts = (query[q:r], key[k:m], value[k:m])
                found = functional.scaled_dot_product_attention(*(part.transpose(0, 1) for part in parts))
                mixed[q:r] = found.transpose(0, 1)
        return mixed.flatten(1)


@pytest.mark.parametrize("task", FORMS)
def test_graphs_of_rounded_sizes(task: str) -> None:
    """Batches whose sizes are rounded up have the same logits. Equal buckets share one recording, and what an earlier
    batch left after the last token does not matter."""
    made = network(task)
    ready = InferenceNetwork(made)
    recordings = []

    def record(function: Any) -> Any:
        recordings.append(function)
        states = function()
        return lambda: states.copy_(function()), states

    graphed = GraphedEncoder(ready._trunk._encode, record, ByEnds)
    batches = [draw(task, seed, count) for seed, count in enumerate((9, 8, 9, 3, 1, 9))]
    batches += batches[:3]
    for batch in batches:
        ready._trunk._graphed = graphed
        flat = [s for item in batch for s in item]
        found = [logits.numpy() for logits in ready(ready.prepare(flat))]
        expected = padded(made, task, batch)
        assert largest_difference(found, expected) < tolerance(expected)
    # The last three batches repeat the first three, and must reuse their recordings.
    assert len(recordings) < len(batches) - 2


def flash(query: Tensor, key: Tensor, value: Tensor, *ends: Any) -> Tensor:
    """Compute `varlen_attn` on a pretended GPU."""
    assert {query.dtype, key.dtype, value.dtype} == {torch.bfloat16}
    return OnGPU(ByEnds(*map(held, ends))(held(query), held(key), held(value)).unflatten(1, query.shape[1:]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU: see the next one")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("task", FORMS)
def test_a_network_keeps_to_its_gpu(task: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, current or not, no operation mixes devices. With bfloat16 the network records graphs, in which nothing
    waits for the device or comes from the CPU."""

    def record(function: Any) -> Any:
        gpu.recording = True
        states = function()
        gpu.recording = False
        recordings.append(states)
        return lambda: states.copy_(function()), states

    recordings: list[Tensor] = []
    monkeypatch.setattr(inference, "Recorder", lambda device: record)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", flash)
    made = network(task)
    batches = [draw(task, seed, count) for seed, count in enumerate((9, 8, 1))]
    expected = [packed(made, batch, precision) for batch in batches]
    with pretend_gpu() as gpu:
        assert isinstance(gpu, PretendGPU)
        ready = InferenceNetwork(made, precision, DEVICE)
        found = [ready(ready.prepare([s for item in batch for s in item])) for batch in batches]
    for a, b in zip(found, expected, strict=True):
        assert largest_difference([x.numpy() for x in a], b) < (1e-4 if precision == "float32" else 0.1)
    assert bool(recordings) == (precision == "bfloat16")


@pytest.mark.parametrize(
    ("dtype", "head_size", "capability", "expected"),
    [
        (torch.bfloat16, 64, (8, 0), True),
        (torch.bfloat16, 64, (7, 5), False),
        (torch.bfloat16, 20, (9, 0), False),
        (torch.bfloat16, 264, (9, 0), False),
        (torch.float32, 64, (9, 0), False),
    ],
)
def test_where_attention_by_variable_length_is(
    dtype: torch.dtype, head_size: int, capability: tuple[int, int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other GPUs, head sizes and precisions are computed without variable-length attention, and do not fail in the
    first batch."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert has_variable_length(torch.device("cuda"), dtype, head_size) == expected
    assert not has_variable_length(torch.device("cpu"), dtype, head_size)


def test_float32_is_no_tf32() -> None:
    """float32 is computed in full whatever precision of products the caller or the container chose, and that choice is
    kept."""
    made, seen = network("vqa"), []
    ready = InferenceNetwork(made)
    head = ready._head
    ready._head = lambda *states: (seen.append(torch.get_float32_matmul_precision()), head(*states))[1]
    torch.set_float32_matmul_precision("medium")
    try:
        ready(ready.prepare([s for item in draw("vqa", 0, 2) for s in item]))
        assert (seen, torch.get_float32_matmul_precision()) == (["highest"], "medium")
    finally:
        torch.set_float32_matmul_precision("highest")


def test_buckets() -> None:
    """Sizes up to 16 stay, except that zero becomes one; a larger size grows by at most an eighth; a bucket is its own
    bucket."""
    assert bucket(0) == 1
    assert [bucket(size) for size in range(1, 17)] == list(range(1, 17))
    assert bucket(1000) == 1024
    for size in range(1, 5000):
        assert size <= bucket(size) <= size * 9 / 8
        assert bucket(bucket(size)) == bucket(size)


def test_groups_join_neighbours() -> None:
    """Neighbouring sequences of one shape form one group."""
    assert Groups.of((1, 1, 1, 2), (5, 5, 6, 6)).groups == ((2, 1, 5), (1, 1, 6), (1, 2, 6))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("task", FORMS)
def test_gpu_equals_cpu(task: str, precision: str) -> None:
    """On a GPU, float32 equals the CPU's float32, and bfloat16 with graphs and variable-length attention equals the
    CPU's bfloat16, up to rounding."""
    made = network(task, hidden_size=64)
    expected = [packed(made, draw(task, seed, 9), precision) for seed in range(4)]
    ready = InferenceNetwork(made, precision, torch.device("cuda"))
    for seed, logits in enumerate(expected):
        flat = [s for item in draw(task, seed, 9) for s in item]
        found = [part.numpy() for part in ready(ready.prepare(flat))]
        assert largest_difference(found, logits) < (1e-4 if precision == "float32" else 0.1)
