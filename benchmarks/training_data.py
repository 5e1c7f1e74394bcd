"""Measure how fast the batches of a training are made, from a store on a disk or in an object store.

    python benchmarks/training_data.py          # 1,024 images of 36 × 2048 on a disk, and a short training
    python benchmarks/training_data.py --s3     # also from an S3 server of moto, in a process beside this one

"reading" makes batches of 64 questions, five for each image, without a network: examples and features a second. It
reads each order of the examples once, after the page cache was told to drop the files. Every byte of a batch is copied
once, and every image is hashed at its first reading. "training" is `visualbert train` with a network of BERT-base's
width: the share of the time for which the steps wait for their batches.

moto's server is a Python program, so its figures compare the two orders and say nothing of a real object store.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from visualbert_core.engine.shards import Part, ShardFolder, plan
from visualbert_core.features.parts import encode
from visualbert_core.features.store import FeatureStore
from visualbert_core.io.locations import Location, location
from visualbert_core.models.visualbert import VisualBertConfig
from visualbert_core.schema import Regions
from visualbert_core.training import TrainConfig, train
from visualbert_core.training.data import ahead, read_portion
from visualbert_core.training.sources import open_recipe

R, D = 36, 2048
QUESTIONS = 5  # of each image
SHARD = 64  # images; moto copies a whole part for each request
ORDERS = ("whole", "row-groups")
PORT = 5555


def main() -> None:
    flags = parse()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_questions(folder, flags.images)
        write_start(folder / "start", flags)
        store = write_store(folder / "store", flags.images)
        config = TrainConfig(
            task="vqa",
            split="val",
            annotations=folder,
            features=store,
            model=folder / "start",
            out=folder / "out",
            weights="random",
            epochs=1,
            readers=flags.readers,
            shuffle_buffer=flags.buffer,
        )
        print(f"{flags.images} images of {R} × {D}, {flags.readers} readers, a buffer of {flags.buffer} row groups")
        for shuffle in ORDERS:
            read("disk", replace(config, shuffle=shuffle), store)
        if flags.s3:
            with s3_server():
                remote = write_store(location("s3://features/store"), flags.images)
                for shuffle in ORDERS:
                    read("s3", replace(config, shuffle=shuffle, features=remote), store)
        for shuffle in ORDERS:
            evict(store)
            share(replace(config, shuffle=shuffle, out=folder / shuffle, epochs=None, steps=flags.steps), flags)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--buffer", type=int, default=4, help="row groups that are mixed")
    parser.add_argument("--steps", type=int, default=20, help="of the training")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=768, help="width of the network, a multiple of 64")
    parser.add_argument("--s3", action="store_true", help="needs moto[server] and s3fs")
    return parser.parse_args()


def write_store(root: Location, images: int) -> Location:
    """Write a store of random features. Every image has other bytes."""
    fingerprint = {"space": "random", "feature_size": D}
    folder = ShardFolder(root)
    names = [f"COCO_val2014_{number:012d}" for number in range(images)]
    shards = plan(names, "benchmark", SHARD)
    for shard in shards:
        rows = [regions(name) for name in shard.items]
        folder.commit(shard, Part(encode(rows, fingerprint), len(rows), None, 0))
    folder.finish(shards, {"fingerprint": fingerprint})
    return FeatureStore.open(folder.root).folder


def regions(name: str) -> Regions:
    draws = np.random.default_rng(int(name[-12:]))
    corner = draws.random((R, 2), np.float32) * 200
    features = draws.random((R, D), np.float32).astype(np.float16)
    boxes = np.concatenate([corner, corner + 100], 1)
    return Regions(name, 640, 480, boxes, np.zeros(R, np.int16), np.ones(R, np.float32), features, name)


def write_questions(folder: Path, images: int) -> None:
    """Write the two official files of VQA with random words."""
    draws = np.random.default_rng(0)
    asked, told = [], []
    for number in range(images * QUESTIONS):
        words = " ".join(f"word{word}" for word in draws.integers(0, 900, 9))
        keys = {"question_id": number, "image_id": number // QUESTIONS}
        asked.append(keys | {"question": f"{words}?"})
        answers = [{"answer": f"answer{draws.integers(20)}", "answer_id": at} for at in range(1, 11)]
        told.append(keys | {"answers": answers, "answer_type": "other", "question_type": "what"})
    about = {"data_subtype": "val2014"}
    questions = json.dumps(about | {"questions": asked})
    (folder / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(questions)
    (folder / "v2_mscoco_val2014_annotations.json").write_text(json.dumps(about | {"annotations": told}))


def write_start(folder: Path, flags: argparse.Namespace) -> None:
    """Write the files that a training from random weights needs."""
    folder.mkdir()
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", *(f"word{number}" for number in range(900))]
    config = VisualBertConfig(
        vocab_size=len(pieces),
        hidden_size=flags.hidden,
        num_attention_heads=flags.hidden // 64,
        intermediate_size=4 * flags.hidden,
        num_hidden_layers=flags.layers,
        visual_embedding_dim=D,
        num_labels=21,
        pad_token_id=0,
    )
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    (folder / "answers.txt").write_text("\n".join(["<unk>", *(f"answer{number}" for number in range(20))]) + "\n")


def evict(store: Location) -> None:
    """Tell the page cache to drop the parts of a store on a disk."""
    for path in FeatureStore.open(store).part_paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(place: str, config: TrainConfig, store: Location) -> None:
    """Make all batches of an epoch, and print how fast."""
    evict(store)
    lessons = open_recipe(config)
    order = lessons.order(config)
    start, count = time.perf_counter(), 0
    made = ahead(lambda step: read_portion(lessons, order, step), range(order.steps_per_epoch), config.readers, 4)
    for portion in made:
        count += len(portion.items)
    seconds = time.perf_counter() - start
    size = count * R * D * 2 / 1e6
    print(f"reading   {place:5} {config.shuffle:11} {count / seconds:8.0f} examples/s {size / seconds:8.0f} MB/s")


def share(config: TrainConfig, flags: argparse.Namespace) -> None:
    """Train from the disk, and print for which share of the time the steps waited."""
    train(config)
    lines = [json.loads(line) for line in (config.out / "steps.jsonl").read_text().splitlines()]
    waited, seconds = (sum(line[key] for line in lines) for key in ("waiting", "seconds"))
    speed = sum(line["examples"] for line in lines) / seconds
    print(
        f"training  disk  {config.shuffle:11} {speed:8.1f} examples/s {100 * waited / seconds:8.2f} % waiting for data "
        f"({len(lines)} steps, {flags.layers} layers of {flags.hidden})"
    )


@contextmanager
def s3_server() -> Iterator[None]:
    """Run moto's S3 server with an empty bucket in a process of its own."""
    server = f"from moto.server import ThreadedMotoServer as S; s = S('127.0.0.1', {PORT}, verbose=False); s.start()"
    code = f"{server}; print('ready', flush=True); import sys; sys.stdin.read()"
    os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{PORT}", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        import fsspec

        fsspec.filesystem("s3").mkdir("features")
        yield
        process.communicate()


if __name__ == "__main__":
    main()
