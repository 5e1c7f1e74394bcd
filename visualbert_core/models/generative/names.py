"""The names of networks as papers write them, recognised by the sizes in `config.json`.

A folder may have any name, so its published numbers are found by what the network is. Sizes: Li et al. 2023,
arXiv:2301.12597, and the configurations of the published checkpoints as transformers has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_VISION = {1408: "ViT-g", 1024: "ViT-L"}
"""Hidden size of BLIP-2's image encoder → its name."""
_LANGUAGE = {
    ("opt", 2560): "OPT-2.7B",
    ("opt", 4096): "OPT-6.7B",
    ("t5", 2048): "FlanT5-XL",
    ("t5", 4096): "FlanT5-XXL",
}
"""Model type and hidden size of BLIP-2's language model → its name."""


def network_name(config: Mapping[str, Any]) -> str:
    """Return the name of a network: "BLIP-2 ViT-g OPT-2.7B", or its model type where no paper's sizes are found."""
    model_type = str(config["model_type"])
    if model_type != "blip-2":
        return model_type
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    # transformers saves only what differs from its defaults. The defaults of BLIP-2 are ViT-g and OPT-2.7B.
    image = _VISION.get(vision.get("hidden_size", 1408))
    kind = text.get("model_type", "opt")
    size = text.get("d_model") or text.get("hidden_size")
    language = _LANGUAGE.get((kind, size or 0))
    return f"BLIP-2 {image} {language}" if image and language else model_type
