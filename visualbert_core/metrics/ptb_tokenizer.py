"""Splits captions into the tokens that the official caption metrics count. No Java is needed.

The official program (coco-caption, Chen et al. 2015, arXiv:1504.00325) runs PTBTokenizer of Stanford CoreNLP 3.4.1 with
`-preserveLines -lowerCase`, and then drops punctuation. PTBTokenizer keeps the conventions of the Penn Treebank (Marcus
et al. 1993): "don't" is "do n't", and a bracket is "-lrb-". It is a lexer that takes the longest token at each place.
What stands behind a token can count into that length, as in the tokenizers that JFlex generates. This file states
those rules anew. They were written from the behaviour of that program: its answers to hundreds of thousands of probes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""The tokens that the official program drops. Its list also has "-LRB-", which no lower-case token equals: brackets
stay. "!!" and "?!" are tokens of their own, so they stay too."""

# ---------------------------------------------------------------------------------------------------------------------
# characters

SHIFTING = re.compile("[\r\v\f\u2028\u2029]")
"""Line breaks that shift captions in the official program, which makes a space of a line feed only."""
_NEW_LINE = re.compile("\r\n|[\n\r\v\f\u2028\u2029]")

# Marks and signs that stand within words. Ranges are those of the program, which knows Unicode as of 2012.
_MARKS = (
    "\u02c2-\u02c5\u02d2-\u02df\u02e5-\u02eb\u02ed\u02ef-\u036f\u0375\u0384\u0385\u03f6\u0483-\u0487\u055a-\u055f"
    "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0615-\u061a\u064b-\u065e\u0670\u06d6-\u06ed\u06fd\u06fe\u070f"
    "\u0711\u0730-\u074a\u07a6-\u07b0\u07eb-\u07f3\u0900-\u0903\u093c\u093e-\u094e\u0951-\u0955\u0962\u0963"
    "\u0981-\u0983\u09bc\u09be-\u09cd\u09d7\u09e2\u09e3\u0a01-\u0a03\u0a3c-\u0a4d\u0a81-\u0a83\u0abc\u0abe-\u0acd"
    "\u0b82\u0bbe-\u0bcd\u0c01-\u0c03\u0c3e-\u0c56\u0d3e-\u0d48\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc"
    "\u0ec8-\u0ecd\u1885\u1886"
)
# Signs that are tokens by themselves. Every other sign is dropped.
_SIGNS = (
    "!-/:-@\\[-`{-~\u00a1\u00a5-\u00a9\u00ac\u00ae-\u00b9\u00bf\u00d7\u00f7\u037e\u0387\u0589\u05be\u05c0\u05c3\u05c6"
    "\u05f3\u05f4\u0600-\u0603\u0606-\u060c\u0614\u061b\u061e\u061f\u066a\u066d\u06d4\u0700-\u070d\u07f6-\u07f8"
    "\u0964\u0965\u0e3f\u0e4f\u1fbd\u2016\u2017\u201a\u201e-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2044\u2070"
    "\u2074-\u208e\u20a4\u2100-\u214f\u2155-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20"
    "\uff3b-\uff40\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6"
)
# Python's \w has numbers such as "½" and "²" beside letters and digits. They are signs here. The program reads UTF-16,
# so a character outside the basic plane, such as an emoji, is two halves of no kind.
_NO_LETTERS = (
    "\u00b2\u00b3\u00b9\u00bc-\u00be\u09f4-\u09f9\u0bf0-\u0bf2\u0f2a-\u0f33\u1369-\u137c\u2070\u2074-\u207e\u2080-\u208e"
    "\u2150-\u218b\u2460-\u24ff\u2776-\u2793\u2cfd\u3007\u3021-\u3029\U00010000-\U0010ffff"
)
_L = rf"(?:(?![{_NO_LETTERS}])[^\W\d_]|[{_MARKS}\u00ad])"  # a letter; a soft hyphen does not break a word
_LD = rf"(?:(?![{_NO_LETTERS}])[^\W_]|[{_MARKS}\u00ad])"  # a letter or a digit
_CURLY = "(?:[\u0092\u2019]|(?i:&apos;))"
_APOSTROPHE = f"(?:'|{_CURLY})"
_QUOTE = "(?:['\u0092\u2019`\u0091\u2018\u201b]|(?i:&apos;))"
_QUOTE_MARK = "[`\u0091-\u0094\u00ab\u00bb\u2018-\u201f\u2039\u203a]"
_HYPHEN = "[-_\u058a\u2010\u2011]"
_SPACE = "[ \t\u00a0\u2000-\u200a\u3000]"
_BLANK = re.compile(rf"(?:{_SPACE}|\n|(?i:&nbsp;))+")

_WRITTEN = {
    **dict.fromkeys("\u2019\u0092\u203a", "'"),
    **dict.fromkeys("\u2018\u201b\u2039\u0091", "`"),
    **dict.fromkeys("\u201c\u00ab\u0093", "``"),
    **dict.fromkeys('\u201d\u00bb\u0094"', "''"),
    **dict.fromkeys("\u2013\u2014\u2015\u0096\u0097", "--"),
    **dict.fromkeys("\u2026\u0085", "..."),
    **dict.fromkeys("\u20ac\u20a0\u00a4\u0080", "$"),
    "\u00ad": "-",
    "\u00a3": "#",
    "\u00a2": "cents",
    "\u00bc": "1/4",
    "\u00bd": "1/2",
    "\u00be": "3/4",
    "\u2153": "1/3",
    "\u2154": "2/3",
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "&lt;": "<",
    "&gt;": ">",
    "&quot;": "''",
    "&apos;": "'",
    "&mdash;": "--",
}
"""Token → how it is written, for the tokens whose form changes."""

# ---------------------------------------------------------------------------------------------------------------------
# lists of words

# These end in a full stop. A capital letter behind them may begin a sentence; then the full stop counts twice.
_MAY_END = """
    al ala apr ariz assn aug bancorp bhd bldg blvd bros calif co colo conn corp cos ct dak dec dept esq est etc ext
    feb fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont natl neb nev nov oct okla
    penn plc ppte ppty pte ptes pty ptys rd rt sep sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis
    wisc wyo
"""
_MAY_END_CAPITAL = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash ARK AZ DEL ILL LA MASS MISS ORE PA TEX WASH"
# These stand before a name, so their full stop never ends a sentence.
_TITLES = """
    adj adm adv alex asst atty attys ave brig capt cf cie cmdr col comdr cpl det dr drs elec ens ft gen gov govs hon
    insp invt jos lieut lt maj messrs mfg mlle mme mr mrs ms msgr mt mtg pfc ph pres prof profs pvt rep reps rev sen
    sens sfc sgt spc st ste supt supts vs wm
"""
_BEFORE_NUMBERS = "art ca fig figs no nos op p pp prop"
_SENTENCE_STARTS = """
    A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Now Once One
    Other Our She Since So Some Such That The Their Then There These They This We What When While Yet You Mr. Ms.
"""
_FILE_ENDINGS = """
    bat bmp c cgi class cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png ppt ps py sql
    tar txt wav x xml zip
"""
# Words with an apostrophe that stay whole. In the second list, a curly apostrophe still splits them.
_WHOLE = """
    'n' 'em 'til 'till 'cause cap'n dunkin' o'o ol' somethin'
"""
_WHOLE_TYPED = """
    c'mon cont'd. e'er ev'ry li'l nat'l nor'easter s'mores
"""
_IN_TWO = {"can": "not", "gim": "me", "gon": "na", "got": "ta", "lem": "me", "wan": "na", "'t": "(?:is|was)"}
"""First token → second token of the words that are split without a mark in between."""


def _any(words: str) -> str:
    """Return a pattern of a list of words, longest first."""
    found = sorted(words.split(), key=len, reverse=True)
    return "(?:" + "|".join(map(re.escape, found)) + ")"


# ---------------------------------------------------------------------------------------------------------------------
# rules

_NAME = "[A-Za-z][A-Za-z0-9_:.-]*"
_TAG = rf"<(?:/{_NAME} *|{_NAME}(?: +{_NAME}(?: *= *(?:\"[^\"\n]*\"|'[^'\n]*'))?)* */?|[!?][A-Za-z-][^>\n]*)>"
# A no-break space may stand in a link, but not in an address of mail.
_ADDRESS = r"[^ \t\n\"<>|()]"
_WWW = r"(?i:www)\.(?:[^ \t\n\"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}"
_DOMAIN = r"(?:[^ \t\n\"'<>|!(){},-_$`\u00b0]+\.)+(?:com|net|org|edu)"
_PART = rf"(?:[dDoOlL]{_QUOTE}(?={_LD}{_LD}))?{_LD}+"  # "o'clock" and "d'Artagnan" stay whole
_SLASHED = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_NEXT_SENTENCE = rf"\s+(?:(?:{_any(_SENTENCE_STARTS)}|{_any(_SENTENCE_STARTS.upper())}|{_TAG})(?=\s|$))"
_JOINED = r"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9\u00ad]+))+"
_DOTTED = rf"{_L}{_LD}*(?:[.!?]{_L}{_LD}*)*"
_FACE = "[-^x=~<>']"
_PHONE = (
    r"(?:\(\d{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:\d{2,4}[- \u00a0])?\d{2,4}[- \u00a0])\d{3,4}[- \u00a0]?\d{3,5}",
    r"(?:(?:\+\+?)?\d{2,4}\.)?\d{2,4}\.\d{3,4}\.\d{3,5}",
)
_NUMBER = r"[+-]?(?:\d*(?:[.:,\u00ad\u066b\u066c]\d+)+|\d+)"
_ANY_CASE = "(?i:"
_ENDING = rf"(?:'{_ANY_CASE}[msd]|re|ve|ll)(?![A-Za-z])|{_CURLY}{_ANY_CASE}[msd]|re|ve|ll))"
_NOT = rf"[nN]{_QUOTE}[tT]"

# (token, what stands behind it and counts into the length). The longest wins, and the earliest among equals.
_PATTERNS: tuple[tuple[str, str], ...] = (
    *((rf"{_ANY_CASE}{first})", rf"{_ANY_CASE}{then})") for first, then in _IN_TWO.items()),
    (r"[A-Za-z]*[A-MO-Za-mo-z]", _NOT),
    (_NOT, ""),
    (_DOTTED, rf"{_APOSTROPHE}{_ANY_CASE}[msd]|re|ve|ll)"),
    (_ENDING, ""),
    (rf"{_ANY_CASE}{_any(_WHOLE).replace(chr(39), _APOSTROPHE)}|{_any(_WHOLE_TYPED)})", ""),
    (rf"{_APOSTROPHE}[2-9]0[sS]", ""),
    (rf"{_APOSTROPHE}\d\d(?=\s|$)", ""),
    (rf"'[nN](?=\s|$)|{_CURLY}[nN]", ""),
    (rf"[lLdDjJ]{_APOSTROPHE}", ""),
    (rf"[yY]{_APOSTROPHE}", _L),
    (rf"{_L}+[aeiouyAEIOUY]{_QUOTE}[aeiouA-Z]{_L}*", ""),  # "ma'am", "Xi'an"
    (rf"(?:{_any(_MAY_END_CAPITAL)}|{_ANY_CASE}{_any(_MAY_END)}))\.", r"[^\s]"),
    (rf"(?:{_any(_MAY_END_CAPITAL)}|{_ANY_CASE}{_any(_MAY_END)}))\.", ""),
    (rf"[A-Za-z](?=\.{_NEXT_SENTENCE})", rf"\.{_NEXT_SENTENCE}"),  # "plan b. The"
    (rf"{_ANY_CASE}[a-z]|(?:ed|ph)\.d|{_any(_TITLES)})\.", ""),
    (rf"{_ANY_CASE}{_any(_BEFORE_NUMBERS)})\.", rf"(?:{_SPACE}|[\n\u0085])?\d"),
    (r"[A-Za-z](?:\.[A-Za-z])+\.?", ""),
    (_DOTTED, ""),
    (rf"{_DOTTED}\.", "[,;:]"),  # "dogs., cats"
    (rf"{_PART}(?:{_HYPHEN}{_PART})*", ""),
    (rf"{_PART}(?:{_HYPHEN}{_PART})*\.", "[,;:]"),
    (rf"[nA-HJ-XZ]{_QUOTE}{_L}{_L}+", ""),  # "N'Djamena"
    (r"[A-Z]+(?:(?:(?i:&amp;)|[+&])[A-Z]+)+", ""),
    (rf"{_SLASHED}(?:\\?/{_SLASHED}){{1,2}}", ""),
    (_JOINED, ""),  # "1.5-liter"
    (rf"{_JOINED}\.", "[,;:]"),
    (rf"{_LD}+(?:\.{_LD}+)*\.(?i:{_any(_FILE_ENDINGS)})(?=[\s.?!,]|$)", ""),
    (_NUMBER, ""),
    (r"(?:\d{1,4}[- \u00a0])?\d{1,4}(?:\\?/|\u2044)\d{1,4}", ""),
    (r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}", ""),
    *((phone, "") for phone in _PHONE),
    (r"[A-Z]*\$", ""),
    (r"[CcFf]#|[Cc]\+\+", ""),
    (rf"(?i:https?)://{_ADDRESS}+[^ \t\n\"<>|.!?(){{}},-]", ""),
    (rf"(?:{_WWW}|{_DOMAIN})(?:/{_ADDRESS}+[^ \t\n\"<>|.!?(){{}},-])?", ""),
    (r"<?[a-zA-Z0-9][^ \t\n\u00a0\"<>|(){}]*@(?:[^ \t\n\u00a0\"<>|().]+\.)*[^ \t\n\u00a0\"<>|().]+>?", ""),
    (r"@[A-Za-z_][A-Za-z_0-9]*", ""),
    (rf"#{_L}+", ""),
    (r"@@+|##+|__+|\*+|\\\*|<<|>>|[?!]+", ""),
    (r"[<>]?[:;=][-o*']?[()DPdp\\{@|\[\]O](?![A-Za-z0-9])", ""),
    (rf"{_FACE}_{_FACE}|\({_FACE}[_.]?{_FACE}\)|\([\^x=~<>']-[\^x=~<>'`]\)", ""),
    (_TAG, ""),
    (r"(?i:&(?:amp|lt|gt|quot|apos|mdash|#\d+);|-(?:lrb|rrb|lsb|rsb|lcb|rcb)-)", ""),
    (r"\.{3,5}|(?:\.[ \u00a0]){2,4}\.|-+|''", ""),
    (rf"{_QUOTE_MARK}{{1,2}}", ""),  # two marks are one token: "“‘" and "’”" are no punctuation, so they stay
    (rf"[{_SIGNS}]", ""),
    ("[" + "".join(sign for sign in _WRITTEN if len(sign) == 1 and not sign.isascii()) + "]", ""),
)
_RULES = tuple(re.compile(f"({token})(?:{behind})") for token, behind in _PATTERNS)
# Almost all tokens are words between spaces, which no rule joins with what is around them.
_WORD = re.compile("[A-Za-z]+(?=[ \n])")
_SPLIT_WORDS = frozenset(first + then for first, then in _IN_TWO.items())


def tokenize(captions: Sequence[str]) -> list[str]:
    """Return the tokens of each caption in lower case, joined by one space, without punctuation.

    The captions are in the order of the official program, which puts them into one file. There, the first word of the
    next caption decides about a letter at the end: "plan b." keeps its full stop, unless a word such as "The" follows.
    A line break within a caption is a space. The official program does the same with a line feed only: after another
    line break, all further captions would belong to the wrong images. A token may hold a no-break space: "2 1/2".
    """
    lines = [_NEW_LINE.sub(" ", caption) for caption in captions]
    tokens, after = [], ""
    for line in reversed(lines):
        tokens.append(_tokens(line, after))
        after = _start(line) if line.strip() else f"\n{after}"
    return tokens[::-1]


def _start(line: str) -> str:
    """Return the start of a caption, as far as it can count for the one before."""
    first = re.match(rf"\s*(?:(?:[A-Z][A-Za-z]*\.?|{_TAG})(?=\s|$)|\d)", line)
    return first[0] if first else ""


@lru_cache(maxsize=1 << 16)
def _tokens(line: str, after: str) -> str:
    text = f"{line}\n{after}"
    return " ".join(token for token in _lex(text, len(line)) if token not in PUNCTUATION)


def _lex(text: str, stop: int) -> Iterator[str]:
    """Yield the tokens of text[:stop] as they are written. What is behind `stop` only counts into lengths."""
    at = 0
    while at < stop:
        if blank := _BLANK.match(text, at):
            at = blank.end()
            continue
        word = _WORD.match(text, at)
        if word is not None and word[0].lower() not in _SPLIT_WORDS:
            at = word.end()
            yield word[0].lower()
            continue
        found = [match for rule in _RULES if (match := rule.match(text, at))]
        if not found:
            at += 1  # a character that is no token
            continue
        token = max(found, key=lambda match: match.end())[1]  # the first of the longest
        at += len(token)
        yield _written(token)


def _written(token: str) -> str:
    """Return a token as the program writes it, in lower case."""
    if token in _WRITTEN:
        return _WRITTEN[token]
    if re.fullmatch(f"{_QUOTE_MARK}+", token):
        return "".join(_WRITTEN.get(mark, mark) for mark in token)
    if re.fullmatch("--+", token) and len(token) < 5:
        return "--"
    if re.fullmatch(r"[. \u00a0]+", token):
        return "..." if len(token) > 1 else "."
    token = token.replace("(", "-lrb-").replace(")", "-rrb-").replace(" ", "\u00a0").replace("\u00ad", "")
    if re.fullmatch(f"{_ENDING}|{_NOT}", token):
        token = re.sub("[\u2018\u201b\u0091]", "`", re.sub("[\u2019\u0092]|&apos;", "'", token))
    written = re.sub("(?i:&amp;)", "&", token).lower()
    return _WRITTEN.get(written, written) if written in ("&lt;", "&gt;", "&mdash;") else written
