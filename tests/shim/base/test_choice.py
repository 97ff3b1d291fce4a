"""The integer arithmetic of a choice (shim/base/choice.h) against float64."""

from __future__ import annotations

import ctypes
import math
import shlex
import subprocess
import sysconfig

import numpy as np
import pytest
from places import ROOT
from sampling_reference import philox

SOURCE = """
#include "base/choice.h"
void probabilities(const oxb_u32 *u, oxb_u32 *p, oxb_u32 n) {
    for (oxb_u32 i = 0; i < n; i++) p[i] = choice_probability(u[i]);
}
void gumbels(const oxb_u32 *r, int *g, oxb_u32 n) {
    for (oxb_u32 i = 0; i < n; i++) g[i] = choice_gumbel(r[i]);
}
void noise(const oxb_u32 *c, const oxb_u32 *k, oxb_u32 *words) {
    struct choice_words w = choice_philox(c[0], c[1], c[2], c[3], k[0], k[1]);
    for (int i = 0; i < 4; i++) words[i] = w.word[i];
}
oxb_u32 distance(float m, float w, float scale) { return choice_distance(m, w, scale); }
"""


@pytest.fixture(scope="module")
def choice(tmp_path_factory):
    folder = tmp_path_factory.mktemp("choice")
    source, library = folder / "choice.c", folder / "choice.so"
    source.write_text(SOURCE)
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    include = [f"-I{ROOT / 'shim'}", f"-I{ROOT / 'shim' / 'include'}"]
    flags = ["-shared", "-fPIC", "-O2", "-std=c11", "-ffp-contract=off", "-Wall", "-Wextra"]
    command = [*compiler, *flags, "-Werror", *include, str(source), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


def mapped(function, numbers, dtype):
    numbers = np.ascontiguousarray(numbers, np.uint32)
    result = np.empty(len(numbers), dtype)
    function(
        numbers.ctypes.data_as(ctypes.c_void_p),
        result.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_uint32(len(numbers)),
    )
    return result


def test_probabilities_fall_with_the_distance_and_are_off_by_3_at_most(choice):
    whole = np.arange(2 << 20)  # every fraction, next to the largest and an octave below
    rng = np.random.default_rng(1)
    far = np.sort(rng.integers(0, 33 << 20, 100_000))
    edges = np.arange(1, 33)[:, None] * 2**20 + np.arange(-2, 3)
    for u in (whole, far, edges.ravel()):
        p = mapped(choice.probabilities, u, np.uint32).astype(float)
        assert (np.diff(p) <= 0).all()
        expected = np.where(u < 32 << 20, 2.0 ** (31 - u / 2**20), 0)
        shift = u >> 20
        assert (abs(p - expected) <= 0.5 + 2.5 / 2.0**shift).all()
    some = [0, 1 << 20, (32 << 20) - 1, 32 << 20, 2**32 - 1]
    found = mapped(choice.probabilities, some, np.uint32)
    assert found.tolist() == [2**31, 2**30, 1, 0, 0]


def test_noise_is_the_logarithm_of_a_logarithm(choice):
    rng = np.random.default_rng(2)
    ends = np.arange(3000)
    powers = 2 ** np.arange(32, dtype=np.int64)[:, None] + np.arange(-3, 4)
    inside = np.sort(rng.integers(0, 2**32, 100_000))
    # -log2(1 - y) is a sum of powers of y below 2^-6, and another beyond.
    seam = np.arange(2**26 - 2000, 2**26 + 2000)
    for r in (ends, 2**32 - 1 - ends, powers[powers >= 0], inside, seam):
        r = np.unique(r)
        found = mapped(choice.gumbels, r, np.int32)
        y = (r + 0.5) / 2**32
        expected = np.log2(-np.log1p(-y) / math.log(2)) * 2**20
        assert abs(found - expected).max() <= 2
        assert (np.diff(found) >= -2).all()


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the known answers of Random123
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_generator_is_philox(choice, counter, key, words):
    found = (ctypes.c_uint32 * 4)()
    choice.noise((ctypes.c_uint32 * 4)(*counter), (ctypes.c_uint32 * 2)(*key), found)
    assert tuple(found) == words == tuple(philox(counter, key))


def test_distances_are_cut_off_at_2_to_the_30(choice):
    choice.distance.argtypes = [ctypes.c_float] * 3
    choice.distance.restype = ctypes.c_uint32
    for m, w, scale, u in (
        (1, 1, 2**20, 0),
        (1, 0.5, 3, 1),
        (3e38, -3e38, 1, 2**30),
        (1024, 0, 2**20 - 1, 1024 * (2**20 - 1)),
        (1024, 0, 2**20, 2**30),
        (1, 1, math.inf, 2**30),
        (0, -math.inf, 1, 2**30),
    ):
        assert choice.distance(m, w, scale) == u
