"""Every misuse of a dispatch, for any device: what is done, and what the error says.

The front checks a dispatch, not the drivers, so that the type of the error and the core of its text
are the same on all devices. `residual_add` is the kernel: two buffers and a struct of 16 bytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from oxibonsai import metal, quant
from oxibonsai.metal import EncodingError

ARGS = struct.pack("<QQ", 8, 0)  # struct oxb_add_args: n


class Stage:
    """A device with what a dispatch takes, and another device of the same driver with the same."""

    def __init__(self, name: str) -> None:
        self.stack = ExitStack()
        try:
            self.device = self.stack.enter_context(metal.Device(name))
            other = self.stack.enter_context(metal.Device(name))
            self.x, self.y = (self.buffer(64) for _ in range(2))
            self.tiny = self.buffer(2)
            frozen = np.zeros(80, np.uint8)
            frozen = frozen[-frozen.ctypes.data % 16 :][:64]
            frozen.flags.writeable = False
            self.frozen = self.stack.enter_context(self.device.upload(frozen, copy=False))
            self.foreign = self.stack.enter_context(other.buffer(64))
            self.pipeline = self.make_pipeline(self.device, "residual_add")
            self.foreign_pipeline = self.make_pipeline(other, "residual_add")
            self.commands = self.stack.enter_context(self.device.commands())
        except BaseException:
            self.stack.close()
            raise

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stack.close()

    def buffer(self, nbytes: int) -> metal.Buffer:
        return self.stack.enter_context(self.device.buffer(nbytes))

    def make_pipeline(self, device: metal.Device, function: str) -> metal.Pipeline:
        pipeline = device.pipeline(function)
        self.stack.callback(pipeline.close)
        return pipeline

    def dispatch(
        self,
        bindings: Sequence[Any] | None = None,
        args: bytes = ARGS,
        *,
        pipeline: metal.Pipeline | None = None,
        threadgroups: Any = 1,
        threads: Any = 1,
        memory: int = 0,
    ) -> None:
        self.commands.dispatch(
            pipeline or self.pipeline,
            (self.x, self.y) if bindings is None else bindings,
            args,
            threadgroups=threadgroups,
            threads=threads,
            threadgroup_memory=memory,
        )

    def gemv(self, n_rows: int) -> None:
        q = quant.quantize(np.ones((4, 128), np.float32), "Q1_0")
        with metal.MetalGraph(self.device) as graph, graph.upload_q1_weight_soa(q) as weight:
            self.commands.gemv(weight, self.buffer(512), self.y, n_rows, 128)

    def sealed(self) -> None:
        self.dispatch()
        self.commands.replay()
        try:
            self.dispatch()
        finally:
            self.commands.reset()


@dataclass(frozen=True)
class Misuse:
    """`drivers` are those that can know; None stands for all. `submits` is how often it submits
    what is right before it does what is wrong."""

    name: str
    text: str  # regular expression
    call: Callable[[Stage], object]
    drivers: tuple[str, ...] | None = None
    submits: int = 0

    def applies(self, driver: str) -> bool:
        return self.drivers is None or driver in self.drivers


# Metal says of an argument how long one value is, not whether it is one or an array.
KNOWS_THE_STRUCT = ("cpu", "cuda", "fault")
KNOWS_THE_BYTES = ("cpu", "fault")
LIMITS_THE_GRID = ("cuda", "fault")

MISUSES = [
    # What is bound
    Misuse("no bindings", r"its buffer\(0\) is not bound", lambda s: s.dispatch((), b"")),
    Misuse("a buffer too few", r"it writes buffer\(1\), .* struct", lambda s: s.dispatch((s.x,))),
    Misuse(
        "a buffer too many",
        r"its buffer\(2\), the constant reference .* by value|it has no buffer\(3\)",
        lambda s: s.dispatch((s.x, s.y, s.y)),
    ),
    Misuse("no struct", r"its buffer\(2\) is not bound", lambda s: s.dispatch(args=b"")),
    Misuse(
        "a short struct",
        r"buffer\(2\) has 12 bytes bound and needs 16",
        lambda s: s.dispatch(args=ARGS[:12]),
    ),
    Misuse(
        "a long struct",
        r"buffer\(2\) has 24 bytes bound and takes 16 exactly .* not 2 and 24",
        lambda s: s.dispatch(args=ARGS + bytes(8)),
        KNOWS_THE_STRUCT,
    ),
    Misuse(
        "a struct over the limit",
        "an argument struct of 4097 bytes: at most 4096",
        lambda s: s.dispatch(args=bytes(4097)),
    ),
    Misuse(
        "a struct of nonsense",
        "describe no matrix or shape that it can run|needs",
        lambda s: s.dispatch(args=struct.pack("<QQ", 2**63, 0)),
        KNOWS_THE_BYTES,
    ),
    Misuse(
        "31 buffers and a struct",
        "31 buffers and an argument struct: at most 31 bindings",
        lambda s: s.dispatch([s.x] * 31),
    ),
    Misuse("32 buffers", "32 buffers: at most 31", lambda s: s.dispatch([s.x] * 32, b"")),
    Misuse(
        "a buffer of another device",
        "the buffer of binding 1 belongs to another device",
        lambda s: s.dispatch((s.x, s.foreign)),
    ),
    Misuse(
        "a pipeline of another device",
        "the pipeline belongs to another device",
        lambda s: s.dispatch(pipeline=s.foreign_pipeline),
    ),
    Misuse(
        "an offset at the end",
        "binding 1 starts at byte 64 of a buffer of 64 bytes",
        lambda s: s.dispatch((s.x, (s.y, 64))),
    ),
    Misuse(
        "an offset past the end",
        "binding 0 starts at byte 9223372036854775807",
        lambda s: s.dispatch(((s.x, 2**63 - 1), s.y)),
    ),
    Misuse(
        "an offset off the type",
        r"buffer\(0\) starts at byte 2, which is not a multiple of 4",
        lambda s: s.dispatch(((s.x, 2), s.y)),
    ),
    Misuse(
        "an offset off the type in wrapped memory",
        r"buffer\(0\) starts at byte \d+( of its first page)?, which is not a multiple of 4",
        lambda s: s.dispatch(((s.frozen, 2), s.y)),
    ),
    Misuse("a buffer shorter than its type", "needs", lambda s: s.dispatch((s.x, s.tiny))),
    Misuse(
        "a buffer shorter than its struct says",
        "binding 0 needs 68 bytes, and there are 64 from offset 0",
        lambda s: s.dispatch(args=struct.pack("<QQ", 17, 0)),
        KNOWS_THE_BYTES,
    ),
    Misuse(
        "memory that may only be read",
        "writes binding 1, a buffer over read-only memory",
        lambda s: s.dispatch((s.x, s.frozen)),
    ),
    # Sizes
    *(
        Misuse(
            f"an empty grid of {what} = {size}",
            "empty grid",
            lambda s, what=what, size=size: s.dispatch(**{what: size}),
        )
        for what in ("threadgroups", "threads")
        for size in (0, (1, 0), (1, 1, 0))
    ),
    Misuse(
        "too many threads",
        r"threads: at most \d+ are allowed",
        lambda s: s.dispatch(threads=s.pipeline.info.max_threads + 1),
    ),
    Misuse(
        "too many threads, whose product wraps",
        r"threads: at most \d+ are allowed",
        lambda s: s.dispatch(threads=(65536, 65536)),
    ),
    Misuse(
        "too many threads in one direction",
        r"1 x 1 x 65 threads, at most \d+ x \d+ x 64 are allowed",
        lambda s: s.dispatch(threads=(1, 1, 65)),
        LIMITS_THE_GRID,
    ),
    Misuse(
        "too many threadgroups in one direction",
        r"a grid of 1 x 65536 x 1 threadgroups, at most \d+ x 65535 x 65535 are allowed",
        lambda s: s.dispatch(threadgroups=(1, 65536)),
        LIMITS_THE_GRID,
    ),
    Misuse(
        "too much threadgroup memory",
        r"bytes of threadgroup memory: at most \d+ are allowed",
        lambda s: s.dispatch(memory=2**30),
    ),
    Misuse(
        "threadgroup memory for a kernel without",
        r"takes no threadgroup\(0\): leave it 0|16 bytes of threadgroup memory: at most 0 are",
        lambda s: s.dispatch(memory=16),
    ),
    # The recording
    Misuse("an empty recording", "cannot submit empty commands", lambda s: s.commands.submit()),
    Misuse("a sealed recording", "are sealed: reset them first", Stage.sealed, submits=1),
    # Ops
    Misuse("an op short of memory", "output too short", lambda s: s.commands.add(s.x, s.tiny, 8)),
    Misuse(
        "an op that writes read-only memory",
        r"writes binding 1 \(output\), a buffer over read-only memory",
        lambda s: s.commands.add(s.x, s.frozen, 8),
    ),
    Misuse(
        "an op on another device's buffer",
        r"the buffer of binding 1 \(output\) belongs to another device",
        lambda s: s.commands.add(s.x, s.foreign, 8),
    ),
    Misuse("an op off its alignment", "multiples of 4", lambda s: s.commands.add((s.x, 2), s.y, 8)),
    Misuse("an op of another shape", "5 x 128", lambda s: s.gemv(5)),
]
BY_NAME = {misuse.name: misuse for misuse in MISUSES}


def refused(stage: Stage, misuse: Misuse) -> str:
    """Do what is wrong; return the error's text. Nothing may be recorded by it."""
    before = len(stage.commands)
    text = "nothing was refused"
    try:
        misuse.call(stage)
    except EncodingError as error:
        text = str(error)
    assert re.search(misuse.text, text), f"{misuse.name}: {text}"
    assert len(stage.commands) == before, misuse.name
    return text


def refuse_all(name: str) -> int:
    """Try every misuse on a device; return how many there were."""
    with Stage(name) as stage:
        tried = [misuse for misuse in MISUSES if misuse.applies(stage.device.driver)]
        for misuse in tried:
            refused(stage, misuse)
        stage.dispatch()  # what is right still runs
        stage.commands.replay()
    return len(tried)
