"""ggml's own reading of GGUF files and llama.cpp's quantiser, through ctypes."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers import import_peer, require_peer

F32 = NDArray[np.float32]


class _InitParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


@functools.cache
def library() -> ctypes.CDLL:
    """Load ggml's base library from llama-cpp-python, without importing the package."""
    require_peer("llama_cpp")
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    found = sorted(p for end in ("so", "dylib") for p in folder.rglob(f"libggml-base.{end}"))
    assert found, f"no libggml-base in {folder}"
    base = ctypes.CDLL(str(found[0]))
    base.gguf_init_from_file.restype = ctypes.c_void_p
    base.gguf_init_from_file.argtypes = (ctypes.c_char_p, _InitParams)
    for name, result in {
        "n_tensors": ctypes.c_int64,
        "data_offset": ctypes.c_size_t,
        "tensor_name": ctypes.c_char_p,
        "tensor_offset": ctypes.c_size_t,
        "tensor_size": ctypes.c_size_t,
        "tensor_type": ctypes.c_int,
    }.items():
        function = getattr(base, f"gguf_get_{name}")
        function.restype = result
        function.argtypes = (ctypes.c_void_p, ctypes.c_int64)[: 2 if "tensor_" in name else 1]
    base.ggml_type_name.restype = ctypes.c_char_p
    base.gguf_free.argtypes = (ctypes.c_void_p,)
    return base


def dequantize(type_name: str, data: NDArray[np.uint8], n: int) -> F32:
    """Return the `n` weights that ggml sees in `data`; `type_name` is ggml's, such as "q4_K"."""
    if type_name == "f32":
        return data.view("<f4").copy()
    if type_name == "f16":
        return data.view("<f2").astype(np.float32)
    if type_name == "bf16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    data = np.ascontiguousarray(data)
    found = np.zeros(n, np.float32)
    function = getattr(library(), f"dequantize_row_{type_name}")
    function.restype = None
    function(
        ctypes.c_void_p(data.ctypes.data),
        ctypes.c_void_p(found.ctypes.data),
        ctypes.c_int64(n),
    )
    return found


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file: ggml's name of its type, and its bytes."""

    type_name: str
    data: NDArray[np.uint8]


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a GGUF file as ggml finds them."""
    base = library()
    context = base.gguf_init_from_file(str(path).encode(), _InitParams(True, None))
    assert context, f"ggml does not read {path}"
    raw = np.fromfile(path, np.uint8)
    found = {}
    for i in range(base.gguf_get_n_tensors(context)):
        start = base.gguf_get_data_offset(context) + base.gguf_get_tensor_offset(context, i)
        found[base.gguf_get_tensor_name(context, i).decode()] = Tensor(
            base.ggml_type_name(base.gguf_get_tensor_type(context, i)).decode(),
            raw[start : start + base.gguf_get_tensor_size(context, i)],
        )
    base.gguf_free(context)
    return found


def weights64(
    paths: Iterable[Path], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, NDArray[np.float64]]:
    """Return the weights of the files, as ggml dequantises them, in the shapes of a model."""
    return {
        name: dequantize(t.type_name, t.data, int(np.prod(shapes[name])))
        .reshape(shapes[name])
        .astype(np.float64)
        for path in paths
        for name, t in read(path).items()
    }


def file_types() -> dict[str, int]:
    """Return what llama-quantize makes: the names, such as "Q4_K_M", and their numbers."""
    llama_cpp = import_peer("llama_cpp")
    return {
        name.removeprefix("LLAMA_FTYPE_").removeprefix("MOSTLY_").removeprefix("ALL_"): number
        for name, number in vars(llama_cpp).items()
        if name.startswith("LLAMA_FTYPE_") and name != "LLAMA_FTYPE_GUESSED"
    }


def quantize(
    source: Path,
    path: Path,
    file_type: str,
    *,
    importance: Mapping[str, int] | None = None,
    keep_split: bool = False,
    **types: int,
) -> bool:
    """Write `source` at `path` as llama-quantize does, and return whether it could.

    `importance` has the row lengths of the matrices where an importance matrix of ones is given;
    `types` are ggml's numbers of output_tensor_type and token_embedding_type.
    """
    llama_cpp = import_peer("llama_cpp")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_types()[file_type]
    params.nthread = 1
    params.keep_split = keep_split
    for name, number in types.items():
        setattr(params, name, number)
    kept: Any = None
    if importance is not None:
        kept = [(n.encode(), np.ones(k, np.float32)) for n, k in importance.items()]
        rows = (llama_cpp.llama_model_imatrix_data * (len(kept) + 1))()
        for row, (name, ones) in zip(rows, kept, strict=False):
            row.name, row.size = name, len(ones)
            row.data = ones.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = rows
    status = llama_cpp.llama_model_quantize(
        str(source).encode(), str(path).encode(), ctypes.byref(params)
    )
    return bool(status == 0)
