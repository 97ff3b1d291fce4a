"""An iterator that waits for the device, as an asynchronous one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_thread"]

_T = TypeVar("_T")
_END = object()


async def in_thread(iterator: Iterator[_T], stepping: threading.Lock) -> AsyncIterator[_T]:
    """Yield what `iterator` yields, each step of it run in a thread of its own.

    `stepping` is held from the call of a step until its task goes on: RuntimeError where another
    task holds it. Where the task is cancelled, the step that runs is waited for in the thread, and
    then the iterator is closed there: it is never used by two threads at a time.
    """
    loop = asyncio.get_running_loop()
    # One thread: what is handed to it runs in order.
    pool = ThreadPoolExecutor(1, thread_name_prefix="oxibonsai")
    holds = False
    try:
        while True:
            if not stepping.acquire(blocking=False):
                raise RuntimeError(
                    "the session is in use: a step of another agenerate() runs on it; wait for the "
                    "end of that one, or take a session for each task: model.session()"
                )
            holds = True
            item = await loop.run_in_executor(pool, next, iterator, _END)
            holds = False
            stepping.release()
            if item is _END:
                return
            yield item  # type: ignore[misc]  # not _END: the iterator's own
    finally:
        closed = pool.submit(iterator.close if isinstance(iterator, Generator) else _nothing)
        if holds:  # behind the step, which may still run
            closed.add_done_callback(lambda _: stepping.release())
        await loop.run_in_executor(None, pool.shutdown)


def _nothing() -> None:
    pass
