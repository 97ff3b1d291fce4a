"""The arithmetic of work and pieces (shim/ops/work.c), past what buffers can hold."""

from __future__ import annotations

import ctypes
import shlex
import subprocess
import sysconfig

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT

SOURCE = """
#include "ops/work.h"
uint64_t product(uint64_t n_rows, uint64_t k, uint64_t n_vectors) {
    const oxb_op_shape shape = {.extent = {n_rows, n_vectors, 1}, .n_rows = n_rows, .k = k};
    return ops_work(OXB_OP_GEMM, &shape, NULL);
}
uint64_t attention(uint64_t n_heads, uint64_t n_tokens, uint32_t max_length, uint32_t head_dim,
                   uint32_t format, uint32_t tile_heads, uint32_t tile_tokens) {
    const oxb_attention_shape heads = {
        .max_length = max_length, .head_dim = head_dim, .kv_format = format};
    const oxb_tile tile = {.size = {tile_heads, tile_tokens, 1}};
    const oxb_op_shape shape = {.extent = {n_heads, n_tokens, 64}, .attention = &heads};
    return ops_work(OXB_OP_ATTENTION, &shape, &tile);
}
uint64_t elements(uint64_t x, uint64_t y, uint64_t each) {
    const oxb_op_shape shape = {.extent = {x, y, 1}, .elements = each};
    return ops_work(OXB_OP_RMSNORM, &shape, NULL);
}
"""
MOST = 2**64 - 1
F32, F16, Q8 = range(3)  # of enum oxb_kv_format


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    source, library = folder / "calls.c", folder / "work.so"
    source.write_text(SOURCE)
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    include = [f"-I{ROOT / 'shim'}", f"-I{ROOT / 'shim' / 'include'}"]
    flags = ["-shared", "-fPIC", "-std=c11", "-Wall", "-Wextra", "-Werror"]
    sources = [str(source), str(ROOT / "shim" / "ops" / "work.c")]
    command = [*compiler, *flags, *include, *sources, "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    calls = ctypes.CDLL(str(library))
    for name in ("product", "elements", "ops_piece", "attention"):
        getattr(calls, name).restype = ctypes.c_uint64
    return calls


def u64(*numbers):
    return [ctypes.c_uint64(number) for number in numbers]


wide = st.integers(1, 2**31 - 1)


@given(n_rows=wide, k=wide, n_vectors=wide)
def test_a_product_takes_rows_times_k_times_vectors_or_the_most(work, n_rows, k, n_vectors):
    assert work.product(*u64(n_rows, k, n_vectors)) == min(n_rows * k * n_vectors, MOST)
    assert work.elements(*u64(n_rows, k, n_vectors)) == min(n_rows * k * n_vectors, MOST)


def test_where_64_bits_end(work):
    assert work.product(*u64(2**31, 2**31, 3)) == 3 * 2**62
    assert work.product(*u64(2**31, 2**31, 4)) == MOST
    assert work.elements(*u64(7, 5, 0)) == 35
    assert work.attention(*u64(4096, 2**24), 2**24, 512, F16, 4, 1) == MOST


@pytest.mark.parametrize(
    ("kv_format", "heads", "tokens", "weight"),
    [(F16, 4, 1, 4), (F16, 2, 2, 4), (F16, 1, 1, 11), (F32, 1, 1, 21), (F32, 2, 1, 11),
     (Q8, 1, 1, 6), (Q8, 4, 1, 3), (F16, 2**32 - 1, 2**32 - 1, 2)],
)  # fmt: skip
def test_attention_counts_the_loads_that_its_queries_share(work, kv_format, heads, tokens, weight):
    of = work.attention(*u64(32, 128), 4096, 128, kv_format, heads, tokens)
    assert of == 32 * 128 * 4096 * 128 * 2 * weight


number = st.one_of(st.integers(1, 300), st.integers(1, 2**40), st.integers(1, MOST))


@given(unit=number, bound=number, extent=st.integers(1, 5000), grain=st.integers(1, 70))
def test_pieces_are_whole_tiles_of_nearly_the_same_work(work, unit, bound, extent, grain):
    piece = work.ops_piece(*u64(unit, bound, extent, grain))
    if piece == extent:
        assert extent <= grain or unit * extent <= bound
        return
    assert piece % grain == 0
    assert piece == grain or piece * unit <= bound
    tiles, of_piece = -(-extent // grain), piece // grain
    fit = max(1, bound // (unit * grain))
    pieces = -(-tiles // of_piece)
    assert pieces == -(-tiles // fit)  # no more of them than are needed
    assert of_piece == -(-tiles // pieces)  # and none larger than an equal share


def test_without_a_bound_all_is_one_piece(work):
    assert work.ops_piece(*u64(MOST, 0, 1000, 8)) == 1000
