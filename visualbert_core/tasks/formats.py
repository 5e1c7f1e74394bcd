"""Recognises, by its first bytes, a file that is not text, and words the error.

Annotations and predictions are text files. Users sometimes name another file by mistake: an archive that is still
packed, an array or a pickle of a training script, the pointer that a clone without Git LFS leaves, or the web page of a
log-in form.
"""

from __future__ import annotations

import re

from visualbert_core.io import lfs

HEAD = 512
"""The number of first bytes that `not_text` needs."""

_UNPACK = "unpack it and name the file inside"
_TEXT = "write it as text in the benchmark's format"
_SAVE_UTF8 = "save it as UTF-8"

# (first bytes, name of the format, what to do)
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
# An .npz file, a PyTorch file and a workbook are ZIP archives too. The names of the files inside tell them apart.
_ZIPPED = (
    (b".npy", "a NumPy archive (.npz)"),
    (b"data.pkl", "a PyTorch file"),
    (b"[Content_Types]", "an Excel workbook"),
)
_PLAIN = re.compile(rb"[\t\n\r\x20-\x7e]*")


def not_text(head: bytes) -> str | None:
    """Return the format of a file and what to do, such as "compressed by gzip: unpack it …"; None for possible text."""
    if lfs.is_pointer(head):
        return lfs.REASON
    if _PLAIN.fullmatch(head) is None:  # A text may begin like a file format, by the id of its first row: "PAR1,True".
        for mark, name, remedy in _MARKS:
            if head.startswith(mark):
                return f"{name}: {remedy}"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        inside = next((name for part, name in _ZIPPED if part in head[:200]), None)
        return f"{inside}: {_TEXT}" if inside else f"a ZIP archive: {_UNPACK}"
    if len(head) > 1 and head[0] == 0x80 and head[1] in range(2, 6):  # the PROTO opcode and a protocol, 2 to 5
        return f"a Python pickle: {_TEXT}"
    if head[257:262] == b"ustar":  # POSIX puts the mark behind the fields of the first file.
        return f"a tar archive: {_UNPACK}"
    if head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        return "a web page: download the file itself"
    return None
