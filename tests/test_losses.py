"""Losses, gradients, targets and masks of the five heads equal golden files of the authors' code, and transformers."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from visualbert_core.errors import CheckpointError
from visualbert_core.models import ReadsRegions, load_model, load_trainable
from visualbert_core.models.trainable import Start
from visualbert_core.models.visualbert import (
    VisualBertConfig,
    VisualBertForMultipleChoice,
    VisualBertForPreTraining,
    VisualBertForQuestionAnswering,
    VisualBertForRegionToPhraseAlignment,
    VisualBertForVisualReasoning,
)
from visualbert_core.models.visualbert.checkpoint.pretrained import Pretrained
from visualbert_core.models.visualbert.inference import Packed, pack
from visualbert_core.models.visualbert.inputs import Encoded, InputEncoder
from visualbert_core.models.visualbert.losses import Labels, cross_entropy, divergence, losses, read_states
from visualbert_core.models.visualbert.masking import cut_pair, mask_pieces
from visualbert_core.schema import CaptionPair, Grounding, MultipleChoice, Phrase, Question, Regions, Statement
from visualbert_core.synthetic import WEIGHTS
from visualbert_core.tasks import CaptionPairs, open_task
from visualbert_core.tasks.vqa import soft_answers

GOLDEN = Path(__file__).parent / "golden" / "training"
LOSS_VALUES, MODEL_VALUES = np.load(GOLDEN / "losses.npz"), np.load(GOLDEN / "models.npz")
CASES: dict[str, Any] = json.loads((GOLDEN / "losses.json").read_text())["results"]
MODELS: dict[str, Any] = json.loads((GOLDEN / "models.json").read_text())
TARGETS: dict[str, Any] = json.loads((GOLDEN / "targets.json").read_text())
MASKS: dict[str, Any] = json.loads((GOLDEN / "masking.json").read_text())
PAIRS: dict[str, Any] = json.loads((GOLDEN / "pairs.json").read_text())
HEADS: dict[str, type[Pretrained]] = {
    "vqa": VisualBertForQuestionAnswering,
    "nlvr": VisualBertForVisualReasoning,
    "multichoice": VisualBertForMultipleChoice,
    "pretraining": VisualBertForPreTraining,
    "flickr": VisualBertForRegionToPhraseAlignment,
}
FOLDERS: dict[type, str] = {Statement: "nlvr2", MultipleChoice: "vcr", Grounding: "flickr30k"}
MASK, VOCABULARY = 103, 30_522  # of BERT-base-uncased


def close(found: Any, golden: Any, scale: float | None = None) -> bool:
    """Return whether arrays are equal to 1e-5 of the largest golden value, or of `scale`."""
    found, golden = np.asarray(found), np.asarray(golden)
    most = float(np.abs(golden).max(initial=0)) if scale is None else scale
    return bool(np.abs(found - golden).max(initial=0) <= 1e-5 * max(most, 1e-6))


def held(case: str, name: str) -> Tensor:
    return torch.from_numpy(LOSS_VALUES[f"{case}/{name}"].copy())


@pytest.mark.parametrize("case", [case for case in CASES if case.split("/")[0] in ("vqa", "nlvr2", "vcr")])
def test_losses_on_given_logits(case: str) -> None:
    """The sum divided by the examples is the authors' loss, and its gradient is theirs; it may be below zero."""
    logits, labels = held(case, "logits").requires_grad_(), held(case, "labels")
    loss = (divergence if case.startswith("vqa") else cross_entropy)(logits, labels) / len(logits)
    loss.backward()
    assert close(loss.item(), CASES[case]["loss"], max(1, abs(CASES[case]["loss"])))
    assert logits.grad is not None
    # A gradient is a share minus a target. Where the two are nearly equal, it is small and their rounding is not.
    assert close(logits.grad, held(case, "grad"), 1.0)


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("flickr")])
def test_phrases_on_given_states(case: str) -> None:
    """The loss of phrases is divided by captions, and padding changes nothing, since there is none here."""
    hidden = held(case, "hidden").requires_grad_()
    width = hidden.shape[2]
    network = VisualBertForRegionToPhraseAlignment(
        VisualBertConfig(hidden_size=width, num_attention_heads=2, vocab_size=9)
    )
    network.attention.load_state_dict(
        {
            f"{part}.{kind}": held(case, f"weight/{part}.{kind}")
            for part in ("query", "key", "value")
            for kind in ("weight", "bias")
        }
    )
    text, states, shares, lengths = CASES[case]["text_length"], [], [], []
    for row in range(len(hidden)):
        phrases = held(case, "position")[row]
        phrases = phrases[phrases >= 0]
        regions = int(held(case, "image_mask")[row].sum())
        states.append(torch.cat((hidden[row][phrases], hidden[row][text : text + regions])))
        shares.append(held(case, "labels")[row][: len(phrases), :regions])
        lengths.append(len(states[-1]))
    packed = cast(Packed, SimpleNamespace(read_lengths=tuple(lengths)))
    (loss,) = losses(network, torch.cat(states), packed, Labels(shares=tuple(shares)))
    (loss / len(hidden)).backward()
    assert close(loss.item() / len(hidden), CASES[case]["loss"], max(1, abs(CASES[case]["loss"])))
    assert hidden.grad is not None
    assert close(hidden.grad, held(case, "grad_hidden"))
    for part in ("query.weight", "query.bias", "key.weight"):
        assert close(network.attention.get_parameter(part).grad, held(case, f"grad_weight/{part}"))


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("pretraining")])
def test_pre_training_on_given_scores(case: str) -> None:
    """The mean over masked words and the mean over pairs are added. Without a masked word the first is 0, not NaN."""
    labels = held(case, "text_labels")
    scores, masked = held(case, "scores").requires_grad_(), labels != -1
    loss = cross_entropy(scores[:, : labels.shape[1]][masked], labels[masked]) / max(int(masked.sum()), 1)
    if "sentence_loss" in CASES[case]:
        related = held(case, "related").requires_grad_()
        pairs = cross_entropy(related, held(case, "sentence")) / len(related)
        assert close(pairs.item(), CASES[case]["sentence_loss"])
        loss = loss + pairs
    loss.backward()
    if case.endswith("nothing_masked"):
        assert loss.item() == pytest.approx(CASES[case]["sentence_loss"])
        return
    assert close(loss.item(), CASES[case]["loss"])
    assert scores.grad is not None
    assert close(scores.grad, held(case, "grad_scores"))


def golden_network(head: str) -> Pretrained:
    """Return the tiny network of the golden file, with dropout off."""
    labels = {"vqa": 3129, "nlvr": 2}.get(head, 2)
    network = HEADS[head](VisualBertConfig(**MODELS["config"], num_labels=labels, pad_token_id=0))
    state = network.state_dict()
    for key in state:
        name = next((n for n in (f"weight/{key}", f"weight/{head}:{key}") if n in MODEL_VALUES), None)
        if name is not None:
            state[key] = torch.from_numpy(MODEL_VALUES[name].copy())
    network.load_state_dict(state)
    network.tie_weights()
    return network.eval()


def golden_batch(head: str) -> tuple[Packed, Labels, int]:
    """Return the inputs of the golden file as a pack, its labels, and the number of examples."""
    given = {key.split("/in/")[1]: MODEL_VALUES[key] for key in MODEL_VALUES if key.startswith(f"{head}/in/")}
    labels, flat = given["labels"], {}
    for key, array in given.items():
        flat[key] = array.reshape(-1, *array.shape[2:]) if head == "multichoice" and key != "labels" else array
    sequences, reads = [], []
    for row in range(len(flat["ids"])):
        text, regions = int(flat["mask"][row].sum()), int(flat["image_mask"][row].sum())
        mentions = None
        if "alignment" in flat:
            mentions = tuple(tuple(int(p) for p in places if p >= 0) for places in flat["alignment"][row][:regions])
        sequence = Encoded(
            flat["ids"][row][:text].tolist(),
            flat["types"][row][:text].tolist(),
            (flat["features"][row],),
            np.arange(regions),
            flat["visual_types"][row][:regions],
            mentions=mentions,
        )
        sequences.append(sequence)
        phrases = [int(place) for place in given["position"][row] if place >= 0] if head == "flickr" else []
        masked = np.flatnonzero(labels[row] != -1).tolist() if head == "pretraining" else []
        everywhere = [*phrases, *range(text, text + regions)]
        reads.append({"vqa": [text - 2], "flickr": everywhere, "pretraining": [0, *masked]}.get(head, [0]))
    packed = pack(sequences, reads)
    order, count = list(packed.order), len(labels)
    if head == "vqa":
        return packed, Labels(soft=torch.from_numpy(labels)[order]), count
    if head == "nlvr":
        return packed, Labels(classes=torch.from_numpy(labels)[order]), count
    if head == "multichoice":
        places = {at: place for place, at in enumerate(order)}
        choices = tuple(tuple(places[4 * row + choice] for choice in range(4)) for row in range(count))
        return packed, Labels(classes=torch.from_numpy(labels), choices=choices), count
    if head == "flickr":
        shares = []
        for at in order:
            phrases, regions = len(reads[at]) - len(sequences[at].rows), len(sequences[at].rows)
            shares.append(torch.from_numpy(labels[at][:phrases, :regions].copy()))
        return packed, Labels(shares=tuple(shares)), count
    starts = np.cumsum([0, *packed.read_lengths[:-1]])
    words = [int(labels[at][place]) for at in order for place in reads[at][1:]]
    rows = [int(start) + 1 + n for start, at in zip(starts, order, strict=True) for n in range(len(reads[at]) - 1)]
    every = Labels(
        words=torch.tensor(words),
        word_rows=torch.tensor(rows),
        own=torch.from_numpy(given["sentence"])[order],
        own_rows=torch.from_numpy(starts),
    )
    return packed, every, count


@pytest.mark.parametrize("head", HEADS)
def test_packed_network_equals_the_golden_model(head: str) -> None:
    """Loss and the gradient of every tensor equal the authors' code and transformers, over packed sequences."""
    network = golden_network(head)
    packed, labels, count = golden_batch(head)
    states = read_states(cast(Any, network.get_submodule("visual_bert")), packed)
    terms = losses(network, states, packed, labels)
    counts = [int(labels.words.numel()), count] if labels.words is not None else [count]
    loss = torch.stack([term / number for term, number in zip(terms, counts, strict=True)]).sum()
    loss.backward()
    assert close(loss.item(), MODEL_VALUES[f"{head}/loss"])
    assert close(loss.item(), MODEL_VALUES[f"{head}/transformers/loss"])
    norms = MODELS["heads"][head]["gradients"]["norms"]
    largest = max(norms.values())
    for name, parameter in network.named_parameters():
        if f"{head}/grad/{name}" not in MODEL_VALUES:
            assert parameter.grad is None or not parameter.grad.any(), name
            continue
        golden = MODEL_VALUES[f"{head}/grad/{name}"]
        assert parameter.grad is not None, name
        # These gradients are zero by mathematics, since softmax ignores a shift. What they hold is rounding.
        zero = name.endswith("key.bias") or (head, name) == ("multichoice", "cls.bias")
        scale = largest if zero else max(float(np.abs(golden).max()), 1e-3 * largest)
        assert close(parameter.grad[: len(golden)], golden, scale), name
        assert float(parameter.grad.norm()) == pytest.approx(norms[name], rel=1e-4, abs=1e-5 * largest), name


@pytest.mark.parametrize("case", TARGETS["vqa"]["cases"], ids=lambda case: case["name"])
def test_soft_answers_are_the_authors(case: dict[str, Any]) -> None:
    """Votes give the authors' weights, answer by answer as it is written. Their code fails where ours need not."""
    answers = case.get("list", TARGETS["vqa"]["list"])
    known = {answer: at for at, answer in enumerate(answers) if answer != "<unk>"}
    found = {str(known[each]): weight for each, weight in soft_answers(case["answers"]).items() if each in known}
    if "error" in case:
        assert all(0 < weight <= 1 for weight in found.values())
        return
    assert found == pytest.approx(case["scores"], abs=1e-6)


@pytest.mark.parametrize("case", TARGETS["flickr"]["cases"], ids=lambda case: case["name"])
def test_region_shares_are_the_authors(case: dict[str, Any], tmp_path: Path) -> None:
    """Each phrase spreads 1 over the regions that hit any of its boxes; a phrase without a region keeps a zero row."""
    if "error" in case:
        pytest.skip("the authors' code fails here")
    things = ""
    for each in case["objects"]:
        names = "".join(f"<name>{name}</name>" for name in each["names"])
        box = "<nobndbox>1</nobndbox>"
        if "box" in each:
            sides = zip(("xmin", "ymin", "xmax", "ymax"), each["box"], strict=True)
            box = "<bndbox>" + "".join(f"<{side}>{value}</{side}>" for side, value in sides) + "</bndbox>"
        things += f"<object>{names}{box}</object>"
    for folder in ("Annotations", "Sentences"):
        (tmp_path / folder).mkdir()
    other = "<object><name>99</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object>"
    for image, content, sentence in (("1", things, case["sentence"]), ("2", other, "[/EN#99/people A man] stands .")):
        (tmp_path / "Annotations" / f"{image}.xml").write_text(f"<annotation>{content}</annotation>")
        (tmp_path / "Sentences" / f"{image}.txt").write_text(sentence + "\n")
    (tmp_path / "val.txt").write_text("1\n2\n")
    task = open_task("flickr30k_entities", tmp_path, "val")
    asked = [example for example in task.examples() if example.image_ids == ("1",)]
    assert len(asked) == case["entries"]
    if not asked:
        return
    boxes = np.array(case["regions"], np.float32).reshape(-1, 4)
    rows = cast(np.ndarray, task.target(asked[0], [boxes]))
    expected = np.zeros_like(rows)
    for row, filled in zip(expected, case["rows"], strict=True):
        for at, share in filled.items():
            row[int(at)] = share
    assert np.abs(rows - expected).max(initial=0) <= 1e-6


class Script(random.Random):
    """Gives listed draws in order: `random()` a fraction, `choice` and `randrange` an index."""

    def __init__(self, draws: list[float]) -> None:
        super().__init__(0)
        self.left = list(draws)

    def random(self) -> float:
        return self.left.pop(0)

    def randrange(self, *_: Any) -> int:
        return int(self.left.pop(0))

    def choice(self, options: Any) -> Any:
        return options[int(self.left.pop(0))]


@pytest.mark.parametrize("case", MASKS["cases"], ids=lambda case: case["text"][:20])
def test_masks_for_given_draws(case: dict[str, Any]) -> None:
    """The same draws mask, replace and keep the same pieces as the authors' code."""
    pieces = [held if label == -1 else label for held, label in zip(case["ids"], case["labels"], strict=True)][1:-1]
    script = random.Random(case["seed"]) if case["seed"] is not None else Script(case["draws"])
    shown, hidden = mask_pieces(pieces, script, MASK, VOCABULARY)
    assert shown == case["ids"][1:-1]
    assert hidden == {at: label for at, label in enumerate(case["labels"][1:-1]) if label != -1}


def test_shares_of_masks() -> None:
    """Over 100,000 pieces the shares of masked, drawn and kept pieces are those that the golden file accepts."""
    accept = MASKS["frequencies_over_100k"]["accept"]
    shown, hidden = mask_pieces([5_000] * 100_000, random.Random(1), MASK, VOCABULARY)
    masked = sum(shown[at] == MASK for at in hidden) / len(hidden)
    kept = sum(shown[at] == 5_000 for at in hidden) / len(hidden)
    assert accept["predicted"][0] <= len(hidden) <= accept["predicted"][1]
    assert accept["to_mask_share"][0] <= masked <= accept["to_mask_share"][1]
    assert accept["unchanged_share"][0] <= kept <= accept["unchanged_share"][1]


@pytest.mark.parametrize(
    "case", [c for c in PAIRS["cut"] if c["b"] is not None], ids=lambda c: f"{c['length_a']}+{c['length_b']}"
)
def test_the_authors_cut_of_pairs(case: dict[str, Any]) -> None:
    """The authors' cut, with its slip, leaves the same pieces; ours leaves exactly as many as there is room for."""
    room = case["cap"] - 3
    first, second = cut_pair(case["a"], case["b"], room, "authors")
    assert (len(first), len(second)) == (case["kept_a"], case["kept_b"])
    assert [101, *first, 102, *([*second, 102] if second else [])] == case["ids"]
    first, second = cut_pair(case["a"], case["b"], room, "longer-first")
    assert len(first) + len(second) == min(room, case["length_a"] + case["length_b"])
    assert first == case["a"][: len(first)]
    assert second == case["b"][: len(second)]


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a vocabulary in which the word wN has the number N."""
    words = [f"w{at}" for at in range(VOCABULARY)]
    for at, name in enumerate(("[UNK]", "[CLS]", "[SEP]", "[MASK]"), start=100):
        words[at] = name
    path = tmp_path_factory.mktemp("numbered") / "vocab.txt"
    path.write_text("\n".join(words))
    return path


@pytest.mark.parametrize(
    "case",
    [c for c in PAIRS["cut"] if "error" not in c.get("vcr", {"error": ""})],
    ids=lambda c: f"{c['length_a']}+{c['length_b']}",
)
def test_the_authors_cut_of_choices(numbered: Path, case: dict[str, Any]) -> None:
    """VCR has the other rule: the front of the choice is cut, and never the context."""
    encoder = InputEncoder(numbered, max_length=case["cap"])
    context, choice = (tuple(f"w{at}" for at in case[key]) for key in "ab")
    example = MultipleChoice("1", ("",), (), context, (choice,), ())
    (found,) = encoder.multiple_choice(example, [regions("", 1, 4)])
    kept = case["b"][len(case["b"]) - case["vcr"]["kept_b"] :]
    assert found.input_ids == [101, *case["a"][: case["vcr"]["kept_a"]], 102, *([*kept, 102] if kept else [])]
    assert (len(found.input_ids), sum(found.token_type_ids)) == (case["vcr"]["length"], case["vcr"]["segments_b"])


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> CaptionPairs:
    folder = tmp_path_factory.mktemp("captions")
    listed = [{"id": each, "image_id": image, "caption": text} for each, image, text in PAIRS["captions"]]
    images = [
        {"id": image, "file_name": f"COCO_val2014_{image:012d}.jpg"}
        for image in sorted({c[1] for c in PAIRS["captions"]})
    ]
    (folder / "captions_val2014.json").write_text(json.dumps({"images": images, "annotations": listed}))
    return CaptionPairs(folder, "val2014")


@pytest.mark.parametrize("item", range(len(PAIRS["items"])))
def test_pairs_of_captions_for_given_draws(captions: CaptionPairs, item: int) -> None:
    """The same draws choose the same second caption, and mask the first, then the second text."""
    case = PAIRS["items"][item]
    script = random.Random(case["seed"]) if case["seed"] is not None else Script(case["draws"])
    example = list(captions.examples())[case["item"]]
    if "error" in case:  # the only caption of an image: ours takes one of another image
        assert captions.drawn(example, random.Random(0)).own is False
        return
    pair = captions.drawn(example, script)
    texts = {str(each): text for each, _, text in PAIRS["captions"]}
    assert (pair.second, pair.own) == (texts[str(case["caption_b"])], bool(case["label"]))
    original = [held if label == -1 else label for held, label in zip(case["ids"], case["labels"], strict=True)]
    split = case["segments"].index(1)
    first, in_first = mask_pieces(original[1 : split - 1], script, MASK, VOCABULARY)
    second, in_second = mask_pieces(original[split:-1], script, MASK, VOCABULARY)
    assert [101, *first, 102, *second, 102] == case["ids"]
    places = {1 + at: piece for at, piece in in_first.items()} | {split + at: piece for at, piece in in_second.items()}
    assert places == {at: label for at, label in enumerate(case["labels"]) if label != -1}


@pytest.mark.parametrize("case", PAIRS["vqa_pretraining"], ids=lambda case: case["answer"])
def test_the_authors_text_of_questions(case: dict[str, Any], tmp_path: Path) -> None:
    """A question and its answer, letter by letter as in the authors' code, are masked as the golden draws say."""
    words = [*case["question_tokens"], "?", *case["answer"].replace(" ", "")]
    original = [held if label == -1 else label for held, label in zip(case["ids"], case["labels"], strict=True)]
    split = {"fire": ["fire"], "hydrant": ["hydra", "##nt"]}
    pieces = [piece for word in words for piece in split.get(word, [word])]
    vocabulary = [f"[unused{at}]" for at in range(VOCABULARY)]
    for piece, at in zip(["[CLS]", *pieces, "[SEP]"], original, strict=True):
        vocabulary[at] = piece
    vocabulary[100], vocabulary[MASK] = "[UNK]", "[MASK]"
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    for name in ("config.json", "visualbert_core.json"):
        text = (WEIGHTS / "visualbert-vqa" / name).read_text()
        (tmp_path / name).write_text(re.sub(r'"vocab_size": \d+', f'"vocab_size": {VOCABULARY}', text))
    start = Start(weights="random", objective="masked-words", answer_letters=True)
    (tmp_path / "answers.txt").write_text("<unk>\nyes\n")
    trainable = load_trainable(tmp_path, Question, start)
    question = Question("1", ("",), " ".join(case["question_tokens"]).capitalize() + "?")
    size = cast(ReadsRegions, trainable.reads).size
    item = trainable.encode(question, (regions("", 2, size),), case["answer"], Script(case["draws"]))
    assert item.content.sequences[0].input_ids == case["ids"]
    assert item.content.hidden == {at: label for at, label in enumerate(case["labels"]) if label != -1}


def test_an_image_without_regions_adds_nothing() -> None:
    """The loss and the gradient of a caption whose image has no region are zero, not NaN."""
    logits = nn.Parameter(torch.zeros(2, 0))
    divergence(logits, torch.zeros(2, 0)).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


ROWS = np.random.default_rng(5)


def regions(image_id: str, count: int, size: int) -> Regions:
    """Return drawn regions of an image."""
    corners = ROWS.uniform(0, 30, (count, 2))
    boxes = np.concatenate((corners, corners + ROWS.uniform(5, 30, (count, 2))), 1).astype(np.float32)
    zeros = np.zeros(count, np.int16)
    features = ROWS.normal(0, 1, (count, size)).astype(np.float16)
    return Regions(image_id, 64, 64, boxes, zeros, zeros.astype(np.float32), features, "")


def lessons(form: type) -> list[tuple[Any, int, Any]]:
    """Return examples of a form with the number of their images and their targets; their lengths differ."""
    if form is Question:
        texts = ("what color is the small square ?", "how many circles ?", "is there a red triangle left of it ?")
        soft: list[Any] = [{"red": 1.0, "blue": 0.6, "never": 0.3}, {"never": 1.0}, {"yes": 0.9}]
        return [(Question(str(n), ("",), text), 1, soft[n]) for n, text in enumerate(texts)]
    if form is Statement:
        return [(Statement(str(n), ("", ""), "a red square " * (n + 1)), 2, n % 2) for n in range(3)]
    if form is MultipleChoice:
        texts = (("red",), ("the", (0,), "is", "small"), ("blue", "circle"), ((1,),))
        mix = [MultipleChoice(str(n), ("",), ("square", "circle"), ("what", (n % 2,)), texts, (0, 1)) for n in range(3)]
        return [(each, 1, n) for n, each in enumerate(mix)]
    if form is Grounding:
        phrases = (Phrase(0, 2, "red square"), Phrase(3, 5, "blue circle"))
        words = ("red", "square", "near", "blue", "circle")
        shares = [np.array([[0.5, 0.5, 0], [0, 0, 0]]), np.array([[0, 1, 0, 0]]), np.zeros((1, 2))]
        asked = [Grounding(str(n), ("",), words[: 5 - n], phrases[: len(rows)]) for n, rows in enumerate(shares)]
        return [(each, 1, rows.astype(np.float32)) for each, rows in zip(asked, shares, strict=True)]
    pairs = [("a red square near a blue circle", "a small triangle"), ("two circles", "a big red circle is left of it")]
    return [(CaptionPair(str(n), ("",), *pair, own=bool(n)), 1, None) for n, pair in enumerate(pairs)]


@pytest.mark.parametrize("lengths", [(200, 5), (5, 200), (200, 200)])
def test_a_long_caption_fits_under_the_authors_cut(lengths: tuple[int, int]) -> None:
    """The authors' cut leaves a long first caption whole. The network has 64 positions, so the caption ends there."""
    start = Start(weights="random", pair_cut="authors")
    trainable = load_trainable(WEIGHTS / "visualbert-vqa", CaptionPair, start)
    first, second = (" ".join(["red"] * length) for length in lengths)
    pair = CaptionPair("1", ("",), first, second, own=True)
    visual = (regions("1", 2, cast(ReadsRegions, trainable.reads).size),)
    item = trainable.encode(pair, visual, None, random.Random(0))
    assert torch.isfinite(trainable.losses(trainable.prepare([item]))).all()


@pytest.mark.parametrize("form", [Question, Statement, MultipleChoice, Grounding, CaptionPair])
def test_a_trainable_equals_transformers_on_padded_inputs(form: type, tmp_path: Path) -> None:
    """From examples to gradients: packed sums over counts equal the loss of transformers' head on padded inputs."""
    folder = WEIGHTS / f"visualbert-{FOLDERS.get(form, 'vqa')}"
    weights: Any = "random" if form is CaptionPair else "checkpoint"
    trainable = load_trainable(folder, form, Start(weights=weights, seed=3, dropout=0.0))
    network = cast(Pretrained, trainable.network)
    items = []
    for number, (example, images, target) in enumerate(lessons(form)):
        rows = target.shape[1] if isinstance(target, np.ndarray) else 3 + number
        visual = tuple(regions(str(at), rows, cast(ReadsRegions, trainable.reads).size) for at in range(images))
        items.append(trainable.encode(example, visual, target, random.Random(number)))
    counts = torch.tensor([sum(item.counts[term] for item in items) for term in range(len(trainable.terms))])
    ours = (trainable.losses(trainable.prepare(items)) / counts.clamp(min=1)).sum()
    ours.backward()
    trainable.save(tmp_path, None, None)
    theirs = getattr(transformers, type(network).__name__).from_pretrained(tmp_path)
    inputs = trainable.padded(items)
    if form is MultipleChoice:
        inputs["image_text_alignment"] = inputs["image_text_alignment"].flatten(0, 1)
    loss = theirs(**inputs).loss
    loss.backward()
    assert ours.item() == pytest.approx(loss.item(), rel=1e-5)
    known = {name: each.grad for name, each in theirs.named_parameters() if each.grad is not None}
    largest = max(float(each.abs().max()) for each in known.values())
    for name, parameter in network.named_parameters():
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        expected = known.get(name, torch.zeros_like(parameter))
        assert close(found, expected, max(float(expected.abs().max()), 0.1 * largest)), name


def test_transformers_reads_what_a_training_saves(tmp_path: Path) -> None:
    """A saved folder holds everything that `load_model` needs, and says what it was trained on."""
    trainable = load_trainable(WEIGHTS / "visualbert-vqa", Question, Start(weights="new-head", seed=1))
    trainable.save(tmp_path, "vqa", "a space")
    assert load_model(tmp_path, Question).reads == ReadsRegions(cast(ReadsRegions, trainable.reads).size, "a space")
    with pytest.raises(CheckpointError, match="trained for vqa"):
        load_model(tmp_path, Statement)
    again = load_trainable(WEIGHTS / "visualbert-vqa", Question, Start(weights="new-head", seed=1))
    assert all(
        torch.equal(a, b) for a, b in zip(trainable.network.parameters(), again.network.parameters(), strict=True)
    )


@pytest.mark.parametrize(("task", "form"), [("vqa", Question), ("nlvr2", Statement), ("vcr", MultipleChoice)])
def test_a_new_head_is_random_although_the_old_one_fits(task: str, form: type) -> None:
    """A new head has nothing of the old head, whose rows may stand for other answers. The trunk is that of the file."""
    folder = WEIGHTS / f"visualbert-{task}"
    kept = load_trainable(folder, form, Start()).network.state_dict()
    fresh = load_trainable(folder, form, Start(weights="new-head")).network.state_dict()
    differ = {key for key in kept if not torch.equal(kept[key], fresh[key])}
    assert "cls.weight" in differ
    assert all(key.startswith("cls.") for key in differ)
