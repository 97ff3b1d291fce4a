"""Sessions in files: tokens, keys and values, and the last logits, in the format safetensors.

With recurrent layers, the state and the sizes of the steps that made it come beside them. The
layout is public (8 bytes with the length of a JSON header, the header, the data), so that other
programs can read the arrays; nothing in a file is executed. A file fits one model: its fingerprint
is in the header.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from oxibonsai.model.config import ModelConfig
from oxibonsai.model.errors import SessionFileError
from oxibonsai.model.protocols import LoadedModel
from oxibonsai.model.runtime.cache import KVCache, KVDtype
from oxibonsai.model.runtime.decoder import Decoder
from oxibonsai.model.runtime.kernels import kernel_names
from oxibonsai.model.runtime.precision import activations_of
from oxibonsai.model.runtime.steplog import StepLog
from oxibonsai.model.timeline import Timeline
from oxibonsai.writing import written_whole

__all__ = ["MAX_CHUNK", "SessionState", "load", "open_file", "read_header", "save"]

_log = logging.getLogger("oxibonsai.model")

_VERSIONS: dict[KVDtype, str] = {"f16": "1", "f32": "1", "q8": "2"}
"""Of the format, by what the keys and values are."""
_RECURRENT_VERSION = "3"
"""Of files with a recurrent state, whatever the keys and values are."""
_KNOWN_VERSIONS = (*_VERSIONS.values(), _RECURRENT_VERSION)
_MAX_HEADER = 1 << 16
MAX_CHUNK = 4096
"""The most tokens of a prompt in one submission."""
_DTYPES: dict[KVDtype, str] = {"f16": "F16", "f32": "F32", "q8": "U8"}


@dataclass(frozen=True)
class SessionState:
    """What the header says.

    Attributes
    ----------
    n_tokens : int
        Tokens of the text.
    kv_dtype : str
        Of the keys and values.
    max_seq : int
        Of the session that was saved.
    chunk : int or None
        As given to it; None where it chose.
    deterministic : bool
        As of the session that was saved.
    fresh : bool
        Whether the logits of the last token are in the file.
    n_runs : int
        Runs of the step log, of a model with recurrent layers.
    data_start : int
        Bytes before the first array.
    """

    n_tokens: int
    kv_dtype: KVDtype
    max_seq: int
    chunk: int | None
    deterministic: bool
    fresh: bool
    n_runs: int
    data_start: int


def _version(config: ModelConfig, kv_dtype: KVDtype) -> str:
    return _VERSIONS[kv_dtype] if config.recurrent is None else _RECURRENT_VERSION


def _arrays(
    model: LoadedModel, n_tokens: int, kv_dtype: KVDtype, fresh: bool, n_runs: int
) -> dict[str, tuple[str, list[int], int]]:
    """Return name: (dtype, shape, bytes) in the order of the file."""
    c = model.config
    shape = [c.n_attention_layers, c.n_kv_heads, n_tokens, c.head_dim]
    if kv_dtype == "q8":  # the elements of a head, then the bytes of its words
        shape[2:] = [n_tokens * KVCache.row_bytes_of(c, kv_dtype)]
    nbytes = KVCache.nbytes_of(c, kv_dtype, n_tokens)
    found = {
        "k": (_DTYPES[kv_dtype], shape, nbytes),
        "v": (_DTYPES[kv_dtype], shape, nbytes),
        "tokens": ("U32", [n_tokens], 4 * n_tokens),
    }
    if c.recurrent is not None:
        found["steps"] = ("U32", [n_runs, 2], 8 * n_runs)
        found["recurrent"] = ("F32", [c.slot_size], 4 * c.slot_size)
    if fresh:
        found["logits"] = ("F32", [c.vocab_size], 4 * c.vocab_size)
    return found


def _entries(arrays: dict[str, tuple[str, list[int], int]]) -> dict[str, Any]:
    entries = {}
    at = 0
    for name, (dtype, shape, nbytes) in arrays.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    return entries


def save(
    path: str | os.PathLike[str],
    timeline: Timeline,
    decoder: Decoder,
    *,
    chunk: int,
    chunk_given: bool,
) -> None:
    """Write a settled text with its keys and values, to a regular file all of it or nothing."""
    path = os.fspath(path)  # no number of an open file, which open() would take
    model, n, states = decoder.model, timeline.position, decoder.states
    decoder.prepare()
    runs = [] if states is None else states.log.runs
    logits = timeline.known_logits()
    header: dict[str, Any] = {
        "__metadata__": {
            "format": "oxibonsai session",
            "version": _version(model.config, decoder.kv_dtype),
            "model": model.fingerprint,
            "name": model.name,
            "max_seq": str(decoder.max_seq),
            "chunk": str(chunk),
            "chunk_given": str(int(chunk_given)),
            "deterministic": str(int(decoder.deterministic)),
            "device": model.graph.device.name,
            "kernels": "" if decoder.deterministic else kernel_names(model.graph.device),
            "activations": activations_of(model, decoder.kv_dtype, exact=decoder.deterministic),
        }
    }
    header |= _entries(_arrays(model, n, decoder.kv_dtype, logits is not None, len(runs)))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    with written_whole(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        cache = decoder.cache
        for buffer in (cache.k, cache.v):
            for rows in cache.read(buffer, n):
                file.write(rows.data)
        file.write(np.array(timeline.tokens, "<u4").data)
        if states is not None:
            file.write(np.array(runs, "<u4").data)
            file.write(states.read(n).data)
        if logits is not None:
            file.write(logits.data)


def open_file(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a saved session; SessionFileError at once for a pipe, whose writer may never come."""
    file = open(path, "rb", opener=_open_now)  # noqa: SIM115  # the caller's
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise SessionFileError(
            f"{os.fspath(path)}: no regular file: write what comes from it to one, and restore that"
        )
    return file


def _open_now(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_header(file: IO[bytes], path: str, model: LoadedModel) -> SessionState:
    """Return what a file's header says; SessionFileError where it does not fit the model."""

    def refuse(why: str) -> SessionFileError:
        return SessionFileError(f"{path}: {why}")

    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or not 2 <= length <= min(_MAX_HEADER, size - 8):
        raise refuse("no session file: it does not begin with a safetensors header")
    try:
        header = json.loads(file.read(length))
        about = header["__metadata__"]
        if about["format"] != "oxibonsai session":
            raise KeyError("format")
        version, fingerprint = about["version"], about["model"]
        max_seq, chunk = int(about["max_seq"]), int(about["chunk"])
        chunk_given = about.get("chunk_given", "1") == "1"  # older files do not say
        deterministic = about.get("deterministic", "0") == "1"
        activations = about.get("activations")  # None in older files
        (n_tokens,) = header["tokens"]["shape"]
        dtype = header["k"]["dtype"]
        n_runs = header["steps"]["shape"][0] if "steps" in header else 0
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise refuse("no session file: its header has another format") from None
    kv_dtype = next((kind for kind, name in _DTYPES.items() if name == dtype), None)
    known = _version(model.config, kv_dtype or "f16")
    # A version that is known says what kind of model it is of, and so that it is of another one.
    other_model = fingerprint != model.fingerprint
    if version != known and not (other_model and version in _KNOWN_VERSIONS):
        raise refuse(
            f"version {version!r} of the format; this package reads {known!r} of {dtype} keys: "
            "feed the text again"
        )
    if other_model:
        raise refuse(
            f"the session belongs to another model, {about.get('name')!r}: load that one, or feed "
            "the text again"
        )
    limit = model.config.context_length
    if kv_dtype is None or isinstance(n_tokens, bool) or not isinstance(n_tokens, int):
        raise refuse(f"keys of dtype {dtype!r} for {n_tokens!r} tokens")
    if not 0 <= n_tokens <= max_seq <= limit or not 1 <= chunk <= MAX_CHUNK:
        raise refuse(
            f"{n_tokens} tokens of {max_seq} in chunks of {chunk}: the model's context_length is "
            f"{limit}, and chunks have 1 to {MAX_CHUNK} tokens"
        )
    if isinstance(n_runs, bool) or not isinstance(n_runs, int) or not 0 <= n_runs <= n_tokens:
        raise refuse(f"{n_runs!r} runs of steps for {n_tokens} tokens")
    fresh = "logits" in header and n_tokens > 0
    arrays = _arrays(model, n_tokens, kv_dtype, fresh, n_runs)
    expected = _entries(arrays)
    if {name: entry for name, entry in header.items() if name != "__metadata__"} != expected:
        raise refuse(f"its arrays are not those of {n_tokens} tokens of this model")
    whole = 8 + length + sum(nbytes for _, _, nbytes in arrays.values())
    if size != whole:
        raise refuse(f"{size} bytes where {whole} are needed: the file is cut short or too long")
    own = activations_of(model, kv_dtype, exact=deterministic)
    if activations is not None and activations != own:
        _log.info(
            "%s: saved with activations of %s, and goes on with %s: the bits of a prompt that is "
            "fed may be others",
            path,
            activations,
            own,
        )
    return SessionState(
        n_tokens,
        kv_dtype,
        max_seq,
        chunk if chunk_given else None,
        deterministic,
        fresh,
        n_runs,
        8 + length,
    )


def load(
    file: IO[bytes], path: str, state: SessionState, timeline: Timeline, decoder: Decoder
) -> None:
    """Fill a new text from a file, read behind its header."""

    def read(array: np.ndarray) -> np.ndarray:
        if file.readinto(array.view(np.uint8).data) != array.nbytes:  # type: ignore[attr-defined]
            raise SessionFileError(f"{path}: the file is cut short")
        return array

    c, n = decoder.model.config, state.n_tokens
    decoder.reserve(n)
    cache = decoder.cache
    rows = np.empty(n * cache.row_bytes_of(c, state.kv_dtype), np.uint8)
    for buffer in (cache.k, cache.v):
        for head in range(c.n_attention_layers * c.n_kv_heads):
            cache.write(buffer, head, read(rows))
    tokens = read(np.empty(n, "<u4"))
    if n and int(tokens.max()) >= c.vocab_size:
        raise SessionFileError(
            f"{path}: token {int(tokens.max())} is outside the vocabulary of {c.vocab_size}"
        )
    if decoder.states is not None:
        decoder.states.load(
            _log_of(read(np.empty((state.n_runs, 2), "<u4")), n, path),
            read(np.empty(c.slot_size, "<f4")).astype(np.float32),
        )
    logits = read(np.empty(c.vocab_size, "<f4")) if state.fresh else None
    timeline.restore(tokens.tolist(), None if logits is None else logits.astype(np.float32))


def _log_of(runs: npt.NDArray[np.uint32], n_tokens: int, path: str) -> StepLog:
    """Return the log of n_tokens; SessionFileError for sizes that no session has."""
    sizes, counts = runs.astype(np.int64).T
    if int((sizes * counts).sum()) != n_tokens or (
        len(runs) and not (sizes.min() >= 1 and sizes.max() <= MAX_CHUNK and counts.min() >= 1)
    ):
        raise SessionFileError(
            f"{path}: its steps are not those of {n_tokens} tokens, 1 to {MAX_CHUNK} at a time"
        )
    return StepLog([(int(size), int(count)) for size, count in runs])
