"""Times of a device by its own clock, as JSON, for the report of tools/mac_check.sh.

    python benchmarks/report_times.py kernels --device metal [--small] [--out TIMES.json]
    python benchmarks/report_times.py variants --device cuda [--small] [--out TIMES.json]
    python benchmarks/report_times.py model FILE.gguf --device metal --chunk 128 --tokens 64

`kernels` times what each operation records, in every device format and kind of K/V cache, and every
variant of the products of codes; a figure is the median of replays. Weights cycle through copies
that are more than a cache holds. An operation that fails is named, and the others go on. `variants`
times the variants alone. `model` feeds a prompt and decodes. With --small all are over in seconds,
to see that they run. The file of --out has after each operation what is known so far, for a run
that does not end.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_sampling
import numpy as np
import probes
from device_time import median_seconds

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import embed_shaders

from oxibonsai import formats, metal, quant
from oxibonsai.metal import Buffer, Commands, Device, MetalGraph, WeightHandle
from oxibonsai.model import Model
from oxibonsai.model.config import ModelConfig
from oxibonsai.model.runtime.cache import KV_DTYPES, KVCache, KVDtype
from oxibonsai.quant import QTensor

# One file format for each device format.
FORMATS = ("Q1_0", "TQ2_0_g128", "Q2_0", "F16", "BF16", "Q8_0", "F32")
CODED = FORMATS[:3]  # of which each product has its variants timed
VECTORS = (8, 32, 128)  # one tile of a product for few vectors, a full one, a chunk
# Not the first line, which counts the dispatches.
_KERNEL = re.compile(r"^\d+ (\w+):", re.MULTILINE)


@dataclass(frozen=True)
class Sizes:
    """The shapes that are timed: those of Bonsai-8B, or the smallest that have every kernel."""

    hidden: int = 4096
    intermediate: int = 12288
    vocab: int = 151_936
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    max_seq: int = 4096
    working_set: int = 256 << 20
    probe: int = 256 << 20
    repeats: int = 64

    @property
    def config(self) -> ModelConfig:
        """One layer in these sizes, whose K/V cache is timed."""
        return ModelConfig(
            n_layers=1,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            n_heads=self.heads,
            n_kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocab,
            context_length=self.max_seq,
            rope_theta=1e6,
            rms_eps=1e-6,
        )


SMALL = Sizes(256, 256, 1000, 4, 2, 64, 1024, 1 << 16, 1 << 20, 2)


Row = dict[str, Any]


class Kernels:
    """Rows of the report: each operation, its kernels, its time and the bytes that it must move."""

    def __init__(self, graph: MetalGraph, sizes: Sizes) -> None:
        self.graph, self.device, self.sizes = graph, graph.device, sizes
        self.failed: list[dict[str, str]] = []
        self.bandwidth: float | None = None
        try:
            self.bandwidth = self._copy_bandwidth()
        except Exception as error:
            self._fail("the bandwidth of memory", error)

    def _fail(self, name: str, error: Exception) -> None:
        self.failed.append({"name": name, "error": f"{type(error).__name__}: {error}"})
        print(f"{name}: {self.failed[-1]['error']}", file=sys.stderr, flush=True)

    def _buffer(self, nbytes: int) -> Buffer:
        buffer = self.device.buffer(nbytes, storage=self.device.working_storage)
        buffer.fill(0)
        return buffer

    def _upload(self, values: np.ndarray) -> Buffer:
        return self.device.upload(values, storage=self.device.working_storage)

    def _copy_bandwidth(self) -> float:
        """Return the bytes a second that y += x reads and writes, from memory."""
        n = self.sizes.probe // 4
        with self._buffer(4 * n) as x, self._buffer(4 * n) as y, self.graph.commands() as commands:
            commands.add(x, y, n)
            return 12 * n / median_seconds(commands)

    def _row(
        self, name: str, shape: str, nbytes: int, times: int, record: Callable[[Commands], object]
    ) -> Row | None:
        """Return a row, or None where the operation fails."""
        try:
            with self.graph.commands() as commands:
                record(commands)
                seconds = median_seconds(commands) / times
                kernels = sorted(set(_KERNEL.findall(commands.describe())))
        except Exception as error:
            self._fail(name, error)
            return None
        known = seconds > 0 and self.bandwidth
        return {
            "name": name,
            "shape": shape,
            "kernels": kernels,
            "seconds": seconds,
            "bytes": nbytes,
            "share": nbytes / seconds / self.bandwidth if known else None,
        }

    def _weight(self, name: str, n_rows: int, k: int) -> QTensor:
        if formats.get(name).bits in (1, 2):
            return probes.random_weight(name, n_rows, k)
        values = np.random.default_rng(k).standard_normal((n_rows, k), np.float32)
        return quant.quantize(values / np.float32(k**0.5), name)

    def products(self, name: str) -> Iterator[Row | None]:
        """Yield what a matrix in a format takes part in: products, the SwiGLU's, a lookup."""
        n_rows, k = self.sizes.intermediate, self.sizes.hidden
        q = self._weight(name, n_rows, k)
        copies = max(2, -(-self.sizes.working_set // q.nbytes))
        handles = probes.upload_copies(self.graph, q, copies)
        nbytes, most = handles[0].nbytes, max(VECTORS)
        x = self._upload(probes.activations(most * k))
        y = self._buffer(4 * most * n_rows)
        norm = self._upload(np.ones(k, np.float32))
        shape = f"{n_rows} x {k}"

        def each(record: Callable[[Commands, WeightHandle], object]) -> Callable[[Commands], None]:
            def all_of(commands: Commands) -> None:
                for handle in handles:
                    record(commands, handle)

            return all_of

        row = self._row
        yield row(f"gemv {name}", shape, nbytes, copies, each(lambda c, w: c.gemv(w, x, y)))
        residual = each(lambda c, w: c.gemv(w, x, y, residual=True))
        yield row(f"gemv {name} residual", shape, nbytes, copies, residual)
        normed = each(lambda c, w: c.gemv(w, x, y, norm=norm))
        yield row(f"gemv {name} norm", shape, nbytes, copies, normed)
        gated = each(lambda c, w: c.gate_up_swiglu(w, x, y))
        yield row(f"gate_up_swiglu {name}", shape, nbytes, copies, gated)
        normed = each(lambda c, w: c.gate_up_swiglu(w, x, y, norm=norm))
        yield row(f"gate_up_swiglu {name} norm", shape, nbytes, copies, normed)
        for n in VECTORS:
            many = each(lambda c, w, n=n: c.gemv(w, x, y, n_vectors=n))
            yield row(f"{n} vectors {name}", shape, nbytes, copies, many)
        n = VECTORS[1]
        residual = each(lambda c, w: c.gemv(w, x, y, n_vectors=n, residual=True))
        yield row(f"{n} vectors {name} residual", shape, nbytes, copies, residual)
        gated = each(lambda c, w: c.gate_up_swiglu(w, x, y, n_vectors=n))
        yield row(f"{n} vectors {name} gate_up_swiglu", shape, nbytes, copies, gated)
        normed = each(lambda c, w: c.gate_up_swiglu(w, x, y, n_vectors=n, norm=norm))
        yield row(f"{n} vectors {name} gate_up_swiglu norm", shape, nbytes, copies, normed)
        tokens, state = self._buffer(4 * most), self._buffer(16)
        lookup = each(lambda c, w: c.embed(w, tokens, state, y, n_tokens=n))
        yield row(f"embed {name}", f"{n} x {k}", n * nbytes // n_rows, copies, lookup)
        for thing in (*handles, x, y, norm, tokens, state):
            thing.close()

    def variants(self, name: str) -> Iterator[Row]:
        """Yield the times of every variant of each product of one token, in one format."""
        hidden, inner = self.sizes.hidden, self.sizes.intermediate
        device_format = formats.get(name).device_format
        shapes = [("gemv", hidden, hidden), ("gemv", hidden, inner), ("swiglu", 2 * inner, hidden)]
        for op, n_rows, k in shapes:
            product = (op, device_format, n_rows, k)
            names = self.device.kernel_variants(*product)
            if names:
                q = self._weight(name, n_rows, k)
                times = self._times_of_variants(product, q, names)
                yield {"op": op, "format": name, "n_rows": n_rows, "k": k, "seconds": times}

    def _times_of_variants(
        self, product: tuple[str, str, int, int], q: QTensor, names: tuple[str, ...]
    ) -> dict[str, float]:
        """Return seconds by name, the default first; one that fails is left out and named."""
        op, _, n_rows, k = product
        copies = max(2, -(-self.sizes.working_set // q.nbytes))
        handles = probes.upload_copies(self.graph, q, copies)
        x, y = self._upload(probes.activations(k)), self._buffer(4 * n_rows)
        norm, times = self._upload(np.ones(k, np.float32)), {}
        for name in names:
            try:
                self.device.choose_variant(*product, name)
                with self.graph.commands() as commands:
                    for handle in handles:
                        if op == "gemv":
                            commands.gemv(handle, x, y)
                        else:
                            commands.gate_up_swiglu(handle, x, y, norm=norm)
                    times[name] = median_seconds(commands) / copies
            except Exception as error:  # noqa: PERF203 # the others are timed
                self._fail(f"{op} {q.format} {name}", error)
            finally:
                self.device.choose_variant(*product, None)
        for thing in (*handles, x, y, norm):
            thing.close()
        return times

    def heads(self, kv_dtype: KVDtype) -> Iterator[Row | None]:
        """Yield the operations on heads with a K/V cache of one kind."""
        s, repeats = self.sizes, self.sizes.repeats
        heads = {
            "n_heads": s.heads,
            "n_kv_heads": s.kv_heads,
            "head_dim": s.head_dim,
            "max_seq": s.max_seq,
            "kv_dtype": kv_dtype,
            "layer": 0,
        }
        width = (s.heads + 2 * s.kv_heads) * s.head_dim
        cache = KVCache.nbytes_of(s.config, kv_dtype, s.max_seq)
        position_bytes = 2 * KVCache.nbytes_of(s.config, kv_dtype, 1)  # of a key and a value
        k, v = self._buffer(cache), self._buffer(cache)
        qkv, out = (self._buffer(4 * max(VECTORS) * width) for _ in range(2))
        norm = self._upload(np.ones(s.head_dim, np.float32))
        rope = self._buffer(4 * s.head_dim * s.max_seq)
        kept = [k, v, qkv, out, norm, rope]

        def row(name: str, nbytes: int, record: Callable[[Commands], object]) -> Row | None:
            def repeated(commands: Commands) -> None:
                for _ in range(repeats):
                    record(commands)

            shape = f"{s.heads} of {s.head_dim} over {s.kv_heads}"
            return self._row(f"{name} {kv_dtype}", shape, nbytes, repeats, repeated)

        start = self._upload(np.array([s.max_seq // 2, 0, 0, 0], np.uint32))
        kept.append(start)
        turn = (qkv, norm, norm, rope)
        yield row("qk_norm_rope", 8 * width, lambda c: c.qk_norm_rope(*turn, start, **heads))
        yield row("kv_store", position_bytes, lambda c: c.kv_store(qkv, k, v, start, **heads))
        to_cache = (*turn, k, v, start)
        yield row("qkv_to_cache", position_bytes, lambda c: c.qkv_to_cache(*to_cache, **heads))
        for position in (100, s.max_seq // 4 - 24, s.max_seq - 96):
            state = self._upload(np.array([position, 0, 0, 0], np.uint32))
            kept.append(state)
            length = next(n for n in (256, s.max_seq // 4, s.max_seq) if n > position)
            yield row(
                f"attention of 1 at {position}",
                position * position_bytes,
                lambda c, state=state, length=length: c.attention(
                    qkv, k, v, state, out, max_length=length, **heads
                ),
            )
        n = VECTORS[1]
        yield row(
            f"attention of {n} at {s.max_seq // 2}",
            (s.max_seq // 2 + n) * position_bytes,
            lambda c: c.attention(qkv, k, v, start, out, n_tokens=n, **heads),
        )
        for buffer in kept:
            buffer.close()

    def vectors(self) -> Iterator[Row | None]:
        """Yield the operations on activations and on logits."""
        n, vocab, repeats = self.sizes.hidden, self.sizes.vocab, self.sizes.repeats
        x, y = self._buffer(4 * max(n, vocab)), self._buffer(4 * max(n, vocab))
        tokens, state, choices = self._buffer(4 * 1024), self._buffer(16), self._buffer(4096)
        settings = self._upload(np.frombuffer(bench_sampling.packed(top_k=40), np.uint8))

        def row(
            name: str, size: int, nbytes: int, times: int, record: Callable[[Commands], object]
        ) -> Row | None:
            def repeated(commands: Commands) -> None:
                for _ in range(times):
                    record(commands)

            return self._row(name, str(size), nbytes, times, repeated)

        yield row("rmsnorm", n, 12 * n, repeats, lambda c: c.rmsnorm(x, y, x, n))
        yield row("add", n, 12 * n, repeats, lambda c: c.add(x, y, n))
        yield row("add_bias", n, 12 * n, repeats, lambda c: c.add_bias(x, y, n))
        yield row("argmax", vocab, 4 * vocab, 8, lambda c: c.argmax(x, tokens, vocab))
        # One a replay: each moves the position on, and there are 1,024 tokens.
        step = (x, tokens, state, vocab, 1024)
        yield row("advance", vocab, 4 * vocab, 1, lambda c: c.advance(*step))
        chosen = (x, settings, state, tokens, choices, vocab, 1024)
        yield row(
            "sample", vocab, 4 * vocab, 1, lambda c: c.sample(*chosen, advance=False, n_slots=1)
        )
        for buffer in (x, y, tokens, state, choices, settings):
            buffer.close()

    def recurrent(self) -> Iterator[Row | None]:
        """Yield the operations of recurrent layers, with a value head for each query head."""
        s, n = self.sizes, VECTORS[1]
        dim, width = s.head_dim, 4
        values, channels = s.heads * dim, (s.heads + 2 * s.kv_heads) * dim
        part = values * dim
        slots, state = self._buffer(4 * part), self._buffer(16)
        x, y = self._buffer(4 * n * channels), self._buffer(4 * max(n * channels, part))
        weight = self._buffer(4 * width * channels)

        def row(name: str, nbytes: int, record: Callable[[Commands], object]) -> Row | None:
            def repeated(commands: Commands) -> None:
                for _ in range(s.repeats):
                    record(commands)

            return self._row(name, f"{s.heads} x {dim}", nbytes, s.repeats, repeated)

        for t in (1, n):
            place = {"slot_size": part, "offset": 0, "n_tokens": t}
            heads = {"n_key_heads": s.kv_heads, "n_value_heads": s.heads}
            heads |= {"key_dim": dim, "value_dim": dim}
            delta = (x, weight, weight, weight, state, slots, y)
            conv = (x, weight, state, slots, y)
            yield row(
                f"delta of {t}",
                4 * (2 * part + t * (channels + values)),
                lambda c, p=place, h=heads, b=delta: c.delta(*b, **h, **p),
            )
            yield row(
                f"conv of {t}",
                8 * (width - 1 + t) * channels,
                lambda c, p=place, b=conv: c.conv(*b, n_channels=channels, width=width, **p),
            )
        yield row(
            "gate",
            12 * values,
            lambda c: c.gate(y, x, y, n_heads=s.heads, head_dim=dim, norm=weight),
        )
        yield row("hadamard", 8 * values, lambda c: c.hadamard(x, weight, y, values, block=dim))
        yield row("copy", 8 * part, lambda c: c.copy(slots, y, part))
        for buffer in (slots, state, x, y, weight):
            buffer.close()

    def every_variant(self) -> Iterator[Row]:
        """Yield what of the variants could be timed; what could not is in `failed`."""
        for name in CODED:
            try:
                yield from self.variants(name)
            except Exception as error:  # noqa: PERF203 # in what the products share
                self._fail(f"the variants of {name}", error)

    def rows(self) -> Iterator[Row]:
        """Yield what could be timed; what could not is in `failed`."""
        groups = [(f"the products of {name}", self.products(name)) for name in FORMATS]
        groups += [(f"the heads in {kv_dtype}", self.heads(kv_dtype)) for kv_dtype in KV_DTYPES]
        groups.append(("the vectors", self.vectors()))
        groups.append(("recurrent layers", self.recurrent()))
        for name, group in groups:
            try:
                yield from (row for row in group if row is not None)
            except Exception as error:  # noqa: PERF203 # in what the group's operations share
                self._fail(name, error)


def kernels(
    device: Device, sizes: Sizes, keep: Callable[[Row], None], *, every: bool = True
) -> Row:
    """Return the times of all operations, or not `every` one but variants alone.

    Parameters
    ----------
    device
        What is timed.
    sizes
        The shapes.
    keep
        Gets what is known after each operation.
    every
        Whether the operations are timed that are no variants by name.
    """
    # The cpu device has kernels of its own.
    shipped = {f for one in embed_shaders.families() for f in one.functions}
    untimed = shipped if every and device.driver != "cpu" else set()
    found: Row = {
        "device": device.info._asdict(),
        "untimed": sorted(untimed),
        "bandwidth_bytes_per_second": None,
        "kernels": [],
        "variants": [],
        "failed": [],
    }
    keep(found)
    with MetalGraph(device) as graph:
        table = Kernels(graph, sizes)
        found |= {"bandwidth_bytes_per_second": table.bandwidth, "failed": table.failed}
        for row in table.rows() if every else ():
            found["kernels"].append(row)
            untimed.difference_update(row["kernels"])
            found["untimed"] = sorted(untimed)
            keep(found)
            print(f"{row['name']}: {1e6 * row['seconds']:.1f} us", file=sys.stderr, flush=True)
        for row in table.every_variant():
            found["variants"].append(row)
            keep(found)
    keep(found)
    return found


def model(path: Path, device: Device, *, prompt_tokens: int, chunk: int, tokens: int) -> Row:
    """Return the speeds of a prompt and of decoding, and the longest submission of each."""
    start = time.perf_counter()
    with Model.load(path, device=device) as loaded:
        load_seconds = time.perf_counter() - start
        ids = np.random.default_rng(0).integers(0, loaded.config.vocab_size, prompt_tokens).tolist()
        pieces = [ids[i : i + chunk] for i in range(0, prompt_tokens, chunk)]
        with loaded.session(max_seq=prompt_tokens + tokens + 8, chunk=chunk) as session:
            prompts = []
            for _ in range(3):  # the first one compiles what it uses
                session.rewind(0)
                longest = []
                start = time.perf_counter()
                for piece in pieces:
                    session.forward(piece, logits=None)
                    longest.append(session.device_time or 0.0)
                prompts.append((time.perf_counter() - start, max(longest)))
            for _ in session.generate(max_tokens=2, temperature=0.0, ignore_eos=True):
                pass
            start = time.perf_counter()
            steps = session.generate(max_tokens=tokens, temperature=0.0, ignore_eos=True)
            on_device = [session.device_time or 0.0 for _ in steps]
            seconds = time.perf_counter() - start
            stats = device.stats._asdict()
    best = min(prompts[1:])
    return {
        "model": path.name,
        "load_seconds": load_seconds,
        "chunk": chunk,
        "prompt_tokens": prompt_tokens,
        "first_prompt_seconds": prompts[0][0],
        "prompt_tokens_per_second": prompt_tokens / best[0],
        "longest_prompt_submission_seconds": max(longest for _, longest in prompts),
        "decode_tokens": tokens,
        "decode_tokens_per_second": tokens / seconds,
        "decode_device_seconds": statistics.median(on_device),
        "longest_decode_submission_seconds": max(on_device),
        "stats": stats,
    }


def written(found: Row, path: Path) -> None:
    """Write a result whole: whoever reads the file meanwhile finds this one or the last one."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(part, path)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in ("kernels", "variants", "model"):
        one = kinds.add_parser(kind)
        one.add_argument("--device", default=None)
        one.add_argument("--driver", help="a driver's library to load first")
        one.add_argument("--small", action="store_true", help="sizes that take seconds")
        one.add_argument("--out", type=Path, help="a file for the JSON, instead of stdout")
        if kind == "model":
            one.add_argument("file", type=Path)
            one.add_argument("--chunk", type=int, default=128)
            one.add_argument("--prompt-tokens", type=int, default=512)
            one.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    probes.use_defaults()
    if options.driver:
        metal.load_driver(options.driver)

    def keep(found: Row) -> None:
        if options.out:
            written(found, options.out)

    with Device(options.device) as device:
        if options.kind != "model":
            sizes, every = SMALL if options.small else Sizes(), options.kind == "kernels"
            found = kernels(device, sizes, keep, every=every)
        else:
            found = model(
                options.file,
                device,
                prompt_tokens=min(options.prompt_tokens, 32 if options.small else 1 << 30),
                chunk=options.chunk,
                tokens=min(options.tokens, 4 if options.small else 1 << 30),
            )
            keep(found)
    if not options.out:
        print(json.dumps(found, indent=1))
    if found.get("failed"):
        parser.exit(1, f"{len(found['failed'])} operations failed\n")


if __name__ == "__main__":
    main()
