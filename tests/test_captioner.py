"""Captioners: their captions are those of transformers, and making and training one keeps what the parts knew.

The models are tiny and have random weights. Four encoders and three decoders stand for all.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from captioner_folders import DECODERS, ENCODERS, write_decoder, write_encoder
from PIL import Image as Pillow
from safetensors.torch import load_file, save_file

from visualbert_core import load_model, make_captioner
from visualbert_core.cli import main
from visualbert_core.config import AnsweringConfig, EvaluateConfig, PoolConfig
from visualbert_core.engine.pool import Pool
from visualbert_core.errors import CheckpointError, ConfigError, InputError, UnfinishedError
from visualbert_core.evaluation.invariance_check import check_invariance
from visualbert_core.evaluation.run import evaluate
from visualbert_core.models.captioner.predictor import Captioner
from visualbert_core.models.captioner.training import IGNORED, caption_labels, caption_loss
from visualbert_core.models.transformers_folder import opened as read_folder
from visualbert_core.schema import Captioning, Example, Failure, Pixels, Prediction, Question

PAIRS = [*(("vit", decoder) for decoder in DECODERS), ("beit", "roberta"), ("deit", "bert"), ("swin", "gpt2")]
"""Every encoder and every decoder. The states of the image alone pass between the two, so a pair adds nothing new."""
NEW = 8
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"beams": 3, "length_penalty": 2.0},
}


def image(number: int) -> Pixels:
    """Return an image of random pixels. Each number has another shape."""
    rng = np.random.default_rng(number)
    return Pixels(f"i{number}", rng.integers(0, 256, (40 + 7 * number, 50, 3), dtype=np.uint8), "")


IMAGES = [image(number) for number in range(6)]
BATCH: list[tuple[Example, tuple[Pixels, ...]]] = [(Captioning(i.image_id, (i.image_id,)), (i,)) for i in IMAGES]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("parts")
    encoders = {kind: write_encoder(root / kind, kind) for kind in ENCODERS}
    return encoders | {kind: write_decoder(root / kind, kind) for kind in DECODERS}


@pytest.fixture(scope="module")
def folders(parts: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, str], Path]:
    """Return the folder of every pair. A folder says that several tokens end a caption, so that captions end."""
    root = tmp_path_factory.mktemp("captioners")
    return {
        pair: ending(make_captioner(parts[pair[0]], parts[pair[1]], root / "-".join(pair)).folder) for pair in PAIRS
    }


def ending(folder: Path) -> Path:
    path = folder / "generation_config.json"
    held = json.loads(path.read_text())
    words = json.loads((folder / "config.json").read_text())["decoder"]["vocab_size"]
    ends = [held["eos_token_id"], *range(8, words, 5)]
    path.write_text(json.dumps(held | {"eos_token_id": [end for end in ends if end != held["decoder_start_token_id"]]}))
    return folder


def opened(folder: Path, **answering: Any) -> Captioner:
    model = load_model(folder, Captioning, "cpu", "float32", AnsweringConfig(max_new_tokens=NEW, **answering))
    assert isinstance(model, Captioner)
    return model


def captions(model: Captioner, batch: Any = BATCH) -> list[Prediction]:
    found = model.predict(batch)
    assert all(isinstance(each, Prediction) for each in found)
    return found  # type: ignore[return-value]


def changed(folder: Path, to: Path, name: str = "config.json", **values: Any) -> Path:
    """Copy a folder and change keys of one of its JSON files. None removes a key."""
    copy = shutil.copytree(folder, to)
    held = json.loads((copy / name).read_text()) | values
    (copy / name).write_text(json.dumps({key: value for key, value in held.items() if value is not None}))
    return copy


# ---------------------------------------------------------------------------------------------------------------------
# captions


@pytest.mark.parametrize("how", SETTINGS)
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_captions_are_those_of_transformers(folders: Mapping[Any, Path], pair: tuple[str, str], how: str) -> None:
    """A saved folder opens in plain transformers, and an image alone gets the caption that `generate` gives there; its
    probability is that of the scores."""
    folder, settings = folders[pair], SETTINGS[how]
    network = transformers.VisionEncoderDecoderModel.from_pretrained(folder, dtype=torch.float32).eval()
    images = transformers.AutoImageProcessor.from_pretrained(folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    model = opened(folder, **settings)
    for example, (picture,) in BATCH[:3]:
        pixels = images(Pillow.fromarray(picture.rgb), return_tensors="pt").pixel_values
        search = {"num_beams": settings.get("beams", 1), "do_sample": False}
        if how == "beams":
            search["length_penalty"] = settings["length_penalty"]
        kept = {"output_scores": True, "return_dict_in_generate": True}
        with torch.inference_mode():
            found = network.generate(pixels, max_new_tokens=NEW, **search, **kept)
        (prediction,) = captions(model, [(example, (picture,))])
        ids = found.sequences[0].tolist()[1:]
        ends = [at for at, token in enumerate(ids) if token in model.fingerprint()["special_tokens"]["eos_token_id"]]
        kept_ids = ids[: ends[0]] if ends else ids
        assert prediction.answer == words.decode(kept_ids, skip_special_tokens=True).strip()
        assert prediction.generated[0].cut == (not ends)
        if how == "greedy":
            steps = [row[0].log_softmax(-1)[token] for row, token in zip(found.scores, ids, strict=True)]
            np.testing.assert_allclose(prediction.scores, [float(torch.stack(steps).sum().exp())], rtol=1e-3)
        else:
            assert prediction.scores == ()


@pytest.mark.parametrize("how", SETTINGS)
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_captions_alone_are_those_of_batches(folders: Mapping[Any, Path], pair: tuple[str, str], how: str) -> None:
    """Each image has the same caption alone and among five others; greedy captions differ."""
    model = opened(folders[pair], **SETTINGS[how])
    together = captions(model)
    alone = [captions(model, [each])[0] for each in BATCH]
    assert [p.generated for p in together] == [p.generated for p in alone]
    np.testing.assert_allclose([p.scores for p in together], [p.scores for p in alone], rtol=1e-3)
    if how == "greedy":  # the likeliest captions of all may be one short text
        assert len({p.generated[0] for p in together}) > 1


def test_some_captions_end(folders: Mapping[Any, Path]) -> None:
    """Among the captions of all pairs, some end by themselves and some are cut at the limit."""
    texts = [each.generated[0] for folder in folders.values() for each in captions(opened(folder))]
    assert {text.cut for text in texts} == {True, False}


def test_settings_of_the_folder_never_win(folders: Mapping[Any, Path], tmp_path: Path) -> None:
    """Sampling, penalties, beams and lengths in generation_config.json change no caption."""
    settings = {"do_sample": True, "temperature": 3.0, "top_k": 3, "repetition_penalty": 9.0, "num_beams": 3}
    settings |= {"no_repeat_ngram_size": 1, "max_length": 4, "min_length": 2, "length_penalty": 5.0}
    folder = folders["vit", "gpt2"]
    copy = changed(folder, tmp_path / "copy", "generation_config.json", **settings)
    assert [p.generated for p in captions(opened(copy))] == [p.generated for p in captions(opened(folder))]


def test_the_protocol_names_the_decoding(folders: Mapping[Any, Path]) -> None:
    """The printed line and the fingerprint hold the decoding; the default is greedy with 30 tokens."""
    folder = folders["swin", "gpt2"]
    model = load_model(folder, Captioning, "cpu")
    assert (model.name, model.protocol) == ("swin + gpt2", "generate, greedy, at most 30 new tokens")
    beams = opened(folder, beams=4, length_penalty=2.0)
    assert beams.protocol == "generate, 4 beams, length penalty 2, at most 8 new tokens"
    assert beams.fingerprint()["decoding"]["num_beams"] == 4
    assert {"preprocessor_config.json", "tokenizer.json", "model.safetensors"} <= set(beams.fingerprint()["files"])


@pytest.mark.parametrize("how", SETTINGS)
def test_nan_weights_give_failures(folders: Mapping[Any, Path], tmp_path: Path, how: str) -> None:
    """A decoder whose weights hold NaN gives failure rows in place of captions."""
    copy = shutil.copytree(folders["vit", "bert"], tmp_path / "nan")
    weights = load_file(copy / "model.safetensors")
    weights["decoder.cls.predictions.bias"][5] = float("nan")
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    found = opened(copy, **SETTINGS[how]).predict(BATCH[:2])
    assert [type(each) for each in found] == [Failure, Failure]


def test_half_precision_describes(folders: Mapping[Any, Path]) -> None:
    """bfloat16 gives a caption and its probability for every image."""
    model = load_model(folders["vit", "gpt2"], Captioning, "cpu", "bfloat16")
    assert all(isinstance(each, Prediction) for each in model.predict(BATCH))


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    """Return a folder with the images, and with captions of people in COCO's form."""
    (tmp_path / "images").mkdir()
    records = []
    for number, picture in enumerate(IMAGES):
        Pillow.fromarray(picture.rgb).save(tmp_path / "images" / f"{picture.image_id}.png")
        records.append({"id": number, "file_name": f"{picture.image_id}.png"})
    said = [{"image_id": n, "id": n, "caption": f"a red cat and {n} dogs"} for n in range(len(IMAGES))]
    (tmp_path / "captions_val.json").write_text(json.dumps({"images": records, "annotations": said}))
    return tmp_path


def evaluated(captioned: Path, model: Path) -> tuple[EvaluateConfig, dict[str, Any]]:
    """Return the configuration of an evaluation, and its scores.json."""
    config = EvaluateConfig(
        task="captions",
        split="val",
        annotations=captioned,
        model=model,
        out=captioned / "runs",
        images=captioned / "images",
        answering=AnsweringConfig(max_new_tokens=NEW),
    )
    run = evaluate(config, Pool(PoolConfig(inline=True)))
    return config, json.loads((run.folder / "scores.json").read_text())


def test_an_evaluation_has_a_score(folders: Mapping[Any, Path], captioned: Path) -> None:
    """The task `captions` scores a captioner over images, with its decoding; the invariance check passes."""
    config, scores = evaluated(captioned, folders["vit", "gpt2"])
    assert scores["n"] == scores["generated"]["texts"] == len(IMAGES)
    assert scores["answering"] == "generate, greedy, at most 8 new tokens"
    check = check_invariance(config, PoolConfig(inline=True))
    assert (check.examples, check.changed) == (len(IMAGES), ())


def test_empty_captions_are_answers(folders: Mapping[Any, Path], tmp_path: Path, captioned: Path) -> None:
    """A captioner that ends at once has given the caption "", which is neither unparsed nor a failure; the set has a
    score of 0 and a warning."""
    every = json.loads((folders["vit", "bert"] / "config.json").read_text())["decoder"]["vocab_size"]
    copy = changed(folders["vit", "bert"], tmp_path / "c", "generation_config.json", eos_token_id=list(range(every)))
    found = captions(opened(copy))
    assert {(p.answer, p.generated[0].parsed, p.generated[0].cut) for p in found} == {("", True, False)}
    _, scores = evaluated(captioned, copy)
    assert (scores["scores"]["cider"], "unparsed" in scores["generated"]) == (0, False)
    assert any("6 of 6 captions have no word" in warning for warning in scores["warnings"])


# ---------------------------------------------------------------------------------------------------------------------
# faulty folders


def test_a_signal_is_no_fault_of_a_folder(tmp_path: Path) -> None:
    """A job that is stopped while it opens a folder says that it was stopped, and not that the folder is bad."""

    def stopped() -> None:
        raise UnfinishedError("stopped (SIGTERM)")

    with pytest.raises(UnfinishedError, match=re.escape("stopped (SIGTERM)")):
        read_folder(tmp_path, "config.json", stopped)


def test_a_start_token_is_needed(folders: Mapping[Any, Path], tmp_path: Path) -> None:
    """Without a start token in both files, the folder is refused, with a token that would do; one file is enough."""
    folder = folders["vit", "bert"]
    half = changed(folder, tmp_path / "half", decoder_start_token_id=None)
    assert [p.answer for p in captions(opened(half))] == [p.answer for p in captions(opened(folder))]
    none = changed(half, tmp_path / "none", "generation_config.json", decoder_start_token_id=None)
    words = "names the start token of captions: set decoder_start_token_id in both, for example to 2 ([CLS])"
    with pytest.raises(CheckpointError, match=re.escape(words)):
        opened(none)


@pytest.mark.parametrize(("key", "does", "token"), [("eos_token_id", "end", 3), ("pad_token_id", "padding", 0)])
def test_end_and_padding_are_needed(
    folders: Mapping[Any, Path], tmp_path: Path, key: str, does: str, token: int
) -> None:
    """Without an end or a padding token in both files and in the decoder, the folder is refused."""
    folder = folders["vit", "bert"]
    decoder = json.loads((folder / "config.json").read_text())["decoder"] | {key: None}
    half = changed(folder, tmp_path / "half", **{key: None, "decoder": decoder})
    none = changed(half, tmp_path / "none", "generation_config.json", **{key: None})
    with pytest.raises(CheckpointError, match=rf"names the {does} token of captions: set {key} in both.* to {token} "):
        opened(none)


FAULTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "two starts": ("config.json", {"decoder_start_token_id": 3}, "is 3 in config.json, .* and 2 in generation_config"),
    "no such end": (
        "generation_config.json",
        {"eos_token_id": [3, 999]},
        "eos_token_id is 999, and the decoder has 21 ",
    ),
    "no such start": ("generation_config.json", {"decoder_start_token_id": -1}, "is 2 in config.json"),
    "code": ("config.json", {"auto_map": {"AutoModel": "a.B"}}, "needs code from its folder"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_contradictions_are_refused(folders: Mapping[Any, Path], tmp_path: Path, fault: str) -> None:
    """Special tokens that contradict each other or the vocabulary are one line before the first shard."""
    name, values, words = FAULTS[fault]
    with pytest.raises(CheckpointError, match=words):
        opened(changed(folders["vit", "bert"], tmp_path / "copy", name, **values))


@pytest.mark.parametrize("key", ["add_cross_attention", "is_decoder"])
def test_a_decoder_that_ignores_the_image_is_refused(folders: Mapping[Any, Path], tmp_path: Path, key: str) -> None:
    """A decoder without cross attention would write the same caption for every image."""
    folder = folders["vit", "gpt2"]
    decoder = json.loads((folder / "config.json").read_text())["decoder"] | {key: False}
    with pytest.raises(CheckpointError, match="its decoder has no cross attention, so it would ignore the image"):
        opened(changed(folder, tmp_path / "copy", decoder=decoder))


def test_missing_weights_are_refused_but_not_the_pooler(folders: Mapping[Any, Path], tmp_path: Path) -> None:
    """Cross attention that is not in the weights is an error. The pooler of a ViT, which no caption reads, is none."""
    folder = folders["vit", "bert"]
    weights = load_file(folder / "model.safetensors")
    for name, begins in (("pooler", "encoder.pooler."), ("crossattention", "decoder.")):
        copy = shutil.copytree(folder, tmp_path / name)
        kept = {key: each for key, each in weights.items() if not (key.startswith(begins) and name in key)}
        assert len(kept) < len(weights)
        save_file(kept, copy / "model.safetensors", {"format": "pt"})
    assert captions(opened(tmp_path / "pooler")) == captions(opened(folder))
    with pytest.raises(CheckpointError, match=r"lack decoder\.bert.*crossattention"):
        opened(tmp_path / "crossattention")


def test_an_image_processor_of_another_size_is_refused(folders: Mapping[Any, Path], tmp_path: Path) -> None:
    """An image that the encoder cannot read is found out with a grey image, before the first shard."""
    size = {"height": 48, "width": 48}
    copy = changed(folders["vit", "bert"], tmp_path / "copy", "preprocessor_config.json", size=size)
    with pytest.raises(CheckpointError, match=r"an image, as its image processor prepares it, cannot be read .*48"):
        opened(copy)
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match="copy: the image processor cannot be read"):
        opened(copy)


def test_other_forms_and_settings_are_refused(folders: Mapping[Any, Path]) -> None:
    """A captioner answers no question, and has no prompt; its decoder has 40 positions, RoBERTa's 42 less two."""
    folder = folders["vit", "bert"]
    with pytest.raises(
        CheckpointError, match="a captioner answers Captioning and not Question: name a checkpoint for this"
    ):
        load_model(folder, Question, "cpu")
    with pytest.raises(ConfigError, match="prompt: this model has no such setting"):
        opened(folder, prompt="a photo of")
    for decoder in DECODERS:
        for new in (40, 41):
            answering = AnsweringConfig(max_new_tokens=new)
            if new == 40:
                load_model(folders["vit", decoder], Captioning, "cpu", "float32", answering).predict(BATCH[:1])
                continue
            with pytest.raises(ConfigError, match="max_new_tokens is 41, and the decoder reads 40 tokens"):
                load_model(folders["vit", decoder], Captioning, "cpu", "float32", answering)


# ---------------------------------------------------------------------------------------------------------------------
# making one


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_the_parts_keep_their_weights(parts: Mapping[str, Path], tmp_path: Path, pair: tuple[str, str]) -> None:
    """Every weight of the two checkpoints is in the captioner, and only what looks at the image is new; another seed
    changes nothing else."""
    encoder, decoder = (parts[each] for each in pair)
    made = make_captioner(encoder, decoder, tmp_path / "made")
    weights = load_file(made.folder / "model.safetensors")
    for prefix, folder in (("encoder.", encoder), ("decoder.", decoder)):
        for name, tensor in load_file(folder / "model.safetensors").items():
            assert torch.equal(weights[prefix + name], tensor), name
    assert made.new
    assert all("cross" in name or "enc_to_dec_proj" in name for name in made.new)
    other = load_file(make_captioner(encoder, decoder, tmp_path / "other", seed=1).folder / "model.safetensors")
    differ = {name for name, tensor in weights.items() if not torch.equal(other[name], tensor)}
    assert differ
    assert differ <= set(made.new)
    config = json.loads((made.folder / "config.json").read_text())
    writing = json.loads((made.folder / "generation_config.json").read_text())
    assert all(config[key] == writing[key] == number for key, number in made.tokens.items())
    assert (made.name, len(made.tokens)) == (" + ".join(pair), 3)


def test_parts_may_lack_what_no_caption_knew(parts: Mapping[str, Path], tmp_path: Path) -> None:
    """An encoder with a classifier and no pooler, and a BERT without its last layer, are joined; what they lack is
    new."""
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    encoder = shutil.copytree(parts["vit"], tmp_path / "encoder")
    transformers.ViTForImageClassification(transformers.ViTConfig(**sizes)).save_pretrained(encoder)
    decoder = shutil.copytree(parts["bert"], tmp_path / "decoder")
    transformers.BertModel.from_pretrained(decoder).save_pretrained(decoder)
    made = make_captioner(encoder, decoder, tmp_path / "made")
    others = {name for name in made.new if "cross" not in name}
    assert {"encoder.pooler.dense.weight", "decoder.cls.predictions.transform.dense.weight"} <= others
    assert captions(opened(made.folder))


def test_configurations_make_a_random_captioner(parts: Mapping[str, Path], tmp_path: Path) -> None:
    """With `random`, no weights are read: the same seed gives the same captioner, and another seed another one."""
    heads = {}
    for kind in ("swin", "gpt2"):
        heads[kind] = shutil.copytree(parts[kind], tmp_path / kind, ignore=shutil.ignore_patterns("*.safetensors"))
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        state = torch.random.get_rng_state()
        made = make_captioner(heads["swin"], heads["gpt2"], tmp_path / name, random=True, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        files.append((made.folder / "model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]
    assert captions(opened(tmp_path / "a"))
    with pytest.raises(CheckpointError, match="swin: the encoder cannot be read"):
        make_captioner(heads["swin"], heads["gpt2"], tmp_path / "d")


def test_the_command_makes_the_same(
    parts: Mapping[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`visualbert make-captioner` writes what the function writes, and says what is new."""
    made = make_captioner(parts["vit"], parts["gpt2"], tmp_path / "a")
    line = ["make-captioner", "--encoder", str(parts["vit"]), "--decoder", str(parts["gpt2"]), "--out"]
    assert main([*line, str(tmp_path / "b")]) == 0
    assert "vit + gpt2, 0.1 M parameters; 18 tensors begin at random" in capsys.readouterr().out
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert first == second
    assert len(made.new) == 18
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        main([*line, str(tmp_path / "b")])


def _opt(folder: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "ffn_dim": 64, "vocab_size": 300}
    transformers.OPTForCausalLM(transformers.OPTConfig(**sizes, word_embed_proj_dim=32)).save_pretrained(folder)


def _fewer_words(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(40))]))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)


def _without_a_layer(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: each for name, each in weights.items() if "layer.1." not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (_opt, "the model type opt has no cross attention in transformers"),
        (_fewer_words, "the tokenizer has 45 tokens and the decoder 21"),
        (_without_a_layer, r"the weights lack bert\.encoder\.layer\.1\..* more: name a complete checkpoint"),
    ],
)
def test_parts_that_do_not_join_are_refused(
    parts: Mapping[str, Path], tmp_path: Path, fault: Callable[[Path], None], words: str
) -> None:
    """A decoder that cannot see, a tokenizer of another model and missing weights are one line. No folder is left."""
    copy = shutil.copytree(parts["bert"], tmp_path / "decoder")
    fault(copy)
    with pytest.raises(CheckpointError, match=words):
        make_captioner(parts["vit"], copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_encoder_of_texts_is_refused(parts: Mapping[str, Path], tmp_path: Path) -> None:
    """A text model in the place of the encoder is named, and so is a folder that is not there."""
    with pytest.raises(CheckpointError, match="nowhere: no such folder, and not the form of a name on the Hub"):
        make_captioner(tmp_path / "nowhere", parts["bert"], tmp_path / "out")
    with pytest.raises(CheckpointError, match="the model type bert is no image encoder"):
        make_captioner(parts["bert"], parts["bert"], tmp_path / "out")


def test_a_tokenizer_without_an_end_is_refused(parts: Mapping[str, Path], tmp_path: Path) -> None:
    """A tokenizer that has no token to begin captions with is named."""
    copy = shutil.copytree(parts["gpt2"], tmp_path / "decoder")
    words = transformers.AutoTokenizer.from_pretrained(copy)
    words.bos_token = words.eos_token = words.unk_token = None
    words.save_pretrained(copy)
    with pytest.raises(CheckpointError, match="has no start token for captions: name a cls_token or bos_token"):
        make_captioner(parts["vit"], copy, tmp_path / "out")


# ---------------------------------------------------------------------------------------------------------------------
# training one


def batch_of(folder: Path) -> tuple[Any, Any, torch.Tensor]:
    """Return the network, the tokenizer and the pixels of two images."""
    images = transformers.AutoImageProcessor.from_pretrained(folder)
    network = transformers.VisionEncoderDecoderModel.from_pretrained(folder)
    pixels = images([Pillow.fromarray(each.rgb) for each in IMAGES[:2]], return_tensors="pt").pixel_values
    return network, transformers.AutoTokenizer.from_pretrained(folder), pixels


SHORT, LONG = "a dog", "a red circle is left of the cat"


@pytest.mark.parametrize("decoder", DECODERS)
def test_labels_are_padded_without_a_loss(folders: Mapping[Any, Path], decoder: str) -> None:
    """Two captions in a batch have the loss of each alone, as the page has it, weighted by their tokens; the labels end
    in the end token."""
    network, words, pixels = batch_of(folders["vit", decoder])
    labels = caption_labels(words, [SHORT, LONG])
    lengths = (labels != IGNORED).sum(1)
    ends = [row[length - 1] for row, length in zip(labels.tolist(), lengths.tolist(), strict=True)]
    assert set(ends) == {words.eos_token_id if decoder != "bert" else words.sep_token_id}
    assert lengths[0] < lengths[1] == labels.shape[1]
    with torch.no_grad():
        alone = [network(pixel_values=pixels[[n]], labels=labels[[n], : lengths[n]]).loss for n in (0, 1)]
        together = caption_loss(network, pixels, labels)
    torch.testing.assert_close(together, (torch.stack(alone) * lengths).sum() / lengths.sum())
    if decoder == "bert":  # its tokenizer gives the page's labels as they are
        assert words(LONG, return_tensors="pt").input_ids.tolist() == labels[[1]].tolist()


@pytest.mark.parametrize("decoder", DECODERS)
def test_labels_padded_with_tokens_are_refused(folders: Mapping[Any, Path], decoder: str) -> None:
    """Labels that the tokenizer padded, or that are padded with 0, are refused; unpadded ones are not."""
    network, words, pixels = batch_of(folders["vit", decoder])
    labels = caption_labels(words, [SHORT, LONG])
    for pad in {0, network.config.pad_token_id}:
        with pytest.raises(InputError, match=rf"row 0 of the labels ends in {pad}: the padding of labels must be -100"):
            caption_loss(network, pixels, labels.masked_fill(labels == IGNORED, pad))
    network.config.pad_token_id = None
    with pytest.raises(CheckpointError, match="the model has no pad_token_id"):
        caption_loss(network, pixels, labels)
    with pytest.raises(InputError, match="no caption"):
        caption_labels(words, [])


@pytest.mark.parametrize("pair", [("vit", "bert"), ("swin", "gpt2")], ids="-".join)
def test_a_trained_captioner_says_what_it_learnt(parts: Mapping[str, Path], tmp_path: Path, pair: Any) -> None:
    """Some steps on two images and captions, saved and opened here, give the captions, which end by themselves."""
    folder = make_captioner(parts[pair[0]], parts[pair[1]], tmp_path / "made").folder
    network, words, pixels = batch_of(folder)
    network.eval()  # without dropout, so that few steps are enough
    labels = caption_labels(words, [SHORT, LONG])
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(60):
        caption_loss(network, pixels, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    network.save_pretrained(folder)
    found = load_model(folder, Captioning, "cpu").predict(BATCH[:2])
    assert [(each.answer, each.generated[0].cut) for each in found] == [(SHORT, False), (LONG, False)]  # type: ignore[union-attr]
