"""Raw dispatches of the kernels of recurrent layers, with arguments that no op has."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
import pytest
from cases import contents

from oxibonsai.metal import Device, EncodingError


class Kernel(NamedTuple):
    """A kernel with arguments that it takes, by name, and the bytes of each buffer for them."""

    name: str
    layout: str
    args: dict[str, float]
    nbytes: tuple[int, ...]

    def packed(self, **changes: float) -> bytes:
        return struct.pack(self.layout, *(self.args | changes).values())


PLACE = {"slot_stride": 40, "offset": 2, "n_slots": 3, "ring": 2, "n_tokens": 4, "batch": 1}
DELTA_PLACE = PLACE | {"slot_stride": 2060}
KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel(
            "conv_silu",
            "<QQIIIIQQIIII",
            PLACE
            | {"x_stride": 12, "y_stride": 11, "n_channels": 10, "width": 4, "pad": 0, "pad2": 0},
            (4 * (3 * 12 + 10), 4 * 40, 64, 480, 4 * (3 * 11 + 10)),
        ),
        Kernel(
            "delta_rule",
            "<QQIIIIQQQIIIIffIIII",
            DELTA_PLACE
            | {"qkv_stride": 130, "ab_stride": 5, "y_stride": 66, "n_key_heads": 1}
            | {"n_value_heads": 2, "key_dim": 32, "value_dim": 32, "eps": 1e-6, "scale": 1}
            | {"first_head": 1, "end_head": 2, "pad": 0, "pad2": 0},
            (4 * (3 * 130 + 128), 4 * (3 * 5 + 4), 8, 8, 64, 12 * 2060, 4 * (3 * 66 + 64)),
        ),
        Kernel(
            "gate",
            "<QQQIIIIfI",
            {"x_stride": 21, "z_stride": 22, "y_stride": 23, "n_heads": 2, "head_dim": 10}
            | {"n_tokens": 3, "activation": 1, "eps": 1e-6, "has_norm": 1},
            (4 * (2 * 21 + 20), 4 * (2 * 22 + 20), 40, 4 * (2 * 23 + 20)),
        ),
        Kernel(
            "hadamard",
            "<IIIIIIfI",
            {"k": 96, "n_vectors": 2, "block": 32, "head_size": 16, "n_groups": 3, "inverse": 0}
            | {"eps": 1e-6, "has_norm": 1},
            (768, 384, 384, 768),
        ),
        Kernel("copy", "<QQ", {"n": 9, "pad": 0}, (36, 36)),
    )
}
MOST = 2**32 - 1
NONSENSE = [
    ("conv_silu", {"n_tokens": 0}),
    ("conv_silu", {"ring": 0}),
    ("conv_silu", {"ring": 4}),
    ("conv_silu", {"n_slots": 0}),
    ("conv_silu", {"offset": 11}),
    ("conv_silu", {"offset": 2**64 - 8}),
    ("conv_silu", {"slot_stride": 31}),
    ("conv_silu", {"width": 1}),
    ("conv_silu", {"width": 9}),
    ("conv_silu", {"n_channels": 0}),
    ("conv_silu", {"n_channels": MOST}),
    ("conv_silu", {"x_stride": 9}),
    ("conv_silu", {"y_stride": 9}),
    ("conv_silu", {"x_stride": 2**63}),
    ("delta_rule", {"n_tokens": 0}),
    ("delta_rule", {"ring": 0}),
    ("delta_rule", {"offset": 13}),
    ("delta_rule", {"n_key_heads": 0}),
    ("delta_rule", {"n_value_heads": 0}),
    ("delta_rule", {"n_value_heads": MOST}),
    ("delta_rule", {"key_dim": 0}),
    ("delta_rule", {"key_dim": 33}),
    ("delta_rule", {"key_dim": 288}),
    ("delta_rule", {"value_dim": 16}),
    ("delta_rule", {"value_dim": MOST - 31}),
    ("delta_rule", {"qkv_stride": 127}),
    ("delta_rule", {"ab_stride": 3}),
    ("delta_rule", {"y_stride": 63}),
    ("delta_rule", {"first_head": 2}),
    ("delta_rule", {"end_head": 3}),
    ("delta_rule", {"y_stride": 2**62}),
    ("gate", {"n_tokens": 0}),
    ("gate", {"n_heads": 0}),
    ("gate", {"head_dim": 0}),
    ("gate", {"head_dim": MOST}),
    ("gate", {"x_stride": 19}),
    ("gate", {"z_stride": 19}),
    ("gate", {"y_stride": 19}),
    ("hadamard", {"k": 0}),
    ("hadamard", {"k": 112}),
    ("hadamard", {"block": 8, "k": 96}),
    ("hadamard", {"block": 48}),
    ("hadamard", {"block": 8192, "k": 8192}),
    ("hadamard", {"head_size": 0}),
    ("hadamard", {"n_groups": 0}),
    ("hadamard", {"n_groups": 4}),
    ("hadamard", {"inverse": 1}),
    ("copy", {"n": 2**63}),
]


def record(device, kernel, args, nbytes):
    buffers = [device.buffer(max(n, 1)) for n in nbytes]
    try:
        with device.commands() as commands:
            commands.dispatch(device.pipeline(kernel.name), buffers, args, threadgroups=1)
    finally:
        for buffer in buffers:
            buffer.close()


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_takes_buffers_as_long_as_it_needs_and_no_shorter_ones(name):
    kernel = KERNELS[name]
    with Device("cpu") as cpu:
        record(cpu, kernel, kernel.packed(), kernel.nbytes)
        for i, n in enumerate(kernel.nbytes):
            short = (*kernel.nbytes[:i], n - 1, *kernel.nbytes[i + 1 :])
            with pytest.raises(EncodingError, match=f"needs {n} bytes, and there are {n - 1}"):
                record(cpu, kernel, kernel.packed(), short)


@pytest.mark.parametrize(("name", "changes"), NONSENSE)
def test_arguments_that_describe_nothing_are_refused(name, changes):
    kernel = KERNELS[name]
    with (
        Device("cpu") as cpu,
        pytest.raises(EncodingError, match=r"describe no matrix or shape|needs \d+ bytes"),
    ):
        record(cpu, kernel, kernel.packed(**changes), kernel.nbytes)


@pytest.mark.parametrize("name", KERNELS)
def test_threadgroups_past_the_end_do_nothing(name):
    kernel = KERNELS[name]
    rng = np.random.default_rng(0)
    found = []
    starts = [rng.integers(0, 2, n // 4).astype(np.float32) for n in kernel.nbytes]
    if "batch" in kernel.args:
        first_slots = (0, 1, 2, 9)  # the last two have slots that are not there
        starts[-3] = np.array([(1, 0, 0, slot) for slot in first_slots], np.uint32)
    with Device("cpu", threads=2) as cpu:
        for groups in (40, 1000):
            buffers = [cpu.upload(start) for start in starts]
            with cpu.commands() as commands:
                commands.dispatch(cpu.pipeline(name), buffers, kernel.packed(), threadgroups=groups)
                commands.replay()
            found.append([contents(buffer) for buffer in buffers])
            for buffer in buffers:
                buffer.close()
    for first, second in zip(*found, strict=True):
        np.testing.assert_array_equal(first, second)
