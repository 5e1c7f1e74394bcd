"""Simulate the nightly gate on a set of VQA v2 val's size: how often is there a false alarm, and which drops are found?

    python benchmarks/gate_power.py
    python benchmarks/gate_power.py --images 5000 --nights 400 --changed 0.2
    python benchmarks/gate_power.py --captions --images 300 --changed 0.5

The simulated model gets two thirds of the credit. The questions of one image are equally easy. In the second run, a
share of the answers is drawn anew, as with weights of another training. Nights without a change give the rate of false
alarms. On other nights, right answers are lost until the score has dropped by so many points: they give the power. No
model runs. With --captions, the nights are those of caption_nights.py, and BLEU-4 and CIDEr-D are the scores.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
from caption_nights import SCALES, changed, draw_night, visible

from visualbert_core.config import GateConfig
from visualbert_core.metrics.statistics import Paired, paired, smallest_drop

QUESTIONS_PER_IMAGE = 214_354 / 40_504
DROPS = (0.1, 0.25, 0.5, 1.0)
WORTH = (0.3, 0.6, 0.9, 1.0)
SHARES = (0.06, 0.08, 0.12, 0.74)  # of right answers that one, two, three, or more of ten annotators gave


def main() -> None:
    args = parse()
    (captions if args.captions else questions)(args, np.random.default_rng(args.seed), GateConfig.false_alarms)


def questions(args: argparse.Namespace, rng: np.random.Generator, alpha: float) -> None:
    per_image = 1 + rng.poisson(QUESTIONS_PER_IMAGE - 1, args.images)
    images = np.repeat(np.arange(args.images), per_image)
    same = [night(rng, images, args.changed, 0.0) for _ in range(args.nights)]
    alarms = sum(result.p_drop < alpha for result in same)
    visible = 100 * float(np.mean([smallest_drop(r.spread, len(images), alpha) for r in same]))
    low, high = share(alarms, args.nights)
    print(f"{len(images):,} questions about {args.images:,} images, {args.changed:.0%} of the answers drawn anew")
    moved = [night_values(rng, images, args.changed, 0.0) for _ in range(3)]
    flips = float(np.mean([(before != after).mean() for before, after in moved]))
    print(f"{flips:.1%} of the questions change their score from run to run")
    print(f"without a change: {alarms} of {args.nights} nights fail at {alpha:.0%} (95 %: {low:.1%} to {high:.1%})")
    print(f"smallest drop seen with {GateConfig.power:.0%} power: {visible:.2f} points")
    for drop in args.drops or DROPS:
        found = sum(night(rng, images, args.changed, drop / 100).p_drop < alpha for _ in range(args.nights))
        low, high = share(found, args.nights)
        print(f"a drop of {drop:g} points: found on {found} of {args.nights} nights (95 %: {low:.1%} to {high:.1%})")


def captions(args: argparse.Namespace, rng: np.random.Generator, alpha: float) -> None:
    nights = [draw_night(rng, args.images) for _ in range(args.nights)]
    seconds = [changed(rng, each, args.changed) for each in nights]
    compared = [second.since(each.first) for each, second in zip(nights, seconds, strict=True)]
    print(f"captions of {args.images:,} images, {args.changed:.0%} of them drawn anew")
    for metric, scale in SCALES.items():
        values = np.array([each.first.values()[metric] for each in nights])
        reach = [each.first.intervals()[metric] for each in nights]
        held = sum(low <= values.mean() <= high for low, high in reach)
        print(f"{metric}: {scale * values.mean():.1f}, {scale * values.std():.1f} from set to set")
        print(f"  the 95 % interval held the mean of all sets {told(held, args.nights)}")
        alarms = sum(each[metric][0].p_drop < alpha for each in compared)
        print(f"  without a change: failed at {alpha:.0%} {told(alarms, args.nights)}")
        seen = scale * float(np.mean([visible(each[metric], alpha, GateConfig.power) for each in compared]))
        print(f"  smallest drop seen with {GateConfig.power:.0%} power: {seen:.2f} points")
        for drop in (seen / 2, seen, *args.drops):
            worse = [changed(rng, each, args.changed, metric, drop / scale).since(each.first) for each in nights]
            found = sum(each[metric][0].p_drop < alpha for each in worse)
            print(f"  a drop of {drop:.3g} points: found {told(found, args.nights)}")


def told(count: int, of: int) -> str:
    low, high = share(count, of)
    return f"on {count} of {of} nights (95 %: {low:.1%} to {high:.1%})"


def night(rng: np.random.Generator, images: np.ndarray, changed: float, drop: float) -> Paired:
    return paired(*night_values(rng, images, changed, drop), images)


def night_values(
    rng: np.random.Generator, images: np.ndarray, changed: float, drop: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of two runs. In the second, a share `changed` is drawn anew, and right answers are lost."""
    ease = rng.beta(2, 1, images.max() + 1)[images]  # two thirds on average
    worth = rng.choice(WORTH, len(images), p=SHARES)
    right = rng.random(len(images)) < ease
    again = np.where(rng.random(len(images)) < changed, rng.random(len(images)) < ease, right)
    lost = drop / float((again * worth).mean())
    return right * worth, (again & (rng.random(len(images)) >= lost)) * worth


def share(count: int, of: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share."""
    z, p = 1.96, count / of
    centre, reach = p + z * z / (2 * of), z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    return max(0.0, (centre - reach) / (1 + z * z / of)), (centre + reach) / (1 + z * z / of)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40_504)
    parser.add_argument("--nights", type=int, default=1000)
    parser.add_argument("--changed", type=float, default=0.25, help="share of the answers that the second run redraws")
    parser.add_argument("--drops", type=float, nargs="+", default=[], help="in points")
    parser.add_argument("--captions", action="store_true", help="nights of captions; one of 300 images takes 0.3 s")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
