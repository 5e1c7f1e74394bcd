"""The authors' input layouts, token for token.

Half of the tests compare with values made by the authors' own data code and BERT's vocabulary. Those files live outside
this repository (folder in VISUALBERT_SHARED_DATA, or `../shared/data`), and without them these tests are skipped. The
other half are small cases with a vocabulary of a few words, where a reader can count every position.
"""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from visualbert_core.errors import CheckpointError
from visualbert_core.models.visualbert import Encoded, InputEncoder, collate
from visualbert_core.models.visualbert.inputs import pythia_tokens, read_lines, repeated
from visualbert_core.schema import Grounding, MultipleChoice, Phrase, Question, Regions, Statement, Token

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("?", "'", "s", ".", "what", "is", "he", "holding", "cat", "dog", "red", "cafe", "dining", "##table", "casey")
VOCAB = (*SPECIAL, *WORDS, "riley", "quinn", "and", "a", "left", "##s", "car")


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("".join(f"{word}\n" for word in VOCAB), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def encoder(vocab: Path) -> InputEncoder:
    return InputEncoder(vocab)


def regions(count: int, size: int = 4, image_id: str = "i") -> Regions:
    """Make regions whose features hold their own index, so that a test sees which regions were taken."""
    features = np.repeat(np.arange(count, dtype=np.float16)[:, None], size, axis=1)
    boxes = np.tile(np.array([10, 20, 30, 60], np.float32), (count, 1))
    return Regions(image_id, 100, 200, boxes, np.zeros(count, np.int16), np.ones(count, np.float32), features, "")


def question(text: str) -> Question:
    return Question("q", ("i",), text)


def spelled(encoded: Encoded) -> str:
    return " ".join(VOCAB[index] for index in encoded.input_ids)


def choices(
    context: tuple[Token, ...],
    *texts: tuple[Token, ...],
    objects: tuple[str, ...] = ("person", "diningtable", "person"),
    mentioned: tuple[int, ...] = (0, 1, 2),
) -> MultipleChoice:
    return MultipleChoice("m", ("i",), objects, context, texts, mentioned)


# ---------------------------------------------------------------------------------------------------------------------
# the authors' own inputs


@pytest.fixture(scope="module")
def shared() -> Path:
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("VISUALBERT_SHARED_DATA", beside))
    if not (folder / "input_layouts.json").is_file():
        pytest.skip(f"no input_layouts.json in {folder}: set VISUALBERT_SHARED_DATA to the folder that has it")
    return folder


@pytest.fixture(scope="module")
def layouts(shared: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((shared / "input_layouts.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def bert(shared: Path) -> InputEncoder:
    return InputEncoder(shared / "bert-base-uncased-vocab.txt")


def test_official_lists_are_read(shared: Path, bert: InputEncoder) -> None:
    """BERT's published vocabulary and Pythia's published answers pass the checks of their lines."""
    assert bert.vocab_size == 30522
    answers = read_lines(shared / "vqa" / "answers_vqa.txt")
    assert (len(answers), answers[0], repeated(answers)) == (3129, "<unk>", None)


def assert_text(found: Encoded, expected: dict[str, Any]) -> None:
    assert (list(found.input_ids), list(found.token_type_ids)) == (expected["input_ids"], expected["token_type_ids"])


def test_authors_vqa(layouts: dict[str, Any], bert: InputEncoder) -> None:
    """Every VQA question has the authors' tokens, and the head reads the position that the authors read."""
    assert len(layouts["vqa"]) == 150
    for expected in layouts["vqa"]:
        encoded = bert.question(question(expected["question"]), [regions(3)])
        assert_text(encoded, expected)
        assert int(collate([encoded])["attention_mask"].sum()) - 2 == expected["head_index"]


def test_authors_nlvr2(layouts: dict[str, Any], bert: InputEncoder) -> None:
    """Every NLVR2 sentence has the authors' tokens."""
    assert len(layouts["nlvr2"]) == 100
    for expected in layouts["nlvr2"]:
        example = Statement("s", ("i", "j"), expected["sentence"])
        assert_text(bert.statement(example, [regions(2), regions(3)]), expected)


def test_authors_vcr(layouts: dict[str, Any], bert: InputEncoder, shared: Path) -> None:
    """Every VCR choice, Q→A and QA→R, has the authors' names, tokens, types and alignment."""
    words = (shared / "bert-base-uncased-vocab.txt").read_text(encoding="utf-8").split("\n")
    items = {item["annot_id"]: item for item in layouts["vcr"]["items"]}
    assert len(layouts["vcr"]["expected"]) == 54
    for expected in layouts["vcr"]["expected"]:
        item = items[expected["annot_id"]]
        context = item["question"]
        if expected["mode"] == "rationale":
            context = context + item["answer_choices"][item["answer_label"]]
        example = choices(
            mixed(context),
            *(mixed(text) for text in item[f"{expected['mode']}_choices"]),
            objects=tuple(item["objects"]),
            mentioned=tuple(expected["detections_used"]),
        )
        encoded = bert.multiple_choice(example, [regions(1 + len(item["objects"]))])
        for found, choice in zip(encoded, expected["choices"], strict=True):
            assert [words[index] for index in found.input_ids] == choice["tokens"]
            assert list(found.token_type_ids) == choice["token_type_ids"]
            assert [list(positions) for positions in found.mentions or ()] == choice["image_text_alignment"]


def mixed(tokens: list[str | list[int]]) -> tuple[Token, ...]:
    return tuple(token if isinstance(token, str) else tuple(token) for token in tokens)


def test_authors_flickr(layouts: dict[str, Any], bert: InputEncoder) -> None:
    """Every caption has the authors' tokens, and a phrase that ends at a given word has the authors' query position."""
    assert len(layouts["flickr30k"]) == 30
    for expected in layouts["flickr30k"]:
        words = tuple(expected["sentence"].split(" "))
        # A phrase from the first word on occurs once, so only the position of its last word is tested.
        phrases = tuple(Phrase(0, last + 1, "") for last in expected["entity_last_word_index"])
        encoded = bert.grounding(Grounding("g", ("i",), words, phrases), [regions(3)])
        assert_text(encoded, expected)
        assert list(encoded.phrases or ()) == expected["flickr_position"]


# ---------------------------------------------------------------------------------------------------------------------
# VQA v2


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("What is he holding?", "[CLS] what is he holding ? [MASK] [SEP]"),
        ("What, is he?? holding", "[CLS] what is he holding ? [MASK] [SEP]"),
        ("What's he holding", "[CLS] what ' s he holding ? [MASK] [SEP]"),
        ("a Café.", "[CLS] a cafe . ? [MASK] [SEP]"),
        ("dogs zebra", "[CLS] dog ##s [UNK] ? [MASK] [SEP]"),
        ("", "[CLS] ? [MASK] [SEP]"),
    ],
)
def test_question_layout(encoder: InputEncoder, text: str, layout: str) -> None:
    """One "?" and one [MASK] end every question, whatever its own punctuation, case and accents."""
    encoded = encoder.question(question(text), [regions(2)])
    assert spelled(encoded) == layout
    assert set(encoded.token_type_ids) == {0}


def test_pythia_tokens() -> None:
    """Commas and question marks vanish inside words too, and a space separates 's."""
    tokens = pythia_tokens("Is the man's 3,000 ft? sign-post up ?")
    assert " ".join(tokens) == "is the man ' s 3000 ft sign - post up"
    assert pythia_tokens("\"'s") == ["\" '", "s"]


def test_regions_of_a_question_have_type_0(encoder: InputEncoder) -> None:
    """Regions of a question have visual type 0, with which the authors trained VQA; transformers' default is 1."""
    tensors = collate([encoder.question(question("a"), [regions(3)])])
    assert tensors["visual_token_type_ids"].tolist() == [[0, 0, 0]]


def test_a_question_too_long_loses_its_mask(vocab: Path) -> None:
    """Truncation keeps the first tokens and ends with [SEP], as the authors' code does, so "? [MASK]" is lost first."""
    encoder = InputEncoder(vocab, max_length=6)
    assert (
        spelled(encoder.question(question("what is he holding now"), [regions(1)])) == "[CLS] what is he holding [SEP]"
    )
    assert spelled(encoder.question(question("what is"), [regions(1)])) == "[CLS] what is ? [MASK] [SEP]"


# ---------------------------------------------------------------------------------------------------------------------
# NLVR2


def test_statement_layout(encoder: InputEncoder) -> None:
    """Both images are in one sequence, left before right, with visual types 0 and 1."""
    encoded = encoder.statement(Statement("s", ("l", "r"), "A cat is left."), [regions(2), regions(3)])
    assert spelled(encoded) == "[CLS] a cat is left . [SEP]"
    assert encoded.features[:, 0].tolist() == [0, 1, 0, 1, 2]
    assert encoded.visual_types.tolist() == [0, 0, 1, 1, 1]


def test_statement_keeps_144_regions_an_image(encoder: InputEncoder) -> None:
    """A statement keeps 144 regions per image, because the authors extracted 150 and trained with the first 144."""
    encoded = encoder.statement(Statement("s", ("l", "r"), "a"), [regions(150), regions(10)])
    assert encoded.visual_types.tolist() == [0] * 144 + [1] * 10
    assert encoded.features[143, 0] == 143


# ---------------------------------------------------------------------------------------------------------------------
# VCR


def test_choice_layout(encoder: InputEncoder) -> None:
    """Tags become names, the regions are the whole image and the mentioned objects, and positions count words, not
    pieces."""
    example = choices(("what", "is", (0,), "holding", "?"), ((1,), "and", (0,), "."), ("he", "is", (2,)))
    first, second = encoder.multiple_choice(example, [regions(4)])
    assert spelled(first) == "[CLS] what is casey holding ? [SEP] dining ##table and casey . [SEP]"
    assert list(first.token_type_ids) == [0] * 7 + [1] * 6
    # "casey" of the choice is token 10, but word 2 of a text that starts at 7, because diningtable is one word: 9.
    assert first.mentions == ((), (3, 9), (7,), ())
    assert first.features[:, 0].tolist() == [0, 1, 2, 3]
    assert set(first.visual_types.tolist()) == {0}
    assert second.mentions == ((), (3,), (), (9,))


def test_names_restart_in_every_choice(encoder: InputEncoder) -> None:
    """A person first mentioned in a choice is Casey again although the context has a Casey, and choices share no
    names."""
    example = choices(("what", (0,)), ((2,), "is", (0,)), ((1,), (2,), (0,)), objects=("person",) * 3)
    first, second = encoder.multiple_choice(example, [regions(4)])
    assert spelled(first) == "[CLS] what casey [SEP] casey is casey [SEP]"
    assert spelled(second) == "[CLS] what casey [SEP] casey riley casey [SEP]"


def test_names_in_order_of_mention(encoder: InputEncoder) -> None:
    """People are Casey, Riley, … in order of mention, and the sixteenth is Casey again. One tag may hold several
    people. Objects do not count."""
    example = choices((tuple(range(15, -1, -1)),), ("a",), objects=("person",) * 16, mentioned=(0, 15))
    (encoded,) = encoder.multiple_choice(example, [regions(17)])
    words = spelled(encoded).split()
    assert (words[1], words[2], words[15], words[16]) == ("casey", "riley", "quinn", "casey")
    assert encoded.mentions == ((), (16,), (1,))
    (encoded,) = encoder.multiple_choice(choices((), ((1,), (0,), (2,))), [regions(4)])
    assert spelled(encoded) == "[CLS] [SEP] dining ##table casey riley [SEP]"


def test_a_choice_too_long_loses_its_front(vocab: Path) -> None:
    """Truncation removes the front of the choice. A removed tag is not aligned. A remaining tag keeps its word index,
    even beyond the end of the text."""
    encoder = InputEncoder(vocab, max_length=8, num_positions=12)
    example = choices(("what", "is"), ((0,), "a", "a", "cat", "and", (2,)))
    (encoded,) = encoder.multiple_choice(example, [regions(4)])
    assert spelled(encoded) == "[CLS] what is [SEP] cat and riley [SEP]"
    assert encoded.mentions == ((), (), (), (9,))


def test_alignment_stays_inside_the_position_table(vocab: Path) -> None:
    """A word index outside the position table is dropped, because it would be an index error in the network."""
    encoder = InputEncoder(vocab, max_length=8, num_positions=9)
    example = choices(("what", "is"), ((0,), "a", "a", "cat", "and", (2,)))
    (encoded,) = encoder.multiple_choice(example, [regions(4)])
    assert encoded.mentions == ((), (), (), ())


def test_a_context_that_leaves_no_room(vocab: Path) -> None:
    """A context as long as the limit leaves an empty choice without a second [SEP], as in the authors' code."""
    encoder = InputEncoder(vocab, max_length=6)
    (encoded,) = encoder.multiple_choice(choices(("a",) * 9, ("cat",)), [regions(4)])
    assert spelled(encoded) == "[CLS] a a a [SEP]"


def test_objects_without_a_region_are_absent(encoder: InputEncoder) -> None:
    """In the wrong-image baseline an image may have fewer regions: objects without a region are left out, and the text
    stays."""
    example = choices(("what", (2,)), ("a", (0,)), mentioned=(2, 0))
    (full,), (short,) = (encoder.multiple_choice(example, [regions(n)]) for n in (4, 2))
    assert full.features[:, 0].tolist() == [0, 1, 3]
    assert full.mentions == ((), (5,), (2,))
    assert short.features[:, 0].tolist() == [0, 1]
    assert short.mentions == ((), (5,))
    assert short.input_ids == full.input_ids


# ---------------------------------------------------------------------------------------------------------------------
# Flickr30K Entities


def test_phrase_positions(encoder: InputEncoder) -> None:
    """A phrase is queried at the last piece of its last word."""
    words = ("a", "diningtable", "and", "dogs", ".")
    encoded = encoder.grounding(Grounding("g", ("i",), words, (Phrase(0, 2, ""), Phrase(3, 4, ""))), [regions(2)])
    assert spelled(encoded) == "[CLS] a dining ##table and dog ##s . [SEP]"
    assert encoded.phrases == (3, 6)


def test_a_repeated_phrase_is_asked_at_its_first_occurrence(encoder: InputEncoder) -> None:
    """The authors search for the words of a phrase, so the second "a cat" is queried at the first one; "A" is not
    "a"."""
    words = ("a", "cat", "and", "a", "cat", "A", "cat")
    phrases = (Phrase(3, 5, "a cat"), Phrase(5, 7, "A cat"))
    assert encoder.grounding(Grounding("g", ("i",), words, phrases), [regions(2)]).phrases == (2, 7)


def test_a_phrase_beyond_the_limit(vocab: Path) -> None:
    """A phrase beyond the limit is queried at the last remaining word, never at padding."""
    encoder = InputEncoder(vocab, max_length=5)
    encoded = encoder.grounding(
        Grounding("g", ("i",), ("a", "cat", "and", "a", "dog"), (Phrase(3, 5, ""),)), [regions(2)]
    )
    assert spelled(encoded) == "[CLS] a cat and [SEP]"
    assert encoded.phrases == (3,)


# ---------------------------------------------------------------------------------------------------------------------
# recipe hf-docs


@pytest.fixture(scope="module")
def documented(vocab: Path) -> InputEncoder:
    return InputEncoder(vocab, recipe="hf-docs")


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("What is he holding?", "[CLS] what is he holding ? [SEP]"),
        ("What?  is he", "[CLS] what ? is he [SEP]"),
        ("What's he?", "[CLS] what ' s he ? [SEP]"),
        ("", "[CLS] [SEP]"),
    ],
)
def test_a_documented_question(documented: InputEncoder, text: str, layout: str) -> None:
    """The question is tokenised as it is, without an added [MASK] or "?", so the head reads its end."""
    encoded = documented.question(question(text), [regions(2)])
    assert spelled(encoded) == layout
    assert set(encoded.token_type_ids) == {0}


def test_documented_visual_types_are_1(documented: InputEncoder) -> None:
    """Every region of every task has visual type 1, and NLVR2's two images still share one sequence."""
    (choice,) = documented.multiple_choice(choices(("a",), ("a",)), [regions(4)])
    statement = documented.statement(Statement("s", ("l", "r"), "A cat."), [regions(150), regions(3)])
    caption = documented.grounding(Grounding("g", ("i",), ("a",), ()), [regions(3)])
    for encoded, count in ((documented.question(question("a"), [regions(3)]), 3), (choice, 4), (caption, 3)):
        assert encoded.visual_types.tolist() == [1] * count
    assert statement.visual_types.tolist() == [1] * (144 + 3)
    assert statement.features[144:, 0].tolist() == [0, 1, 2]
    assert spelled(statement) == "[CLS] a cat . [SEP]"
    assert str(collate([statement])["visual_token_type_ids"].dtype) == "torch.int64"


def test_documented_choices(encoder: InputEncoder, documented: InputEncoder) -> None:
    """Tags become class names, also for people, and the network gets no alignment; the regions are the same."""
    example = choices(("what", (0,)), ((1,), (2,)), objects=("cat", "diningtable", "person"))
    (encoded,) = documented.multiple_choice(example, [regions(4)])
    # "person" is not in this vocabulary, so it is [UNK]
    assert spelled(encoded) == "[CLS] what cat [SEP] dining ##table [UNK] [SEP]"
    (original,) = encoder.multiple_choice(example, [regions(4)])
    assert spelled(original) == "[CLS] what cat [SEP] dining ##table casey [SEP]"
    assert encoded.mentions is None
    assert "image_text_alignment" not in collate([(encoded,)])
    assert encoded.features.tolist() == original.features.tolist()


def test_documented_phrases(encoder: InputEncoder, documented: InputEncoder) -> None:
    """The recipe queries phrases at the positions of "original", and a repeated phrase at its first occurrence."""
    example = Grounding("g", ("i",), ("a", "dogs", "and", "a", "dogs"), (Phrase(0, 2, ""), Phrase(3, 5, "")))
    found = [each.grounding(example, [regions(2)]) for each in (encoder, documented)]
    assert [each.phrases for each in found] == [(3, 3)] * 2
    assert found[0].input_ids == found[1].input_ids


def test_recipes_that_do_not_exist(vocab: Path) -> None:
    """An unknown recipe, and `fix_quirks` with a recipe without quirks, are ValueErrors."""
    with pytest.raises(ValueError, match="recipe must be one of original, hf-docs, got 'hf'"):
        InputEncoder(vocab, recipe="hf")
    with pytest.raises(ValueError, match="fix_quirks belongs to recipe original, got 'hf-docs'"):
        InputEncoder(vocab, recipe="hf-docs", fix_quirks=True)


# ---------------------------------------------------------------------------------------------------------------------
# the authors' bugs turned off


@pytest.fixture(scope="module")
def fixed(vocab: Path) -> InputEncoder:
    return InputEncoder(vocab, fix_quirks=True)


def test_fixed_names_go_on_in_a_choice(fixed: InputEncoder) -> None:
    """A person first mentioned in a choice gets the next name, objects do not count, and choices share no names."""
    example = choices(((1,), (0,)), ((2,), "is", (0,)), ((0,), "and", (2,)))
    first, second = fixed.multiple_choice(example, [regions(4)])
    assert spelled(first) == "[CLS] dining ##table casey [SEP] riley is casey [SEP]"
    assert spelled(second) == "[CLS] dining ##table casey [SEP] casey and riley [SEP]"
    apart = choices(("a",), ((0,),), ((2,),))
    assert [spelled(each) for each in fixed.multiple_choice(apart, [regions(4)])] == ["[CLS] a [SEP] casey [SEP]"] * 2


def test_fixed_names_are_all_different(tmp_path: Path) -> None:
    """The 14 names are each used once before the first comes again; the authors' list has 'Peyton' twice."""
    people = ["casey", "riley", "jessie", "jackie", "avery", "jaime", "peyton", "kerry", "jody", "kendall", "skyler"]
    people += ["frankie", "pat", "quinn"]
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in (*SPECIAL, *people)))
    example = choices((tuple(range(15)),), ("casey",), objects=("person",) * 15, mentioned=())
    given = []
    for fix_quirks in (False, True):
        encoder = InputEncoder(tmp_path / "vocab.txt", fix_quirks=fix_quirks)
        (encoded,) = encoder.multiple_choice(example, [regions(16)])
        given.append([(*SPECIAL, *people)[index] for index in encoded.input_ids[1:16]])
    assert given == [[*people[:10], "peyton", *people[10:]], [*people, "casey"]]


def test_fixed_alignment_holds_word_pieces(fixed: InputEncoder) -> None:
    """A mention is aligned with all its word pieces at their real positions, also after split words."""
    example = choices(("dogs", (0,), "?"), ((1,), "and", (0,), "."))
    (encoded,) = fixed.multiple_choice(example, [regions(4)])
    assert spelled(encoded) == "[CLS] dog ##s casey ? [SEP] dining ##table and casey . [SEP]"
    assert encoded.mentions == ((), (3, 9), (6, 7), ())


def test_fixed_truncation_takes_the_contexts_end_first(vocab: Path) -> None:
    """The end of the context is removed first, for each choice, and a choice stays whole while it fits; alignment
    follows."""
    encoder = InputEncoder(vocab, max_length=9, fix_quirks=True)
    example = choices(("what", (0,), "is", (1,)), ("a", "cat", (1,)), ("a", (0,)))
    first, second = encoder.multiple_choice(example, [regions(4)])
    assert spelled(first) == "[CLS] what casey [SEP] a cat dining ##table [SEP]"
    assert first.mentions == ((), (2,), (6, 7), ())
    assert spelled(second) == "[CLS] what casey is dining [SEP] a casey [SEP]"
    assert second.mentions == ((), (2, 7), (4,), ())


def test_fixed_truncation_keeps_the_front_of_a_choice(vocab: Path) -> None:
    """A choice longer than the limit loses its end, and the context is removed completely."""
    encoder = InputEncoder(vocab, max_length=7, fix_quirks=True)
    (encoded,) = encoder.multiple_choice(choices(("what", "is"), ((0,), "a", "cat", (1,), (2,))), [regions(4)])
    assert spelled(encoded) == "[CLS] [SEP] casey a cat dining [SEP]"
    assert encoded.mentions == ((), (2,), (5,), ())


def test_a_fixed_phrase_is_asked_where_it_stands(vocab: Path, fixed: InputEncoder) -> None:
    """The second of two equal phrases is queried at its own last word piece, or at the last remaining one if it is cut
    off."""
    words = ("a", "dogs", "and", "a", "dogs")
    example = Grounding("g", ("i",), words, (Phrase(0, 2, "a dogs"), Phrase(3, 5, "a dogs")))
    assert fixed.grounding(example, [regions(2)]).phrases == (3, 7)
    assert InputEncoder(vocab, max_length=6, fix_quirks=True).grounding(example, [regions(2)]).phrases == (3, 4)


def test_fixing_quirks_changes_nothing_else(encoder: InputEncoder, fixed: InputEncoder) -> None:
    """Questions, statements, and choices and phrases without a quirk are encoded alike, with the same visual types."""
    examples = [
        (question("What is he, holding?"), [regions(3)]),
        (Statement("s", ("l", "r"), "A cat is left."), [regions(2), regions(3)]),
        (choices(("what", (0,)), ("he", "and", (0,)), ("a", (1,))), [regions(4)]),
        (Grounding("g", ("i",), ("a", "cat", "and", "dogs"), (Phrase(0, 2, ""), Phrase(3, 4, ""))), [regions(3)]),
    ]
    for example, images in examples[:2] + examples[3:]:
        before, after = (collate([each.encode(example, images)]) for each in (encoder, fixed))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    before, after = (collate([each.encode(*examples[2])]) for each in (encoder, fixed))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"image_text_alignment"}


# ---------------------------------------------------------------------------------------------------------------------
# geometry, padding, the vocabulary


def test_box_geometry(vocab: Path) -> None:
    """With geometry, six numbers relative to the image's size follow each feature."""
    encoder = InputEncoder(vocab, box_geometry=True)
    tensors = collate([encoder.question(question("a"), [regions(1, size=2)])])
    expected = [0, 0, 0.1, 0.1, 0.3, 0.3, 0.2, 0.2]  # box 10, 20, 30, 60 in an image of 100 × 200
    assert torch.allclose(tensors["visual_embeds"][0, 0], torch.tensor(expected))


def test_box_range_and_feature_scale(vocab: Path) -> None:
    """The box numbers are stretched from [0, 1] to the range, and the features are multiplied, with and without them.
    Plain features stay the array of the store."""
    encoder = InputEncoder(vocab, box_geometry=True, box_range=(-4, 4), feature_scale=0.25)
    image = regions(2, size=2)
    tensors = collate([encoder.question(question("a"), [image])])
    expected = [0, 0, -3.2, -3.2, -1.6, -1.6, -2.4, -2.4]  # the numbers of the test above, minus 0.5, times 8
    assert torch.allclose(tensors["visual_embeds"][0, 0], torch.tensor(expected))
    assert tensors["visual_embeds"][0, 1, :2].tolist() == (image.features[1] / 4).tolist() != [0, 0]
    without = InputEncoder(vocab, feature_scale=0.25).question(question("a"), [image])
    assert without.features.tolist() == (image.features / 4).tolist()
    assert InputEncoder(vocab).question(question("a"), [image]).images[0] is image.features


def test_collate_pads_exactly(encoder: InputEncoder) -> None:
    """Masks cover exactly the real entries, padding is 0, or -1 for positions, and the dtypes are the forward's."""
    words = ("a", "cat", "and", "a", "dog")
    one = encoder.grounding(Grounding("g", ("i",), words, (Phrase(0, 2, ""), Phrase(3, 5, ""))), [regions(1)])
    two = encoder.grounding(Grounding("g", ("i",), ("cat",), ()), [regions(3)])
    tensors = collate([one, two])
    assert {name: str(tensor.dtype) for name, tensor in tensors.items() if tensor.dtype != torch.int64} == {
        "visual_embeds": "torch.float32"
    }
    assert tensors["attention_mask"].tolist() == [[1] * 7, [1] * 3 + [0] * 4]
    assert tensors["input_ids"][1].tolist() == [2, VOCAB.index("cat"), 3, 0, 0, 0, 0]
    assert tensors["visual_attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert tensors["visual_embeds"][:, :, 0].tolist() == [[0, 0, 0], [0, 1, 2]]
    assert tensors["region_to_phrase_position"].tolist() == [[2, 5], [-1, -1]]
    assert "image_text_alignment" not in tensors


def test_collate_choices(encoder: InputEncoder) -> None:
    """In multiple choice the second axis is the choice, and alignment is padded with -1 over regions and mentions."""
    long = choices(("what", (0,)), ((0,), "a", (0,)), ("a",))
    short = choices(("a",), ("cat",), ("dog",), mentioned=())
    tensors = collate([encoder.encode(example, [regions(4)]) for example in (long, short)])
    assert tensors["input_ids"].shape == tensors["token_type_ids"].shape == (2, 2, 8)
    assert tensors["visual_embeds"].shape == (2, 2, 4, 4)
    assert tensors["visual_attention_mask"][1].tolist() == [[1, 0, 0, 0]] * 2
    assert tensors["image_text_alignment"].shape == (2, 2, 4, 3)
    assert tensors["image_text_alignment"][0, 0, 1].tolist() == [2, 4, 6]
    assert bool((tensors["image_text_alignment"][1] == -1).all())


def test_collate_refuses_what_cannot_be_a_batch(encoder: InputEncoder) -> None:
    """Different feature sizes and different numbers of choices are ValueErrors with the numbers."""
    with pytest.raises(ValueError, match=r"one feature size, got \[4, 5\]"):
        collate([encoder.encode(question("a"), [regions(2, size=size)]) for size in (4, 5)])
    two, three = choices(("a",), ("a",), ("a",)), choices(("a",), ("a",), ("a",), ("a",))
    with pytest.raises(ValueError, match=r"one number of choices, got \[2, 3\]"):
        collate([encoder.encode(example, [regions(4)]) for example in (two, three)])


def test_images_without_regions(encoder: InputEncoder) -> None:
    """A batch of images without any detection is valid."""
    tensors = collate([encoder.encode(question("a"), [regions(0)])])
    assert tensors["visual_embeds"].shape == (1, 0, 4)
    tensors = collate([encoder.encode(choices(("a",), ("a",)), [regions(0)])])
    assert tensors["image_text_alignment"].shape == (1, 1, 0, 1)


def test_encode_dispatches_on_the_form(encoder: InputEncoder) -> None:
    """`encode` calls the function of the form, and an unknown form is a TypeError."""
    example = question("what is he holding?")
    assert encoder.encode(example, [regions(2)]).input_ids == encoder.question(example, [regions(2)]).input_ids
    with pytest.raises(TypeError, match="no layout for str"):
        encoder.encode("what?", [regions(2)])


def test_the_cache_changes_nothing(encoder: InputEncoder) -> None:
    """A cached word, and an encoder that was pickled for a worker, give the ids of a fresh encoder."""
    example = question("dogs dogs zebra Café")
    first = encoder.question(example, [regions(1)])
    assert encoder.question(example, [regions(1)]).input_ids == first.input_ids
    copied = pickle.loads(pickle.dumps(encoder))
    assert copied.question(replace(example, text="dogs zebra"), [regions(1)]).input_ids == [2, 14, 25, 1, 5, 4, 3]


@pytest.mark.parametrize(
    ("content", "says"), [(None, "cannot be read"), ("[PAD]\n[UNK]\ncat\n", r"\[CLS\], \[SEP\], \[MASK\] missing")]
)
def test_a_bad_vocabulary(tmp_path: Path, content: str | None, says: str) -> None:
    """A missing vocabulary and one that is not BERT's are CheckpointErrors with the path."""
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"vocab\.txt: .*{says}"):
        InputEncoder(path)
