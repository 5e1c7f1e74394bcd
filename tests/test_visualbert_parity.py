"""Our VisualBERT compared with Hugging Face transformers: the same weights and tensors must give the same numbers.

transformers draws random weights and saves them, and our classes load them; other tests go the opposite way. The
weights are larger than BERT's initial ones, so that attention, masks and alignment clearly change the logits.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tolerances import MASKED, SHALLOW, relative
from torch import Tensor, nn

import visualbert_core.models.visualbert as ours
from visualbert_core.errors import CheckpointError
from visualbert_core.models.visualbert.checkpoint.files import weights_digest
from visualbert_core.models.visualbert.checkpoint.pretrained import Pretrained

transformers = pytest.importorskip("transformers")

TOLERANCE = relative(SHALLOW)
POSITIONS, VOCAB, FEATURES, CHOICES = 40, 50, 7, 3
HEADS = (
    "VisualBertForPreTraining",
    "VisualBertForQuestionAnswering",
    "VisualBertForVisualReasoning",
    "VisualBertForMultipleChoice",
    "VisualBertForRegionToPhraseAlignment",
)
CLASSES = (*HEADS, "VisualBertModel")
# (examples, text tokens, regions): ordinary, one region, one example, text as long as the position table
SHAPES = ((3, 9, 6), (2, 5, 1), (1, 4, 3), (2, POSITIONS, 5))


Pair = tuple[Any, Pretrained, Path]
"""A random transformers model, our network read from its folder, and that folder."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    torch.manual_seed(1)
    config = transformers.VisualBertConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        visual_embedding_dim=FEATURES,
        max_position_embeddings=POSITIONS,
        num_labels=5,
    )
    made = {}
    for name in CLASSES:
        theirs = getattr(transformers, name)(config).eval()
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        folder = tmp_path_factory.mktemp(name)
        theirs.save_pretrained(folder)
        made[name] = theirs, getattr(ours, name).from_pretrained(folder), folder
    return made


@pytest.fixture(scope="module", params=CLASSES)
def pair(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Pair:
    return pairs[request.param]


@pytest.fixture(scope="module", params=HEADS)
def head(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Pair:
    return pairs[request.param]


def tensors(
    model: nn.Module, shape: tuple[int, int, int], seed: int, padded: bool | str = True, alignment: bool = True
) -> dict[str, Tensor]:
    """Draw arguments of one forward: examples of different lengths and types, alignments with and without words.

    With `padded="mostly"` only two tokens and one region of each example remain.
    """
    examples, text, regions = shape
    rng = torch.Generator().manual_seed(seed)
    name = type(model).__name__
    rows = examples * CHOICES if "MultipleChoice" in name else examples

    def mask(width: int, shortest: int) -> Tensor:
        lengths = torch.randint(min(shortest, width), width + 1, (rows, 1), generator=rng)
        if padded == "mostly":
            lengths = torch.full_like(lengths, 2 if shortest > 1 else 1)
        return (torch.arange(width) < lengths).long() if padded else torch.ones(rows, width, dtype=torch.long)

    made = {
        "input_ids": torch.randint(VOCAB, (rows, text), generator=rng),
        "attention_mask": mask(text, 3),
        "token_type_ids": torch.randint(2, (rows, text), generator=rng),
        "visual_embeds": torch.randn(rows, regions, FEATURES, generator=rng),
        "visual_attention_mask": mask(regions, 1),
        "visual_token_type_ids": torch.randint(2, (rows, regions), generator=rng),
    }
    if alignment:
        made["image_text_alignment"] = torch.randint(-1, text, (rows, regions, 2), generator=rng)
    if "MultipleChoice" in name:
        for key in made.keys() - {"image_text_alignment"}:
            made[key] = made[key].view(examples, CHOICES, *made[key].shape[1:])
    if "RegionToPhrase" in name:
        made["region_to_phrase_position"] = torch.randint(-1, text, (rows, 4), generator=rng)
    return made


def answer(model: nn.Module, arguments: dict[str, Any]) -> Tensor:
    with torch.inference_mode():
        output = model(**arguments)
    return numbers(output)


def numbers(output: Any) -> Tensor:
    """Return the output of a network as one tensor."""
    if hasattr(output, "prediction_logits"):
        return torch.cat((output.prediction_logits.flatten(1), output.seq_relationship_logits), 1)
    if hasattr(output, "pooler_output"):
        return torch.cat((output.last_hidden_state.flatten(1), output.pooler_output), 1)
    logits: Tensor = output.logits
    return logits


def gap(one: Tensor, other: Tensor) -> float:
    """Return the largest difference as a share of the largest value, or of 1 where all are smaller: the sums after a
    LayerNorm have that size."""
    assert one.shape == other.shape
    sizes = other.detach().abs()
    return float((one - other).abs().max().detach()) / max(1.0, float(sizes[sizes < MASKED].max()))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("alignment", [True, False])
def test_the_same_numbers(pair: Pair, shape: tuple[int, int, int], padded: bool, alignment: bool) -> None:
    """Logits agree up to rounding for ordinary and extreme shapes, with and without padding and alignment."""
    theirs, mine, _ = pair
    arguments = tensors(theirs, shape, seed=3, padded=padded, alignment=alignment)
    assert gap(answer(theirs, arguments), answer(mine, arguments)) < TOLERANCE


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    shape=st.tuples(
        st.integers(1, 4),
        st.integers(3, POSITIONS) | st.just(POSITIONS),
        st.integers(1, 12) | st.just(1) | st.integers(100, 130),
    ),
    seed=st.integers(0, 2**31),
    padded=st.sampled_from((True, False, "mostly")),
    alignment=st.booleans(),
)
def test_the_same_numbers_for_any_shape(
    pair: Pair, shape: tuple[int, int, int], seed: int, padded: bool | str, alignment: bool
) -> None:
    """Logits, losses, states and attentions agree up to rounding for any drawn shape, mask and alignment."""
    theirs, mine, _ = pair
    arguments: dict[str, Any] = tensors(theirs, shape, seed, padded, alignment)
    more = {**arguments, "output_attentions": True, "output_hidden_states": True}
    if not isinstance(mine, ours.VisualBertModel):
        more |= labels_for(mine, arguments)
    with torch.inference_mode():
        plain, expected, found = theirs(**arguments), theirs(**more), mine(**more)
    assert gap(numbers(plain), answer(mine, arguments)) < TOLERANCE  # the fused attention kernel
    # attention with explicit weights, which our network computes where they are asked for
    assert gap(numbers(plain), numbers(found)) < TOLERANCE
    if hasattr(found, "loss"):
        assert gap(expected.loss, found.loss) < TOLERANCE
    for kind in ("hidden_states", "attentions"):
        both = zip(getattr(expected, kind), getattr(found, kind), strict=True)
        assert max(gap(one, other) for one, other in both) < TOLERANCE


def test_the_comparison_can_fail(pair: Pair) -> None:
    """Every argument changes the logits far beyond the tolerance, so the tests above would see an ignored argument."""
    theirs, mine, _ = pair
    arguments = tensors(theirs, (3, 9, 6), seed=5)
    expected = answer(mine, arguments)
    for key, value in arguments.items():
        if key == "visual_embeds":
            changed = value + 1
        elif "mask" in key:
            changed = value.clone()
            changed[..., 2:] = 0
        else:
            changed = (value + 1) % 2
        assert gap(answer(mine, {**arguments, key: changed}), expected) > 100 * TOLERANCE, key


def test_defaults_are_those_of_transformers(pair: Pair) -> None:
    """Missing types and positions have transformers' defaults: text type 0, visual type 1, positions 0, 1, 2, …."""
    theirs, mine, _ = pair
    arguments = tensors(theirs, (3, 9, 6), seed=7)
    left_out = {key: arguments[key] for key in arguments if "type_ids" not in key}
    assert gap(answer(theirs, left_out), answer(mine, left_out)) < TOLERANCE
    ones = {**left_out, "visual_token_type_ids": torch.ones_like(arguments["visual_token_type_ids"])}
    assert gap(answer(mine, ones), answer(mine, left_out)) < TOLERANCE


def test_embedded_text_and_given_positions(pair: Pair) -> None:
    """`inputs_embeds` with the word vectors equals `input_ids`, and `position_ids` are used, as in transformers."""
    theirs, mine, _ = pair
    arguments = tensors(theirs, (2, 6, 3), seed=9)
    ids = arguments.pop("input_ids")
    words = theirs.get_input_embeddings()(ids).detach()
    arguments |= {"inputs_embeds": words, "position_ids": torch.arange(6).flip(0).expand(ids.shape)}
    assert gap(answer(theirs, arguments), answer(mine, arguments)) < TOLERANCE
    backwards = {**arguments, "position_ids": torch.arange(6).expand(ids.shape)}
    assert gap(answer(mine, backwards), answer(mine, arguments)) > 100 * TOLERANCE


def test_states_and_attentions(pair: Pair) -> None:
    """Asking for states and attention weights changes no logit, and they agree layer by layer."""
    theirs, mine, _ = pair
    arguments = tensors(theirs, (2, 7, 4), seed=11)
    more = {"output_attentions": True, "output_hidden_states": True}
    assert gap(answer(mine, {**arguments, **more}), answer(mine, arguments)) < TOLERANCE
    with torch.inference_mode():
        expected, found = theirs(**arguments, **more), mine(**arguments, **more)
    for kind in ("hidden_states", "attentions"):
        both = zip(getattr(expected, kind), getattr(found, kind), strict=True)
        assert max(gap(one, other) for one, other in both) < TOLERANCE


def test_text_without_regions(pair: Pair) -> None:
    """Without `visual_embeds` the model is a plain BERT, and grounding, which needs regions, raises an error."""
    theirs, mine, _ = pair
    arguments = {key: t for key, t in tensors(theirs, (2, 6, 3), seed=13).items() if "visual" not in key}
    arguments.pop("image_text_alignment")
    if isinstance(mine, ours.VisualBertForRegionToPhraseAlignment):
        with pytest.raises(ValueError, match="visual_attention_mask is required"):
            mine(**arguments)
    else:
        assert gap(answer(theirs, arguments), answer(mine, arguments)) < TOLERANCE


def labels_for(model: nn.Module, arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    """Draw labels in the form that each head takes; for grounding, masked regions and padded phrases have zero."""
    name, examples = type(model).__name__, len(arguments["input_ids"])
    rng = torch.Generator().manual_seed(examples)
    classes = torch.randint(2, (examples,), generator=rng)
    if name == "VisualBertForQuestionAnswering":
        return {"labels": torch.rand(examples, 5, generator=rng)}
    if name == "VisualBertForPreTraining":
        length = arguments["attention_mask"].shape[1] + arguments["visual_attention_mask"].shape[1]
        words = torch.randint(VOCAB, (examples, length), generator=rng)
        words[:, 1::2] = -100
        return {"labels": words, "sentence_image_labels": classes}
    if name != "VisualBertForRegionToPhraseAlignment":
        return {"labels": classes}
    visible = arguments["visual_attention_mask"][:, None] * (arguments["region_to_phrase_position"] != -1)[..., None]
    return {"labels": torch.rand(visible.shape, generator=rng) * visible}


def test_the_same_loss_and_gradients(head: Pair) -> None:
    """With labels, loss and gradients equal transformers', and the logits are those without labels."""
    theirs, mine, _ = head
    arguments: dict[str, Any] = tensors(theirs, (2, 6, 4), seed=15)
    labels = labels_for(mine, arguments)
    expected, found = theirs(**arguments, **labels), mine(**arguments, **labels)
    assert gap(expected.loss, found.loss) < TOLERANCE
    assert gap(numbers(found), answer(mine, arguments)) < TOLERANCE
    expected.loss.backward()
    found.loss.backward()
    gradients = {name: p.grad for name, p in mine.named_parameters() if p.grad is not None}
    wanted = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert gradients.keys() == wanted.keys()
    assert max(gap(gradients[name], wanted[name]) for name in wanted) < TOLERANCE
    mine.zero_grad()
    theirs.zero_grad()


def test_training_step_under_autocast(head: Pair) -> None:
    """A fresh network trains with dropout under bfloat16 autocast: gradients are finite, and the loss is float32."""
    theirs, mine, _ = head
    torch.manual_seed(0)
    fresh = type(mine)(mine.config).train()
    arguments: dict[str, Any] = tensors(theirs, (2, 6, 4), seed=17)
    labels = labels_for(mine, arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = fresh(**arguments, **labels)
    output.loss.backward()
    targets = labels["labels"]
    if isinstance(output, ours.PreTrainingOutput):
        cross_entropy = nn.functional.cross_entropy
        expected = cross_entropy(output.prediction_logits.detach().float().flatten(0, 1), targets.flatten())
        sentences = labels["sentence_image_labels"]
        expected = expected + cross_entropy(output.seq_relationship_logits.detach().float(), sentences)
    elif targets.is_floating_point():
        log_probabilities = output.logits.detach().float().log_softmax(-1)
        expected = nn.functional.kl_div(log_probabilities, targets, reduction="batchmean")
    else:
        expected = nn.functional.cross_entropy(output.logits.detach().float(), targets)
    assert numbers(output).dtype == torch.bfloat16
    assert gap(output.loss, expected) < TOLERANCE
    gradients = [p.grad for p in fresh.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("which", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_is_for_training_only(pairs: dict[str, Pair], which: str) -> None:
    """Each dropout of the config changes the states in training mode and nothing in eval mode."""
    theirs, mine, _ = pairs["VisualBertModel"]
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    model = ours.VisualBertModel(replace(mine.config, **{**off, which: 0.5}))
    arguments = tensors(theirs, (2, 6, 4), seed=33)
    for training in (True, False):
        one, other = (answer(model.train(training), arguments) for _ in range(2))
        assert (gap(one, other) > 0.01) == training
    embedded = model.train()(**arguments, output_hidden_states=True).hidden_states[0]
    dropped = float((embedded == 0).float().mean())
    assert 0.4 < dropped < 0.6 if which == "hidden_dropout_prob" else dropped == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_transformers_loads_what_we_save(pair: Pair, tmp_path: Path, dtype: torch.dtype) -> None:
    """A folder that we save opens in transformers with every weight found, and gives our answers."""
    _, mine, _ = pair
    mine.save_pretrained(tmp_path, dtype=dtype)
    theirs, report = type(pair[0]).from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    again = type(mine).from_pretrained(tmp_path)
    assert next(again.parameters()).dtype == torch.float32
    arguments = tensors(theirs, (3, 9, 6), seed=19)
    assert gap(answer(theirs.eval(), arguments), answer(again, arguments)) < TOLERANCE
    tolerance = TOLERANCE if dtype == torch.float32 else 0.05
    assert gap(answer(again, arguments), answer(mine, arguments)) < tolerance
    assert again.config == mine.config


def rewritten(source: Path, target: Path, edit: Any, binary: bool = False) -> Path:
    """Copy a checkpoint whose state goes through `edit`."""
    state = {key: value.clone() for key, value in load_file(source / "model.safetensors").items()}
    edit(state)
    (target / "config.json").write_text((source / "config.json").read_text())
    if binary:
        torch.save(state, target / "pytorch_model.bin")
    else:
        save_file(state, target / "model.safetensors")
    return target


def to_2021(state: dict[str, Tensor]) -> None:
    """Change a state to the form of the published files: with a position buffer and with tied weights written out."""
    prefix = "visual_bert." if any(key.startswith("visual_bert.") for key in state) else ""
    state[f"{prefix}embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    if "cls.predictions.bias" in state:
        state["cls.predictions.decoder.weight"] = state[f"{prefix}embeddings.word_embeddings.weight"].clone()
        state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"].clone()


def to_base(state: dict[str, Tensor]) -> None:
    """Remove the prefix from the trunk's keys."""
    for key in list(state):
        state[key.removeprefix("visual_bert.")] = state.pop(key)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("edit", [to_2021, to_base, lambda state: None])
def test_published_file_forms(pair: Pair, tmp_path: Path, edit: Any, binary: bool) -> None:
    """Position buffers, written ties, missing prefixes and both file formats load as the same network."""
    theirs, mine, folder = pair
    loaded = type(mine).from_pretrained(rewritten(folder, tmp_path, edit, binary))
    arguments = tensors(theirs, (3, 9, 6), seed=21)
    assert gap(answer(loaded, arguments), answer(mine, arguments)) == 0


def test_the_trunk_of_a_head(pair: Pair) -> None:
    """VisualBertModel reads its weights from a checkpoint with any head."""
    _, mine, folder = pair
    trunk = ours.VisualBertModel.from_pretrained(folder)
    reference = mine if isinstance(mine, ours.VisualBertModel) else mine.visual_bert
    arguments = tensors(trunk, (3, 9, 6), seed=23)
    assert gap(answer(trunk, arguments), answer(reference, arguments)) == 0


def test_tied_weights_stay_one_parameter(pairs: dict[str, Pair]) -> None:
    """The decoder of both pre-training heads is the word table, fresh or loaded, so training changes them together."""
    both = [pairs[name][1] for name in ("VisualBertForRegionToPhraseAlignment", "VisualBertForPreTraining")]
    for model in (*both, *(type(loaded)(loaded.config) for loaded in both)):
        assert isinstance(model, ours.VisualBertForRegionToPhraseAlignment | ours.VisualBertForPreTraining)
        assert model.cls.predictions.decoder.weight is model.visual_bert.embeddings.word_embeddings.weight
        assert model.cls.predictions.decoder.bias is model.cls.predictions.bias


def drop_bias(state: dict[str, Tensor]) -> None:
    del state[next(key for key in state if key.endswith("layer.1.output.dense.bias"))]


def add_key(state: dict[str, Tensor]) -> None:
    state["encoder.layer.9.surplus"] = torch.zeros(1)


def reshape_projection(state: dict[str, Tensor]) -> None:
    key = next(key for key in state if key.endswith("visual_projection.weight"))
    state[key] = torch.zeros(32, FEATURES + 1)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (drop_bias, r"missing \S*layer\.1\.output\.dense\.bias"),
        (add_key, r"unknown \S*encoder\.layer\.9\.surplus"),
        (reshape_projection, r"visual_projection\.weight \[32, 8\] instead of \[32, 7\]"),
    ],
)
def test_weights_that_do_not_fit(pair: Pair, tmp_path: Path, edit: Any, says: str) -> None:
    """A missing, unknown or misshapen weight is refused by name in one line, and never filled with random numbers."""
    _, mine, folder = pair
    with pytest.raises(CheckpointError, match=says) as caught:
        type(mine).from_pretrained(rewritten(folder, tmp_path, edit))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["VisualBertModel", "VisualBertForVisualReasoning"])
def test_a_head_of_another_task(pairs: dict[str, Pair], name: str) -> None:
    """A network with a grounding head does not load another network's checkpoint with a random head."""
    with pytest.raises(CheckpointError, match=r"missing attention\.key\.bias"):
        ours.VisualBertForRegionToPhraseAlignment.from_pretrained(pairs[name][2])


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_damaged_weights(pair: Pair, tmp_path: Path, name: str) -> None:
    """A truncated, empty or missing weights file is a one-line CheckpointError with its path."""
    _, mine, folder = pair
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        type(mine).from_pretrained(tmp_path)
    source = rewritten(folder, tmp_path, lambda state: None, binary=name.endswith(".bin"))
    for data in ((source / name).read_bytes()[:1000], b""):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=f"{name}: cannot be read") as caught:
            type(mine).from_pretrained(tmp_path)
        assert "\n" not in str(caught.value)


def test_saving_over_the_folder_that_is_loaded(pair: Pair, tmp_path: Path) -> None:
    """A changed network can be saved to the folder that it was loaded from, because its weights have their own
    memory."""
    theirs, mine, folder = pair
    loaded = type(mine).from_pretrained(rewritten(folder, tmp_path, lambda state: None))
    before, digest = answer(loaded, tensors(theirs, (2, 6, 3), seed=25)), weights_digest(tmp_path)
    zeroed = type(mine)(mine.config)
    with torch.no_grad():
        for parameter in zeroed.parameters():
            parameter.zero_()
    zeroed.save_pretrained(tmp_path)
    assert gap(answer(loaded, tensors(theirs, (2, 6, 3), seed=25)), before) == 0
    assert weights_digest(tmp_path) != digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_alignment_with_a_choice_axis(pairs: dict[str, Pair]) -> None:
    """Multiple choice also takes the alignment as [B, C, V, A], which transformers refuses."""
    theirs, mine, _ = pairs["VisualBertForMultipleChoice"]
    arguments = tensors(theirs, (2, 6, 3), seed=27)
    flat = arguments["image_text_alignment"]
    spread = {**arguments, "image_text_alignment": flat.view(2, CHOICES, *flat.shape[1:])}
    assert gap(answer(mine, spread), answer(theirs, arguments)) < TOLERANCE


@pytest.mark.parametrize(
    ("left_out", "name"),
    [
        ("attention_mask", "VisualBertForQuestionAnswering"),
        ("attention_mask", "VisualBertForRegionToPhraseAlignment"),
        ("visual_attention_mask", "VisualBertForRegionToPhraseAlignment"),
        ("region_to_phrase_position", "VisualBertForRegionToPhraseAlignment"),
        ("input_ids", "VisualBertForMultipleChoice"),
        ("input_ids", "VisualBertForVisualReasoning"),
    ],
)
def test_missing_arguments(pairs: dict[str, Pair], left_out: str, name: str) -> None:
    """A forward without an argument that its head needs is a ValueError with its name, not an AttributeError inside."""
    theirs, mine, _ = pairs[name]
    arguments = tensors(theirs, (2, 6, 3), seed=29)
    arguments.pop(left_out)
    with pytest.raises(ValueError, match=left_out):
        mine(**arguments)


def test_impossible_tensors(pair: Pair) -> None:
    """Text longer than the position table and alignment of too few regions are ValueErrors with both numbers."""
    theirs, mine, _ = pair
    with pytest.raises(ValueError, match=f"{POSITIONS + 1} tokens .* {POSITIONS} positions"):
        mine(**tensors(theirs, (2, POSITIONS + 1, 3), seed=31, alignment=False))
    arguments = tensors(theirs, (2, 6, 3), seed=31)
    arguments["image_text_alignment"] = arguments["image_text_alignment"][:, :2]
    with pytest.raises(ValueError, match="covers 2 regions, visual_embeds 3"):
        mine(**arguments)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "bert"),
        ("hidden_size", "32"),
        ("hidden_size", 30),
        ("num_hidden_layers", 0),
        ("hidden_dropout_prob", 1.5),
        ("hidden_act", "swish"),
        ("pad_token_id", VOCAB),
        ("bypass_transformer", "yes"),
        ("id2label", {"0": "yes", "2": "no"}),
    ],
)
def test_bad_config(pair: Pair, tmp_path: Path, key: str, value: object) -> None:
    """A config.json with impossible values is refused with the file and the key."""
    _, mine, folder = pair
    rewritten(folder, tmp_path, lambda state: None)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(CheckpointError, match=rf"config\.json: {key}"):
        type(mine).from_pretrained(tmp_path)


def test_labels_survive_the_round_trip(tmp_path: Path) -> None:
    """config.json keeps named answers and the number of unnamed ones, in both directions."""
    sizes = {"vocab_size": 9, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    for config in (
        ours.VisualBertConfig(**sizes, num_labels=3, id2label=("<unk>", "yes", "no")),
        ours.VisualBertConfig(**sizes, num_labels=4),
    ):
        ours.VisualBertForQuestionAnswering(config).save_pretrained(tmp_path)
        assert ours.VisualBertConfig.from_folder(tmp_path) == config
        theirs = transformers.VisualBertConfig.from_pretrained(tmp_path)
        assert theirs.num_labels == config.num_labels
        assert {index: name for name, index in theirs.label2id.items()} == theirs.id2label
        theirs.save_pretrained(tmp_path)
        assert ours.VisualBertConfig.from_folder(tmp_path) == config


def test_fresh_weights_are_berts() -> None:
    """Fresh matrices have std 0.02, biases and the padding vector are zero, and the visual tables are copies of the
    text's."""
    torch.manual_seed(0)
    config = ours.VisualBertConfig(vocab_size=500, hidden_size=64, num_hidden_layers=1, num_attention_heads=4)
    model = ours.VisualBertForVisualReasoning(config)
    trunk = model.visual_bert
    for weight in (model.cls.weight, trunk.encoder.layer[0].intermediate.dense.weight):
        assert 0.015 < float(weight.detach().std()) < 0.025
    assert not model.cls.bias.any()
    assert not trunk.embeddings.word_embeddings.weight[1].any()
    assert trunk.embeddings.word_embeddings.weight[0].any()
    assert torch.equal(
        trunk.embeddings.visual_token_type_embeddings.weight, trunk.embeddings.token_type_embeddings.weight
    )
    assert torch.equal(trunk.embeddings.visual_position_embeddings.weight, trunk.embeddings.position_embeddings.weight)
