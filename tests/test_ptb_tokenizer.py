"""The tokens of captions, compared with those of Stanford's PTBTokenizer 3.4.1 as coco-caption runs it."""

from __future__ import annotations

import pytest
from captions_golden import golden

from visualbert_core.metrics.ptb_tokenizer import tokenize

# Text → why its tokens differ from those of the golden file. There, "a." stood before a caption that begins with "A",
# which decides that its full stop ends a sentence. Alone, it stays.
DIFFERENT = {"a.": "depends on the next caption"}


@pytest.mark.parametrize("kind", ["plain", "odd"])
def test_tokens_are_those_of_the_official_program(kind: str) -> None:
    """Every text has the official tokens, except for the named ones."""
    wrong = {text for text, tokens in golden("tokens")[kind].items() if tokenize([text]) != [tokens]}
    assert wrong == ({} if kind == "plain" else DIFFERENT).keys()


def test_tokens_of_texts_that_no_person_would_write() -> None:
    """Rules meet in random joins of words, abbreviations, numbers, links and marks, and the longest token wins as it
    does in the official program."""
    more = golden("more_tokens")
    assert {text: tokenize([text])[0] for text in more} == more


def test_marks_that_people_type() -> None:
    """Curly quotes, ellipses, links, prices, emoji, abbreviations, hyphens and tabs have the official tokens. Two
    quotes side by side are one token, and most of these are no punctuation, so they count as a word."""
    marks = golden("mark_tokens")
    assert {text: tokenize([text])[0] for text in marks} == marks
    assert tokenize(["he said “‘no’”", "“no”"]) == ["he said ``` no '''", "no"]


def test_texts_of_small_cases() -> None:
    """The texts of the small cases have the official tokens, too."""
    tokens = golden("cases")["tokens"]
    assert {text: tokenize([text])[0] for text in tokens} == tokens


@pytest.mark.parametrize(
    ("kind", "following"),
    [("lower case", "the end"), ("upper case", "The end"), ("a digit", "5 dogs"), ("empty", ""), ("nothing", None)],
)
def test_the_next_caption_decides_about_a_letter_at_the_end(kind: str, following: str | None) -> None:
    """A letter with a full stop at the end keeps the stop, unless a word such as "The" begins the next caption."""
    case = golden("cases")["next_line"]
    after = [] if following is None else [following]
    found = [tokenize([text, *after])[0] for text in case["texts"]]
    assert found == case["tokens_when_followed_by"][kind]


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\v", "\f", "\u2028", "\u2029"])
def test_a_line_break_moves_no_caption(end: str) -> None:
    """A line break is a space. In the official program, all but a line feed give later captions to other images."""
    assert tokenize([f"a dog{end}runs", "a cat"]) == ["a dog runs", "a cat"]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Don't SHE'S they're y'all O'Neil's ma'am 'tis", "do n't she 's they 're y' all o'neil 's ma'am 't is"),
        ("don’t it’s ma’am", "do n't it 's ma’am"),
        ("cannot gonna gotta Gimme lemme wanna", "can not gon na got ta gim me lem me wan na"),
        ("Dr. Lee met Mr. X vs. the U.S. team, etc.", "dr. lee met mr. x vs. the u.s. team etc."),
        ("Ill. but not ill.", "ill. but not ill"),
        ("no. 7 but no.", "no. 7 but no"),
        ("2 1/2 cups at 5:30pm for $1.50, 50% off", "2\xa01/2 cups at 5:30 pm for $ 1.50 50 % off"),
        ("(a) [b] {c} … – — “x” ‘y’ ½ £5 €5", "-lrb- a -rrb- -lsb- b -rsb- -lcb- c -rcb- x y 1/2 # 5 $ 5"),
        ("café 日本 naïve \U0001f600 ok", "café 日本 naïve ok"),
        ("t-shirt 3-d mid-1920s 1.5-liter U.S.-based", "t-shirt 3-d mid-1920s 1.5-liter u.s.-based"),
        ("www.a.com http://a.com/b?c me@a.com @me #fun", "www.a.com http://a.com/b?c me@a.com @me #fun"),
        ("wow!! what?! yes!", "wow !! what ?! yes"),
    ],
)
def test_rules_by_example(text: str, tokens: str) -> None:
    """Each family of rules, in a sentence that can be read. The tokens are those of the official program."""
    assert tokenize([text]) == [tokens]


def test_nothing_is_something_for_the_tokenizer() -> None:
    """No caption, empty captions and blanks give no token and no error."""
    assert tokenize([]) == []
    assert tokenize(["", "  ", "...", "\n"]) == ["", "", "", ""]
