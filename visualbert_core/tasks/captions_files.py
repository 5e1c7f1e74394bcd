"""Reads the files of caption benchmarks into images with their reference captions.

captions_{split}.json                  COCO (Chen et al. 2015, arXiv:1504.00325), and any set in the same form
dataset_coco.json                      Karpathy's splits of COCO (Karpathy and Fei-Fei 2015, arXiv:1412.2306)
dataset_flickr30k.json                 Karpathy's splits of Flickr30k
{split}.txt, results_20130124.token    Flickr30k (Young et al. 2014), with the split of a list of image ids
{split}.txt, Sentences/                the captions of Flickr30K Entities, without their tags
nocaps_val_4500_captions.json          NoCaps (Agrawal et al. 2019, arXiv:1812.08658); images have a domain
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from msgspec import UNSET, Struct, UnsetType

from visualbert_core.errors import AnnotationError
from visualbert_core.io.documents import brief
from visualbert_core.tasks.flickr30k_files import read_sentences
from visualbert_core.tasks.reading import read_list, read_text, typed

TOKEN_FILE = "results_20130124.token"


@dataclass(frozen=True, slots=True)
class Described:
    """Holds an image with its references in file order, one or more.

    `result_id` is the id in result files. `image_id` is the name of its image file without the suffix.
    """

    result_id: int | str
    image_id: str
    captions: tuple[str, ...]
    domain: str | None = None


Images = dict[str, Described]
"""Example id, which is the result id as a string → image, in file order."""


# Keys that are not named here are not read.


class ImageRecord(Struct):
    """Holds an element of "images" in COCO's form. Only NoCaps has a domain."""

    id: int | str
    file_name: str | None = None  # A user's own files may lack it. The image then has the name of its id.
    domain: str | None = None


class CaptionRecord(Struct):
    """Holds an element of "annotations" in COCO's form, and of COCO's result form."""

    image_id: int | str
    caption: str


class Sentence(Struct):
    """Holds a caption of Karpathy's files; `raw` is as the annotator wrote it."""

    raw: str


class KarpathyRecord(Struct):
    """Holds an image of Karpathy's files. Those of COCO have a `cocoid`."""

    filename: str
    split: str
    sentences: list[Sentence]
    cocoid: int | UnsetType = UNSET


def read_coco(path: Path) -> Images:
    """Read the images and references of a file in COCO's form."""
    head, annotations = read_list(path, "annotations")
    if not isinstance(head.get("images"), list):
        raise AnnotationError(f"{path}: no list 'images'; this is not the official format")
    records: dict[str, ImageRecord] = {}
    for record, _ in typed(path, "images", head["images"], ImageRecord):
        name = _checked(str(record.id), f"{path} images")
        if records.setdefault(name, record) is not record:
            raise AnnotationError(f"{path}: image id {name} occurs twice; remove one of its records")
    captions: dict[str, list[str]] = {name: [] for name in records}
    for index, (annotation, _) in enumerate(typed(path, "annotations", annotations, CaptionRecord)):
        if str(annotation.image_id) not in captions:
            raise AnnotationError(
                f"{path} annotations[{index}]: image_id {brief(annotation.image_id)} is not among the images; take "
                "images and annotations from one release"
            )
        captions[str(annotation.image_id)].append(annotation.caption)
    images: Images = {}
    for name, record in records.items():
        image_id = name if record.file_name is None else _stem(record.file_name, f"{path} image {name}")
        images[name] = Described(record.id, image_id, tuple(captions[name]), record.domain)
    return images


def read_karpathy(path: Path, split: str) -> Images:
    """Read one split of Karpathy's file."""
    found: Images = {}
    for record, _ in typed(path, "images", read_list(path, "images")[1], KarpathyRecord):
        if record.split != split:
            continue
        stem = _stem(record.filename, f"{path} images")
        result_id = stem if record.cocoid is UNSET else record.cocoid
        if str(result_id) in found:
            raise AnnotationError(f"{path}: image {result_id} occurs twice; download the file again")
        found[str(result_id)] = Described(result_id, stem, tuple(sentence.raw for sentence in record.sentences))
    return found


def read_tokens(path: Path, names: Sequence[str]) -> Images:
    """Read the captions of the named images from a token file: "36979.jpg#0<TAB>A group of people" on each line."""
    captions: dict[str, list[str]] = {name: [] for name in names}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            key, tab, text = line.partition("\t")
            file_name, sign, _ = key.rpartition("#")
            if not (tab and sign):
                raise AnnotationError(
                    f"{path} line {number}: does not read <image>.jpg#<number><TAB><caption>; download the file again"
                )
            if (name := _stem(file_name, f"{path} line {number}")) in captions:
                captions[name].append(text)
    return {name: Described(name, name, tuple(found)) for name, found in captions.items()}


def read_sentence_files(folder: Path, names: Sequence[str]) -> Images:
    """Read the captions of the named images from Flickr30K Entities."""
    captions = {name: tuple(" ".join(words) for words, _ in read_sentences(folder, name)) for name in names}
    return {name: Described(name, name, found) for name, found in captions.items()}


def _stem(file_name: str, where: str) -> str:
    return _checked(PurePosixPath(file_name).stem, where)


def _checked(name: str, where: str) -> str:
    if not name or not name.isprintable():
        raise AnnotationError(f"{where}: {brief(name)} is not the id of an image; correct the record")
    return name
