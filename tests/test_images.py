"""How each kind of file becomes RGB or a named failure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xxhash
from PIL import Image as Pillow

from visualbert_core.images import DecodeError, image_shape, read_boxes, read_image
from visualbert_core.schema import Image

RAMP = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3) * 3


def saved(path: Path, picture: Pillow.Image, **options: object) -> Image:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)
    return Image(path.stem, str(path))


def ramp() -> Pillow.Image:
    return Pillow.fromarray(RAMP)


def test_pixels_and_digest(tmp_path: Path) -> None:
    """A lossless file comes back pixel by pixel in RGB order, writable, with the digest of the file's bytes."""
    image = saved(tmp_path / "a.png", ramp())
    pixels, digest = read_image(image)
    np.testing.assert_array_equal(pixels, RAMP)
    assert (pixels.dtype, pixels.flags.writeable, pixels.flags.c_contiguous) == (np.uint8, True, True)
    assert digest == xxhash.xxh3_128_hexdigest(Path(image.path).read_bytes())
    assert image_shape(image) == (6, 4)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    """Whatever the stored mode, the result has three uint8 channels and about the colours of the picture."""
    grey = Pillow.fromarray(np.full((6, 4, 3), 200, np.uint8))
    suffix = ".jpg" if mode in ("CMYK", "YCbCr") else ".png"
    pixels, _ = read_image(saved(tmp_path / f"a{suffix}", grey.convert(mode)))
    assert (pixels.shape, pixels.dtype) == ((6, 4, 3), np.uint8)
    if mode != "1":
        assert abs(pixels.astype(int) - 200).max() <= 4


def test_sixteen_bits_keep_their_upper_eight(tmp_path: Path) -> None:
    """A 16-bit greyscale PNG is scaled, not clipped at 255."""
    deep = Pillow.fromarray(np.array([[0, 256, 65535]], np.uint16))
    pixels, _ = read_image(saved(tmp_path / "a.png", deep))
    assert pixels[0, :, 0].tolist() == [0, 1, 255]


def test_orientation_is_ignored(tmp_path: Path) -> None:
    """The stored grid counts: boxes of an annotation refer to it."""
    exif = Pillow.Exif()
    exif[0x0112] = 6
    image = saved(tmp_path / "a.jpg", ramp(), exif=exif)
    assert read_image(image)[0].shape == (6, 4, 3)
    assert image_shape(image) == (6, 4)


def test_of_an_animation_the_first_frame_counts(tmp_path: Path) -> None:
    """A GIF is one image."""
    frames = [Pillow.fromarray(np.full((6, 4), value, np.uint8)) for value in (40, 90)]
    pixels, _ = read_image(saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:]))
    assert set(pixels.flatten().tolist()) == {40}


@pytest.mark.parametrize(
    ("damage", "says"),
    [(lambda data: b"", "no image"), (lambda data: b"<html>", "no image"), (lambda data: data[:-200], "truncated")],
    ids=["empty", "a web page", "truncated"],
)
def test_a_bad_file_is_a_decode_error(tmp_path: Path, damage: object, says: str) -> None:
    """Bytes that are no whole image raise DecodeError with a message that is the same every time."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    image = saved(tmp_path / "a.jpg", Pillow.fromarray(noise))
    path = Path(image.path)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    messages = set()
    for _ in range(2):
        with pytest.raises(DecodeError, match=rf"^a\.jpg.*{says}") as caught:
            read_image(image)
        messages.add(str(caught.value))
    assert len(messages) == 1


@pytest.mark.parametrize("limit", [23, 11], ids=["above the limit", "above twice the limit"])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_a_decode_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """An image above Pillow's pixel limit is refused, also where Pillow would only warn."""
    image = saved(tmp_path / "a.png", ramp())
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", limit)
    for read in (read_image, image_shape):
        with pytest.raises(DecodeError, match=r"limit|decompression bomb"):
            read(image)


def test_a_file_out_of_reach_is_not_a_bad_image(tmp_path: Path) -> None:
    """A missing file and one that the system refuses keep their own error: a broken mount is no quarantine."""
    for read in (read_image, image_shape):
        with pytest.raises(FileNotFoundError):
            read(Image("gone", str(tmp_path / "gone.jpg")))
        with pytest.raises(IsADirectoryError):
            read(Image("folder", str(tmp_path)))


def test_vcr_boxes_come_after_the_whole_image(tmp_path: Path) -> None:
    """Region 0 is the image, then the boxes in their order without their confidence; no boxes are fine."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"boxes": [[1, 2, 3.5, 4, 0.99], [0, 0, 9, 9, 0.5]], "width": 20, "height": 10}))
    boxes = read_boxes(path)
    assert boxes.dtype == np.float32
    assert boxes.tolist() == [[0, 0, 20, 10], [1, 2, 3.5, 4], [0, 0, 9, 9]]
    path.write_text(json.dumps({"boxes": [], "width": 20, "height": 10}))
    assert read_boxes(path).tolist() == [[0, 0, 20, 10]]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}"]
    + [
        f'{{"boxes": {boxes}, "width": 2, "height": 1}}'
        for boxes in ("3", "[[1, 2, 3]]", "[[1, 2, 3, NaN]]", '["abcd"]')
    ],
)
def test_malformed_boxes_are_a_decode_error(tmp_path: Path, text: str) -> None:
    """Anything that is not VCR's metadata is that image's failure, and so is its absence."""
    with pytest.raises(DecodeError, match=r"a\.json with its boxes is missing"):
        read_boxes(tmp_path / "a.json")
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DecodeError, match=r"a\.json"):
        read_boxes(tmp_path / "a.json")
