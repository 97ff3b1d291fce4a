"""Times of attention by the device's own clock, as Markdown tables.

    python benchmarks/attention_time.py --device cuda [--exact]

Each figure is the median of replays of one recorded sequence. A token reads the caches of as many
layers as make a working set past any cache; the share is of the copy bandwidth measured in the same
run. A prompt is attended to in chunks that read what was just stored, from whatever cache has it;
its multiply-adds are counted for the positions that each token sees, twice.
"""

from __future__ import annotations

import argparse

import numpy as np
import probes
from device_time import WORKING_SET, copy_bandwidth, median_seconds

from oxibonsai.metal import Buffer, Device

HEAD_DIM, N_KV_HEADS = 128, 8
HEADS = {"8B": 32, "1.7B": 16}
STEPS = [(100, 256), (500, 512), (1000, 1024), (4000, 4096), (8192, 8192)]  # seen, recorded
CHUNKS = [(512, 0), (512, 3584), (2048, 2048), (4096, 0)]  # tokens, positions before them
MOST_LAYERS = 64


def shape_of(n_heads: int, max_seq: int) -> dict[str, object]:
    """Return what attention() is told of heads and caches."""
    return {
        "n_heads": n_heads,
        "n_kv_heads": N_KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_seq": max_seq,
        "kv_dtype": "f16",
    }


def random_halves(device: Device, n: int) -> Buffer:
    """Return n normal halves, the same 2^20 over and over."""
    rng = np.random.default_rng(n)
    some = rng.standard_normal(min(n, 1 << 20), np.float32).astype(np.float16)
    return device.upload(np.resize(some, n), storage=device.working_storage)


def step_row(device: Device, name: str, seen: int, length: int, bandwidth: float) -> str:
    """Time the token at position `seen` - 1 of a recording for `length` positions."""
    n_heads, storage = HEADS[name], device.working_storage
    nbytes = 2 * 2 * seen * N_KV_HEADS * HEAD_DIM
    layers = min(-(-WORKING_SET // nbytes), MOST_LAYERS)
    rng = np.random.default_rng(1)
    n_qkv = (n_heads + 2 * N_KV_HEADS) * HEAD_DIM
    with (
        device.upload(rng.standard_normal(n_qkv, np.float32), storage=storage) as qkv,
        device.buffer(4 * n_heads * HEAD_DIM, storage=storage) as out,
        device.upload(np.array([seen - 1, 0, 0, 0], np.uint32), storage=storage) as state,
        random_halves(device, layers * N_KV_HEADS * length * HEAD_DIM) as k,
        random_halves(device, layers * N_KV_HEADS * length * HEAD_DIM) as v,
        device.commands() as commands,
    ):
        for layer in range(layers):
            commands.attention(
                qkv, k, v, state, out, layer=layer, max_length=length, **shape_of(n_heads, length)
            )
        seconds = median_seconds(commands) / layers
    rate = nbytes / seconds
    return (
        f"| {name} | {seen} of {length} | {layers} | {seconds * 1e6:.1f} | {rate / 1e9:.0f} "
        f"| {rate / bandwidth:.0%} |"
    )


def prompt_row(device: Device, name: str, tokens: int, before: int, activations: str) -> str:
    """Time a chunk of a prompt behind `before` positions."""
    n_heads, storage, length = HEADS[name], device.working_storage, tokens + before
    rng = np.random.default_rng(1)
    n_qkv = tokens * (n_heads + 2 * N_KV_HEADS) * HEAD_DIM
    with (
        device.upload(rng.standard_normal(n_qkv, np.float32), storage=storage) as qkv,
        device.buffer(4 * tokens * n_heads * HEAD_DIM, storage=storage) as out,
        device.upload(np.array([before, 0, 0, 0], np.uint32), storage=storage) as state,
        random_halves(device, N_KV_HEADS * length * HEAD_DIM) as k,
        random_halves(device, N_KV_HEADS * length * HEAD_DIM) as v,
        device.commands(activations=activations) as commands,
    ):
        repeats = 8 if activations == "half" else 1
        for _ in range(repeats):
            commands.attention(
                qkv, k, v, state, out, layer=0, n_tokens=tokens, **shape_of(n_heads, length)
            )
        seconds = median_seconds(commands) / repeats
    adds = 2 * n_heads * HEAD_DIM * sum(before + t + 1 for t in range(tokens))
    return (
        f"| {name} | {tokens} behind {before} | {activations} | {seconds * 1e6:.1f} "
        f"| {2 * adds / seconds / 1e12:.1f} |"
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default=None)
    parser.add_argument("--exact", action="store_true", help="time prompts in float32 as well")
    options = parser.parse_args()
    probes.use_defaults()
    with Device(options.device) as device:
        info = device.info
        bandwidth = copy_bandwidth(device)
        print(f"Device: {info.name} ({info.driver}, {info.variant}).")
        print(f"Copy bandwidth, read plus written: {bandwidth / 1e9:.0f} GB/s.\n")
        print("| one token of | positions | layers | us | GB/s | share of copy |")
        print("|---|---|---|---|---|---|")
        for name in HEADS:
            for seen, length in STEPS:
                print(step_row(device, name, seen, length, bandwidth), flush=True)
        print("\n| prompt of | tokens | activations | us | TFLOPS |\n|---|---|---|---|---|")
        for name in HEADS:
            for tokens, before in CHUNKS:
                for activations in ("half", "float32") if options.exact else ("half",):
                    row = prompt_row(device, name, tokens, before, activations)
                    print(row, flush=True)


if __name__ == "__main__":
    main()
