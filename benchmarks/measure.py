"""One measurement: warm-up, rounds for a given time, and the figures that come of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from oxibonsai.metal import DeviceInfo

SECONDS = 0.5
MIN_ROUNDS, MAX_ROUNDS = 5, 2000


class Meter:
    """Runs a function under pytest-benchmark and keeps what was moved in how much time."""

    def __init__(
        self, benchmark: Any, node: pytest.Item, info: DeviceInfo, bandwidth: float
    ) -> None:
        self.benchmark = benchmark
        self.name = node.name
        self.bandwidth = bandwidth
        self.more = ""
        self.done = False
        benchmark.extra_info.update(
            device=info.name,
            driver=info.driver,
            variant=info.variant,
            threads=info.threads,
            read_GBps=bandwidth / 1e9,
        )

    @property
    def median(self) -> float:
        """Seconds of one call."""
        return float(self.benchmark.stats.stats.median)

    def __call__(
        self,
        function: Callable[[], object],
        *,
        nbytes: int = 0,
        per_call: int = 1,
        warmup: int = 3,
        before: Callable[[], object] | None = None,
        against: float | None = None,
    ) -> None:
        """Measure `function`, which moves `nbytes`.

        `before` runs ahead of each call, outside the time. Where a call is too short for the clock,
        `per_call` calls make one round; times are those of one call. `against` is the bandwidth
        that the share is of, in bytes a second; the memory probe where left out.
        """
        for _ in range(warmup):
            if before:
                before()
            start = time.perf_counter()
            for _ in range(per_call):
                function()
            once = time.perf_counter() - start
        rounds = min(max(int(SECONDS / max(once, 1e-9)), MIN_ROUNDS), MAX_ROUNDS)

        def setup() -> None:
            if before:
                before()

        # pytest-benchmark allows one call a round where there is a setup.
        self.benchmark.pedantic(
            function,
            setup=setup if before else None,
            rounds=rounds,
            iterations=per_call,
        )
        self.done = True
        if nbytes:
            speed = nbytes / self.median
            self.add(nbytes=nbytes, GBps=speed / 1e9)
            self.add(share=speed / (against or self.bandwidth))

    def add(self, **figures: object) -> None:
        """Keep further figures beside the times."""
        self.benchmark.extra_info.update(figures)

    def per_second(self, what: str, count: float) -> None:
        """Keep and show a rate: `count` of `what` in one call."""
        self.add(**{f"{what}_per_s": count / self.median})
        self.more = f"{count / self.median:.1f} {what}/s"

    def row(self) -> tuple[str, str, str, str, str, str]:
        """Return name, fastest, median, GB/s, share and the rest as text."""
        extra = self.benchmark.extra_info
        speed = f"{extra['GBps']:.2f}" if "GBps" in extra else ""
        share = f"{extra['share']:.0%}" if "share" in extra else ""
        fastest = in_units(float(self.benchmark.stats.stats.min))
        return self.name, fastest, in_units(self.median), speed, share, self.more


def in_units(seconds: float) -> str:
    """Return a time with three digits or so and its unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return (
                f"{seconds / size:.3g} {unit}"
                if seconds < 100 * size
                else f"{seconds / size:.0f} {unit}"
            )
    return f"{seconds * 1e9:.0f} ns"
