"""Run the command line: ``python -m oxibonsai``, and the script ``oxibonsai``."""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["run"]

INTERRUPTED = 130


def run() -> int:
    """Run the command line as a process of its own and return its exit status.

    Ctrl-C ends it quietly at any time, also while modules are imported, and no file that is opened
    gets the number of a standard stream that is closed.

    Returns
    -------
    int
        As of ``oxibonsai.cli.main``.
    """
    # One that is ignored, as in the background of a shell, stays so.
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, _leave)
    _occupy_closed_streams()
    from oxibonsai.cli import main

    try:
        if interruptible:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return _settled(main())
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        if interruptible:
            signal.signal(signal.SIGINT, _leave)


def _settled(status: int) -> int:
    """Return the status, with nothing left to write: Python ends with 120 where that fails."""
    from oxibonsai.cli.terminal import settled

    written = [settled(stream) for stream in (sys.stdout, sys.stderr) if stream is not None]
    return status if all(written) else status or 1


def _leave(number: int, frame: object) -> None:
    """End without cleaning up: a module that is half imported could not."""
    os._exit(INTERRUPTED)


def _occupy_closed_streams() -> None:
    """Open the null device in place of standard streams that are closed.

    Python has None for them. It stays so for the first two, of which the command has to know.
    """
    for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if stream is None:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            if opened != number:
                os.close(opened)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # open until the process ends


if __name__ == "__main__":
    sys.exit(run())
