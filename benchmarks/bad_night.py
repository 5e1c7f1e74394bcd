"""Make the page of a failed night: four nights over the embedded synthetic data, the last with two damaged checkpoints.

    python benchmarks/bad_night.py                 # out/bad-night/report.html
    python benchmarks/bad_night.py --images 12     # the same over a few images

The exit code is 4, because the last night fails. The picture in the README shows this page.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from visualbert_core.commands.nightly import run_night
from visualbert_core.errors import end
from visualbert_core.nightly.matrix import load_matrix
from visualbert_core.nightly.night import Night
from visualbert_core.synthetic import DEMO

NIGHTS = ("2026-02-01", "2026-02-02", "2026-02-03", "2026-02-04")
DAMAGED = ("visualbert-vqa", "visualbert-flickr30k")


def bad_night(
    out: Path, images: int | None = None, noise: float = 0.03, nights: Sequence[str] = NIGHTS, **changes: Any
) -> Night:
    """Run all `nights` and return the last, before which noise is added to the weights of `DAMAGED`.

    `out` is emptied first: an earlier failed night would become the one to compare with. `noise` is the standard
    deviation of the noise. `changes` replace keys of the demo's matrix.
    """
    shutil.rmtree(out, ignore_errors=True)
    matrix = yaml.safe_load(DEMO.read_text())
    matrix |= {"name": "bad-night", "out": str(out), "gate": {"drop": 5}, "pool": {"inline": True}}
    if images is not None:
        names = ("vqa_images", "vcr_images", "nlvr2_sets", "flickr_images")
        matrix["synthetic"] |= dict.fromkeys(names, images)
    for corpus in matrix["corpora"].values():
        corpus["detector"] = str(DEMO.parent / corpus["detector"])
    for cell in matrix["cells"]:
        weights = DEMO.parent / cell["model"]
        cell |= {"model": str(out / "models" / weights.name), "floors": {}, "wrong_image": {}}
        shutil.copytree(weights, cell["model"])
    path = out / "matrix.yaml"
    path.write_text(yaml.safe_dump(matrix | changes))
    for night in nights[:-1]:
        run_night(load_matrix(path, {"night": night}))
    for name in DAMAGED:
        damage(out / "models" / name, noise)
    return run_night(load_matrix(path, {"night": nights[-1]}))


def damage(model: Path, noise: float) -> None:
    """Add normal noise to every matrix of a checkpoint. The seed is fixed."""
    generator = torch.Generator().manual_seed(0)
    weights = load_file(model / "model.safetensors")
    for name, tensor in weights.items():
        if tensor.ndim == 2:
            weights[name] = tensor + (noise * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
    save_file(weights, model / "model.safetensors")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/bad-night"))
    parser.add_argument("--images", type=int, help="images or sets of each task (default: as in the demo's matrix)")
    parser.add_argument("--noise", type=float, default=0.03, help="standard deviation (default: %(default)s)")
    args = parser.parse_args()
    night = bad_night(args.out, args.images, args.noise)
    print(f"Report: {night.report}")
    return night.exit_code


if __name__ == "__main__":
    end(main)
