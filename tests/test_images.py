"""How each kind of file becomes an RGB array, or a failure with a reason."""

from __future__ import annotations

import json
import os
import re
import struct
import warnings
import zlib
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import xxhash
from PIL import Image as Pillow
from PIL import ImageCms, features

from visualbert_core.corpus.images import DecodeError, identify, image_shape, read_boxes, read_image, read_objects
from visualbert_core.io import lfs
from visualbert_core.schema import Image

RAMP = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3) * 3


def saved(path: Path, picture: Pillow.Image, **options: object) -> Image:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)
    return Image(path.stem, str(path))


def ramp() -> Pillow.Image:
    return Pillow.fromarray(RAMP)


def test_pixels_and_digest(tmp_path: Path) -> None:
    """A lossless file comes back with the exact pixels in RGB order, writable, and with the digest of the file's
    bytes."""
    image = saved(tmp_path / "a.png", ramp())
    pixels, digest = read_image(image)
    np.testing.assert_array_equal(pixels, RAMP)
    assert (pixels.dtype, pixels.flags.writeable, pixels.flags.c_contiguous) == (np.uint8, True, True)
    assert digest == xxhash.xxh3_128_hexdigest(Path(image.path).read_bytes())
    assert image_shape(image) == (6, 4)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    """Every stored mode becomes three uint8 channels with about the colours of the picture."""
    grey = Pillow.fromarray(np.full((6, 4, 3), 200, np.uint8))
    suffix = ".jpg" if mode in ("CMYK", "YCbCr") else ".png"
    pixels, _ = read_image(saved(tmp_path / f"a{suffix}", grey.convert(mode)))
    assert (pixels.shape, pixels.dtype) == ((6, 4, 3), np.uint8)
    if mode != "1":
        assert abs(pixels.astype(int) - 200).max() <= 4


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colors: int, rows: bytes, *chunks: bytes) -> bytes:
    """Return a PNG file, built by its standard, of a kind that Pillow does not write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colors, 0, 0, 0))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


@pytest.mark.parametrize(
    ("colors", "samples", "expected"),
    [
        (0, [256, 65535], [[1, 1, 1], [255, 255, 255]]),
        (2, [0, 256, 65535, 32768, 300, 511], [[0, 1, 255], [128, 1, 1]]),
        (4, [256, 65535, 65535, 0], [[1, 1, 1], [255, 255, 255]]),
        (6, [256, 65535, 511, 0, 0, 0, 0, 65535], [[1, 255, 1], [0, 0, 0]]),
    ],
    ids=["grey", "RGB", "grey and alpha", "RGBA"],
)
def test_sixteen_bits_keep_their_upper_eight(
    tmp_path: Path, colors: int, samples: list[int], expected: list[list[int]]
) -> None:
    """16-bit samples of every kind of PNG are scaled to 8 bits, not clipped at 255, and alpha is dropped."""
    path = tmp_path / "a.png"
    path.write_bytes(png(2, 1, 16, colors, b"\0" + np.array(samples, ">u2").tobytes()))
    pixels, _ = read_image(Image("a", str(path)))
    assert pixels[0].tolist() == expected


@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 128])], ids=["opaque", "one colour", "by colour"])
def test_a_palette_gives_its_colours(tmp_path: Path, transparency: object) -> None:
    """A palette's stored colours count, whatever part of it is transparent."""
    picture = Pillow.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putdata([0, 1])
    options = {} if transparency is None else {"transparency": transparency}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels, _ = read_image(saved(tmp_path / "a.png", picture, **options))
    assert pixels[0].tolist() == [[10, 20, 30], [40, 50, 60]]


def test_ink_becomes_light(tmp_path: Path) -> None:
    """CMYK and YCCK JPEGs, which store inverted ink, become the colours that they print."""
    path = tmp_path / "a.jpg"
    pixels, _ = read_image(saved(path, Pillow.new("CMYK", (16, 16), (200, 20, 60, 0)), quality=100))
    assert abs(pixels.astype(int) - [55, 235, 195]).max() <= 2
    # A CMYK file becomes YCCK by the transform byte of Adobe's marker. Middle grey stays as it is.
    image = saved(path, Pillow.new("CMYK", (16, 16), (127, 127, 127, 0)), quality=100)
    data = bytearray(path.read_bytes())
    marker = data.index(b"Adobe")
    data[marker + 11] = 2
    path.write_bytes(data)
    assert abs(read_image(image)[0].astype(int) - 128).max() <= 3


def test_a_colour_profile_is_ignored(tmp_path: Path) -> None:
    """A colour profile is ignored, as in the detectors' own scripts."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    pixels, _ = read_image(saved(tmp_path / "a.png", ramp(), icc_profile=profile))
    np.testing.assert_array_equal(pixels, RAMP)


def test_a_suffix_may_lie(tmp_path: Path) -> None:
    """The content counts, not the suffix: a PNG called .jpg is read as a PNG."""
    picture = BytesIO()
    ramp().save(picture, "PNG")
    (tmp_path / "a.jpg").write_bytes(picture.getvalue())
    np.testing.assert_array_equal(read_image(Image("a", str(tmp_path / "a.jpg")))[0], RAMP)


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1)])
def test_a_line_of_pixels_is_an_image(tmp_path: Path, shape: tuple[int, int]) -> None:
    """An image may have a side of one pixel."""
    assert read_image(saved(tmp_path / "a.png", Pillow.new("RGB", shape[::-1])))[0].shape == (*shape, 3)


@pytest.mark.skipif(features.version("libjpeg_turbo") is None, reason="Pillow with another libjpeg")
@pytest.mark.parametrize("size", [(480, 640), (333, 501), (17, 23), (1, 64)])
@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": 0},
        {"subsampling": 1},
        {"subsampling": 2},
        {"progressive": True},
        {"quality": 10},
        {"grey": True},
    ],
    ids=["4:4:4", "4:2:2", "4:2:0", "progressive", "coarse", "grey"],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_another_decoder_gives_the_same_pixels(tmp_path: Path, size: tuple[int, int], options: dict[str, int]) -> None:
    """torchvision's decoder gives the same pixels as Pillow in every bit, so the library needs no second decoder."""
    tiles = np.random.default_rng(0).integers(0, 256, (size[0] // 8 + 1, size[1] // 8 + 1, 3), np.uint8)
    picture = Pillow.fromarray(tiles).resize(size[::-1], Pillow.Resampling.BICUBIC)
    image = saved(tmp_path / "a.jpg", picture.convert("L" if options.pop("grey", False) else "RGB"), **options)
    data = torch.frombuffer(bytearray(Path(image.path).read_bytes()), dtype=torch.uint8)
    theirs = torchvision.io.decode_jpeg(data, torchvision.io.ImageReadMode.RGB)
    np.testing.assert_array_equal(read_image(image)[0], theirs.permute(1, 2, 0))


def test_orientation_is_ignored(tmp_path: Path) -> None:
    """The EXIF orientation is ignored, because the boxes of annotations refer to the stored grid."""
    exif = Pillow.Exif()
    exif[0x0112] = 6
    image = saved(tmp_path / "a.jpg", ramp(), exif=exif)
    assert read_image(image)[0].shape == (6, 4, 3)
    assert image_shape(image) == (6, 4)


def test_of_an_animation_the_first_frame_counts(tmp_path: Path) -> None:
    """A GIF counts as its first frame."""
    frames = [Pillow.fromarray(np.full((6, 4), value, np.uint8)) for value in (40, 90)]
    pixels, _ = read_image(saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:]))
    assert set(pixels.flatten().tolist()) == {40}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: b"", "not an image"),
        (lambda data: b"<html>", "not an image"),
        (lambda data: data[:-200], "truncated"),
    ],
    ids=["empty", "a web page", "truncated"],
)
def test_a_bad_file_is_a_decode_error(tmp_path: Path, damage: object, says: str) -> None:
    """Bytes that are not a whole image raise DecodeError, with the same message every time."""
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


@pytest.mark.parametrize("format_", ["EPS", "PPM", "TGA"])
def test_other_formats_are_refused(tmp_path: Path, format_: str) -> None:
    """Pillow's other formats are refused, whatever the file's name, because Pillow would start Ghostscript for EPS."""
    picture = BytesIO()
    ramp().save(picture, format_)
    (tmp_path / "a.jpg").write_bytes(picture.getvalue())
    with pytest.raises(DecodeError, match=r"a\.jpg is not an image"):
        read_image(Image("a", str(tmp_path / "a.jpg")))


@pytest.mark.parametrize(("mode", "value"), [("F", 0.5), ("I", 70000)])
def test_samples_without_a_known_white_are_refused(tmp_path: Path, mode: str, value: float) -> None:
    """Floating-point and 32-bit TIFFs are refused, because they would silently become black or white."""
    image = saved(tmp_path / "a.tif", Pillow.new(mode, (4, 4), value))
    with pytest.raises(DecodeError, match="TIFF with 32-bit samples"):
        read_image(image)


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_a_zip_bomb_is_refused_before_it_unfolds(tmp_path: Path, kind: bytes) -> None:
    """A small PNG whose text or profile is huge when decompressed is a failure, and so are many chunks that add up."""
    bomb = chunk(kind, b"k\0\0" + zlib.compress(bytes(1 << 26)))
    path = tmp_path / "a.png"
    path.write_bytes(png(2, 1, 8, 2, b"\0" + bytes(6), bomb))
    with pytest.raises(DecodeError, match="too large"):
        read_image(Image("a", str(path)))
    if kind == b"zTXt":
        many = [chunk(kind, b"k\0\0" + zlib.compress(bytes(1_000_000)))] * 68
        path.write_bytes(png(2, 1, 8, 2, b"\0" + bytes(6), *many))
        with pytest.raises(DecodeError, match="Too much memory"):
            read_image(Image("a", str(path)))


def test_pixels_that_are_not_there_are_missed(tmp_path: Path) -> None:
    """A file with fewer pixels than its header promises is a failure, and bytes after the last row are ignored."""
    path = tmp_path / "a.png"
    path.write_bytes(png(9000, 9000, 8, 2, bytes(100)))
    with pytest.raises(DecodeError, match="truncated"):
        read_image(Image("a", str(path)))
    path.write_bytes(png(2, 1, 8, 2, bytes(1 << 24)))
    assert read_image(Image("a", str(path)))[0].shape == (1, 2, 3)


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
    """A missing or unreachable file keeps the system's error, because a broken mount must not quarantine images."""
    (tmp_path / "file").touch()
    for read in (read_image, image_shape):
        with pytest.raises(FileNotFoundError):
            read(Image("gone", str(tmp_path / "gone.jpg")))
        with pytest.raises(NotADirectoryError):
            read(Image("below", str(tmp_path / "file" / "a.jpg")))


def test_reading_is_bounded(tmp_path: Path) -> None:
    """A file of a terabyte is not read, nor a tar member that claims this size."""
    (tmp_path / "huge.png").touch()
    os.truncate(tmp_path / "huge.png", 1 << 40)
    (tmp_path / "link.png").symlink_to("huge.png")
    says = r"1,099,511,627,776 bytes, more than the limit of 536,870,912"
    for name in ("huge", "link"):
        for read in (read_image, image_shape, identify):
            with pytest.raises(DecodeError, match=rf"^{name}\.png has {says}"):
                read(Image(name, str(tmp_path / f"{name}.png")))
    with pytest.raises(DecodeError, match=rf"^huge\.png at byte 512 has {says}"):
        read_image(Image("member", str(tmp_path / "huge.png"), start=512, size=1 << 40))


def test_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    """A Git LFS pointer is named as one, in place of an image, a tar member or a boxes file."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"
    path = tmp_path / "a.jpg"
    path.write_bytes(pointer)
    with pytest.raises(DecodeError, match=rf"^a\.jpg is {lfs.REASON}$"):
        read_image(Image("a", str(path)))
    with pytest.raises(DecodeError, match=rf"^a\.jpg at byte 0 is {lfs.REASON}$"):
        read_image(Image("a", str(path), start=0, size=len(pointer)))
    with pytest.raises(DecodeError, match=rf"^a\.jpg is {lfs.REASON}$"):
        read_boxes(path)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("/dev/zero", "a.json is a device, not a file"),
        ("pipe", "a.json is a pipe, not a file"),
        ("a.json", "a.json is a link that leads to itself, not a file"),
        (".", "a.json is a folder, not a file"),
        ("nowhere", "a.json is missing: it must hold the boxes of its image"),
        ("huge", "a.json has 1,073,741,824 bytes, more than the limit of 67,108,864"),
    ],
)
def test_boxes_that_are_no_file_are_a_decode_error(target: str, says: str, tmp_path: Path) -> None:
    """A boxes file that would be read for ever, or waited for, is the failure of its image, like a missing one."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", 1 << 30)
    (tmp_path / "a.json").symlink_to(target)
    for read in (read_boxes, partial(read_objects, classes=("background",))):
        with pytest.raises(DecodeError, match=f"^{re.escape(says)}$"):
            read(tmp_path / "a.json")


def test_vcr_boxes_come_after_the_whole_image(tmp_path: Path) -> None:
    """Region 0 is the whole image, then come VCR's boxes in order without their confidence, and an image may have
    none."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"boxes": [[1, 2, 3.5, 4, 0.99], [0, 0, 9, 9, 0.5]], "width": 20, "height": 10}))
    boxes = read_boxes(path)
    assert boxes.dtype == np.float32
    assert boxes.tolist() == [[0, 0, 20, 10], [1, 2, 3.5, 4], [0, 0, 9, 9]]
    path.write_text(json.dumps({"boxes": [], "width": 20, "height": 10}))
    assert read_boxes(path).tolist() == [[0, 0, 20, 10]]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "[" * 100_000, '{"boxes": [], "width": 1' + "0" * 400 + ', "height": 1}']
    + [
        f'{{"boxes": {boxes}, "width": 2, "height": 1}}'
        for boxes in ("3", "[[1, 2, 3]]", "[[1, 2, 3, NaN]]", '["abcd"]')
    ],
)
def test_malformed_boxes_are_a_decode_error(tmp_path: Path, text: str) -> None:
    """A boxes file that is missing or is not VCR's metadata is the failure of its image."""
    with pytest.raises(DecodeError, match=r"a\.json is missing: it must hold the boxes of its image"):
        read_boxes(tmp_path / "a.json")
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DecodeError, match=r"a\.json"):
        read_boxes(tmp_path / "a.json")
