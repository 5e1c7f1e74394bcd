"""Trains a small model that writes its answers: a LLaVA (Liu et al. 2023, arXiv:2304.08485) for the synthetic scenes.

The vision tower is the image side of `train_image_side` as a SigLIP, and stays as it is. The projector and a small
Llama learn to answer VQA questions and to say whether an NLVR2 sentence is true of two images. A causal model reads the
images before any text, so all texts about the same images share them in one sequence, with the result of one sequence a
text.

A prompt of the default protocols is one token. So training sequences stay short, and the folder answers as it comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import (
    AddedToken,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    SiglipVisionConfig,
    ViltModel,
)

from visualbert_core.synthetic import questions as ask
from visualbert_core.synthetic import train_image_side as side
from visualbert_core.synthetic.language import vocabulary
from visualbert_core.synthetic.scenes import Things

PAD, UNKNOWN, START, END, IMAGE, ANSWER = SPECIALS = ("<pad>", "<unk>", "<s>", "</s>", "<image>", "<answer>")
QUESTION_PROMPT = "\nAnswer the question using a single word or phrase."
STATEMENT_PROMPT = " Is this statement about the two images true or false? Answer True or False."
WORDS = (*SPECIALS, QUESTION_PROMPT, STATEMENT_PROMPT, "true", "false", "contain", "does", "at")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}<answer>"
    "{{ message['content'][0]['text'] }}{{ eos_token }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)
LAYERS, LANGUAGE_INNER, KEY_HEADS = 4, 192, 2
IMAGES, QUESTIONS, PAIRS, SENTENCES = 24, 8, 16, 6  # in a batch of questions, and in a batch of sentences
RATE = 1.5e-3
WORD_WEIGHT = 0.2
"""The weight of the words that image tokens show beside the answers."""


_INDEX = {word: n for n, word in enumerate((*WORDS, *(w for w in vocabulary() if not w.startswith(("[", "##")))))}
"""Word → its id: what is special here, then the words of the synthetic texts without word pieces."""


def tokenizer() -> Any:
    """Return the tokenizer of the folder: lower-cased words and marks, and the default prompts as one token each."""
    made = Tokenizer(WordLevel(dict(_INDEX), unk_token=UNKNOWN))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens([AddedToken(word, normalized=False) for word in SPECIALS])
    made.add_tokens([AddedToken(word, normalized=False) for word in (QUESTION_PROMPT, STATEMENT_PROMPT)])
    wrapped: Any = PreTrainedTokenizerFast
    return wrapped(
        tokenizer_object=made, pad_token=PAD, unk_token=UNKNOWN, bos_token=START, eos_token=END, padding_side="left"
    )


def vision_config() -> SiglipVisionConfig:
    return SiglipVisionConfig(
        num_hidden_layers=side.IMAGE_LAYERS,
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        vision_use_head=False,
        **side.SIZES,
    )


def config() -> LlavaConfig:
    """Return the sizes: about 1.2 million parameters, half of them in the vision tower."""
    text = LlamaConfig(
        vocab_size=len(_INDEX),
        hidden_size=side.WIDTH,
        intermediate_size=LANGUAGE_INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=side.HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=256,
        pad_token_id=_INDEX[PAD],
        bos_token_id=_INDEX[START],
        eos_token_id=_INDEX[END],
        tie_word_embeddings=True,
    )
    return LlavaConfig(
        vision_config=vision_config(),
        text_config=text,
        image_token_index=_INDEX[IMAGE],
        image_seq_length=side.GRID**2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )


@torch.no_grad()
def _begin(model: Any) -> None:
    """Start the words and layers so that alike tokens attend to each other, as in `train_vilt`."""
    nn.init.normal_(model.get_input_embeddings().weight, std=side.TABLE_STD)
    for layer in model.model.language_model.layers:
        key, query = layer.self_attn.k_proj.weight, layer.self_attn.q_proj.weight
        nn.init.normal_(key, std=side.QUERY_STD)
        query.copy_(key.view(KEY_HEADS, -1, side.WIDTH).repeat_interleave(side.HEADS // KEY_HEADS, 0).flatten(0, 1))


@torch.no_grad()
def copy_image_side(vilt: Any, labels: side.PatchLabels, tower: Any) -> None:
    """Write the image side into a SigLIP, and keep it there: it does not learn any further."""
    embeddings = vilt.embeddings
    tower.embeddings.patch_embedding.load_state_dict(embeddings.patch_embeddings.projection.state_dict())
    places = embeddings.position_embeddings[0, 1:] + embeddings.token_type_embeddings.weight[1]
    tower.embeddings.position_embedding.weight.copy_(places)
    for layer, given in zip(tower.encoder.layers, vilt.encoder.layer, strict=False):
        attention = given.attention.attention
        for part, source in (
            (layer.layer_norm1, given.layernorm_before),
            (layer.self_attn.q_proj, attention.query),
            (layer.self_attn.k_proj, attention.key),
            (layer.self_attn.v_proj, attention.value),
            (layer.self_attn.out_proj, given.attention.output.dense),
            (layer.layer_norm2, given.layernorm_after),
            (layer.mlp.fc1, given.intermediate.dense),
            (layer.mlp.fc2, given.output.dense),
        ):
            part.load_state_dict(source.state_dict())
    tower.post_layernorm.load_state_dict(labels.norm.state_dict())
    tower.requires_grad_(False)


@dataclass(frozen=True)
class Asked:
    """Prompts with their answers about each example, and the tokens to learn.

    `wanted`, int [B, W], holds at each place the token that follows it, where it belongs to an answer, and else -100.
    """

    texts: side.PackedTexts
    wanted: Tensor


def question_texts(rng: np.random.Generator, things: Sequence[Things]) -> Asked:
    rows = []
    for scene in things:
        items = [ask.vqa_item(rng, scene) for _ in range(QUESTIONS)]
        rows.append([(item.question, QUESTION_PROMPT, item.answer) for item in items])
    return _texts(rows)


def statement_texts(rng: np.random.Generator, pairs: Sequence[tuple[Things, Things]]) -> Asked:
    """Draw SENTENCES sentences about each pair of images. A sentence is about ask.PAIRS pairs, and true of half."""
    rows: list[list[tuple[str, str, str]]] = [[] for _ in pairs]
    for start in range(0, len(pairs), ask.PAIRS):
        for item in ask.nlvr2_items(rng, pairs[start : start + ask.PAIRS], SENTENCES):
            for row, label in enumerate(item.labels, start):
                rows[row].append((item.sentence, STATEMENT_PROMPT, str(label)))
    return _texts(rows)


def _texts(rows: Sequence[Sequence[tuple[str, str, str]]]) -> Asked:
    ids: list[list[list[int]]] = [[] for _ in rows]
    wanted: list[list[list[int]]] = [[] for _ in rows]
    for number, row in enumerate(rows):
        for text, prompt, answer in row:
            asked = [_INDEX[word] for word in (*side.split(text), prompt, ANSWER)]
            said = _INDEX[answer.lower()]
            ids[number].append([*asked, said])
            wanted[number].append([*([-100] * (len(asked) - 1)), said, _INDEX[END]])
    return Asked(side.pack(ids), side.padded(wanted, -100))


def answer_loss(model: Any, tokens: Tensor, asked: Asked) -> Tensor:
    """Return the loss of the answers, behind the image tokens of each row."""
    hidden = run(model, tokens, asked.texts)
    learnt = asked.wanted != -100
    loss: Tensor = nn.functional.cross_entropy(model.lm_head(hidden[learnt]).float(), asked.wanted[learnt])
    return loss


def word_loss(model: Any, tokens: Tensor, things: Sequence[Things], moves: np.ndarray) -> Tensor:
    """Return the loss of reading image tokens [images, GRID², WIDTH] as words.

    The token of a patch with the centre of a thing means its colour, its shape and its size alike, and any other token
    means nothing, which is UNKNOWN. Then a word of a question finds the tokens that show what it names.
    """
    values = model.lm_head(model.model.language_model.norm(tokens)).float().flatten(0, 1).log_softmax(1)
    labels = side.patch_labels(things, moves)
    centre = labels.centre.bool()
    kinds = [
        torch.tensor([_INDEX[word] for word in names])[kind[centre]]
        for names, kind in zip(side.KINDS, labels.kinds, strict=True)
    ]
    shown = values[centre].gather(1, torch.stack(kinds, 1))
    loss: Tensor = -shown.mean() - values[~centre, _INDEX[UNKNOWN]].mean()
    return loss


def image_tokens(model: Any, images: Tensor) -> Tensor:
    """Return the tokens that stand for images in the language model: [images, GRID², WIDTH]."""
    return torch.stack(model.model.get_image_features(images).pooler_output)


def run(model: Any, tokens: Tensor, texts: side.PackedTexts) -> Tensor:
    """Return what the language model makes of the texts, [B, W, WIDTH], behind the images of each row.

    `tokens` is [images, GRID², WIDTH]. A row has one image or two.
    """
    count, words = texts.ids.shape
    table = model.get_input_embeddings()
    start = table(torch.full((count, 1), model.config.text_config.bos_token_id))
    prefix = torch.cat([start, tokens.view(count, -1, side.WIDTH).to(start.dtype)], 1)
    before = prefix.shape[1]
    sees = torch.ones(count, before + words, before + words, dtype=torch.bool)
    sees[:, before:, before:] = texts.sees()  # and no later token, as everywhere in a causal model
    mask = torch.zeros(sees.shape).masked_fill(~sees.tril(), side.HIDDEN)[:, None]
    hidden: Tensor = model.model.language_model(
        inputs_embeds=torch.cat([prefix, table(texts.ids)], 1),
        attention_mask=mask,
        position_ids=torch.cat([torch.arange(before).expand(count, -1), before + texts.place], 1),
        use_cache=False,
    ).last_hidden_state
    return hidden[:, before:]


def train_generative(
    train: side.Pictures, vilt: ViltModel, labels: side.PatchLabels, seed: int, steps: int
) -> LlavaForConditionalGeneration:
    """Train the projector and the language model. Two of three batches hold questions, and one holds sentences."""
    torch.manual_seed(seed)
    made: Any = LlavaForConditionalGeneration
    model: LlavaForConditionalGeneration = made._from_config(config(), attn_implementation="eager")
    copy_image_side(vilt, labels, model.model.vision_tower)
    _begin(model)
    rng = np.random.default_rng([seed, 13])

    def loss(step: int, chosen: np.ndarray) -> Tensor:
        pair = step % 3 == 2
        chosen = chosen if pair else chosen[:IMAGES]
        things = [train.things[i] for i in chosen]
        pairs = list(zip(things[::2], things[1::2], strict=True))
        asked = statement_texts(rng, pairs) if pair else question_texts(rng, things)
        images, moves = side.shifted(rng, train.pixels[chosen])
        tokens = image_tokens(model, images)
        return answer_loss(model, tokens, asked) + WORD_WEIGHT * word_loss(model, tokens, things, moves)

    parameters = [p for p in model.parameters() if p.requires_grad]
    side.learn("generative", steps, loss, parameters, RATE, rng, train, max(IMAGES, 2 * PAIRS))
    return model


def image_processor() -> Any:
    make: Any = SiglipImageProcessor
    return make(size={"height": side.SIDE, "width": side.SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def save(weights: dict[str, Tensor], folder: Path) -> None:
    """Write the checkpoint folder of trained weights in float16, with the processor and its chat template."""
    model: Any = LlavaForConditionalGeneration(config())
    model.load_state_dict(weights)
    make: Any = LlavaProcessor
    processor = make(
        image_processor(),
        tokenizer(),
        patch_size=side.PATCH,
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        chat_template=CHAT_TEMPLATE,
    )
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
