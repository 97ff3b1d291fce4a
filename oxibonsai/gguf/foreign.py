"""What a file is that is no GGUF, and what its user can do."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

__all__ = ["HEAD_BYTES", "describe", "describe_folder"]

HEAD_BYTES: Final = 1024
"""Bytes of a file's beginning that `describe` looks at."""

_CONVERT: Final = (
    "convert the model's folder with llama.cpp's convert_hf_to_gguf.py, or download a GGUF"
)
_DOWNLOAD: Final = "hf download OWNER/NAME FILE.gguf --local-dir ."
_AGAIN: Final = f"download the file itself, such as with: {_DOWNLOAD}"

_PICKLES: Final = range(2, 6)
"""Protocols of pickles that begin with their number."""

# First bytes, what the file is, and what to do.
_MAGICS: Final[tuple[tuple[bytes, str, str], ...]] = (
    (
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer, which stands for the model in a repository",
        f"run git lfs pull in it, or {_AGAIN}",
    ),
    (b"PK\x03\x04", "a zip archive, such as a PyTorch checkpoint", _CONVERT),
    (b"PK\x05\x06", "an empty zip archive", _AGAIN),
    *(
        (bytes((0x80, n)), "a Python pickle, such as a PyTorch checkpoint", _CONVERT)
        for n in _PICKLES
    ),
    (b"\x89HDF\r\n", "an HDF5 file, such as a Keras or TensorFlow checkpoint", _CONVERT),
    (b"\x93NUMPY", "a NumPy array", _CONVERT),
    (b"MZqFpD", "a llamafile", "unpack the GGUF in it with unzip"),
    (b"lmgg", "a model in ggml's format from before GGUF", _CONVERT),
    (b"fmgg", "a model in ggml's format from before GGUF", _CONVERT),
    (b"tjgg", "a model in ggml's format from before GGUF", _CONVERT),
    (b"algg", "a LoRA adapter in ggml's format from before GGUF", "convert a merged model"),
    (b"\x1f\x8b", "compressed by gzip", "unpack it first: gunzip"),
    (b"BZh", "compressed by bzip2", "unpack it first: bunzip2"),
    (b"\xfd7zXZ\x00", "compressed by xz", "unpack it first: unxz"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it first: unzstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (b"Rar!", "a rar archive", "unpack it first"),
    (b"OggS", "an Ogg file", _AGAIN),
    (b"%PDF-", "a PDF", _AGAIN),
    (b"\x89PNG\r\n\x1a\n", "a PNG image", _AGAIN),
    (b"\xff\xd8\xff", "a JPEG image", _AGAIN),
    (b"GIF8", "a GIF image", _AGAIN),
    (b"RIFF", "a RIFF file, such as a WebP image or a WAV sound", _AGAIN),
    (b"SQLite format 3\x00", "an SQLite database", _AGAIN),
    (b"PAR1", "a Parquet file", _AGAIN),
    (b"ARROW1", "an Arrow file", _AGAIN),
    (b"\x7fELF", "a program", _AGAIN),
)
_PARTIAL: Final = (".part", ".partial", ".incomplete", ".crdownload", ".download", ".aria2", ".tmp")


def describe_folder(path: str) -> str:
    """Return what a folder holds and what to do, for the end of an error text.

    Parameters
    ----------
    path : str
        A folder.

    Returns
    -------
    str
        Begins with ``": "``; empty for a folder without model files.
    """
    try:
        names = sorted(os.listdir(path))
    except OSError:
        return ""
    models = [name for name in names if name.lower().endswith(".gguf")]
    if models:
        more = f" and {len(models) - 3} more" if len(models) > 3 else ""
        return f": it has {', '.join(models[:3])}{more}; name one of them"
    if any(name.endswith((".safetensors", ".bin", ".pth")) for name in names):
        return f": it has a model in another format; {_CONVERT}"
    return ""


def describe(head: bytes, size: int, path: str) -> str | None:
    """Return what a file is that is no GGUF, and what to do.

    Parameters
    ----------
    head : bytes
        Its first bytes, up to `HEAD_BYTES`.
    size : int
        Its size in bytes.
    path : str
        Its name.

    Returns
    -------
    str or None
        The end of a sentence after "it is"; None where it is not known.
    """
    for magic, what, way_out in _MAGICS:
        if head.startswith(magic):
            return f"{what}: {way_out}"
    for look in (_safetensors, _tar, _zeros, _onnx, _tflite, _behind):
        found = look(head, size)
        if found:
            return found
    text = _utf8(head)
    for look in (_markup, _json, _text):
        found = look(text, size if text is head else len(text))
        if found:
            return found
    if Path(path).suffix in _PARTIAL:
        return f"an unfinished download, by its name: {_AGAIN}"
    return None


def _safetensors(head: bytes, size: int) -> str | None:
    length = int.from_bytes(head[:8], "little")
    # A header may begin with spaces, and is at most 100 MB in the library of that name.
    if not head[8:].lstrip(b" ").startswith(b"{") or not 2 <= length <= 100_000_000:
        return None
    if length > size - 8:
        return f"a safetensors file that is cut short: {_CONVERT}"
    return f"a safetensors file: {_CONVERT}"


def _onnx(head: bytes, size: int) -> str | None:
    # A protobuf of the version and the producer's name, or of the version and the graph.
    named = re.match(rb"\x08[\x01-\x20]\x12([\x01-\x40])", head)
    producer = head[4 : 4 + named[1][0]] if named else b""
    if (producer and producer.isascii() and producer.decode().isprintable()) or re.match(
        rb"\x08[\x01-\x20]:[\x80-\xff]*[\x00-\x7f]\n", head
    ):
        return f"an ONNX model: {_CONVERT}"
    return None


def _tflite(head: bytes, size: int) -> str | None:
    return f"a TensorFlow Lite model: {_CONVERT}" if head[4:8] == b"TFL3" else None


def _behind(head: bytes, size: int) -> str | None:
    found = re.search(rb"GGUF[\x01-\x03]\0\0\0", head)
    if found is None:
        return None
    before = head[: found.start()]
    mark = ", a byte order mark" if before == b"\xef\xbb\xbf" else ""
    return (
        f"a GGUF behind other bytes{mark}, such as a program for texts leaves ({len(before)} in "
        f"front of it): {_AGAIN}"
    )


def _utf8(head: bytes) -> bytes:
    """Return a text in UTF-16 as UTF-8, and all else as it is."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif re.match(rb"(?:[\t\n\r -~]\0){4}", head):
        encoding = "utf-16-le"
    elif re.match(rb"(?:\0[\t\n\r -~]){4}", head):
        encoding = "utf-16-be"
    else:
        return head
    return head.decode(encoding, "ignore").encode()


def _tar(head: bytes, size: int) -> str | None:
    return "a tar archive: unpack it first: tar xf" if head[257:262] == b"ustar" else None


def _zeros(head: bytes, size: int) -> str | None:
    if not head.strip(b"\0"):
        return f"{size} bytes that begin with zeros, an unfinished download: {_AGAIN}"
    return None


def _markup(head: bytes, size: int) -> str | None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if re.match(rb"<!doctype html|<html|<head|<!--", start):
        return f"a web page (HTML), not what its link leads to: {_AGAIN}"
    if start.startswith(b"<?xml"):
        return f"an XML text, such as a server's error: {_AGAIN}"
    return None


def _json(head: bytes, size: int) -> str | None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not re.match(rb'\{\s*(?:"|\})|\[\s*(?:[\[\{"\]]|-?\d|(?:true|false|null)\b)', start):
        return None
    if b'"weight_map"' in head or b'"architectures"' in head or b'"metadata"' in head:
        return f"the JSON description of a model in another format: {_CONVERT}"
    return f"a JSON text, such as a server's error: {_AGAIN}"


def _text(head: bytes, size: int) -> str | None:
    try:
        text = head.decode()
    except UnicodeDecodeError as e:
        if len(head) == size or e.start < len(head) - 3:
            return None
        text = head[: e.start].decode()  # A character is cut off at the end of the head.
    text = text.removeprefix("\ufeff").strip()
    # The beginning of the magic alone is a GGUF that is cut short.
    if not text or "GGUF".startswith(text) or not all(c.isprintable() or c.isspace() for c in text):
        return None
    return f"a text that begins with {text[:48]!r}: {_AGAIN}"
