"""Times of recurrent layers and rotations by the device's own clock, as a Markdown table.

    python benchmarks/recurrent_time.py --device cuda

The shape is that of Bonsai-27B. Each figure is the median of replays of one recorded sequence,
which goes through the states of all layers, 150 MB for each text, so that they come from memory.
The share is of the copy bandwidth measured in the same run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import probes
from device_time import copy_bandwidth, median_seconds
from numpy.typing import NDArray

from oxibonsai.metal import Buffer, Commands, Device

LAYERS, N_KEY_HEADS, N_HEADS, DIM, WIDTH = 48, 16, 48, 128, 4
VALUES, STATE = N_HEADS * DIM, N_HEADS * DIM * DIM
CHANNELS = 2 * N_KEY_HEADS * DIM + VALUES
INPUTS = (WIDTH - 1) * CHANNELS  # that the convolution keeps
SLOT = LAYERS * (STATE + INPUTS)
REPEATS = 16  # of what has no state
Record = Callable[[Commands], object]


@dataclass(frozen=True)
class Case:
    """Tokens of one sequence, or one of each of several."""

    name: str
    n_tokens: int
    batch: bool = False

    @property
    def sequences(self) -> int:
        return self.n_tokens if self.batch else 1


CASES = [Case("one token", 1), Case("8 sequences", 8, batch=True), Case("a prompt", 512)]


class Arrays:
    """What the operations of some tokens take, all of it in the device's memory."""

    def __init__(self, device: Device, case: Case) -> None:
        n, self._device = case.n_tokens, device
        self.qkv, self.conv_y = self.random(n * CHANNELS), self.random(n * CHANNELS)
        self.weight, self.rates = self.random(CHANNELS * WIDTH), self.random(n * 2 * N_HEADS)
        self.a = self.upload(np.full(N_HEADS, -0.1, np.float32))
        self.dt_bias, self.norm = self.random(N_HEADS), self.random(17_408)
        self.z, self.y = self.random(n * VALUES), self.random(n * VALUES)
        self.x, self.rotated = self.random(n * 17_408), self.random(n * 17_408)
        self.signs = self.upload(np.ones(17_408, np.float32))
        self.slots = device.buffer(4 * case.sequences * SLOT, storage=device.working_storage)
        self.slots.fill(0)
        places = [(64, 0, 0, i) for i in range(case.sequences)]
        self.state = self.upload(np.array(places, np.uint32))

    def upload(self, array: NDArray[Any]) -> Buffer:
        return self._device.upload(array, storage=self._device.working_storage)

    def random(self, n: int) -> Buffer:
        """Return n normal floats, the same 2^20 over and over."""
        return self.upload(np.resize(probes.activations(min(n, 1 << 20)), n))

    def close(self) -> None:
        for buffer in vars(self).values():
            if isinstance(buffer, Buffer):
                buffer.close()


def operations(a: Arrays, case: Case) -> Iterator[tuple[str, int, int, Record]]:
    """Yield name, bytes that must move, how many are recorded, and what records them."""
    n = case.n_tokens
    tokens: dict[str, Any] = {"slot_size": SLOT, "n_tokens": n, "batch": case.batch}

    def conv(c: Commands) -> None:
        for layer in range(LAYERS):
            c.conv(
                *(a.qkv, a.weight, a.state, a.slots, a.conv_y),
                n_channels=CHANNELS,
                width=WIDTH,
                offset=layer * INPUTS,
                **tokens,
            )

    def delta(c: Commands) -> None:
        for layer in range(LAYERS):
            c.delta(
                *(a.conv_y, a.rates, a.a, a.dt_bias, a.state, a.slots, a.y),
                n_key_heads=N_KEY_HEADS,
                n_value_heads=N_HEADS,
                key_dim=DIM,
                value_dim=DIM,
                offset=LAYERS * INPUTS + layer * STATE,
                **tokens,
            )

    def gate(c: Commands) -> None:
        heads: dict[str, Any] = {"n_heads": N_HEADS, "head_dim": DIM, "n_vectors": n}
        for _ in range(REPEATS):
            c.gate(a.y, a.z, a.x, norm=a.norm, activation="silu", **heads)

    def rotation(k: int, **how: Any) -> Record:
        def record(c: Commands) -> None:
            for _ in range(REPEATS):
                c.hadamard(a.x, a.signs, a.rotated, k, block=1024, n_vectors=n, **how)

        return record

    yield "conv", 8 * (n * CHANNELS + case.sequences * INPUTS), LAYERS, conv
    yield "delta", 8 * case.sequences * STATE + 4 * n * (CHANNELS + VALUES), LAYERS, delta
    yield "gate", 12 * n * VALUES, REPEATS, gate
    yield "hadamard 5120, norm", 8 * n * 5120, REPEATS, rotation(5120, norm=a.norm)
    heads = {"head_size": DIM, "n_groups": 3}
    yield "hadamard 6144, heads", 8 * n * 6144, REPEATS, rotation(6144, **heads)
    yield "hadamard 17408", 8 * n * 17_408, REPEATS, rotation(17_408)


def rows(device: Device, case: Case, bandwidth: float) -> Iterator[str]:
    """Yield a line of the table for each operation."""
    arrays = Arrays(device, case)
    for name, nbytes, times, record in operations(arrays, case):
        with device.commands() as commands:
            record(commands)
            seconds = median_seconds(commands) / times
        rate = nbytes / seconds
        yield (
            f"| {name} | {case.name} | {seconds * 1e6:.1f} | {rate / 1e9:.0f} "
            f"| {rate / bandwidth:.0%} |"
        )
    arrays.close()


def checkpoint_row(device: Device, bandwidth: float) -> str:
    """Time the copy of a sequence's states."""
    storage = device.working_storage
    with (
        device.buffer(4 * SLOT, storage=storage) as source,
        device.buffer(4 * SLOT, storage=storage) as target,
        device.commands() as commands,
    ):
        source.fill(0)
        commands.copy(source, target, SLOT)
        seconds = median_seconds(commands)
    rate = 8 * SLOT / seconds
    return f"| copy | a slot | {seconds * 1e6:.1f} | {rate / 1e9:.0f} | {rate / bandwidth:.0%} |"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default=None)
    options = parser.parse_args()
    probes.use_defaults()
    with Device(options.device) as device:
        info = device.info
        bandwidth = copy_bandwidth(device)
        print(f"Device: {info.name} ({info.driver}, {info.variant}).")
        print(f"Copy bandwidth, read plus written: {bandwidth / 1e9:.0f} GB/s.\n")
        print("| operation | of | us | GB/s | share of copy |\n|---|---|---|---|---|")
        for case in CASES:
            for row in rows(device, case, bandwidth):
                print(row, flush=True)
        print(checkpoint_row(device, bandwidth))


if __name__ == "__main__":
    main()
