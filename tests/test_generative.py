"""Generative models: their texts are those of transformers, and nothing but the protocol and the image decides them.

The models are tiny and have random weights. Five families stand for all: BLIP-2 with OPT and with T5, LLaVA, Qwen2.5-VL
and PaliGemma.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from conftest import SmallNight, markers_of, parts_of
from generative_folders import WRITERS, tokenizer, write_blip2, write_llava
from PIL import Image
from tolerances import close
from transformers.cache_utils import DynamicLayer

from visualbert_core.config import AnsweringConfig, EvaluateConfig, PoolConfig
from visualbert_core.engine.pool import Pool
from visualbert_core.errors import CheckpointError, ConfigError, InputError
from visualbert_core.evaluation.run import evaluate
from visualbert_core.evaluation.worker import read_predictions
from visualbert_core.models import load_model
from visualbert_core.models.generative import captioning
from visualbert_core.models.generative.asked import Asked, Outcome
from visualbert_core.models.generative.image_encoder import embed_by_products, leave_out_unread_layers
from visualbert_core.models.generative.inputs import Inputs
from visualbert_core.models.generative.model import GenerativeModel, network_name
from visualbert_core.models.generative.protocol import PLAIN, cleaned
from visualbert_core.models.roomy_cache import RoomyLayer, roomy_cache
from visualbert_core.schema import (
    Captioning,
    Example,
    Failure,
    Generated,
    Grounding,
    MultipleChoice,
    Phrase,
    Pixels,
    Prediction,
    Question,
    Statement,
)

FAMILIES = tuple(WRITERS)
SHAPES = ((32, 48), (48, 32), (64, 64), (40, 90))
TEXTS = ("what is this?", "is it red?", "what is the cat left of ?", "is the dog on the left ?")
NEW = 10
GREEDY = AnsweringConfig(max_new_tokens=NEW)


def image(number: int) -> Pixels:
    rng = np.random.default_rng(number)
    return Pixels(f"image{number}", rng.integers(0, 256, (*SHAPES[number % 4], 3), dtype=np.uint8), "")


IMAGES = [image(number) for number in range(4)]
QUESTIONS: list[tuple[Example, tuple[Pixels, ...]]] = [
    (Question(f"q{number}", (IMAGES[number % 4].image_id,), TEXTS[number // 3 % 4]), (IMAGES[number % 4],))
    for number in range(12)
]
STATEMENTS: list[tuple[Example, tuple[Pixels, ...]]] = [
    (Statement(f"s{number}", ("a", "b"), TEXTS[number % 4]), (IMAGES[number % 4], IMAGES[(number + 1) % 4]))
    for number in range(8)
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("generative")
    return {name: write(root / name) for name, write in WRITERS.items()}


def opened(folder: Path, form: type[Example] = Question, **answering: Any) -> GenerativeModel:
    model = load_model(folder, form, "cpu", "float32", AnsweringConfig(**answering))
    assert isinstance(model, GenerativeModel)
    return model


def pair(name: str) -> dict[str, Any]:
    return {"pair": "stitched"} if name.startswith("blip2") else {}


def predictions(model: GenerativeModel, batch: Any) -> list[Prediction]:
    found = model.predict(batch)
    assert all(isinstance(each, Prediction) for each in found)
    return found  # type: ignore[return-value]


# ---------------------------------------------------------------------------------------------------------------------
# the two verbs


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_alone_are_those_of_batches(folders: Mapping[str, Path], name: str) -> None:
    """Each question has the same text alone and among twelve of other lengths and other images; the texts differ."""
    model = opened(folders[name], max_new_tokens=NEW)
    together = predictions(model, QUESTIONS)
    alone = [predictions(model, [each])[0] for each in QUESTIONS]
    assert [p.generated for p in together] == [p.generated for p in alone]
    assert len({p.generated[0].text for p in together}) > 4
    np.testing.assert_allclose([p.scores for p in together], [p.scores for p in alone], rtol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_are_those_of_transformers(folders: Mapping[str, Path], name: str) -> None:
    """A question alone gets the text that the folder's processor and `generate` give, and its probability is that of
    transformers' scores."""
    model = opened(folders[name], max_new_tokens=NEW)
    processor = transformers.AutoProcessor.from_pretrained(folders[name])
    network = transformers.AutoModelForImageTextToText.from_pretrained(folders[name], dtype=torch.float32).eval()
    for example, (picture,) in QUESTIONS[:3]:
        prompt = model._protocol.ask(example.text)  # type: ignore[union-attr]
        if model._inputs.chat:
            content = [{"type": "image"}, {"type": "text", "text": prompt}]
            prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(images=Image.fromarray(picture.rgb), text=prompt, return_tensors="pt")
        inputs.pop("labels", None)
        kept = {"output_scores": True, "return_dict_in_generate": True}
        with torch.inference_mode():
            found = network.generate(**inputs, max_new_tokens=NEW, do_sample=False, **kept)
        ids = found.sequences[0][1 if "t5" in name else inputs.input_ids.shape[1] :]
        text = processor.tokenizer.decode(ids).replace("</s>", "").replace("<pad>", "").replace("<s>", "")
        (prediction,) = predictions(model, [(example, (picture,))])
        assert prediction.generated[0].text == text
        steps = [row[0].log_softmax(-1)[token] for row, token in zip(found.scores, ids, strict=True)]
        np.testing.assert_allclose(prediction.scores, [float(torch.stack(steps).sum().exp())], rtol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_likelihood_in_one_pass_is_that_of_steps(folders: Mapping[str, Path], name: str) -> None:
    """The log-likelihood of a continuation is the sum over its tokens, each read from a text that ends before it."""
    model = opened(folders[name], max_new_tokens=NEW)
    asked = Asked("what is this?", (IMAGES[0].rgb,), ("True", "the red cat", "no"))
    prompt = model._inputs.one(asked)
    (outcome,) = model._network.score([prompt], [asked])
    assert outcome.tokens == (1, 3, 1)
    network: Any = model._network._network
    for text, value in zip(asked.continuations, outcome.log_likelihoods, strict=True):
        ids = model._inputs.continuation(prompt, text)
        steps = []
        for at, token in enumerate(ids):
            with torch.inference_mode():
                if model._network.encoder_decoder:
                    begun = torch.tensor([[0, *ids[:at]]])
                    logits = network(**prompt, decoder_input_ids=begun).logits
                else:
                    logits = network(**model._inputs.extended(prompt, ids[:at])).logits
            steps.append(float(logits[0, -1].log_softmax(-1)[token]))
        np.testing.assert_allclose(value, sum(steps), rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_likelihoods_alone_are_those_of_batches(folders: Mapping[str, Path], name: str) -> None:
    """NLVR2 has the same answers and probabilities alone and in a batch, and they add up to one."""
    model = opened(folders[name], Statement, **pair(name))
    together = predictions(model, STATEMENTS)
    alone = [predictions(model, [each])[0] for each in STATEMENTS]
    assert [p.answer for p in together] == [p.answer for p in alone]
    np.testing.assert_allclose([p.scores for p in together], [p.scores for p in alone], atol=1e-5)
    np.testing.assert_allclose([sum(p.scores) for p in together], 1, atol=1e-6)
    assert all(p.answer == ("True" if p.scores[1] > p.scores[0] else "False") for p in together)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_image_decides(folders: Mapping[str, Path], name: str) -> None:
    """The same words about another image have other likelihoods; for a pair the order of the images matters."""
    model = opened(folders[name], Statement, **pair(name))
    example, (left, right) = STATEMENTS[0]
    straight, turned = (predictions(model, [(example, pair)])[0] for pair in ((left, right), (right, left)))
    assert straight.scores != turned.scores


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_prepared_together_are_those_prepared_alone(folders: Mapping[str, Path], name: str) -> None:
    """One call of the processor for twelve prompts gives each of them the bits of a call of its own, also for two
    images in a prompt."""
    for form, batch in ((Question, QUESTIONS), (Statement, STATEMENTS)):
        model = opened(folders[name], form, **(pair(name) if form is Statement else {}))
        asked = [each for example, pictures in batch for each in model._ask(example, pictures, model._settings)]
        with mock.patch.object(model._inputs, "_processed", wraps=model._inputs._processed) as calls:
            together = model._inputs.prepared(asked)
        assert calls.call_count == 1
        for found, each in zip(together, asked, strict=True):
            expected = model._inputs.one(each)
            assert isinstance(found, dict)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[part], value) for part, value in expected.items())


def test_a_processor_that_pads_images_prepares_each_prompt_alone(tmp_path: Path) -> None:
    """LLaVA-NeXT cuts an image into tiles and fills up to the most tiles of the batch. So its prompts are prepared one
    at a time, and none has tiles of another image's count."""
    crop = {"height": 32, "width": 32}
    images = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": 32}, crop_size=crop, image_grid_pinpoints=[[32, 64], [64, 32], [64, 64], [96, 32]]
    )
    transformers.LlavaNextProcessor(
        images, tokenizer(), patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    ).save_pretrained(tmp_path)
    inputs = Inputs(tmp_path, transformers.LlavaNextConfig(image_token_index=4), False)
    asked = [Asked("<image> what is this?", (picture.rgb,)) for picture in IMAGES]
    inputs.check_image(asked[0])
    tiles = [found["pixel_values"].shape[1] for found in inputs.prepared(asked) if isinstance(found, dict)]
    assert len(tiles) == len(asked)
    assert len(set(tiles)) > 1


def test_patches_are_embedded_by_a_product() -> None:
    """A Conv3d whose kernel covers its input gives the values of the convolution, and so does another input."""
    plain = torch.nn.Conv3d(3, 8, (2, 4, 4), stride=(2, 4, 4))
    changed = torch.nn.Conv3d(3, 8, (2, 4, 4), stride=(2, 4, 4))
    changed.load_state_dict(plain.state_dict())
    embed_by_products(changed)
    for shape in ((5, 3, 2, 4, 4), (2, 3, 4, 8, 4)):
        given = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        assert changed(given).shape == plain(given).shape
        close(changed(given).detach().numpy(), plain(given).detach().numpy())


@pytest.mark.parametrize(("read", "unread"), [(-1, 0), (-2, 1), (1, 2), ([0, -3], 2), ([-2, -1], 0)])
def test_unread_layers(read: int | list[int], unread: int) -> None:
    """The image features of LLaVA and LLaVA-NeXT are the same bits without the layers that nobody reads."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    parts: dict[str, Any] = {
        "vision_config": transformers.CLIPVisionConfig(image_size=16, patch_size=8, **sizes),
        "text_config": transformers.LlamaConfig(vocab_size=40, **sizes),
        "vision_feature_layer": read,
    }
    pixels = torch.randn(1, 2, 3, 16, 16)
    one = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(**parts))
    next_config = transformers.LlavaNextConfig(**parts, image_grid_pinpoints=[[16, 16]])
    tiled = transformers.LlavaNextForConditionalGeneration(next_config)
    cases: list[tuple[Any, dict[str, torch.Tensor]]] = [
        (one, {"pixel_values": pixels[0]}),
        (tiled, {"pixel_values": pixels, "image_sizes": torch.tensor([[16, 16]])}),
    ]
    for network, image in cases:
        with torch.inference_mode():
            whole = network.eval().get_image_features(**image).pooler_output
            leave_out_unread_layers(network)
            assert sum(type(module).__name__ == "UnreadCLIPEncoderLayer" for module in network.modules()) == unread
            assert all(map(torch.equal, whole, network.get_image_features(**image).pooler_output))


def test_a_roomy_cache_holds_the_bits_of_transformers(folders: Mapping[str, Path]) -> None:
    """After a prompt and three tokens, a layer gives the keys and values that transformers' own layer gives. T5 has no
    such cache, because its decoder also keeps what it reads of the encoder."""
    found, expected = RoomyLayer(3), DynamicLayer()
    for number, tokens in enumerate((5, 1, 1, 1)):
        states = torch.randn((2, 2, 3, tokens, 4), generator=torch.Generator().manual_seed(number))
        for one, other in zip(found.update(*states), expected.update(*states), strict=True):
            assert torch.equal(one, other)
    assert found.get_seq_length() == 8
    assert roomy_cache(opened(folders["llava"])._network._network, 3) is not None
    assert roomy_cache(opened(folders["blip2-t5"])._network._network, 3) is None


def test_settings_of_the_folder_never_win(folders: Mapping[str, Path], tmp_path: Path) -> None:
    """Sampling, a repetition penalty, a ban on repetition and beams in generation_config.json change no text, also not
    those that BLIP-2 would take from its language model."""
    settings = {"do_sample": True, "temperature": 3.0, "top_k": 3, "repetition_penalty": 9.0, "num_beams": 3}
    settings |= {"no_repeat_ngram_size": 1, "max_new_tokens": 3, "min_new_tokens": 2, "length_penalty": 5.0}
    for name in ("blip2-opt", "llava"):
        plain = predictions(opened(folders[name], max_new_tokens=NEW), QUESTIONS)
        changed = shutil.copytree(folders[name], tmp_path / name)
        path = changed / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        found = predictions(opened(changed, max_new_tokens=NEW), QUESTIONS)
        assert [p.generated for p in found] == [p.generated for p in plain]


def test_every_end_token_ends_a_text(folders: Mapping[str, Path], tmp_path: Path) -> None:
    """An end token that only generation_config.json names ends a text, too; a text that ended is not cut."""
    model = opened(folders["llava"], max_new_tokens=NEW)
    texts = [p.generated[0] for p in predictions(model, QUESTIONS)]
    assert any(text.cut for text in texts)
    changed = shutil.copytree(folders["llava"], tmp_path / "ends")
    path = changed / "generation_config.json"
    held = json.loads(path.read_text())
    path.write_text(json.dumps(held | {"eos_token_id": [2, *range(9, 30)]}))
    more = [p.generated[0] for p in predictions(opened(changed, max_new_tokens=NEW), QUESTIONS)]
    assert sum(text.cut for text in more) < sum(text.cut for text in texts)
    assert all(len(short.text) <= len(long.text) for short, long in zip(more, texts, strict=True))


def test_beams_find_likelier_texts(folders: Mapping[str, Path]) -> None:
    """Five beams give other texts than greedy search for some questions, and no confidence."""
    greedy = predictions(opened(folders["llava"], max_new_tokens=5), QUESTIONS)
    beams = predictions(opened(folders["llava"], max_new_tokens=5, beams=5), QUESTIONS)
    assert [p.answer for p in greedy] != [p.answer for p in beams]
    assert all(p.scores == () for p in beams)


def test_precision_is_the_one_asked_for(folders: Mapping[str, Path], tmp_path: Path) -> None:
    """A folder saved in float16 computes in float32 when asked, and the likelihoods of both precisions are close."""
    network = transformers.AutoModelForImageTextToText.from_pretrained(folders["llava"], dtype=torch.float16)
    half = shutil.copytree(folders["llava"], tmp_path / "half")
    network.save_pretrained(half)
    model = opened(half, Statement)
    full = predictions(model, STATEMENTS)
    assert model._network._network.dtype == torch.float32
    low = load_model(half, Statement, "cpu", "bfloat16")
    np.testing.assert_allclose([p.scores for p in low.predict(STATEMENTS)], [p.scores for p in full], atol=0.1)


# ---------------------------------------------------------------------------------------------------------------------
# protocols


def test_three_protocols_of_blip2(folders: Mapping[str, Path]) -> None:
    """The guide's, the paper's and LAVIS's protocol have three names and three fingerprints, and OPT and T5 have the
    prompts and penalties of their sources."""
    found = {
        (name, preset): opened(folders[name], preset=preset)
        for name in ("blip2-opt", "blip2-t5")
        for preset in ("hf-guide", "blip2-paper", "lavis")
    }
    assert {key: model.protocol for key, model in found.items()} == {
        ("blip2-opt", "hf-guide"): 'hf-guide: "Question: {} Answer:", generate, greedy, at most 10 new tokens, raw',
        ("blip2-opt", "blip2-paper"): 'blip2-paper: "Question: {} Answer:", generate, 5 beams, length penalty -1, '
        "at most 10 new tokens, raw",
        ("blip2-opt", "lavis"): 'lavis: "Question: {} Short answer:", question cleaned as in LAVIS, generate, 5 beams, '
        "length penalty 0, at least 1 and at most 10 new tokens, raw",
        ("blip2-t5", "hf-guide"): 'hf-guide: "Question: {} Answer:", generate, greedy, at most 10 new tokens, raw',
        ("blip2-t5", "blip2-paper"): 'blip2-paper: "Question: {} Short answer:", generate, 5 beams, length penalty -1, '
        "at most 10 new tokens, raw",
        ("blip2-t5", "lavis"): 'lavis: "Question: {} Short answer:", question cleaned as in LAVIS, generate, 5 beams, '
        "length penalty -1, at least 1 and at most 10 new tokens, raw",
    }
    prints = [json.dumps(found["blip2-opt", preset].fingerprint()) for preset in ("hf-guide", "blip2-paper", "lavis")]
    assert len(set(prints)) == 3


def test_a_changed_preset_is_another_protocol(folders: Mapping[str, Path]) -> None:
    """A setting over a preset changes the printed name, so that no published number stands beside it."""
    changed = opened(folders["blip2-opt"], preset="blip2-paper", beams=3).protocol
    assert changed.startswith('blip2-paper, changed: "Question: {} Answer:", generate, 3 beams')
    assert opened(folders["blip2-opt"], preset="blip2-paper", beams=5).protocol.startswith('blip2-paper: "')


def test_questions_are_cleaned_as_lavis_does() -> None:
    """Lower case, the marks of LAVIS's list removed, at most 50 words."""
    assert cleaned('What (is) "THIS": a cat?!') == "what is this a cat?"
    assert len(cleaned("word " * 60).split()) == 50


def test_first_line_and_raw(folders: Mapping[str, Path]) -> None:
    """`first-line` keeps what comes before the line break, and `raw` keeps all."""
    model = opened(folders["llava"], post="first-line")
    assert model._protocol.answer(" yes\nbecause ") == "yes"
    assert opened(folders["llava"], post="raw")._protocol.answer(" yes\nbecause ") == "yes\nbecause"


def test_an_empty_text_is_unparsed(folders: Mapping[str, Path], tmp_path: Path) -> None:
    """A model that ends its text at once has answered: the answer is empty, unparsed and not cut."""
    changed = shutil.copytree(folders["llava"], tmp_path / "silent")
    path = changed / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": list(range(2, 100))}))
    found = predictions(opened(changed), QUESTIONS)
    assert {(p.answer, p.generated[0].parsed, p.generated[0].cut) for p in found} == {("", False, False)}


def test_names_of_networks() -> None:
    """The sizes in config.json name the published BLIP-2 networks; another network has its model type."""

    def blip2(vision: int, **text: Any) -> str:
        return network_name({"model_type": "blip-2", "vision_config": {"hidden_size": vision}, "text_config": text})

    assert blip2(1408, model_type="opt", hidden_size=2560) == "BLIP-2 ViT-g OPT-2.7B"
    assert blip2(1408, model_type="t5", d_model=2048) == "BLIP-2 ViT-g FlanT5-XL"
    assert blip2(1408, model_type="t5", d_model=4096) == "BLIP-2 ViT-g FlanT5-XXL"
    assert blip2(1024, model_type="opt", hidden_size=2560) == "BLIP-2 ViT-L OPT-2.7B"
    assert blip2(32, model_type="opt", hidden_size=2560) == "blip-2"
    assert network_name({"model_type": "llava"}) == "llava"


# ---------------------------------------------------------------------------------------------------------------------
# the other forms


def test_choices_and_boxes(folders: Mapping[str, Path]) -> None:
    """VCR has four probabilities; a phrase has a box or an unparsed text."""
    choices = (("the", "cat"), ("the", "dog", "is", "red"), ((0,), "is", "left"), ("no",))
    item = MultipleChoice("m", ("image0",), ("person",), ("what", "is", (0,)), choices, (0,))
    for name in ("llava", "blip2-t5"):
        (found,) = predictions(opened(folders[name], MultipleChoice), [(item, (IMAGES[0],))])
        assert len(found.scores) == 4
        assert found.answer == int(np.argmax(found.scores))
    caption = Grounding("g", ("image0",), ("the", "cat", "and", "the", "dog"), (Phrase(0, 2, "the cat"),))
    model = opened(folders["paligemma"], Grounding)
    assert model.protocol == '"detect {}", paligemma boxes, one box a phrase, greedy, at most 32 new tokens'
    (found,) = predictions(model, [(caption, (IMAGES[0],))])
    assert len(found.generated) == 1
    assert found.generated[0].parsed == bool(found.answer[0])


# ---------------------------------------------------------------------------------------------------------------------
# evaluation


def vqa_config(night: SmallNight, model: Path, out: Path, **changes: Any) -> EvaluateConfig:
    world = night.out / "synthetic"
    settings: dict[str, Any] = {"task": "vqa", "split": "val", "annotations": world / "vqa", "model": model, "out": out}
    settings |= {"images": world / "vqa" / "val2014", "batch_size": 7, "shard_size": 5, "answering": GREEDY}
    return EvaluateConfig(**(settings | changes))


def evaluated(config: EvaluateConfig) -> Path:
    with Pool(PoolConfig(inline=True)) as pool:
        return evaluate(config, pool).folder


def test_a_run_that_ended_at_any_shard_is_byte_identical(
    small_night: SmallNight, folders: Mapping[str, Path], tmp_path: Path
) -> None:
    """Whichever marker was the last one before the end, the same call gives the bytes of a run without an end;
    scores.json counts the texts and names the protocol."""
    whole = evaluated(vqa_config(small_night, folders["llava"], tmp_path / "whole"))
    cut = evaluated(vqa_config(small_night, folders["llava"], tmp_path / "cut"))
    markers = markers_of(cut)
    assert len(markers) > 2
    for kept in range(len(markers)):
        for path in (*markers[kept:], cut / "predictions" / "manifest.json", cut / "scores.json"):
            path.unlink()
        evaluated(vqa_config(small_night, folders["llava"], tmp_path / "cut"))
        assert parts_of(cut) == parts_of(whole)
    scores = json.loads((cut / "scores.json").read_text())
    assert scores["generated"]["texts"] == scores["n"]
    assert "generate, greedy, at most 10 new tokens" in scores["answering"]
    found, _ = read_predictions(cut / "predictions")
    assert all(len(p.generated) == 1 for p in found)


def test_another_prompt_is_another_run(small_night: SmallNight, folders: Mapping[str, Path], tmp_path: Path) -> None:
    """A folder that holds a run of one prompt refuses a run of another prompt."""
    evaluated(vqa_config(small_night, folders["llava"], tmp_path))
    other = AnsweringConfig(max_new_tokens=NEW, prompt="Question: {} Answer:")
    with pytest.raises(InputError, match="other ingredients"):
        evaluated(vqa_config(small_night, folders["llava"], tmp_path, answering=other))


# ---------------------------------------------------------------------------------------------------------------------
# faulty folders and settings


def test_an_ignored_image_is_refused(tmp_path: Path) -> None:
    """A BLIP-2 processor that puts no image tokens into the prompt, and one that puts too few, are one line each."""
    with pytest.raises(CheckpointError, match=r"puts 0 image tokens into a prompt of 1 images.*num_query_tokens"):
        opened(write_blip2(tmp_path / "none", queries=None))
    with pytest.raises(CheckpointError, match=r"puts 3 image tokens.*num_query_tokens 4"):
        opened(write_blip2(tmp_path / "few", queries=3))


def test_a_chat_model_without_template_is_refused(tmp_path: Path) -> None:
    """A LLaVA folder without its chat template would ignore the image, and is refused."""
    with pytest.raises(CheckpointError, match=r"without a chat template \(chat_template.jinja\), cannot be read"):
        opened(write_llava(tmp_path / "llava", chat=False))


def changed_config(folder: Path, to: Path, **changes: Any) -> Path:
    copied = shutil.copytree(folder, to)
    path = copied / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return copied


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"auto_map": {"AutoModel": "mine.py"}}, "needs code from its folder to be run, which is never done"),
        ({"model_type": "lava"}, "no model of type 'lava'.*did you mean 'llava'"),
        ({"model_type": "vision-encoder-decoder"}, "a captioner answers Captioning and not Question"),
    ],
)
def test_faulty_configurations_are_refused(
    folders: Mapping[str, Path], tmp_path: Path, changes: Any, words: str
) -> None:
    """Remote code and unknown model types are one line."""
    with pytest.raises(CheckpointError, match=words):
        opened(changed_config(folders["llava"], tmp_path / "changed", **changes))


@pytest.mark.parametrize("name", ["processor_config.json", "tokenizer.json", "model.safetensors"])
def test_missing_files_are_named(folders: Mapping[str, Path], tmp_path: Path, name: str) -> None:
    """A folder without one of its files is refused in one line that names the folder, at the first batch at latest."""
    broken = shutil.copytree(folders["llava"], tmp_path / "broken")
    (broken / name).unlink()
    with pytest.raises(CheckpointError, match="broken") as caught:
        opened(broken).predict(QUESTIONS[:1])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "form", "answering", "words"),
    [
        ("blip2-opt", Statement, {}, "was trained on one image at a time.*set pair stitched"),
        ("blip2-opt", Statement, {"preset": "lavis"}, "preset lavis is for questions"),
        ("blip2-opt", Grounding, {}, "no box format is known for models of type blip-2"),
        ("llava", Statement, {"answer_by": "generate"}, "a Statement is answered by likelihood"),
        ("llava", MultipleChoice, {"answer_by": "generate"}, "answer_by generate"),
        ("llava", Question, {"answer_by": "likelihood"}, "a Question is answered by generate"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    folders: Mapping[str, Path], name: str, form: Any, answering: Any, words: str
) -> None:
    """Settings that the form or the model does not have are one line that says what to do."""
    with pytest.raises(ConfigError, match=words):
        opened(folders[name], form, **answering)


def test_a_prompt_needs_a_place_for_the_question(folders: Mapping[str, Path]) -> None:
    """A prompt without {} would ask every question in the same words. A caption has no question."""
    with pytest.raises(ConfigError, match=r"must hold \{\} once"):
        opened(folders["llava"], prompt="What is this?")
    with pytest.raises(ConfigError, match=r"must hold \{\} once"):
        AnsweringConfig(prompt="{} or {}?")
    with pytest.raises(ConfigError, match=r"prompt is 'a photo of \{\}': a caption has no question, so leave out \{\}"):
        opened(folders["llava"], Captioning, prompt="a photo of {}")


CAPTIONS: list[tuple[Example, tuple[Pixels, ...]]] = [
    (Captioning(picture.image_id, (picture.image_id,)), (picture,)) for picture in IMAGES
]
PROMPTS = {
    "blip2-opt": "a photo of",
    "blip2-t5": "a photo of",
    "llava": "Provide a one-sentence caption for the provided image.",
    "qwen2.5-vl": "Provide a one-sentence caption for the provided image.",
    "paligemma": "caption en",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_captions_continue_the_prompt_of_the_family(folders: Mapping[str, Path], name: str) -> None:
    """A caption is the first line of what the model writes behind the prompt of its family, alone as in a batch, and
    the prompt is not in it."""
    model = opened(folders[name], Captioning)
    assert model.protocol == f'"{PROMPTS[name]}", generate, greedy, at most 30 new tokens, first-line'
    together = predictions(model, CAPTIONS)
    alone = [predictions(model, [each])[0] for each in CAPTIONS]
    assert [p.generated for p in together] == [p.generated for p in alone]
    assert all(p.answer == p.generated[0].text.strip().partition("\n")[0].strip() for p in together)
    assert len({p.answer for p in together}) > 1
    asked = Question("q", ("image0",), "")
    same = opened(folders[name], prompt=PROMPTS[name] + "{}", post="first-line", max_new_tokens=30)
    assert [p.answer for p in predictions(same, [(asked, (IMAGES[0],))])] == [together[0].answer]
    beams = opened(folders[name], Captioning, prompt="a photo", beams=2, max_new_tokens=4, post="raw")
    assert beams.protocol == '"a photo", generate, 2 beams, length penalty 1, at most 4 new tokens, raw'
    assert all(p.scores == () for p in predictions(beams, CAPTIONS[:2]))


def test_an_empty_caption_is_an_answer() -> None:
    """A model that ends at once has given the caption "", which is neither unparsed nor a failure."""
    example, pictures = CAPTIONS[0]
    assert isinstance(example, Captioning)
    found = captioning.read(example, pictures, [Outcome(" \n")], PLAIN[Captioning])
    assert found == ("", (), (Generated(" \n", parsed=True, cut=False),))


def test_a_prompt_longer_than_the_positions_fails_alone(folders: Mapping[str, Path]) -> None:
    """A prompt that does not fit into the network is a failure row; the others of its batch are answered."""
    long = Question("long", ("image0",), "red " * 60)
    found = opened(folders["blip2-opt"], max_new_tokens=NEW).predict([*QUESTIONS[:1], (long, (IMAGES[0],))])
    assert isinstance(found[0], Prediction)
    assert isinstance(found[1], Failure)
    assert "the network reads 64" in found[1].message
