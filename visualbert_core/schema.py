"""The rows that cross a stage: their Python form, their Arrow schema, and its version.

Boxes are float32 xyxy in pixels of the original image. Shapes: R regions, D feature size.
An `Example` is what a benchmark asks; a `Prediction` is what a model answers; a `Score` is what one answer is worth.
Examples come in the four forms that VisualBERT has heads for; a task maps its official records onto one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

SCHEMA_VERSION = 2

# ---------------------------------------------------------------------------------------------------------------------
# images → regions


LARGEST_IMAGE = 1 << 29
"""Bytes; what has more is not read. The largest that is decoded has six bytes for each of Pillow's most pixels."""


@dataclass(frozen=True, slots=True)  # there are millions of them
class Image:
    """One image of a corpus: a file, or `size` bytes of one from byte `start` on (a member of a tar), or `row` of a
    table (see `tables`), in its `column` where it has images in several.

    `image_id` is its name without the suffix; `boxes_path` is a VCR-style metadata JSON whose boxes are to be used
    instead of the detector's own. `data` are its bytes, where they have been read already; `trouble` says why there are
    none, where that is known: "is a link to nothing"."""

    image_id: str
    path: str
    boxes_path: str | None = None
    start: int = 0
    size: int | None = None
    row: int | None = None
    column: str | None = None
    trouble: str | None = None
    data: bytes | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class GivenObjects:
    """Objects that somebody marked in one image, with their classes and outlines. The first is the whole image."""

    boxes: np.ndarray  # float32 [R, 4] xyxy, original pixels
    labels: np.ndarray  # int16 [R], detector classes
    outlines: tuple[tuple[np.ndarray, ...], ...]  # R times the polygons float64 [N, 2] xy of an object, original pixels


@dataclass(frozen=True)
class Regions:
    """The detector's answer for one image, and one row of the feature store."""

    image_id: str
    width: int
    height: int
    boxes: np.ndarray  # float32 [R, 4] xyxy, original pixels
    labels: np.ndarray  # int16 [R], detector classes
    scores: np.ndarray  # float32 [R]
    features: np.ndarray  # float16 [R, D]
    image_digest: str  # xxh3-128 of the file's bytes
    attributes: np.ndarray | None = None  # int16 [R]; of detectors that name attributes ("red")
    attribute_scores: np.ndarray | None = None  # float32 [R]

    @property
    def num_regions(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class Pixels:
    """One decoded image, for models that read pixels."""

    image_id: str
    rgb: np.ndarray  # uint8 [H, W, 3]
    image_digest: str  # xxh3-128 of the file's bytes

    @property
    def width(self) -> int:
        return int(self.rgb.shape[1])

    @property
    def height(self) -> int:
        return int(self.rgb.shape[0])


@dataclass(frozen=True)
class LabelNames:
    """What a detector's labels and attributes are called, by number; empty where nobody has said."""

    labels: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()


REGIONS_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("num_regions", pa.int16(), nullable=False),
        pa.field("boxes", pa.binary(), nullable=False),
        pa.field("labels", pa.binary(), nullable=False),
        pa.field("scores", pa.binary(), nullable=False),
        pa.field("attributes", pa.binary()),  # null where the detector names none
        pa.field("attribute_scores", pa.binary()),
        pa.field("image_digest", pa.string(), nullable=False),
        pa.field("features", pa.binary(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Failure:
    """One image or example that could not be processed. `stage` is decode, features, images, predict or worker."""

    item_id: str
    stage: str
    error: str
    message: str


FAILURE_SCHEMA = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in ("item_id", "stage", "error", "message")]
)

# ---------------------------------------------------------------------------------------------------------------------
# tasks → models: what is asked


@dataclass(frozen=True)
class Question:
    """An open question about one image (VQA v2)."""

    example_id: str
    image_ids: tuple[str]
    text: str


Token = tuple[int, ...] | str
"""A word, or the objects (0-based indices) that a tag such as [0, 2] refers to."""


@dataclass(frozen=True)
class MultipleChoice:
    """A context and its choices, both mixing words with object tags (VCR).

    `mentioned` are the objects whose regions the model may see: the union over question, answers and rationales
    of the item, so that the choice of regions does not give the answer away. Region 0 of the store's row is the whole
    image; object i is region i + 1.
    """

    example_id: str
    image_ids: tuple[str]
    objects: tuple[str, ...]
    context: tuple[Token, ...]
    choices: tuple[tuple[Token, ...], ...]
    mentioned: tuple[int, ...]
    part: str = ""
    """What of its item is asked, for people: "Q → A"."""


@dataclass(frozen=True)
class Statement:
    """A sentence that is true or false of an ordered pair of images (NLVR2): left, right."""

    example_id: str
    image_ids: tuple[str, str]
    text: str


@dataclass(frozen=True)
class Phrase:
    """Words [start, stop) of a caption, to be located in the image."""

    start: int
    stop: int
    text: str


@dataclass(frozen=True)
class Grounding:
    """A caption (split on spaces) with the phrases to locate in one image (Flickr30K Entities)."""

    example_id: str
    image_ids: tuple[str]
    words: tuple[str, ...]
    phrases: tuple[Phrase, ...]


Example = Question | MultipleChoice | Statement | Grounding

# ---------------------------------------------------------------------------------------------------------------------
# models → metrics: what is answered


@dataclass(frozen=True, slots=True)
class Prediction:
    """One model answer.

    `answer` is the benchmark's own form: an answer string (VQA), the index of a choice (VCR), "True" or "False"
    (NLVR2), or per phrase the ranked boxes [[x1, y1, x2, y2], …] (Flickr30K Entities). `scores` are the confidences
    behind it: [probability of the answer] (VQA), one per choice (VCR), [p(False), p(True)] (NLVR2),
    the top-1 probability of each phrase (Flickr30K Entities).
    """

    example_id: str
    image_id: str  # the first image; statistics cluster by it
    answer: Any
    scores: tuple[float, ...]


PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),  # JSON
        pa.field("scores", pa.list_(pa.field("item", pa.float32(), nullable=False)), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """The one answer that a unit judges, of the example `example_id`; of a grounding that to the phrase `part`, whose
    first box it is (None: no box). `confidence` is the model's, None where the predictions hold none."""

    example_id: str
    answer: Any
    confidence: float | None
    part: int | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """What one scored unit is worth to one metric: a question, an item, a pair group, a phrase.

    `value` is in [0, 1]; a metric is the mean over its units, in percent. `cluster` names the image the unit belongs
    to (confidence intervals treat units of one image as dependent). `groups` places the unit in breakdowns, e.g.
    {"answer type": ("number",)}; a unit may sit in several groups of one kind. `judged` is None where the unit judges
    several answers, such as a group of statements, or candidates behind the first: it then says nothing about one
    example, and appears in no gallery.
    """

    unit_id: str
    metric: str
    value: float
    cluster: str
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    judged: JudgedAnswer | None = None
