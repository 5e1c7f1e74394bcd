"""Write region features in every layout that can be imported, as the original projects write them."""

from __future__ import annotations

import base64
import csv
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from visualbert_core.config import PoolConfig
from visualbert_core.engine.pool import Pool
from visualbert_core.features.importers.run import Imported, import_features

BUA = ["image_id", "image_w", "image_h", "num_boxes", "boxes", "features"]
LXMERT = [
    *("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf"),
    *("num_boxes", "boxes", "features"),
]
Records = Mapping[str, dict[str, Any]]


def records(images: int = 6, boxes: int = 8, size: int = 16) -> dict[str, dict[str, Any]]:
    """Return what a detector knows of each image, by image id. Every third image is upright."""
    random = np.random.default_rng(5)
    made = {}
    for number in range(1, images + 1):
        width, height = (640, 480) if number % 3 else (480, 640)
        corners = np.sort(random.random((boxes, 2, 2)), axis=1) * (width, height)
        made[str(number)] = {
            "image_w": width,
            "image_h": height,
            "num_boxes": boxes,
            "boxes": corners.reshape(boxes, 4).astype(np.float32),
            # Features behind a ReLU are never negative and often exactly 0.
            "features": np.maximum(random.standard_normal((boxes, size)), 0).astype(np.float32),
            "objects_id": random.integers(0, 1600, boxes),
            "objects_conf": random.random(boxes, np.float32),
            "attrs_id": random.integers(0, 400, boxes),
            "attrs_conf": random.random(boxes, np.float32),
        }
    return made


def write_tsv(path: Path, known: Records, fields: list[str]) -> Path:
    """Write a TSV as both projects do: csv.DictWriter, tabs, arrays in base64, no header."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields, delimiter="\t")
        for image_id, record in known.items():
            record = record | {"image_id": image_id, "img_id": image_id}
            record |= {"img_w": record["image_w"], "img_h": record["image_h"]}
            values = {name: record[name] for name in fields}
            arrays = {name: v for name, v in values.items() if isinstance(v, np.ndarray)}
            writer.writerow(values | {name: base64.b64encode(v.tobytes()).decode() for name, v in arrays.items()})
    return path


def mmf(record: Mapping[str, Any]) -> dict[str, Any]:
    names = {"bbox": "boxes", "num_boxes": "num_boxes", "objects": "objects_id", "cls_prob": "objects_conf"}
    sizes = {"image_width": record["image_w"], "image_height": record["image_h"]}
    return {name: record[ours] for name, ours in names.items()} | sizes


def write_npy(folder: Path, known: Records) -> Path:
    folder.mkdir()
    for image_id, record in known.items():
        np.save(folder / f"{image_id}.npy", record["features"])
        np.save(folder / f"{image_id}_info.npy", mmf(record))  # type: ignore[arg-type]
    return folder


def write_lmdb(path: Path, known: Records) -> Path:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(path), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for image_id, record in known.items():
            value = {"feature_path": image_id, "features": record["features"], **mmf(record)}
            transaction.put(image_id.encode(), pickle.dumps(value))
        transaction.put(b"keys", pickle.dumps([image_id.encode() for image_id in known]))
    return path


def write_npz(folder: Path, known: Records, transposed: bool = False) -> Path:
    folder.mkdir()
    for image_id, record in known.items():
        info = {"image_id": image_id, **{name: record[name] for name in LXMERT[3:7]}}
        x = record["features"].T if transposed else record["features"]
        sizes = {"image_h": record["image_h"], "image_w": record["image_w"]}
        path = folder / f"{image_id}.npz"
        np.savez_compressed(path, x=x, bbox=record["boxes"], num_bbox=record["num_boxes"], **sizes, info=info)  # type: ignore[arg-type]
    return folder


def write_hdf5(path: Path, known: Records) -> Path:
    """Write an HDF5 file in which all images have the same number of boxes. `spatial_features` holds the boxes relative
    to the size of their image."""
    h5py = pytest.importorskip("h5py")
    path = path.with_suffix(".hdf5")
    with h5py.File(path, "w") as file:
        file["image_features"] = np.stack([record["features"] for record in known.values()])
        file["image_bb"] = np.stack([record["boxes"] for record in known.values()])
        sides = [[record["image_w"], record["image_h"]] * 2 for record in known.values()]
        scaled = file["image_bb"][:] / np.array(sides)[:, None]
        file["spatial_features"] = np.concatenate([scaled, scaled[..., 2:] - scaled[..., :2]], axis=-1)
    ids = {int(image_id): row for row, image_id in enumerate(known)}
    path.with_name(f"{path.stem}_imgid2idx.pkl").write_bytes(pickle.dumps(ids))
    return path


WRITERS: dict[str, Callable[[Path, Records], Path]] = {
    "bua-tsv": lambda path, known: write_tsv(path, known, BUA),
    "lxmert-tsv": lambda path, known: write_tsv(path, known, LXMERT),
    "mmf-npy": write_npy,
    "mmf-lmdb": write_lmdb,
    "milvlg-npz": write_npz,
    "bua-hdf5": write_hdf5,
}


def run(kind: str, source: Path | list[Path], out: Path, space: str = "mine", **options: Any) -> Imported:
    """Import the features in this process."""
    with Pool(PoolConfig(inline=True)) as pool:
        return import_features(kind, source, out, space, pool, **options)


def failures(done: Imported) -> dict[str, str]:
    return {failure.item_id: failure.message for failure in done.store.failures()}
