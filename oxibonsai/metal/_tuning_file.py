"""The tuner's choices in the user's cache: $XDG_CACHE_HOME or ~/.cache, there oxibonsai/tuning.

A file is for the devices of one name. It holds what its choices were measured with; where that is
not what is here, or the file is not this user's alone, nothing of it is taken: a choice changes no
result, but others have no business in choosing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from oxibonsai.metal import _core
from oxibonsai.metal._core import ChosenVariant, DeviceInfo

__all__ = ["keep", "load"]

_log = logging.getLogger("oxibonsai.metal")

_FORMAT = "oxibonsai tuning 1"
_MOST_BYTES = 1 << 20
_ENVIRONMENT = "OXIBONSAI_TUNING"
_NVIDIA = Path("/proc/driver/nvidia/version")


class _UnfitError(Exception):
    """A file that is not taken, with the reason."""


def load(device: DeviceInfo) -> list[ChosenVariant]:
    """Return the choices that are kept for a device; none, with a warning, for an unfit file."""
    if os.environ.get(_ENVIRONMENT) == "0":
        return []
    try:
        kept = _read(device)
    except _UnfitError as error:
        _log.warning("the tuner's file %s is ignored: %s", _path(device), error)
        return []
    if kept is None or kept[0] == _key(device):
        return kept[1] if kept else []
    _log.info("the tuner's file %s is of another driver or package: tune again", _path(device))
    return []


def keep(
    device: DeviceInfo, measured: Iterable[ChosenVariant], choices: Iterable[ChosenVariant]
) -> str | None:
    """Add choices to those that are kept, without those of other products that were measured.

    Returns
    -------
    str or None
        The file; None, with a warning, where it cannot be written.
    """
    try:
        kept = _read(device)
    except _UnfitError:
        kept = None
    old = kept[1] if kept is not None and kept[0] == _key(device) else []
    again = {product.product for product in measured}
    new = [*(choice for choice in old if choice.product not in again), *choices]
    text = {"format": _FORMAT, "key": _key(device), "variants": [c._asdict() for c in new]}
    try:
        return _write(_path(device), json.dumps(text, indent=1).encode())
    except (OSError, _UnfitError) as error:
        _log.warning("the tuner's choices are not kept: %s", error)
        return None


def _path(device: DeviceInfo) -> Path | None:
    """Return the file of a device; None where there is no place for it."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    if not root.startswith("/"):
        home = os.environ.get("HOME", "")
        if not home.startswith("/"):
            return None
        root = os.path.join(home, ".cache")
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"{device.driver}-{device.name}").strip("-")
    return Path(root, "oxibonsai", "tuning", f"{name}.json")


def _key(device: DeviceInfo) -> dict[str, str]:
    """Return what a measured time depends on besides the product."""
    return {
        "driver": device.driver,
        "name": device.name,
        "kernels": device.variant,
        "system": _system(device.driver),
        "package": _package(),
    }


def _system(driver: str) -> str:
    """Return the build of what compiles and runs kernels: the maker's driver, or the system."""
    if sys.platform == "darwin":
        return os.uname().version
    if driver == "cuda":
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return _NVIDIA.read_text().partition("\n")[0].strip()
    return ""


def _package() -> str:
    """Return the digest of the module that holds the kernels and their tiles."""
    with open(_core.__file__, "rb") as module:
        return hashlib.sha256(module.read()).hexdigest()


def _is_ours(info: os.stat_result) -> bool:
    return info.st_uid == os.geteuid() and not info.st_mode & 0o022


def _read(device: DeviceInfo) -> tuple[Any, list[ChosenVariant]] | None:
    """Return the key and the choices of a device's file; None where there is none."""
    path = _path(device)
    if path is None:
        return None
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode) or not _is_ours(info):
                raise _UnfitError("others may write it")
            if not all(_is_ours(os.stat(folder)) for folder in (path.parent, path.parents[1])):
                raise _UnfitError("others may write its folder")
            text = file.read(_MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _UnfitError(error.strerror or str(error)) from None
    return _parsed(text)


def _parsed(text: bytes) -> tuple[Any, list[ChosenVariant]]:
    try:
        found = json.loads(text)
        if found["format"] != _FORMAT:
            raise _UnfitError(f"it is no {_FORMAT!r}")
        choices = [ChosenVariant(**row) for row in found["variants"]]
        key = found["key"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _UnfitError("it is damaged") from None
    for choice in choices:
        numbers = (choice.n_rows, choice.k, choice.n_vectors)
        texts = (choice.op, choice.device_format, choice.name)
        texts_are_texts = all(isinstance(text, str) for text in texts)
        if not texts_are_texts or not all(type(n) is int and n > 0 for n in numbers):
            raise _UnfitError("it is damaged")
    return key, choices


def _write(path: Path | None, text: bytes) -> str:
    """Replace the file as a whole; what it is in is made for this user alone."""
    if path is None:
        raise _UnfitError("neither XDG_CACHE_HOME nor HOME is a path")
    path.parents[2].mkdir(parents=True, exist_ok=True)
    for folder in (path.parents[1], path.parent):
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or not _is_ours(os.stat(folder)):
            raise _UnfitError(f"others may write the folder {folder}")
    temporary = path.with_name(f"new-{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with open(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(text)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return str(path)
