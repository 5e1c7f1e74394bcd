"""What a VisualBERT forward accepts: inputs on which the published port fails, and variants that it cannot run.

Where transformers crashes or is wrong without an error, it gives no number to compare with. The expected number is then
computed by hand from the network's own parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tolerances import SHALLOW, close
from torch import Tensor
from torch.nn import functional

from visualbert_core.models.visualbert import (
    VisualBertConfig,
    VisualBertForMultipleChoice,
    VisualBertForPreTraining,
    VisualBertForQuestionAnswering,
    VisualBertForRegionToPhraseAlignment,
    VisualBertForVisualReasoning,
    VisualBertModel,
)
from visualbert_core.models.visualbert.checkpoint.pretrained import Pretrained

CONFIG = VisualBertConfig(
    vocab_size=30,
    hidden_size=16,
    visual_embedding_dim=5,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=20,
    max_position_embeddings=12,
    num_labels=4,
    initializer_range=0.4,
)
B, T, V, C = 2, 6, 3, 3
QA, VR, MC = VisualBertForQuestionAnswering, VisualBertForVisualReasoning, VisualBertForMultipleChoice
RTP, PRE = VisualBertForRegionToPhraseAlignment, VisualBertForPreTraining
Arguments = dict[str, Any]


def made(network: type[Pretrained], **changes: Any) -> Any:
    torch.manual_seed(2)
    return network(replace(CONFIG, **changes)).eval()


def arguments(network: type[Pretrained]) -> Arguments:
    """Make valid arguments of two examples, the second with padding in text and image."""
    rng = torch.Generator().manual_seed(3)
    found: Arguments = {
        "input_ids": torch.randint(30, (B, T), generator=rng),
        "attention_mask": torch.tensor([[1] * T, [1, 1, 1, 1, 0, 0]]),
        "token_type_ids": torch.randint(2, (B, T), generator=rng),
        "position_ids": torch.arange(T).expand(B, T),
        "visual_embeds": torch.randn(B, V, 5, generator=rng),
        "visual_attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "visual_token_type_ids": torch.randint(2, (B, V), generator=rng),
        "image_text_alignment": torch.randint(-1, T, (B, V, 2), generator=rng),
    }
    if network is MC:
        found = {key: value.unsqueeze(1).repeat_interleave(C, 1) for key, value in found.items()}
        found["input_ids"] = torch.randint(30, (B, C, T), generator=rng)
    if network is RTP:
        found["region_to_phrase_position"] = torch.tensor([[1, 3], [2, -1]])
    return found


def logits(model: Any, given: Arguments) -> Tensor:
    with torch.inference_mode():
        output = model(**given)
    if isinstance(model, VisualBertForPreTraining):
        return output.prediction_logits  # type: ignore[no-any-return]
    return output.last_hidden_state if isinstance(model, VisualBertModel) else output.logits  # type: ignore[no-any-return]


def change(key: str, edit: Callable[[Tensor], Tensor]) -> Callable[[Arguments], None]:
    def apply(given: Arguments) -> None:
        given[key] = edit(given[key])

    return apply


def put(value: Any, *where: int) -> Callable[[Tensor], Tensor]:
    def edit(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[where] = value
        return tensor

    return edit


def without(*keys: str) -> Callable[[Arguments], None]:
    return lambda given: [given.pop(key) for key in keys] and None


BAD = [
    (VR, change("input_ids", put(30, 0, 1)), r"input_ids must be 0 to 29, got 30"),
    (VR, change("input_ids", put(-1, 0, 1)), r"input_ids must be 0 to 29, got -1"),
    (VR, change("input_ids", Tensor.float), r"input_ids must be whole numbers \(torch.long\), got torch.float32"),
    (VR, change("input_ids", lambda t: t[0]), r"input_ids must be \[B, T\], got \[6\]"),
    (VR, change("input_ids", lambda t: t[:, :0]), r"one token or more"),
    (VR, change("attention_mask", lambda t: t[:, :5]), r"attention_mask must be \[B=2, T=6\], got \[2, 5\]"),
    (VR, change("attention_mask", lambda t: t[:, None].expand(B, T, T)), r"attention_mask must be \[B=2, T=6\]"),
    (VR, change("attention_mask", lambda t: (1.0 - t) * -1e4), r"attention_mask must be 1 where .* got -10000"),
    (VR, change("attention_mask", put(0, 1)), r"attention_mask must leave one token or more of every text"),
    (VR, change("token_type_ids", put(2, 0, 0)), r"token_type_ids must be 0 to 1, got 2"),
    (VR, change("position_ids", put(12, 0, 0)), r"position_ids must be 0 to 11, got 12"),
    (VR, change("position_ids", Tensor.float), r"position_ids must be whole numbers"),
    (VR, change("visual_embeds", lambda t: t[..., :4]), r"visual_embeds must be \[B=2, V, D=5\], got \[2, 3, 4\]"),
    (VR, change("visual_embeds", lambda t: t[0]), r"visual_embeds must be \[B=2, V, D=5\], got \[3, 5\]"),
    (VR, change("visual_embeds", lambda t: t[:1]), r"visual_embeds must be \[B=2, V, D=5\], got \[1, 3, 5\]"),
    (VR, change("visual_embeds", Tensor.long), r"visual_embeds must be floating-point features, got torch.int64"),
    (VR, change("visual_attention_mask", lambda t: t[:, :2]), r"visual_attention_mask must be \[B=2, V=3\]"),
    (VR, change("visual_token_type_ids", put(2, 0, 0)), r"visual_token_type_ids must be 0 to 1, got 2"),
    (VR, change("image_text_alignment", put(12, 0, 0, 0)), r"image_text_alignment must be -1 to 11, got 12"),
    (VR, change("image_text_alignment", lambda t: t[:, :, 0]), r"image_text_alignment must be \[B=2, V, A\]"),
    (VR, without("visual_embeds"), r"visual_attention_mask is given without visual_embeds"),
    (QA, change("attention_mask", lambda t: t.flip(1)), r"attention_mask must have its zeros on the right"),
    (QA, change("attention_mask", put(0, 1, slice(1, None))), r"attention_mask must cover two tokens or more"),
    (QA, without("attention_mask"), r"attention_mask is required"),
    (RTP, change("region_to_phrase_position", Tensor.float), r"region_to_phrase_position must be whole numbers"),
    (RTP, change("region_to_phrase_position", put(T, 0, 0)), r"region_to_phrase_position must be -1 to 5, got 6"),
    (RTP, change("region_to_phrase_position", lambda t: t[:1]), r"region_to_phrase_position must be \[B=2, K\]"),
    (MC, change("input_ids", lambda t: t[:, 0]), r"input_ids must be \[B, C, T\], got \[2, 6\]"),
    (MC, change("attention_mask", lambda t: t[:, 0]), r"attention_mask must be \[B=2, C=3, T\], got \[2, 6\]"),
    (MC, change("visual_embeds", lambda t: t[:, :2]), r"visual_embeds must be \[B=2, C=3, V, D\], got \[2, 2, 3, 5\]"),
]


@pytest.mark.parametrize(("network", "edit", "says"), BAD)
def test_refused_in_one_line(network: type[Pretrained], edit: Callable[[Arguments], None], says: str) -> None:
    """An impossible input is a one-line ValueError with the argument's name, not an index error from inside."""
    model, given = made(network), arguments(network)
    model(**given)
    edit(given)
    with pytest.raises(ValueError, match=says) as caught:
        model(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("network", "labels", "says"),
    [
        (QA, torch.rand(1, B, 4), r"labels must be floating-point targets \[2, 4\], got \[1, 2, 4\]"),
        (QA, torch.tensor([1, 0]), r"labels must be floating-point targets \[2, 4\], got \[2\] of torch.int64"),
        (RTP, torch.rand(B, 2, 1), r"labels must be floating-point targets \[2, 2, 3\], got \[2, 2, 1\]"),
        (VR, torch.tensor([1, 4]), r"labels must be 0 to 3 or -100, got 4"),
        (VR, torch.tensor([1, 0, 1]), r"labels must hold 2 labels, got \[3\]"),
        (MC, torch.tensor([1.0, 0.0]), r"labels must be whole numbers"),
        (PRE, torch.zeros(B, T, dtype=torch.long), r"labels must be \[B=2, T\+V=9\], got \[2, 6\]"),
        (PRE, torch.full((B, T + V), -1), r"labels must be 0 to 29 or -100, got -1"),
    ],
)
def test_labels_that_do_not_fit(network: type[Pretrained], labels: Tensor, says: str) -> None:
    """Labels of another shape are never broadcast into a loss, and the authors' -1 is not a class."""
    with pytest.raises(ValueError, match=says):
        made(network)(**arguments(network), labels=labels)


@pytest.mark.parametrize("network", [QA, VR, MC, RTP, PRE])
@pytest.mark.parametrize("cast", [Tensor.bool, Tensor.float, lambda mask: mask * 0.5])
def test_masks_of_any_dtype(network: type[Pretrained], cast: Callable[[Tensor], Tensor]) -> None:
    """Boolean and float masks give what integer masks give."""
    model, given = made(network), arguments(network)
    masks = {key: cast(value) for key, value in given.items() if key.endswith("mask")}
    assert torch.equal(logits(model, given), logits(model, {**given, **masks}))


@pytest.mark.parametrize("network", [VisualBertModel, QA, VR, MC, RTP, PRE])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_no_numbers(network: type[Pretrained], value: float) -> None:
    """NaN or infinity in a region of one example, even a masked one, makes that example's answer NaN and no other
    answer."""
    model, given = made(network), arguments(network)
    spoilt = {**given, "visual_embeds": put(value, 1, ..., V - 1, 0)(given["visual_embeds"])}
    found, expected = logits(model, spoilt), logits(model, given)
    assert torch.equal(found[0], expected[0])
    assert found[1].isnan().any()
    if network not in (VisualBertModel, RTP):
        assert found[1].isnan().all()


def test_an_empty_question() -> None:
    """The shortest text is [CLS] [SEP]: the head reads its first token, whatever padding follows."""
    model, given = made(QA), arguments(QA)
    given["attention_mask"] = torch.tensor([[1, 1, 0, 0, 0, 0]] * B)
    short = {key: given[key][:, :2] for key in ("input_ids", "attention_mask", "token_type_ids", "position_ids")}
    close(logits(model, {**given, **short}), logits(model, given), SHALLOW)


def test_choices_may_share_their_regions() -> None:
    """Multiple choice takes features, masks and types as [B, V, D] once for all choices, which gives the same as
    copies."""
    model, given = made(MC), arguments(MC)
    shared = {key: given[key][:, 0] for key in ("visual_embeds", "visual_attention_mask", "visual_token_type_ids")}
    close(logits(model, {**given, **shared}), logits(model, given), SHALLOW)


# ---------------------------------------------------------------------------------------------------------------------
# pre-training


def test_each_pretraining_label_has_its_loss() -> None:
    """Words alone, sentences alone and both have a loss, which is the sum for both. Logits do not change, and without
    labels there is no loss."""
    model, given = made(PRE), arguments(PRE)
    words = torch.randint(30, (B, T + V))
    words[:, T:] = -100
    sentences = torch.tensor([0, 1])
    none = model(**given)
    of_words, of_sentences = model(**given, labels=words), model(**given, sentence_image_labels=sentences)
    both = model(**given, labels=words, sentence_image_labels=sentences)
    expected = functional.cross_entropy(none.prediction_logits[:, :T].flatten(0, 1), words[:, :T].flatten())
    assert none.loss is None
    for loss, by_hand in (
        (of_words.loss, expected),
        (of_sentences.loss, functional.cross_entropy(none.seq_relationship_logits, sentences)),
        (both.loss, of_words.loss + of_sentences.loss),
    ):
        close(loss.detach(), by_hand.detach(), SHALLOW)
    assert torch.equal(both.prediction_logits, none.prediction_logits)


def test_pretraining_without_masks() -> None:
    """Missing masks count as masks of ones, also with labels, where transformers fails."""
    model, given = made(PRE), arguments(PRE)
    ones = {key: torch.ones_like(given.pop(key)) for key in ("attention_mask", "visual_attention_mask")}
    given["labels"] = torch.randint(30, (B, T + V))
    close(model(**given).loss.detach(), model(**given, **ones).loss.detach(), SHALLOW)


# ---------------------------------------------------------------------------------------------------------------------
# late fusion


def test_late_fusion_by_hand() -> None:
    """`bypass_transformer` runs the text alone through the encoder, then one layer over text and regions, then the
    pooler."""
    model, given = made(VisualBertModel, bypass_transformer=True), arguments(VisualBertModel)
    output = model(**given, output_hidden_states=True, output_attentions=True)
    table = model.embeddings
    types = table.token_type_embeddings(given["token_type_ids"])
    words = table.LayerNorm(
        table.word_embeddings(given["input_ids"]) + types + table.position_embeddings(given["position_ids"])
    )
    named = given["image_text_alignment"] != -1
    mentions = table.position_embeddings(given["image_text_alignment"].clamp(min=0)) * named[..., None]
    regions = table.visual_projection(given["visual_embeds"])
    regions = regions + table.visual_token_type_embeddings(given["visual_token_type_ids"])
    regions = regions + table.visual_position_embeddings.weight[0]
    regions = table.LayerNorm(regions + mentions.sum(2) / named.sum(2).clamp(min=1)[..., None])
    text_mask, mask = given["attention_mask"].bool(), given["visual_attention_mask"].bool()
    state = words
    for layer in model.encoder.layer:
        state, _ = layer(state, text_mask[:, None, None], True)
    whole = torch.cat((text_mask, mask), 1)[:, None, None]
    state, weights = model.additional_layer(torch.cat((state, regions), 1), whole, True)
    with torch.no_grad():
        pooled = torch.tanh(model.pooler.dense(state[:, 0]))
    found = (output.last_hidden_state, output.pooler_output, output.attentions[-1])
    for mine, by_hand in zip(found, (state, pooled, weights), strict=True):
        close(mine.detach(), by_hand.detach(), SHALLOW)
    assert [list(s.shape) for s in output.hidden_states] == [[B, T, 16]] * 3 + [[B, T + V, 16]]
    assert [a.shape[-1] for a in output.attentions] == [T, T, T + V]


def test_late_fusion_keeps_regions_from_the_text() -> None:
    """In late fusion the regions do not change the encoder's text states; in early fusion they do."""
    for late in (True, False):
        model, given = made(VisualBertModel, bypass_transformer=late), arguments(VisualBertModel)
        one = model(**given, output_hidden_states=True)
        given["visual_embeds"] = given["visual_embeds"] + 1
        other = model(**given, output_hidden_states=True)
        assert torch.equal(one.hidden_states[2][:, :T], other.hidden_states[2][:, :T]) == late
        assert not torch.allclose(one.pooler_output, other.pooler_output, atol=1e-3)


@pytest.mark.parametrize("network", [QA, VR, MC, RTP, PRE])
def test_every_head_with_late_fusion(network: type[Pretrained], tmp_path: Path) -> None:
    """Every head answers with late fusion and differs from early fusion, inputs_embeds work, and transformers loads
    every parameter."""
    transformers = pytest.importorskip("transformers")
    late, given = made(network, bypass_transformer=True), arguments(network)
    found = logits(late, given)
    embedded = {**given, "inputs_embeds": late.visual_bert.embeddings.word_embeddings(given["input_ids"]).detach()}
    del embedded["input_ids"]
    close(logits(late, embedded), found, SHALLOW)
    late.save_pretrained(tmp_path)
    again = network.from_pretrained(tmp_path)
    close(logits(again, given), found, SHALLOW)
    theirs = getattr(transformers, network.__name__)
    model, report = theirs.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    theirs_state, ours_state = model.state_dict(), late.state_dict()
    assert any("additional_layer" in key for key in ours_state)
    assert all(torch.equal(theirs_state[key], ours_state[key]) for key in ours_state)
