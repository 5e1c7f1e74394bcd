"""What a file is that is not the text one expected, told by its first bytes: the words for an error.

Annotations and predictions are text. In their place people have archives that nobody unpacked, arrays and pickles of a
training script, the pointer that a clone without Git LFS leaves, or the web page that asked them to log in.
"""

from __future__ import annotations

import re

from visualbert_core.io import lfs

HEAD = 512
"""Bytes of a file that `not_text` wants to see."""

_UNPACK = "unpack it and name the file inside"
_TEXT = "write it as the text that the benchmark's own format is"
_SAVE_UTF8 = "save it as UTF-8"

# (first bytes, what begins so, what to do); an .npz and a PyTorch file are ZIP archives, so these come first
_MARKS = (
    (b"\x1f\x8b", "compressed by gzip", _UNPACK),
    (b"BZh", "compressed by bzip2", _UNPACK),
    (b"\xfd7zXZ\x00", "compressed by xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"\x93NUMPY", "a NumPy array (.npy)", _TEXT),
    (b"PAR1", "a Parquet file", _TEXT),
    (b"ARROW1", "an Arrow file", _TEXT),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", _TEXT),
    (b"SQLite format 3\x00", "an SQLite database", _TEXT),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook", _TEXT),
    (b"\x89PNG", "a PNG image", "name the right file"),
    (b"\xff\xd8\xff", "a JPEG image", "name the right file"),
    (b"%PDF", "a PDF document", "name the right file"),
    (b"\xff\xfe", "UTF-16 text", _SAVE_UTF8),
    (b"\xfe\xff", "UTF-16 text", _SAVE_UTF8),
)
_ZIPPED = (
    (b".npy", "a NumPy archive (.npz)"),
    (b"data.pkl", "a PyTorch file"),
    (b"[Content_Types]", "an Excel workbook"),
)
_PLAIN = re.compile(rb"[\t\n\r\x20-\x7e]*")


def not_text(head: bytes) -> str | None:
    """ "compressed by gzip: unpack it …" of a file that begins with these bytes; None where it may well be text."""
    if lfs.is_pointer(head):
        return lfs.REASON
    if _PLAIN.fullmatch(head) is None:  # an id may begin as a file format does: "PAR1,True"
        for mark, name, remedy in _MARKS:
            if head.startswith(mark):
                return f"{name}: {remedy}"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        inside = next((name for part, name in _ZIPPED if part in head[:200]), None)
        return f"{inside}: {_TEXT}" if inside else f"a ZIP archive: {_UNPACK}"
    if len(head) > 1 and head[0] == 0x80 and head[1] in range(2, 6):
        return f"a Python pickle: {_TEXT}"
    if head[257:262] == b"ustar":
        return f"a tar archive: {_UNPACK}"
    if head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        return "a web page: download the file itself"
    return None
