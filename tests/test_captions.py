"""Captions: scores equal to coco-caption's, every layout of the files, faulty files, runs compared, and the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from captions_golden import GOLDEN, OFFICIAL, SETS, coco_folder, golden

from visualbert_core.cli import main
from visualbert_core.comparison.flips import flips
from visualbert_core.errors import AnnotationError, ConfigError, CoverageError, InputError
from visualbert_core.evaluation.score import read_prediction_set, score
from visualbert_core.evaluation.units import Values, by_metric, encode_units, read_units
from visualbert_core.metrics.captions import longest_common
from visualbert_core.provenance import digest_files
from visualbert_core.schema import Captioning
from visualbert_core.tasks import find_task, judge, open_task, summarize
from visualbert_core.tasks.captions import CaptionsTask


def opened(folder: Path, references: Any, split: str = "val") -> CaptionsTask:
    return CaptionsTask(coco_folder(folder, references, split), split)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> CaptionsTask:
    """Return the golden set as an own split "val"."""
    return opened(tmp_path_factory.mktemp("golden"), golden("references"))


def document(task: CaptionsTask, path: Path, mode: Any = "strict") -> dict[str, Any]:
    digest = digest_files(task.annotation_files())
    return score(task, read_prediction_set(task, path, digest, mode), digest, mode)


def written(folder: Path, records: Any) -> Path:
    path = folder / "captions.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


# ---------------------------------------------------------------------------------------------------------------------
# the official numbers


@pytest.mark.parametrize("name", SETS)
def test_scores_are_those_of_the_official_program(task: CaptionsTask, name: str) -> None:
    """Scores of the set and of every image equal those of coco-caption to 1e-9, from the text of the captions on."""
    expected = golden("expected")["sets"][name]
    scores = judge(task, task.read_submission(GOLDEN / f"candidates_{name}.json"))
    assert task.official(scores) == pytest.approx(expected["corpus"], abs=1e-9)
    for metric, scale in (("cider", 10), ("rouge-l", 1), ("bleu-4", 1)):
        own = {unit.unit_id: scale * unit.value for unit in scores if unit.metric == metric}
        assert own == pytest.approx(expected["images"][OFFICIAL[metric]], abs=1e-9)


@pytest.mark.parametrize(
    "case",
    [case for case in golden("cases")["cases"] if "expected" in case and case["judged"]],
    ids=lambda c: c["name"],
)
def test_small_cases_have_the_official_scores(tmp_path: Path, case: dict[str, Any]) -> None:
    """One image, uneven references, empty captions and the like get the official scores, in every image."""
    references = case["references"]
    answered = {str(row["image_id"]) for row in case["candidates"]}
    # The official program can be told to judge only the images of the results. Here, the set is what the files say.
    references["images"] = [image for image in references["images"] if str(image["id"]) in answered]
    kept = {image["id"] for image in references["images"]}
    references["annotations"] = [each for each in references["annotations"] if each["image_id"] in kept]
    small = opened(tmp_path, references)
    scores = judge(small, small.read_submission(written(tmp_path, case["candidates"])))
    assert small.official(scores) == pytest.approx(case["expected"]["corpus"], abs=1e-9)
    own = {unit.unit_id: 10 * unit.value for unit in scores if unit.metric == "cider"}
    assert own == pytest.approx(case["expected"]["images"]["CIDEr"], abs=1e-9)


def test_a_person_and_a_caption_of_another_image(task: CaptionsTask) -> None:
    """A person's score is the mean of five runs of the official program, each of which judges one reference of every
    image by the others. Chance is what the first reference of the image half a set away gets."""
    person = task.person({p.example_id: p for p in task.read_submission(GOLDEN / "candidates_good.json")})
    assert person is not None
    for found, key in ((person.person, "person"), (task.chance({}), "other_image")):
        shown = {OFFICIAL[metric]: value / 100 for metric, value in found.items()}
        assert shown == pytest.approx(golden("expected")[key], abs=1e-9)


def test_a_model_is_judged_as_a_person_is(tmp_path: Path) -> None:
    """Beside a person stands the mean score of the same captions over sets in which each image lacks one reference. The
    sets with one reference less are files, scored alone."""
    images = [{"id": number} for number in range(12)]
    every = [each for each in golden("references")["annotations"] if each["image_id"] in _first_images(12)]
    ids = {image_id: number for number, image_id in enumerate(_first_images(12))}
    every = [{"image_id": ids[each["image_id"]], "caption": each["caption"]} for each in every]
    good = {row["image_id"]: row["caption"] for row in golden("candidates_good")}
    file = written(tmp_path, [{"image_id": number, "caption": good[name]} for name, number in ids.items()])
    found = document(opened(tmp_path, {"images": images, "annotations": every}), file)
    turns: list[dict[str, float]] = []
    for turn in range(5):
        left = [each for number in range(12) for at, each in enumerate(_of(every, number)) if at != turn]
        turns.append(document(opened(tmp_path, {"images": images, "annotations": left}), file)["scores"])
    means = {metric: np.mean([scores[metric] for scores in turns]) for metric in OFFICIAL}
    assert found["as_person"] == pytest.approx(means, abs=1e-9)
    assert found["as_person"]["bleu-4"] < found["scores"]["bleu-4"]


def _first_images(count: int) -> list[int]:
    return [image["id"] for image in golden("references")["images"][:count]]


def _of(annotations: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    return [each for each in annotations if each["image_id"] == number]


def test_document(task: CaptionsTask) -> None:
    """A document holds CIDEr up to 1,000 with its interval, a person, and how long and how different captions are."""
    found = document(task, GOLDEN / "candidates_good.json")
    assert found["headline"] == "cider"
    assert found["scales"] == {"cider": 1000.0}
    assert found["scores"]["cider"] == pytest.approx(97.838, abs=0.001)
    for metric, value in found["scores"].items():
        low, high = found["intervals"][metric]
        assert 0 <= low < value < high
        assert found["chance"][metric] < found["person"][metric] < 100
    assert found["beside"] == {"words per caption": pytest.approx(11.58, abs=0.01), "distinct captions": 300}
    assert found["warnings"] == []
    same = {p.example_id: p for p in task.read_submission(GOLDEN / "candidates_same_for_all.json")}
    assert task.beside(same)["distinct captions"] == 1


def test_a_full_score_has_an_interval(tmp_path: Path) -> None:
    """Captions equal to their references get 1,000 and 100, and a BLEU of 100 is as uncertain as any full score."""
    scenes = {1: "a red dog runs in the park", 2: "two old cats sleep on a sofa", 3: "one tall man eats green soup"}
    images, annotations = [{"id": i} for i in scenes], [{"image_id": i, "caption": text} for i, text in scenes.items()]
    found = document(opened(tmp_path, {"images": images, "annotations": annotations}), written(tmp_path, annotations))
    assert found["scores"] == pytest.approx({metric: 1000.0 if metric == "cider" else 100.0 for metric in OFFICIAL})
    low, high = found["intervals"]["bleu-4"]
    assert (low, high) == (pytest.approx(29.24, abs=0.01), 100)  # three of three; Clopper and Pearson
    assert "person" not in found  # nobody is left to judge a single reference


def test_longest_common_subsequence() -> None:
    """The sequence in bits has the length that the usual table gives, for random words."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        first, second = (list(rng.choice(list("abcd"), rng.integers(1, 15))) for _ in range(2))
        table = np.zeros((len(first) + 1, len(second) + 1), int)
        for i, one in enumerate(first):
            for j, other in enumerate(second):
                table[i + 1, j + 1] = table[i, j] + 1 if one == other else max(table[i, j + 1], table[i + 1, j])
        assert longest_common(first, second) == table[-1, -1]


# ---------------------------------------------------------------------------------------------------------------------
# files

COCO = {
    "images": [{"id": 2, "file_name": "COCO_val2014_000000000002.jpg"}, {"id": 1, "file_name": "x/one.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 1, "caption": "A dog."},
        {"id": 2, "image_id": 2, "caption": "A cat."},
        {"id": 3, "image_id": 1, "caption": "One dog."},
    ],
}


def karpathy(*records: dict[str, Any]) -> str:
    return json.dumps({"images": list(records), "dataset": "made up"})


def kept(filename: str, split: str, *captions: str, **more: Any) -> dict[str, Any]:
    return {"filename": filename, "split": split, "sentences": [{"raw": text} for text in captions]} | more


LAYOUTS: dict[str, tuple[str, dict[str, str], dict[str, tuple[str, tuple[str, ...]]]]] = {
    "COCO": (
        "val2014",
        {"captions_val2014.json": json.dumps(COCO)},
        {"2": ("COCO_val2014_000000000002", ("A cat.",)), "1": ("one", ("A dog.", "One dog."))},
    ),
    "Karpathy's COCO": (
        "coco-test",
        {"dataset_coco.json": karpathy(kept("v_7.jpg", "test", "A dog.", cocoid=7), kept("v_8.jpg", "val", "No."))},
        {"7": ("v_7", ("A dog.",))},
    ),
    "Karpathy's Flickr30k": (
        "flickr30k-val",
        {"dataset_flickr30k.json": karpathy(kept("36979.jpg", "val", "A dog.", "A cat.", imgid=0))},
        {"36979": ("36979", ("A dog.", "A cat."))},
    ),
    "Flickr30k's token file": (
        "test",
        {
            "test.txt": "5\n6\n",
            "results_20130124.token": "6.jpg#0\tA cat.\n5.jpg#0\tA dog.\n7.jpg#0\tNo.\n5.jpg#1\tIt.\n",
        },
        {"5": ("5", ("A dog.", "It.")), "6": ("6", ("A cat.",))},
    ),
    "Flickr30K Entities": (
        "test",
        {"test.txt": "5", "Sentences/5.txt": "[/EN#1/people Two men] wait .\nA [/EN#2/other red car] .\n"},
        {"5": ("5", ("Two men wait .", "A red car ."))},
    ),
    "NoCaps": (
        "nocaps-val",
        {
            "nocaps_val_4500_captions.json": json.dumps(
                {
                    "images": [{"id": 0, "file_name": "0013ea.jpg", "domain": "near-domain"}],
                    "annotations": [{"id": 0, "image_id": 0, "caption": "A dog."}],
                }
            )
        },
        {"0": ("0013ea", ("A dog.",))},
    ),
}


def laid_out(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_read(tmp_path: Path, name: str) -> None:
    """Each data set's own files give its images in file order with their references, and name what was read."""
    split, files, expected = LAYOUTS[name]
    task = open_task("captions", laid_out(tmp_path, files), split)
    assert isinstance(task, CaptionsTask)
    assert {e.example_id: (e.image_ids[0], task.references(e.example_id)) for e in task.examples()} == expected
    assert list(task.expected()) == list(expected)
    assert all(type(example) is Captioning for example in task.examples())
    assert {str(path.relative_to(tmp_path)) for path in task.annotation_files()} == set(files)
    assert task.subset is not None
    assert "own set or subset" in task.protocol
    assert ("tokenised before" in task.protocol) == (name == "Flickr30K Entities")


def test_nocaps_by_domain(tmp_path: Path) -> None:
    """The domain of NoCaps is a breakdown, in which BLEU is that of the domain's images together."""
    domains = ("in-domain", "out-domain", "out-domain")
    images = [{"id": i, "file_name": f"{i}.jpg", "domain": domain} for i, domain in enumerate(domains)]
    texts = ("a dog runs in the park", "a cat sleeps on the sofa", "a man eats soup at home")
    annotations = [{"image_id": i, "caption": text} for i, text in enumerate(texts)]
    (tmp_path / "nocaps_val_4500_captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    task = CaptionsTask(tmp_path, "nocaps-val")
    given = [
        {"image_id": 0, "caption": texts[0]},
        {"image_id": 1, "caption": texts[1]},
        {"image_id": 2, "caption": "a"},
    ]
    groups = summarize(judge(task, task.read_submission(written(tmp_path, given))), task.scales).breakdown["domain"]
    assert groups["in-domain"]["bleu-1"] == (pytest.approx(100), 1)
    # One caption is whole and one has a single word of six: 7 of 7 words match, and 7 stand for 12.
    assert groups["out-domain"]["bleu-1"] == (pytest.approx(100 * np.exp(1 - 12 / 7)), 2)
    assert groups["in-domain"]["cider"] == (pytest.approx(1000), 1)


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in COCO.items() if name != key}


FAULTY: dict[str, tuple[str, dict[str, str], str]] = {
    "no file": ("val2014", {}, "captions_val2014.json: not found; the annotations folder must hold"),
    "no images": ("val2014", {"captions_val2014.json": json.dumps(without("images"))}, "no list 'images'"),
    "no annotations": (
        "val2014",
        {"captions_val2014.json": json.dumps(without("annotations"))},
        "no list 'annotations'",
    ),
    "an image twice": (
        "val2014",
        {"captions_val2014.json": json.dumps(COCO | {"images": [*COCO["images"], {"id": 1}]})},
        "captions_val2014.json: image id 1 occurs twice",
    ),
    "an image without an id": (
        "val2014",
        {"captions_val2014.json": json.dumps(COCO | {"images": [{"file_name": "a.jpg"}]})},
        "captions_val2014.json images[0]: Object missing required field `id`",
    ),
    "a caption of an unknown image": (
        "val2014",
        {"captions_val2014.json": json.dumps(COCO | {"annotations": [{"image_id": 9, "caption": "a"}]})},
        "annotations[0]: image_id 9 is not among the images",
    ),
    "an image without a reference": (
        "val2014",
        {"captions_val2014.json": json.dumps(COCO | {"images": [*COCO["images"], {"id": 3}]})},
        "image 3 has no reference caption",
    ),
    "a caption that is null": (
        "val2014",
        {"captions_val2014.json": json.dumps(COCO | {"annotations": [{"image_id": 1, "caption": None}]})},
        "json annotations[0] (image_id 1): Expected `str`, got `null` - at `$.caption`",
    ),
    "a file name that leads elsewhere": (
        "val2014",
        {"captions_val2014.json": json.dumps(COCO | {"images": [{"id": 1, "file_name": "a\n.jpg"}, {"id": 2}]})},
        "image 1: 'a\\n' is not the id of an image",
    ),
    "a split that Karpathy's file lacks": (
        "coco-restval",
        {"dataset_coco.json": karpathy(kept("a.jpg", "test", "A dog."))},
        "dataset_coco.json: no image of this split",
    ),
    "an image twice in Karpathy's file": (
        "coco-test",
        {"dataset_coco.json": karpathy(*[kept("a.jpg", "test", "A dog.", cocoid=4)] * 2)},
        "dataset_coco.json: image 4 occurs twice",
    ),
    "a token file without tabs": (
        "test",
        {"test.txt": "5", "results_20130124.token": "5.jpg#0 A dog."},
        "results_20130124.token line 1: does not read <image>.jpg#<number><TAB><caption>",
    ),
    "an image that the token file lacks": (
        "test",
        {"test.txt": "5\n6", "results_20130124.token": "5.jpg#0\tA dog."},
        "image 6 has no reference caption",
    ),
    "an image whose file of Entities is empty": (
        "test",
        {"test.txt": "5\n6", "Sentences/5.txt": "\n", "Sentences/6.txt": "A dog ."},
        "Sentences/5.txt: image 5 has no reference caption",
    ),
    "two data sets in a folder": (
        "test",
        {"test.txt": "5", "captions_test.json": json.dumps(COCO)},
        "captions_test.json and test.txt are two data sets",
    ),
}


@pytest.mark.parametrize("name", FAULTY)
def test_faulty_annotations_are_one_line(tmp_path: Path, name: str) -> None:
    """A fault in the annotations is one line with the file, the record, and what is wrong."""
    split, files, words = FAULTY[name]
    with pytest.raises(AnnotationError) as raised:
        open_task("captions", laid_out(tmp_path, files), split)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_unknown_split_is_refused(tmp_path: Path) -> None:
    """A split that no data set has is an error that lists the splits."""
    with pytest.raises(ConfigError, match="unknown Captions split 'dev'; known: val2014"):
        open_task("captions", tmp_path, "dev")


# ---------------------------------------------------------------------------------------------------------------------
# predictions


def two(folder: Path) -> CaptionsTask:
    return opened(folder, COCO)


GOOD = [{"image_id": 1, "caption": "A dog."}, {"image_id": "2", "caption": "A cat.", "id": 7}]


def test_submission_comes_back(tmp_path: Path) -> None:
    """A file in COCO's form is read in any order, also with ids as text, and is written in the order of the split."""
    task = two(tmp_path)
    read = task.read_submission(written(tmp_path, GOOD))
    assert [(p.example_id, p.image_id, p.answer) for p in read] == [
        ("1", "one", "A dog."),
        ("2", "COCO_val2014_000000000002", "A cat."),
    ]
    assert json.loads(task.submission({p.example_id: p for p in read})) == [
        {"image_id": 2, "caption": "A cat."},
        {"image_id": 1, "caption": "A dog."},
    ]


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (GOOD[:1], "1 missing (2)"),
        ([*GOOD, GOOD[0]], "1 duplicate (1)"),
        ([*GOOD, {"image_id": 3, "caption": "a"}], "1 unknown (3)"),
        ([], "2 missing"),
        (
            [GOOD[0], {"image_id": 2, "caption": None}],
            "captions.json record 2 (image_id 2): Expected `str`, got `null` - at `$.caption`",
        ),
        ([GOOD[0], {"image_id": 2, "caption": 5}], "Expected `str`, got `int` - at `$.caption`"),
        (
            [GOOD[0], {"caption": "a"}],
            "captions.json record 2: Object missing required field `image_id`; write the leaderboard's format",
        ),
        ({"image_id": 2}, "captions.json: dict, not a list of records; write the leaderboard's format"),
    ],
)
def test_predictions_that_do_not_cover_the_set_have_no_score(tmp_path: Path, records: Any, words: str) -> None:
    """Each image needs one caption, since one image less changes the weights of all words. The line says what lacks."""
    for mode in ("strict", "official"):
        with pytest.raises(CoverageError) as raised:
            document(two(tmp_path), written(tmp_path, records), mode)
        assert words in str(raised.value)


def test_missing_captions_have_no_range(tmp_path: Path) -> None:
    """No caption is the worst: BLEU sinks further with each longer one. So --allow-partial is refused."""
    with pytest.raises(CoverageError, match="no score, captions: missing captions have no worst or best answer"):
        document(two(tmp_path), written(tmp_path, GOOD[:1]), "partial")
    with pytest.raises(CoverageError, match=r"predict each example once$"):  # and no line advises it
        document(two(tmp_path), written(tmp_path, GOOD[:1]))


def test_warnings_of_a_single_image_and_of_captions_without_words(tmp_path: Path) -> None:
    """A set of one image has CIDEr 0 and says why; captions without a word are counted."""
    single = opened(tmp_path, {"images": [{"id": 1}], "annotations": COCO["annotations"][:1]})
    found = document(single, written(tmp_path, [{"image_id": 1, "caption": "A dog."}]))
    assert found["scores"]["cider"] == 0
    assert found["warnings"] == [
        "the set has one image: no word tells it from others, so CIDEr is 0 whatever the caption"
    ]
    assert found["intervals"]["bleu-4"] == [None, None]
    empty = document(two(tmp_path), written(tmp_path, [GOOD[0], {"image_id": 2, "caption": " ... "}]))
    assert "1 of 2 captions have no word: each gets 0" in empty["warnings"]
    blank = opened(tmp_path, COCO | {"annotations": [*COCO["annotations"], {"image_id": 2, "caption": "!"}]})
    said = "1 of 4 references have no word: no caption can agree with them"
    assert document(blank, written(tmp_path, GOOD))["warnings"][-1] == said


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\v", "\f", "\u2028", "\u2029"])
def test_line_breaks_are_spaces_and_are_said(tmp_path: Path, end: str) -> None:
    """A line break in a caption changes no score. A line says where the official program would shift captions."""
    annotations = [COCO["annotations"][0] | {"caption": f"A{end}dog."}, *COCO["annotations"][1:]]
    broken = opened(tmp_path, COCO | {"annotations": annotations})
    found = document(broken, written(tmp_path, [{"image_id": 1, "caption": f"A{end}dog."}, GOOD[1]]))
    assert found["scores"] == document(two(tmp_path), written(tmp_path, GOOD))["scores"]
    said = [
        line
        for line in found["warnings"]
        if line.startswith("a line break in 1 of 2 captions and 1 of 3 references is")
    ]
    assert len(said) == (end != "\n")


def test_answers_must_be_texts(task: CaptionsTask) -> None:
    """A prediction of a model that is no text is an error that names the image."""
    predictions = {p.example_id: p for p in task.read_submission(GOLDEN / "candidates_good.json")}
    name = next(iter(predictions))
    object.__setattr__(predictions[name], "answer", 5)
    with pytest.raises(InputError, match=f"prediction of {name}: 5 is not an answer to a Captioning"):
        list(task.score(predictions))


def test_the_command_scores_without_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`visualbert score` prints every metric with its interval and a person, in the official form below."""
    coco_folder(tmp_path, golden("references"), "val")
    shutil.copy(GOLDEN / "candidates_good.json", tmp_path / "captions.json")
    line = ["score", "--task", "captions", "--split", "val", "--annotations", str(tmp_path)]
    assert main([*line, "--predictions", str(tmp_path / "captions.json")]) == 0
    text = capsys.readouterr().out
    assert "cider           97.84  [91.09, 104.58]        300       –   83.31      97.81" in text
    assert "person: each reference of an image, judged by the image's other references; as person: the score" in text
    assert "bleu-4          34.60" in text
    assert "distinct captions: 300" in text
    assert "CIDEr=0.97838345581194" in text


# ---------------------------------------------------------------------------------------------------------------------
# units, flips


def test_units_keep_their_counts(task: CaptionsTask, tmp_path: Path) -> None:
    """units.parquet gives BLEU back exactly; the files of other benchmarks keep their columns."""
    scores = judge(task, task.read_submission(GOLDEN / "candidates_good.json"))
    units = by_metric(scores)
    (tmp_path / "units.parquet").write_bytes(encode_units(units))
    read = read_units(tmp_path)
    shown = {metric: found.value for metric, found in summarize(scores, task.scales).metrics.items()}
    for metric, found in read.items():
        assert Values.of(found).value * task.scales.get(metric, 100) == pytest.approx(shown[metric], abs=1e-9)
        assert {unit.counts and unit.counts.function for unit in found} == {"bleu" if "bleu" in metric else None}
    assert encode_units(read) == encode_units(units)


def test_flips_of_captions_are_graded(task: CaptionsTask) -> None:
    """A flip of a caption shows CIDEr-D in [0, 10], and the largest change comes first whatever the confidence."""
    before, after = (
        by_metric(judge(task, task.read_submission(GOLDEN / f"candidates_{name}.json")))["cider"]
        for name in ("good", "wrong_image")
    )
    found = flips(before, after, 5, task.scales["cider"])
    assert found is not None
    changes = [flip.change for flip in found.worse]
    assert changes == sorted(changes)
    assert found.worse[0].value_before > 1
    assert found.worse[0].change == pytest.approx(found.worse[0].value_after - found.worse[0].value_before)


def test_the_task_is_found_by_its_name() -> None:
    """`--task captions` finds the task, and every metric has a name for readers."""
    assert find_task("captions") is CaptionsTask
    assert set(CaptionsTask.metrics) == set(CaptionsTask.metric_labels) == set(OFFICIAL)
