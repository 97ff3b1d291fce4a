"""One use at a time: what a chat's threads and callbacks must not do at once."""

from __future__ import annotations

import threading
from inspect import currentframe
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType, TracebackType

__all__ = ["Guard"]


class Guard:
    """Lets one call in at a time, as a context manager, and waits for none.

    Raises
    ------
    RuntimeError
        On entering, while another thread or a callback's own caller is inside.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._user: FrameType | None = None  # the call that is inside

    def __enter__(self) -> None:
        if not self.enter():
            # Only this thread could have set its own number, so that this read needs no lock.
            if self._owner == threading.get_ident():
                raise RuntimeError(
                    "an answer is being given: callbacks must not use the chat meanwhile"
                )
            raise RuntimeError("the chat is in use by another thread: one at a time may use it")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.leave()

    def enter(self) -> bool:
        """Go inside, and return whether nobody was; leave() has to follow then."""
        try:
            if not self._lock.acquire(blocking=False) and not self._is_forgotten():
                return False
            self._owner = threading.get_ident()
        except BaseException:
            if self._owner is None and self._lock.locked():
                self._lock.release()
            raise
        frame = currentframe()
        while frame is not None and frame.f_globals is globals():
            frame = frame.f_back
        self._user = frame
        return True

    def leave(self) -> None:
        """Let the next one in."""
        self._user = self._owner = None
        self._lock.release()

    def _is_forgotten(self) -> bool:
        """Whether Ctrl-C came just where a call of this thread went in or out."""
        if self._owner != threading.get_ident():
            return False
        frame = currentframe()
        while frame is not None and frame is not self._user:
            frame = frame.f_back
        return frame is None
