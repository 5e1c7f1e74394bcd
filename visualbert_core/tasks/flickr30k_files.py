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
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from visualbert_core.errors import AnnotationError
from visualbert_core.schema import Phrase
from visualbert_core.tasks.reading import read_text

_TAG = re.compile(r"\[/EN#(?P<chain>\d+)(?P<types>(?:/[a-z]+)+)", re.ASCII)
_NOT_VISUAL = "0"  # the chain of a phrase that names nothing in the image
_SIDES = ("xmin", "ymin", "xmax", "ymax")

Words = tuple[str, ...]
Named = tuple[Phrase, str, tuple[str, ...]]
"""A phrase, its chain and its types. The chain is the id of an entity in the XML."""


@dataclass(frozen=True, slots=True)
class Mention:
    """Holds a phrase of a caption that has a box.

    `boxes` is float64 [B, 4] xyxy, B >= 1, in the coordinates and the order of the XML.
    """

    phrase: Phrase
    types: tuple[str, ...]
    boxes: np.ndarray


@dataclass(frozen=True, slots=True)
class Caption:
    image_id: str
    words: tuple[str, ...]
    mentions: tuple[Mention, ...]


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


def read_sentences(root: Path, image_id: str) -> list[tuple[Words, list[Named]]]:
    """Return the words and the phrases of each caption of an image.

    Empty lines are skipped, as in the official parser.
    """
    path = root / "Sentences" / f"{image_id}.txt"
    lines = (line for line in read_text(path).split("\n") if line)
    return [_parse(line, f"{path} sentence {number}") for number, line in enumerate(lines)]


def _parse(line: str, where: str) -> tuple[Words, list[Named]]:
    """Parse a line such as "[/EN#1/people Two guys] wait .". A phrase reads [/EN#<chain>/<type>(/<type>)* <words>]."""
    words: list[str] = []
    phrases: list[Named] = []
    opened: tuple[int, str, tuple[str, ...]] | None = None  # start, chain and types of the open phrase
    for token in line.split():
        if token.startswith("["):
            tag = _TAG.fullmatch(token)
            if tag is None or opened is not None:
                fault = "is inside another phrase" if tag else "does not read [/EN#<number>/<type>"
                raise AnnotationError(f"{where}: {token!r} {fault}; download the file again")
            opened = (len(words), tag["chain"], tuple(tag["types"][1:].split("/")))
        elif opened is not None and token.endswith("]"):
            words.append(token[:-1])
            start, chain, types = opened
            phrases.append((Phrase(start, len(words), " ".join(words[start:])), chain, types))
            opened = None
        else:
            words.append(token)
    if opened is not None:
        raise AnnotationError(f"{where}: a phrase is not closed by ']'; download the file again")
    return tuple(words), phrases


def read_image(root: Path, image_id: str) -> tuple[list[Caption], tuple[int, int] | None]:
    """Return the captions of an image, and its (width, height) in pixels; None where the XML has no size."""
    xml = root / "Annotations" / f"{image_id}.xml"
    boxes, size = _read_boxes(xml, image_id)
    captions: list[Caption] = []
    named: set[str] = set()
    for words, phrases in read_sentences(root, image_id):
        boxed = (each for each in phrases if len(boxes.get(each[1], ())))
        captions.append(Caption(image_id, words, tuple(Mention(p, types, boxes[chain]) for p, chain, types in boxed)))
        named.update(chain for _, chain, _ in phrases if chain != _NOT_VISUAL)
    if named and boxes and named.isdisjoint(boxes):
        raise AnnotationError(
            f"Sentences/{image_id}.txt and {xml} have no chain in common ({min(named)}, {min(boxes)}), so they are not "
            "of one image; download both again"
        )
    return captions, size


def _read_boxes(path: Path, image_id: str) -> tuple[dict[str, np.ndarray], tuple[int, int] | None]:
    """Return chain → its boxes, float64 [B, 4], and the (width, height) of the image.

    The XML flags some chains (`scene`, `nobndbox`) and gives them no box: B is 0.
    """
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
    for thing in root.findall("object"):
        names = [name.text or "" for name in thing.findall("name")]
        box = thing.find("bndbox")
        corners = [] if box is None else [_corners(box, size, f"{path}: bndbox of chain {', '.join(names)}")]
        for name in names:
            boxes[name] += corners
    return {chain: np.array(corners) for chain, corners in boxes.items()}, size


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


def _corners(box: ET.Element, size: tuple[int, int] | None, where: str) -> list[float]:
    """Return the corners of a bndbox.

    The boxes of all 31,783 official files lie between 1 and the size. A user's own files may count from 0.
    """
    try:
        corners = left, top, right, bottom = [float(box.findtext(side, "")) for side in _SIDES]
    except ValueError:
        raise AnnotationError(f"{where} lacks a number in {', '.join(_SIDES)}; download the file again") from None
    if not np.isfinite(corners).all() or left > right or top > bottom:
        raise AnnotationError(f"{where}: {corners} is not a box ({', '.join(_SIDES)}); correct the file")
    if size is not None and (min(corners) < 0 or right > size[0] or bottom > size[1]):
        raise AnnotationError(
            f"{where}: {corners} reaches outside the <size> {size[0]} × {size[1]}, so box and size are not of one "
            "image size; download the file again, or scale one of them"
        )
    return corners
