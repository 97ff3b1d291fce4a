"""Single dispatches of gemv and the fused gate-up-SwiGLU, by any of their forms."""

from __future__ import annotations

import struct

import numpy as np
from shader_runs import SENTINEL, Placed, run, tiles_for
from shader_weights import CODES, columns

# Rows of a threadgroup for each row of a lane, by the form of a coded format's kernel; "" is the
# look-up in threadgroup memory, and a dense format's only form.
FORM_ROWS = {"": 32, "shuffle": 32, "select": 8}


def kernel_of(*parts):
    """Return a kernel's name: its parts, but for those that are empty."""
    return "_".join(filter(None, parts))


def groups_of(name, n_rows, rows, simdgroups, form):
    return tiles_for(n_rows, rows * (FORM_ROWS[form] if name in CODES else simdgroups))


def gemv(
    name,
    m,
    x,
    start=None,
    order="random",
    rows=4,
    simdgroups=2,
    mode="check",
    column=False,
    form="",
):
    """Return what gemv, or from `start` gemv_residual, makes of y."""
    n_rows, k = m.w64.shape
    y = np.full(n_rows, SENTINEL) if start is None else start
    # The activations start 4 bytes into their buffer: more alignment is not promised.
    padded = np.concatenate([np.full(1, np.nan, np.float32), x])
    data = columns(name, m).data if column else m.data
    result = run(
        kernel_of("gemv", name, "" if start is None else "residual", form),
        [data, Placed(padded, offset=4), y],
        struct.pack("<QIIIIII", m.codes_offset, n_rows, k, column * n_rows, 0, 0, 0),
        groups=groups_of(name, n_rows, rows, simdgroups, form),
        threads=32 * simdgroups,
        constants={0: rows},
        order=order,
        mode=mode,
    )
    return result[2]


def normed_gemv(name, m, x, weight, eps, order="random", rows=2, simdgroups=3, form=""):
    """Return what gemv_norm makes of y; x and the weight start 4 bytes into their buffers."""
    n_rows, k = m.w64.shape
    padded = [
        Placed(np.concatenate([np.full(1, np.nan, np.float32), v]), offset=4) for v in (x, weight)
    ]
    return run(
        kernel_of("gemv", name, "norm", form),
        [m.data, *padded, np.full(n_rows, SENTINEL)],
        struct.pack("<QIIIfII", m.codes_offset, n_rows, k, 0, eps, 0, 0),
        groups=groups_of(name, n_rows, rows, simdgroups, form),
        threads=32 * simdgroups,
        constants={0: rows},
        order=order,
    )[3]


def swiglu(name, m, x, order="random", rows=2, simdgroups=2, column=False, form=""):
    """Return what fused_gate_up_swiglu makes of s."""
    n_rows, k = m.w64.shape[0] // 2, m.w64.shape[1]
    return run(
        kernel_of("fused_gate_up_swiglu", name, form),
        [columns(name, m).data if column else m.data, x, np.full(n_rows, SENTINEL)],
        struct.pack("<QIIIIII", m.codes_offset, n_rows, k, column * 2 * n_rows, 0, 0, 0),
        groups=groups_of(name, n_rows, rows, simdgroups, form),
        threads=32 * simdgroups,
        constants={0: rows},
        order=order,
    )[2]


def normed_swiglu(name, m, x, weight, eps, order="random", rows=1, simdgroups=3, form=""):
    """Return what fused_gate_up_swiglu_norm makes of s."""
    n_rows, k = m.w64.shape[0] // 2, m.w64.shape[1]
    return run(
        kernel_of("fused_gate_up_swiglu", name, "norm", form),
        [m.data, x, weight, np.full(n_rows, SENTINEL)],
        struct.pack("<QIIIfII", m.codes_offset, n_rows, k, 0, eps, 0, 0),
        groups=groups_of(name, n_rows, rows, simdgroups, form),
        threads=32 * simdgroups,
        constants={0: rows},
        order=order,
    )[3]
