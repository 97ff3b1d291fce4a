"""The choice of a token among 151,936 logits, by what people set and by the shape of the logits."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from measure import Meter

from oxibonsai import metal

VOCABULARY, POSITION = 151_936, 256
ALL = 0xFFFFFFFF
SETTINGS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0},
    "greedy, penalty": {"temperature": 0, "penalty": 1.1},
    "temperature": {},
    "top-k": {"top_k": 40},
    "top-k 1000": {"top_k": 1000},
    "top-p": {"top_p": 0.95},
    "min-p": {"min_p": 0.05},
    "all": {"top_k": 40, "top_p": 0.95, "min_p": 0.05, "penalty": 1.1},
    "mask": {"mask": 0},
    "biases": {"n_biases": 300},
}


def packed(
    temperature: float = 0.7,
    top_k: int = 0,
    top_p: float = 0,
    min_p: float = 0,
    penalty: float = 1,
    n_biases: int = 0,
    mask: int = ALL,
) -> bytes:
    """Return ``struct oxb_sampling``; a penalty counts the last 64 tokens."""
    scale = 2**20 * math.log2(math.e) / temperature if temperature else 0
    least = int(-(2**20) * math.log2(min_p)) if min_p else ALL
    window = 64 if penalty != 1 else 0
    words = (7, 9, 0, scale, top_k, int(top_p * 2**32), least, penalty, 1 / penalty, 0, 0)
    return struct.pack("<3If3I4f5I", *words, window, 0, n_biases, mask, 0)


def logits_of(kind: str) -> np.ndarray:
    rng = np.random.default_rng(1)
    normal = rng.standard_normal(VOCABULARY, np.float32)
    if kind == "flat":
        return np.zeros_like(normal)
    if kind == "normal":
        return 3 * normal
    # As of a language model: some tokens far above the rest.
    normal[rng.integers(0, VOCABULARY, 40)] += 6
    return 2 * normal


def measure_choice(
    device: metal.Device, meter: Meter, logits: np.ndarray, settings: bytes, n_best: int = 0
) -> None:
    """Time one choice, of a text whose last 256 tokens are any."""
    rng = np.random.default_rng(2)
    biases = np.empty(300, [("token", "u4"), ("value", "f4")])
    biases["token"], biases["value"] = rng.integers(0, VOCABULARY, 300), rng.standard_normal(300)
    arrays = [
        logits,
        np.frombuffer(settings, np.uint8),
        np.array([POSITION, 0, 0, 0], np.uint32),
        rng.integers(0, VOCABULARY, POSITION + 1).astype(np.uint32),
        np.zeros(4, np.uint32),
        biases,
        rng.integers(0, 2**32, (VOCABULARY + 31) // 32, np.uint32),
        np.zeros((max(n_best, 1), 2), np.uint32),
    ]
    with device.commands() as commands:
        buffers = [device.upload(a, storage=device.working_storage) for a in arrays]
        operands, more = buffers[:5], buffers[5:]
        commands.sample(
            *operands,
            VOCABULARY,
            POSITION + 1,
            advance=False,
            biases=more[0],
            n_biases=len(biases),
            masks=more[1],
            n_masks=1,
            log_probabilities=n_best != 0,
            best=more[2] if n_best else None,
            n_best=n_best,
        )
        meter(commands.replay, nbytes=logits.nbytes)
        chosen = operands[4].read(np.empty(4, np.uint32))
        assert chosen[0] < VOCABULARY
        assert chosen[1] == POSITION + 1
        for buffer in buffers:
            buffer.close()


@pytest.mark.parametrize("kind", ["peaked", "normal", "flat"])
@pytest.mark.parametrize("name", SETTINGS)
def test_choice(device: metal.Device, meter: Meter, name: str, kind: str) -> None:
    measure_choice(device, meter, logits_of(kind), packed(**SETTINGS[name]))  # type: ignore[arg-type]


def test_log_probabilities(device: metal.Device, meter: Meter) -> None:
    """The greedy choice with the 20 best tokens."""
    measure_choice(device, meter, logits_of("peaked"), packed(temperature=0), n_best=20)


def test_argmax(device: metal.Device, meter: Meter) -> None:
    """What a greedy choice takes without settings."""
    logits = logits_of("peaked")
    with device.commands() as commands:
        x, token = device.upload(logits), device.upload(np.zeros(4, np.uint32))
        commands.argmax(x, token, VOCABULARY)
        meter(commands.replay, nbytes=logits.nbytes)
        assert token.read(np.empty(4, np.uint32))[0] == np.argmax(logits)
        x.close()
        token.close()
