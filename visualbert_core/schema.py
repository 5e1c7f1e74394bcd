"""The rows that pass from one stage to the next: their Python classes, their Arrow schemas, and the schemas' version.

Boxes are float32 xyxy in pixels of the original image. Shapes: R regions, D feature size.
An `Example` is what a benchmark asks. A `Prediction` is what a model answers. A `Score` is what one unit is worth.
VisualBERT has heads for four of the forms of example (Li et al. 2019, arXiv:1908.03557). A captioner answers the fifth.
A task turns its official records into one of these forms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

SCHEMA_VERSION = 2
"""The version of the rows of a feature store and of units.parquet."""
PREDICTION_VERSION = 3
"""The version of the rows of predictions."""

# ---------------------------------------------------------------------------------------------------------------------
# images → regions


LARGEST_IMAGE = 1 << 29
"""Bytes of the largest image file that is read: six for each of Pillow's MAX_IMAGE_PIXELS, the most that is decoded."""


@dataclass(frozen=True, slots=True)  # there are millions of them
class Image:
    """One image of a corpus.

    The image is the whole file at `path`; or, for a member of a tar, its `size` bytes from byte `start` on; or the cell
    at `row` and `column` of a table (see `corpus.tables`). `column` is None where a table has one column of images.

    `image_id` is the name of the image without its suffix. `boxes_path` names a metadata JSON of VCR's format, whose
    boxes are used in place of detected ones. `data` holds the bytes where they have been read already. `trouble` says
    why the bytes cannot be read, where that is known, such as "is a link to nothing".
    """

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
    """Objects that annotators marked in one image, with classes and outlines. The first object is the whole image."""

    boxes: np.ndarray  # float32 [R, 4] xyxy, original pixels
    labels: np.ndarray  # int16 [R], detector classes
    outlines: tuple[tuple[np.ndarray, ...], ...]  # for each of R objects its polygons, float64 [N, 2] xy


@dataclass(frozen=True)
class Regions:
    """The regions of one image: the answer of a detector, and one row of the feature store."""

    image_id: str
    width: int
    height: int
    boxes: np.ndarray  # float32 [R, 4] xyxy, original pixels
    labels: np.ndarray  # int16 [R], detector classes
    scores: np.ndarray  # float32 [R]
    features: np.ndarray  # float16 [R, D]
    image_digest: str  # xxh3-128 of the file's bytes
    attributes: np.ndarray | None = None  # int16 [R]; None where the detector names no attributes ("red")
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
    boxes: np.ndarray | None = None  # float32 [R, 4] xyxy; None where the model asks for none (`ReadsPixels.boxes`)

    @property
    def width(self) -> int:
        return int(self.rgb.shape[1])

    @property
    def height(self) -> int:
        return int(self.rgb.shape[0])


@dataclass(frozen=True)
class LabelNames:
    """The names of a detector's labels and attributes, by number. Empty where the names are not known."""

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
        pa.field("attributes", pa.binary()),  # null where the detector names no attributes
        pa.field("attribute_scores", pa.binary()),
        pa.field("image_digest", pa.string(), nullable=False),
        pa.field("features", pa.binary(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Failure:
    """An image or example that could not be processed. `stage` is decode, features, images, predict or worker."""

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
"""A word, or the 0-based indices of the objects that a tag such as [0, 2] refers to."""


@dataclass(frozen=True)
class MultipleChoice:
    """A context and its choices. Both mix words with object tags (VCR).

    `mentioned` holds the objects whose regions the model may see: the objects that question, answers or rationales of
    the item mention. The union is taken, so that the choice of regions does not give the answer away. In the store,
    region 0 is the whole image and object i is region i + 1.
    """

    example_id: str
    image_ids: tuple[str]
    objects: tuple[str, ...]
    context: tuple[Token, ...]
    choices: tuple[tuple[Token, ...], ...]
    mentioned: tuple[int, ...]
    part: str = ""
    """The part of the item that is asked, as reports show it: "Q → A"."""


@dataclass(frozen=True)
class Statement:
    """A sentence that is true or false for an ordered pair of images, left and right (NLVR2)."""

    example_id: str
    image_ids: tuple[str, str]
    text: str


@dataclass(frozen=True)
class Phrase:
    """The words [start, stop) of a caption, which the model locates in the image."""

    start: int
    stop: int
    text: str


@dataclass(frozen=True)
class Grounding:
    """A caption, split on spaces, and the phrases to locate in one image (Flickr30K Entities)."""

    example_id: str
    image_ids: tuple[str]
    words: tuple[str, ...]
    phrases: tuple[Phrase, ...]


@dataclass(frozen=True)
class Captioning:
    """An image that the model describes in one sentence (COCO captions, Flickr30k, NoCaps)."""

    example_id: str
    image_ids: tuple[str]


Example = Question | MultipleChoice | Statement | Grounding | Captioning


@dataclass(frozen=True)
class CaptionPair:
    """Two captions for one image, for pre-training. `own` says that the second is a caption of the image too.

    This is no form of `Example`, because no benchmark asks it. `second` is empty where only one caption is read, and
    `own` is then None.
    """

    example_id: str
    image_ids: tuple[str]
    first: str
    second: str = ""
    own: bool | None = None


Target = Mapping[str, float] | str | int | np.ndarray | None
"""What a model is to learn from one example: answer → weight in [0, 1] of a `Question`; the index of the right choice
of a `MultipleChoice`; 0 or 1 for a `Statement` that is false or true; float32 [K, R] for a `Grounding`, in which row k
spreads 1 over the regions that show phrase k, or is zero; the caption of a `Captioning`. A `CaptionPair` needs none.
Where words are masked, a `Question` comes with one answer."""


@dataclass(frozen=True, eq=False)
class NamedRegions:
    """The phrases of an example's text and the regions that they name, to help a model to find what the text is about.

    A phrase counts words of the text, split on spaces. Row k of `shares`, float32 [K, R], spreads 1 over the regions of
    all images of the example that phrase k names, or is zero.
    """

    phrases: tuple[Phrase, ...]
    shares: np.ndarray


# ---------------------------------------------------------------------------------------------------------------------
# models → metrics: what is answered


@dataclass(frozen=True, slots=True)
class Generated:
    """A text that a model wrote, without the prompt."""

    text: str
    parsed: bool = True
    """Whether an answer was found in the text. The answer of an unparsed text counts as wrong."""
    cut: bool = False
    """Whether the text ended at the limit of its length and not by itself."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer of a model to one example.

    `answer` has the form of the benchmark: an answer string (VQA), the index of a choice (VCR), "True" or "False"
    (NLVR2), for each phrase its ranked boxes [[x1, y1, x2, y2], …] (Flickr30K Entities), or a caption. `scores` holds
    the confidences: [probability of the answer] (VQA, captions), one for each choice (VCR), [p(False), p(True)]
    (NLVR2), or the probability of the first box of each phrase (Flickr30K Entities).

    `generated` holds the texts behind the answer: one for a question, one for each phrase of a grounding, none where
    no text was written. `input_cut` says whether the model read a shortened text of the example.
    """

    example_id: str
    image_id: str  # the first image of the example; statistics cluster by it
    answer: Any
    scores: tuple[float, ...]
    generated: tuple[Generated, ...] = ()
    input_cut: bool = False


@dataclass(frozen=True, slots=True)
class RankedAnswer:
    """One of the answers that a model gives to a question, with the model's score for it.

    The score of a classifier is a probability. It is None where a model writes a text without a score.
    """

    answer: str
    score: float | None


_GENERATED = pa.struct(
    [
        pa.field("text", pa.string(), nullable=False),
        pa.field("parsed", pa.bool_(), nullable=False),
        pa.field("cut", pa.bool_(), nullable=False),
    ]
)
PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),  # JSON
        pa.field("scores", pa.list_(pa.field("item", pa.float32(), nullable=False)), nullable=False),
        pa.field("generated", pa.list_(pa.field("item", _GENERATED, nullable=False)), nullable=False),
        pa.field("input_cut", pa.bool_(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """The one answer that a unit judges, to the example `example_id`.

    For a grounding, `part` is the number of the phrase and `answer` is its first box, or None where it has no box.
    `confidence` is the confidence of the model, or None where the predictions hold none.
    """

    example_id: str
    answer: Any
    confidence: float | None
    part: int | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """The numbers of one unit whose sums over all units make a metric: `metrics.sums.FUNCTIONS[function]` of them."""

    function: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """The value of one scored unit for one metric.

    A unit is a question, an item, a group of pairs, a phrase or an image. `value` is in [0, 1]. A metric is the mean
    over its units, in percent. Where units have `counts`, the metric is the function of their sums instead, and `value`
    is that function of this unit alone. `cluster` names the image of the unit: confidence intervals treat the units of
    one image as dependent. `groups` places the unit in breakdowns, such as {"answer type": ("number",)}. A unit may be
    in several groups of one kind. `judged` is None where the unit judges several answers, such as a group of
    statements, or candidates after the first. Such a unit appears in no gallery.
    """

    unit_id: str
    metric: str
    value: float
    cluster: str
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    judged: JudgedAnswer | None = None
    counts: Counts | None = None
