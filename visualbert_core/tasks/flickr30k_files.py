"""Reads the files of Flickr30K Entities: {split}.txt, Sentences/<id>.txt and Annotations/<id>.xml.

This reader follows the parser of the dataset: `flickr30k_entities_utils.py` of BryanPlummer/flickr30k_entities
at 68b3d6f1. Both find the same words, phrases and boxes in all 158,915 captions. That parser silently misreads two
faults: a tag inside a phrase, and a phrase that is not closed. Both are errors here.

Boxes keep the coordinates of the XML, which count from 1 and include the last pixel. Every evaluator keeps them as well
(MDETR, BAN, VisualBERT, and pl-clc through `getAnnotations.m`). Only the parser in Python subtracts 1, and no protocol
uses its boxes.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from visualbert_core.errors import AnnotationError
from visualbert_core.schema import Phrase
from visualbert_core.tasks.reading import read_text

_TAG = re.compile(r"\[/EN#(?P<chain>\d+)(?P<types>(?:/[a-z]+)+)", re.ASCII)
_NOT_VISUAL = "0"
_SIDES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True, slots=True)
class Mention:
    """Holds a phrase of a caption. The chain is the entity's id in the XML; chain "0" means "not visual"."""

    phrase: Phrase
    chain: str
    types: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Caption:
    """Holds a caption and its mentions that have a box; there may be no such mention.

    `boxes[i]` holds the boxes of mention i: float64 [B, 4] xyxy, B >= 1, in the coordinates and the order of the XML.
    """

    image_id: str
    words: tuple[str, ...]
    mentions: tuple[Mention, ...]
    boxes: tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True)
class Image:
    """Holds the captions of an image, and its (width, height) in pixels; None where the XML has no size."""

    captions: tuple[Caption, ...]
    size: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class _Boxes:
    # Chain → float64 [B, 4]. The XML flags some chains (`scene`, `nobndbox`) and gives them no box: they are absent.
    of_chain: dict[str, np.ndarray]
    chains: frozenset[str]  # all chains, with the flagged ones
    size: tuple[int, int] | None


def read_image_ids(path: Path) -> tuple[str, ...]:
    """Return the image ids that a split's file lists, one per line."""
    counts = Counter(read_text(path).split())
    if not counts:
        raise AnnotationError(f"{path}: no image ids; download it again")
    for image_id, count in counts.items():
        if "/" in image_id or not image_id.isprintable():
            raise AnnotationError(f"{path}: image id {image_id!r} cannot be a file name; correct the line")
        if count > 1:
            raise AnnotationError(f"{path}: image id {image_id} occurs twice; remove one of its lines")
    return tuple(counts)


def read_image(root: Path, image_id: str) -> Image:
    """Return every caption of an image with its boxes. Empty lines are skipped, as in the official parser."""
    xml = root / "Annotations" / f"{image_id}.xml"
    boxes = _read_boxes(xml, image_id)
    path = root / "Sentences" / f"{image_id}.txt"
    captions: list[Caption] = []
    named: set[str] = set()
    for number, line in enumerate(line for line in read_text(path).split("\n") if line):
        words, mentions = _parse(line, f"{path} sentence {number}")
        boxed = tuple(mention for mention in mentions if mention.chain in boxes.of_chain)
        named.update(mention.chain for mention in mentions if mention.chain != _NOT_VISUAL)
        captions.append(Caption(image_id, words, boxed, tuple(boxes.of_chain[mention.chain] for mention in boxed)))
    if named and boxes.chains and named.isdisjoint(boxes.chains):
        raise AnnotationError(
            f"{path} and {xml} have no chain in common ({min(named)}, {min(boxes.chains)}), so they are not of one "
            "image; download both again"
        )
    return Image(tuple(captions), boxes.size)


def read_captions(root: Path, image_id: str) -> tuple[str, ...]:
    """Return the captions of an image without their tags. Empty lines are skipped, as in the official parser."""
    path = root / "Sentences" / f"{image_id}.txt"
    lines = [line for line in read_text(path).split("\n") if line]
    return tuple(" ".join(_parse(line, f"{path} sentence {number}")[0]) for number, line in enumerate(lines))


def _parse(line: str, where: str) -> tuple[tuple[str, ...], list[Mention]]:
    """Return the words and the mentions of a line such as "[/EN#1/people Two guys] wait .".

    A mention reads [/EN#<chain>/<type>(/<type>)* <words>].
    """
    words: list[str] = []
    mentions: list[Mention] = []
    opened: tuple[int, str, tuple[str, ...]] | None = None  # start, chain and types of the open phrase
    for token in line.split():
        if token.startswith("["):
            tag = _TAG.fullmatch(token)
            if tag is None or opened is not None:
                fault = "is inside another phrase" if tag else "does not read [/EN#<number>/<type>"
                raise AnnotationError(f"{where}: {token!r} {fault}; download the file again")
            opened = (len(words), tag["chain"], tuple(tag["types"][1:].split("/")))
            continue
        closes = opened is not None and token.endswith("]")
        words.append(token[:-1] if closes else token)
        if opened is not None and closes:
            start, chain, types = opened
            mentions.append(Mention(Phrase(start, len(words), " ".join(words[start:])), chain, types))
            opened = None
    if opened is not None:
        raise AnnotationError(f"{where}: a phrase is not closed by ']'; download the file again")
    return tuple(words), mentions


def _read_boxes(path: Path, image_id: str) -> _Boxes:
    text = read_text(path)
    if "<!DOCTYPE" in text:  # A DOCTYPE can declare XML entities that expand without end ("billion laughs").
        raise AnnotationError(f"{path}: the file has a DOCTYPE, but no official file has one; download it again")
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise AnnotationError(f"{path}: not XML ({error}); truncated? download it again") from None
    named = root.findtext("filename", "").strip()
    if named and image_id not in (named, PurePosixPath(named).stem):
        raise AnnotationError(f"{path}: the file is of the image {named[:80]!r}, not of {image_id}; download it again")
    size = _size(root, path)
    boxes: defaultdict[str, list[list[float]]] = defaultdict(list)
    chains: set[str] = set()
    for thing in root.findall("object"):
        names = [name.text or "" for name in thing.findall("name")]
        chains.update(names)
        box = thing.find("bndbox")
        if box is not None:
            corners = _corners(box, path)
            _check_inside(corners, size, f"{path}: bndbox {corners} of chain {', '.join(names)}")
            for name in names:
                boxes[name].append(corners)
    found = {chain: np.array(corners) for chain, corners in boxes.items()}
    return _Boxes(found, frozenset(chains), size)


def _size(root: ET.Element, path: Path) -> tuple[int, int] | None:
    """Return (width, height) in pixels; None where the file has no size.

    A size of zero means the same: some programs that write such files put 0 for a size that they do not know.
    """
    texts = [root.findtext(f"size/{side}", "").strip() for side in ("width", "height")]
    if not all(texts):
        return None
    try:
        width, height = (int(float(text)) for text in texts)
    except (ValueError, OverflowError):
        raise AnnotationError(f"{path}: the size {texts} is not a width and a height; download it again") from None
    return (width, height) if width > 0 and height > 0 else None


def _corners(box: ET.Element, path: Path) -> list[float]:
    try:
        corners = [float(box.findtext(side, "")) for side in _SIDES]
    except ValueError:
        raise AnnotationError(f"{path}: a bndbox lacks a number in {', '.join(_SIDES)}; download it again") from None
    if not np.isfinite(corners).all() or corners[0] > corners[2] or corners[1] > corners[3]:
        raise AnnotationError(f"{path}: bndbox {corners} is not a box ({', '.join(_SIDES)}); correct the file")
    return corners


def _check_inside(corners: Sequence[float], size: tuple[int, int] | None, box: str) -> None:
    """Raise AnnotationError where a box lies outside the size in the same file.

    The boxes of all 31,783 official files lie between 1 and that size. A user's own files may count from 0.
    """
    if size is not None and (min(corners) < 0 or corners[2] > size[0] or corners[3] > size[1]):
        raise AnnotationError(
            f"{box} reaches outside the <size> {size[0]} × {size[1]}, so box and size are not of one image size; "
            "download the file again, or scale one of them"
        )
