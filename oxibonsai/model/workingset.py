"""The warning of memory that a device can give, but not all at once."""

from __future__ import annotations

import logging

from oxibonsai.metal import Device

__all__ = ["warn_of_working_set"]

_log = logging.getLogger("oxibonsai.model")


def warn_of_working_set(
    device: Device, nbytes: int, what: str, remedy: str, *, crossing: bool = False
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
    crossing : bool
        Whether to say nothing where the device is past it already: that was warned of.
    """
    if device.driver != "metal":
        return
    info, used = device.info, device.stats.allocated_bytes
    limit = info.recommended_working_set
    if nbytes + used <= limit or (crossing and used > limit):
        return
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
