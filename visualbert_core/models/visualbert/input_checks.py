"""Checks the tensors that a caller passes to a VisualBERT forward, and names the first one that is wrong.

Owns every such check. Each raises ValueError with one line. Shapes and dtypes are always checked. Values, such as ids
inside their tables and usable masks, are checked on the CPU only: reading them on a GPU would stall it. There, an id
outside its table ends in an assertion of CUDA. Features are never searched for NaN. An example with NaN or infinity in
one of its regions, masked or not, gets NaN logits, and the other examples of the batch do not. Evaluation counts such
an example as a failure.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from visualbert_core.models.visualbert.config import VisualBertConfig

IGNORED = -100
"""The label that a cross-entropy ignores, as in torch and transformers. The authors' code used -1."""


def require(value: Tensor | None, name: str, why: str) -> Tensor:
    """Return `value`. Raise ValueError if the caller left it out."""
    if value is None:
        raise ValueError(f"{name} is required: {why}")
    return value


def require_shape(name: str, tensor: Tensor, **axes: int | None) -> None:
    """Raise ValueError unless the tensor has these named axes, as in `require_shape("labels", labels, B=8, C=None)`.

    None allows any size.
    """
    sizes = list(tensor.shape)
    if len(sizes) != len(axes) or any(want not in (None, got) for want, got in zip(axes.values(), sizes, strict=True)):
        wanted = ", ".join(axis if size is None else f"{axis}={size}" for axis, size in axes.items())
        raise ValueError(f"{name} must be [{wanted}], got {sizes}")


def require_ids(name: str, ids: Tensor, stop: int, least: int = 0, ignored: int | None = None) -> None:
    """Raise ValueError unless `ids` are whole numbers from `least` to `stop` - 1, or `ignored`."""
    if ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name} must be whole numbers (torch.long), got {ids.dtype}")
    if not visible(ids):
        return
    outside = (ids < least) | (ids >= stop)
    if ignored is not None:
        outside &= ids != ignored
    if outside.any():
        also = "" if ignored is None else f" or {ignored}"
        raise ValueError(f"{name} must be {least} to {stop - 1}{also}, got {int(ids[outside][0])}")


def require_text_first(mask: Tensor) -> None:
    """Raise ValueError unless a text mask has at least two tokens in each row, and padding on the right only.

    transformers silently reads the wrong token if the padding is on the left.
    """
    if not visible(mask):
        return
    kept = mask.bool()
    if (kept[:, 1:] & ~kept[:, :-1]).any():
        raise ValueError("attention_mask must have its zeros on the right: it says which token the head reads")
    if not kept[:, :2].all() or kept.shape[1] < 2:
        raise ValueError("attention_mask must cover two tokens or more: the head reads the second-last token")


def check_inputs(config: VisualBertConfig, **given: Tensor | None) -> None:
    """Raise ValueError unless the arguments of `VisualBertModel.forward` fit each other and the network."""
    found = {name: tensor for name, tensor in given.items() if tensor is not None}
    examples, length = _check_words(config, found)
    regions = 0
    if "visual_embeds" in found:
        features = found["visual_embeds"]
        require_shape("visual_embeds", features, B=examples, V=None, D=config.visual_embedding_dim)
        if not features.is_floating_point():
            raise ValueError(f"visual_embeds must be floating-point features, got {features.dtype}")
        regions = features.shape[1]
    elif lonely := [name for name in found if name.startswith("visual_") or name == "image_text_alignment"]:
        raise ValueError(f"{lonely[0]} is given without visual_embeds")
    for name, axes in (("attention_mask", {"T": length}), ("visual_attention_mask", {"V": regions})):
        if name in found:
            require_shape(name, found[name], B=examples, **axes)
            _check_mask(name, found[name])
    types, positions = config.type_vocab_size, config.max_position_embeddings
    ids: tuple[tuple[str, dict[str, int | None], int, int], ...] = (
        ("token_type_ids", {"T": length}, 0, types),
        ("position_ids", {"T": length}, 0, positions),
        ("visual_token_type_ids", {"V": regions}, 0, types),
        ("image_text_alignment", {"V": None, "A": None}, -1, positions),
    )
    for name, sizes, least, stop in ids:
        if name in found:
            rows = 1 if found[name].shape[:1] == (1,) else examples  # one row may serve all examples
            require_shape(name, found[name], B=rows, **sizes)
            require_ids(name, found[name], stop, least)
    if "image_text_alignment" in found and (aligned := found["image_text_alignment"].shape[1]) < regions:
        raise ValueError(f"image_text_alignment covers {aligned} regions, visual_embeds {regions}")


def visible(tensor: Tensor) -> bool:
    """Return whether reading the values neither stalls a GPU nor breaks a compiled graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _check_words(config: VisualBertConfig, found: Mapping[str, Tensor]) -> tuple[int, int]:
    """Check the words. Return the number of examples and the number of text tokens."""
    if ("input_ids" in found) == ("inputs_embeds" in found):
        raise ValueError("give either input_ids or inputs_embeds")
    if "input_ids" in found:
        words = found["input_ids"]
        require_shape("input_ids", words, B=None, T=None)
        require_ids("input_ids", words, config.vocab_size)
    else:
        words = found["inputs_embeds"]
        require_shape("inputs_embeds", words, B=None, T=None, hidden=config.hidden_size)
    examples, length = words.shape[:2]
    if not length:
        raise ValueError("text must hold one token or more: the first one is pooled")
    if length > config.max_position_embeddings:
        available = config.max_position_embeddings
        raise ValueError(f"text of {length} tokens is longer than the {available} positions of this model")
    return examples, length


def _check_mask(name: str, mask: Tensor) -> None:
    """Raise ValueError if a mask is additive, or leaves a text without a token."""
    if not visible(mask):
        return
    # Some callers pass an additive mask: 0 for a token, a large negative number for padding. As a 1/0 mask it would
    # mean the opposite.
    if mask.dtype != torch.bool and mask.numel() and (mask < 0).any():
        raise ValueError(f"{name} must be 1 where there is something and 0 where there is not, got {mask.min():g}")
    if name == "attention_mask" and not mask.bool().any(1).all():
        raise ValueError("attention_mask must leave one token or more of every text")
