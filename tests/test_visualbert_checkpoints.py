"""Checkpoints of every origin: shards, the Hub's cache, the authors' .th files, and the published ones if present.

The tests cannot download the originals, so they write files with the same key names and shapes. To test the published
golden values too, set VISUALBERT_CKPT_DIR to a folder with `visualbert-vqa`, … as on the Hub.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tolerances import close
from torch import Tensor

import visualbert_core.models.visualbert as ours
from visualbert_core.cli import main
from visualbert_core.errors import CheckpointError
from visualbert_core.models.visualbert.checkpoint.convert import DETECTOR_FILE, NETWORKS, convert
from visualbert_core.models.visualbert.checkpoint.files import weights_digest
from visualbert_core.models.visualbert.checkpoint.metadata import CheckpointMetadata
from visualbert_core.models.visualbert.checkpoint.pretrained import Pretrained

CONFIG = ours.VisualBertConfig(
    vocab_size=30,
    hidden_size=16,
    visual_embedding_dim=5,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=20,
    max_position_embeddings=12,
)


def made(network: type[Pretrained], seed: int = 0, **changes: Any) -> Pretrained:
    torch.manual_seed(seed)
    return network(replace(CONFIG, **changes)).eval()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def sharded(folder: Path, network: Pretrained, suffix: str) -> Path:
    """Save the state in two shards, as transformers names them, and return the index."""
    network.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem = {".safetensors": "model", ".bin": "pytorch_model"}[suffix]
    weight_map = {}
    for number in (1, 2):
        name = f"{stem}-0000{number}-of-00002{suffix}"
        part = {key: value for i, (key, value) in enumerate(sorted(state.items())) if i % 2 == number - 1}
        save_file(part, folder / name) if suffix == ".safetensors" else torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


# ---------------------------------------------------------------------------------------------------------------------
# shards and round trips


@pytest.mark.parametrize("name", [*(n.__name__ for n in NETWORKS.values()), "VisualBertModel"])
@pytest.mark.parametrize("shard_size", ["5GB", "4KB"])
def test_there_and_back_again(tmp_path: Path, name: str, shard_size: str) -> None:
    """transformers → ours → transformers gives bit-identical tensors, from one file and from many shards."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    first = getattr(transformers, name)(transformers.VisualBertConfig.from_dict(CONFIG.to_dict()))
    first.save_pretrained(tmp_path / "theirs", max_shard_size=shard_size)
    assert (tmp_path / "theirs" / "model.safetensors").exists() == (shard_size == "5GB")
    getattr(ours, name).from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    again = getattr(transformers, name).from_pretrained(tmp_path / "ours")
    assert same(again.state_dict(), first.state_dict())


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_of_both_formats(tmp_path: Path, suffix: str) -> None:
    """An index and its shards load as one checkpoint, and its digest changes with any shard."""
    network = made(ours.VisualBertForPreTraining)
    index = sharded(tmp_path, network, suffix)
    assert same(ours.VisualBertForPreTraining.from_pretrained(tmp_path).state_dict(), network.state_dict())
    before = weights_digest(tmp_path)
    assert weights_digest(tmp_path) == before
    shard = sorted(tmp_path.glob(f"*-00002{suffix}"))[1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    assert weights_digest(tmp_path) != before
    index.unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        weights_digest(tmp_path)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/x.safetensors", "a/b.safetensors", "x.bin", "..", 3])
def test_an_index_that_leads_elsewhere(tmp_path: Path, name: object) -> None:
    """A shard must be a plain file name of the index's own format: a path out of the folder is refused, even to a good
    file."""
    network = made(ours.VisualBertForVisualReasoning)
    index = sharded(tmp_path / "a", network, ".safetensors")
    network.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(network.state_dict(), name)}))
    with pytest.raises(CheckpointError, match=r"index\.json: a shard must be the plain name of a \.safetensors file"):
        ours.VisualBertForVisualReasoning.from_pretrained(tmp_path / "a")


def test_an_index_that_is_wrong(tmp_path: Path) -> None:
    """A missing shard, a shard with other weights than listed, and a broken index are each named."""
    index = sharded(tmp_path, made(ours.VisualBertForVisualReasoning), ".safetensors")
    good = json.loads(index.read_text())
    load = ours.VisualBertForVisualReasoning.from_pretrained
    del good["weight_map"]["cls.bias"]
    index.write_text(json.dumps(good))
    with pytest.raises(CheckpointError, match=r"00002\.safetensors: the shard and \S+ do not list .*: cls\.bias"):
        load(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"index\.json: the shard model-00002-of-00002\.safetensors is missing"):
        load(tmp_path)
    for text in ("{", "[]", "{}", '{"weight_map": []}'):
        index.write_text(text)
        with pytest.raises(CheckpointError, match=r"index\.json: ") as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)


def test_a_pickle_that_runs_code(tmp_path: Path) -> None:
    """torch files are read as weights only: a pickled object is refused and does not run."""

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    made(ours.VisualBertForVisualReasoning).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"cls.bias": Trap()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: cannot be read"):
        ours.VisualBertForVisualReasoning.from_pretrained(tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("data", [b"hi\n", b"", b"<!DOCTYPE html>"])
def test_what_is_no_weights_file(tmp_path: Path, data: bytes) -> None:
    """A web page or an empty file under the weights' name is one line with its path."""
    made(ours.VisualBertForVisualReasoning).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: cannot be read .*download it again") as raised:
        ours.VisualBertForVisualReasoning.from_pretrained(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_decoder_that_is_not_the_word_table(tmp_path: Path) -> None:
    """A written copy of a tied weight that differs from it is refused, because the network has only one of the two."""
    made(ours.VisualBertForPreTraining).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({**state, "cls.predictions.decoder.bias": torch.ones(30)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"decoder\.bias must be a copy of cls\.predictions\.bias"):
        ours.VisualBertForPreTraining.from_pretrained(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# new heads


def test_a_new_head_on_a_trained_trunk(tmp_path: Path) -> None:
    """A declared new head starts fresh on the file's trunk. Without the declaration it is refused, and the error names
    the flag."""
    source = made(ours.VisualBertForPreTraining)
    source.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"missing cls\.bias, cls\.weight; unknown .*new_head=True"):
        ours.VisualBertForQuestionAnswering.from_pretrained(tmp_path)
    config = replace(CONFIG, num_labels=7)
    torch.manual_seed(0)
    network = ours.VisualBertForQuestionAnswering.from_pretrained(tmp_path, config=config, new_head=True)
    assert same(network.visual_bert.state_dict(), source.get_submodule("visual_bert").state_dict())
    assert network.cls.weight.shape == (7, 16)
    assert 0.005 < float(network.cls.weight.detach().std()) < 0.05
    assert not any(parameter.is_meta for parameter in network.parameters())


def test_a_new_head_takes_what_fits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A grounding network keeps the pre-training heads of its source, starts the rest fresh with a log line, and keeps
    ties."""
    source = made(ours.VisualBertForPreTraining)
    source.save_pretrained(tmp_path)
    with caplog.at_level("INFO"):
        network = ours.VisualBertForRegionToPhraseAlignment.from_pretrained(tmp_path, new_head=True)
    assert same(network.cls.state_dict(), source.get_submodule("cls").state_dict())
    assert network.cls.predictions.decoder.weight is network.visual_bert.embeddings.word_embeddings.weight
    assert "fresh attention.key.bias" in caplog.text


def test_a_new_head_is_not_a_new_trunk(tmp_path: Path) -> None:
    """Only the head may be new: a trunk with a missing weight, an extra weight or a wrong shape is refused."""
    made(ours.VisualBertForPreTraining).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    load, key = ours.VisualBertForQuestionAnswering.from_pretrained, "visual_bert.pooler.dense.bias"
    for changed, says in (
        ({k: v for k, v in state.items() if k != key}, f"missing {key}"),
        ({**state, "visual_bert.surplus": torch.ones(1)}, r"unknown visual_bert\.surplus"),
        ({**state, key: torch.ones(3)}, rf"{key} \[3\] instead of \[16\]"),
    ):
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=says):
            load(tmp_path, new_head=True)
    with pytest.raises(ValueError, match="VisualBertModel has no head"):
        ours.VisualBertModel.from_pretrained(tmp_path, new_head=True)


# ---------------------------------------------------------------------------------------------------------------------
# the Hub, offline

HUB_ID, COMMIT = "uclanlp/visualbert-test", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test an empty Hugging Face cache and no network."""
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(cache: Path) -> Path:
    """Make the snapshot folder of HUB_ID as a download leaves it."""
    repository = cache / f"models--{HUB_ID.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot


@pytest.mark.parametrize("form", ["safetensors", "bin", "shards", "bin shards"])
def test_a_hub_id_from_the_cache(cache: Path, form: str) -> None:
    """A Hub id that was downloaded before opens offline, whatever the format of its weights."""
    network, snapshot = made(ours.VisualBertForQuestionAnswering), cached(cache)
    if "shards" in form:
        sharded(snapshot, network, ".bin" if "bin" in form else ".safetensors")
    else:
        network.save_pretrained(snapshot)
    if form == "bin":
        torch.save(load_file(snapshot / "model.safetensors"), snapshot / "pytorch_model.bin")
        (snapshot / "model.safetensors").unlink()
    found = ours.VisualBertForQuestionAnswering.from_pretrained(HUB_ID)
    assert same(found.state_dict(), network.state_dict())


def test_a_cache_of_ones_own(cache: Path, tmp_path: Path) -> None:
    """`cache_dir` replaces the user's cache, and `revision` names a commit."""
    network = made(ours.VisualBertForQuestionAnswering)
    network.save_pretrained(cached(tmp_path / "own"))
    load = ours.VisualBertForQuestionAnswering.from_pretrained
    found = load(HUB_ID, cache_dir=tmp_path / "own", revision=COMMIT)
    assert same(found.state_dict(), network.state_dict())
    with pytest.raises(CheckpointError, match=f"{HUB_ID}: no such folder, and cannot be downloaded from the Hub"):
        load(HUB_ID)


@pytest.mark.parametrize("format_", ["safetensors", "bin", "both"])
def test_only_what_is_read_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: str) -> None:
    """torch weights are downloaded only where there are no others, from the same commit, and unread files never are."""
    hub, snapshot, revisions = tmp_path / "hub", tmp_path / COMMIT, []
    network = made(ours.VisualBertForQuestionAnswering)
    network.save_pretrained(hub)
    if format_ != "safetensors":
        torch.save(load_file(hub / "model.safetensors"), hub / "pytorch_model.bin")
    if format_ == "bin":
        (hub / "model.safetensors").unlink()
    (hub / "README.md").write_text("words")
    (hub / "training_args.bin").write_text("pickle")

    def download(hub_id: str, *, allow_patterns: list[str], revision: str | None, cache_dir: object) -> str:
        revisions.append(revision)
        snapshot.mkdir(exist_ok=True)
        for path in hub.iterdir():
            if any(path.match(pattern) for pattern in allow_patterns):
                shutil.copy(path, snapshot)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = ours.VisualBertForQuestionAnswering.from_pretrained(HUB_ID, revision="main")
    assert same(found.state_dict(), network.state_dict())
    assert revisions == (["main", COMMIT] if format_ == "bin" else ["main"])
    weights = "pytorch_model.bin" if format_ == "bin" else "model.safetensors"
    assert {path.name for path in snapshot.iterdir()} == {"config.json", weights}


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (HUB_ID, "cannot be downloaded from the Hub"),
        ("no/such/folder", r"no such folder, and not a Hub id \(name/name\)"),
        ("/absent", "not a Hub id"),
        ("../absent", "not a Hub id"),
        ("absent", "not a Hub id"),
    ],
)
def test_neither_a_folder_nor_on_the_hub(cache: Path, source: str, says: str) -> None:
    """A source that is neither a folder nor on the Hub is one line that says what was tried."""
    with pytest.raises(CheckpointError, match=says) as caught:
        ours.VisualBertModel.from_pretrained(source)
    assert "\n" not in str(caught.value)


def test_a_folder_comes_before_the_hub(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder called name/name is read before the Hub is asked, and for a file the error names the converter."""
    network = made(ours.VisualBertForQuestionAnswering)
    monkeypatch.chdir(tmp_path)
    network.save_pretrained(HUB_ID)
    found = ours.VisualBertForQuestionAnswering.from_pretrained(HUB_ID)
    assert same(found.state_dict(), network.state_dict())
    with pytest.raises(CheckpointError, match=r"is a file; `visualbert convert checkpoint IN OUT`"):
        ours.VisualBertForQuestionAnswering.from_pretrained(f"{HUB_ID}/config.json")


# ---------------------------------------------------------------------------------------------------------------------
# the authors' own files

CLASSES = {"vqa": 3129, "vcr": 1, "nlvr2": 2}


def original(task: str, bypass: bool = False) -> tuple[dict[str, Tensor], Pretrained]:
    """Return a state dict with the authors' names (uclanlp/visualbert, models/model.py) and the network that it
    describes."""
    network = made(NETWORKS[task], bypass_transformer=bypass, num_labels=max(2, CLASSES.get(task, 2)))
    renamed = {
        "visual_bert.embeddings.visual_token_type_embeddings.": "bert.bert.embeddings.token_type_embeddings_visual.",
        "visual_bert.embeddings.visual_position_embeddings.": "bert.bert.embeddings.position_embeddings_visual.",
        "visual_bert.embeddings.visual_projection.": "bert.bert.embeddings.projection.",
        "visual_bert.": "bert.bert.",
        "attention.": "bert.flickr_attention.",
        "cls.": "bert.classifier." if task in CLASSES else "bert.cls.",
    }
    state = {}
    for key, value in network.state_dict().items():
        if not key.endswith("decoder.bias"):  # the authors' files have no such name
            prefix = next(prefix for prefix in renamed if key.startswith(prefix))
            state[renamed[prefix] + key.removeprefix(prefix)] = value
    if task == "vcr":
        state["detector.backbone.0.weight"] = torch.randn(4, 3, 7, 7)
        state["detector.backbone.1.num_batches_tracked"] = torch.tensor(7)
        state["detector.obj_downsample.1.weight"] = torch.randn(5, 8)
    return state, network


@pytest.mark.parametrize("task", NETWORKS)
@pytest.mark.parametrize("bypass", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_an_original_file(tmp_path: Path, task: str, bypass: bool, zipped: bool) -> None:
    """Every head of the authors converts by its keys alone, from old and new torch files, without a changed bit."""
    state, network = original(task, bypass)
    torch.save(state, tmp_path / "best.th", _use_new_zipfile_serialization=zipped)
    report = convert(tmp_path / "best.th", tmp_path / "out", attention_heads=2)
    found = type(network).from_pretrained(tmp_path / "out")
    assert same(found.state_dict(), network.state_dict())
    assert found.config == network.config
    assert f"task {task}: {type(network).__name__}, 2 layers of 16, 5-d features" in report
    assert CheckpointMetadata.from_folder(tmp_path / "out").task == (None if task == "pretraining" else task)
    assert (tmp_path / "out" / DETECTOR_FILE).exists() == (task == "vcr")
    if task == "vcr":
        detector = {key: value for key, value in state.items() if key.startswith("detector.")}
        assert same(load_file(tmp_path / "out" / DETECTOR_FILE), detector)
        assert "its detector: 3 tensors in detector.safetensors" in report


def test_the_command_line(tmp_path: Path) -> None:
    """The documented command converts without a warning, and the second run refuses to overwrite the result."""
    state, network = original("nlvr2")
    torch.save(state, tmp_path / "in.th")
    line = [sys.executable, "-m", "visualbert_core", "convert", "checkpoint", "in.th", "out"]
    line += ["--attention-heads", "2", "--feature-space", "detectron"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=False, env=os.environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("in.th → out\ntask nlvr2: VisualBertForVisualReasoning")
    assert CheckpointMetadata.from_folder(tmp_path / "out") == CheckpointMetadata("nlvr2", feature_space="detectron")
    assert same(type(network).from_pretrained(tmp_path / "out").state_dict(), network.state_dict())
    with pytest.raises(CheckpointError, match="out: exists and is not empty"):
        main(["convert", "checkpoint", str(tmp_path / "in.th"), str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("change", "task", "says"),
    [
        ({"bert.surplus": torch.ones(1)}, None, r"not a checkpoint of the authors' VisualBERT: unknown bert\.surplus"),
        ({"bert.bert.surplus": torch.ones(1)}, None, r"unknown visual_bert\.surplus"),
        ({"bert.classifier.weight": torch.ones(5, 16)}, None, r"head of 5 classes does not tell its task: .*--task"),
        ({"bert.classifier.weight": None, "bert.classifier.bias": None}, None, r"head of 0 classes"),
        ({"bert.bert.pooler.dense.bias": None}, None, r"missing visual_bert\.pooler\.dense\.bias"),
        ({"bert.bert.embeddings.projection.weight": None}, None, r"visual_projection\.weight is missing"),
        ({}, "vcr", r"cls\.weight \[2, 16\] instead of \[1, 16\]"),
        ({}, "pretraining", r"missing cls\.predictions\.bias"),
    ],
)
def test_an_original_file_that_does_not_fit(
    tmp_path: Path, change: dict[str, Tensor | None], task: str | None, says: str
) -> None:
    """Unknown, missing or misshapen weights and a task of another head are refused by name, and nothing is written."""
    state = {key: value for key, value in {**original("nlvr2")[0], **change}.items() if value is not None}
    torch.save(state, tmp_path / "in.th")
    with pytest.raises(CheckpointError, match=says) as caught:
        convert(tmp_path / "in.th", tmp_path / "out", task, attention_heads=2)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_task_that_must_be_named(tmp_path: Path) -> None:
    """A head with an unusual number of classes converts once the command line names its task."""
    change = {"bert.classifier.weight": torch.ones(5, 16), "bert.classifier.bias": torch.ones(5)}
    torch.save({**original("nlvr2")[0], **change}, tmp_path / "in.th")
    convert(tmp_path / "in.th", tmp_path / "out", "vqa", attention_heads=2)
    assert ours.VisualBertForQuestionAnswering.from_pretrained(tmp_path / "out").config.num_labels == 5


# ---------------------------------------------------------------------------------------------------------------------
# the published checkpoints

REAL = os.environ.get("VISUALBERT_CKPT_DIR")
WELCOME = [101, 6160, 2000, 2224, 20890, 20890, 1998, 20890, 20554, 2361, 999, 102]
# "{mask}" is three word pieces here, not the token [MASK]
CAPITAL_OF_MASK = [101, 1996, 3007, 1997, 2605, 2003, 1063, 7308, 1065, 1012, 102]
CAPITAL_OF_PARIS = [101, 1996, 3007, 1997, 2605, 2003, 3000, 1012, 102]
CHOICES = ([101, 2224, 2009, 1012, 102], [101, 2066, 2009, 1012, 102])
PRETRAINING = {
    "vqa-pre": (14.510830879, [-1.3950741, 2.9067597]),
    "vqa-coco-pre": (14.050429344, [-1.3558536, 1.9389079]),
    "nlvr2-pre": (15.726880074, [0.34560534, 0.39115292]),
    "nlvr2-coco-pre": (14.831234932, [-1.0614138, 1.8786378]),
    "vcr-pre": (16.665205002, [1.947459, -1.1177909]),
    "vcr-coco-pre": (16.342382431, [1.2392894, -0.4313356]),
}


def real(network: Any, name: str) -> Any:
    """Load the published checkpoint `name`, or skip the test."""
    folder = Path(REAL or "") / f"visualbert-{name}"
    if REAL is None or not folder.is_dir():
        pytest.skip(f"VISUALBERT_CKPT_DIR holds no visualbert-{name}")
    return network.from_pretrained(folder)


def golden_inputs(texts: list[list[int]], size: int) -> dict[str, Tensor]:
    """Make the published inputs: text padded to 128 tokens, 100 regions of ones, and visual types and masks of ones."""
    rows = [text + [0] * (128 - len(text)) for text in texts]
    return {
        "input_ids": torch.tensor(rows),
        "attention_mask": torch.tensor([[1] * len(text) + [0] * (128 - len(text)) for text in texts]),
        "visual_embeds": torch.ones(len(texts), 100, size),
    }


def test_golden_vqa() -> None:
    """uclanlp/visualbert-vqa gives the log-softmax over 3,129 answers that a third party published for it."""
    labels = torch.zeros(1, 3129)
    labels[0, 50] = 1.0
    with torch.inference_mode():
        output = real(ours.VisualBertForQuestionAnswering, "vqa")(**golden_inputs([WELCOME], 2048), labels=labels)
    found = output.logits.log_softmax(-1)[0, [0, 1, 2, -3, -2, -1]].tolist()
    close(found, [-20.229435, -7.378211, -12.228188, -10.318372, -10.517599, -11.396548])
    close(float(output.loss), 13.4078950881958)


def test_golden_nlvr2() -> None:
    """uclanlp/visualbert-nlvr2 gives the published logits and loss."""
    inputs = golden_inputs([WELCOME], 1024)
    with torch.inference_mode():
        output = real(ours.VisualBertForVisualReasoning, "nlvr2")(**inputs, labels=torch.tensor([1]))
    assert output.logits[0].tolist() == pytest.approx([0.10216967, 0.41632432], abs=1e-4)
    assert float(output.loss) == pytest.approx(0.5483561158180237, abs=1e-4)


def test_golden_vcr() -> None:
    """uclanlp/visualbert-vcr gives the published logits for the documentation's (mistaken) pairs of texts."""
    texts = [WELCOME + WELCOME[1:], CHOICES[0] + CHOICES[1][1:]]
    inputs = {key: value[None] for key, value in golden_inputs(texts, 512).items()}
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    for row, (first, whole) in enumerate(((len(WELCOME), len(texts[0])), (len(CHOICES[0]), len(texts[1])))):
        inputs["token_type_ids"][0, row, first:whole] = 1
    with torch.inference_mode():
        output = real(ours.VisualBertForMultipleChoice, "vcr")(**inputs, labels=torch.tensor([0]))
    close(output.logits[0].tolist(), [12.157547, -2.9923875])
    assert float(output.loss) == pytest.approx(2.384e-07, abs=1e-6)


@pytest.mark.parametrize("name", PRETRAINING)
def test_golden_pretraining(name: str) -> None:
    """The six pre-training checkpoints give the published losses and sentence-image logits."""
    loss, sentence = PRETRAINING[name]
    network = real(ours.VisualBertForPreTraining, name)
    inputs = golden_inputs([CAPITAL_OF_MASK], network.config.visual_embedding_dim)
    labels = torch.tensor([CAPITAL_OF_PARIS + [0] * (228 - len(CAPITAL_OF_PARIS))])
    with torch.inference_mode():
        output = network(**inputs, labels=labels, sentence_image_labels=torch.tensor([1]))
    assert output.seq_relationship_logits[0].tolist() == pytest.approx(sentence, abs=1e-4)
    assert float(output.loss) == pytest.approx(loss, abs=5e-4)
    if name == "vqa-pre":
        found = [*output.prediction_logits[0, 0, [0, 1, 2]].tolist(), float(output.prediction_logits[0, -1, -1])]
        assert found == pytest.approx([-5.160263, -5.443255, -5.638448, -3.8225806], abs=1e-3)
