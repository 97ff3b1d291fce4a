"""An iterator that waits for the device, as an asynchronous one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_thread"]

_T = TypeVar("_T")
_END = object()


async def in_thread(iterator: Iterator[_T]) -> AsyncIterator[_T]:
    """Yield what `iterator` yields, each step of it run in a thread of its own.

    Where the task is cancelled, the step that runs is waited for in the thread, and then the
    iterator is closed there: it is never used by two threads at a time.
    """
    loop = asyncio.get_running_loop()
    # One thread: what is handed to it runs in order.
    pool = ThreadPoolExecutor(1, thread_name_prefix="oxibonsai")
    try:
        while True:
            item = await loop.run_in_executor(pool, next, iterator, _END)
            if item is _END:
                return
            yield item  # type: ignore[misc]  # not _END: the iterator's own
    finally:
        if isinstance(iterator, Generator):
            pool.submit(iterator.close)
        await loop.run_in_executor(None, pool.shutdown)
