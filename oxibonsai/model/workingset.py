"""The warning of memory that a device can give, but not all at once."""

from __future__ import annotations

import logging
import weakref

from oxibonsai.metal import Device

__all__ = ["warn_of_working_set"]

_log = logging.getLogger("oxibonsai.model")
_warned: weakref.WeakSet[Device] = weakref.WeakSet()  # since they went past


def warn_of_working_set(
    device: Device,
    nbytes: int,
    what: str,
    remedy: str,
    *,
    replaced: int = 0,
    crossing: bool = False,
) -> None:
    """Log a warning where nbytes more go past what Metal recommends to use at a time.

    Past it macOS pages, so that each step can take seconds, or ends command buffers. Other devices
    give the memory that they have, and refuse what does not fit.

    Parameters
    ----------
    device : Device
        Where the memory is taken.
    nbytes : int
        What is about to be taken, beside what the device has allocated.
    what : str
        What takes it.
    remedy : str
        What takes less.
    replaced : int
        Bytes that the device has allocated and that are released once the new ones are filled.
    crossing : bool
        Whether to say nothing where a warning was given since the device went past it.
    """
    if device.driver != "metal":
        return
    info, allocated = device.info, device.stats.allocated_bytes
    limit = info.recommended_working_set
    if allocated <= limit:
        _warned.discard(device)
    used = allocated - replaced
    if nbytes + used <= limit or (crossing and device in _warned):
        return
    _warned.add(device)
    _log.warning(
        "%s %s, and %s are in use: %s (%s:%d) recommends no more than %s, past which steps are "
        "slow or fail; use %s",
        what,
        _size(nbytes),
        _size(used),
        info.name,
        info.driver,
        info.index,
        _size(limit),
        remedy,
    )


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
