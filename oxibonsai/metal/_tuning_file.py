"""The tuner's choices in the user's cache: $XDG_CACHE_HOME or ~/.cache, there oxibonsai/tuning.

A file is for the devices of one name. It holds what its choices were measured with; where that is
not what is here, or the file is not this user's alone, nothing of it is taken: a choice changes
results within rounding only, but others have no business in choosing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from oxibonsai.metal import _core
from oxibonsai.metal._core import ChosenVariant, DeviceInfo

__all__ = ["keep", "load", "of_class"]

_log = logging.getLogger("oxibonsai.metal")

_FORMAT = "oxibonsai tuning 1"
_MOST_BYTES = 1 << 20
_ENVIRONMENT = "OXIBONSAI_TUNING"
_NVIDIA = Path("/proc/driver/nvidia/version")
_LOCK = "lock"
_NAME = re.compile(r"[a-z0-9_-]{1,64}")
"""Of ops, formats and variants: a file has no other text for a terminal, or for C."""


class _UnfitError(Exception):
    """A file that is not taken, with the reason."""


def of_class(product: ChosenVariant) -> ChosenVariant:
    """Return the product without a name, by the most vectors that a choice for it holds for."""
    return product._replace(name="", n_vectors=1 << (product.n_vectors - 1).bit_length())


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
    path = _path(device)
    try:
        if path is None:
            raise _UnfitError("neither XDG_CACHE_HOME nor HOME is a path")
        with _folder(path, make=True) as folder, _locked(folder):
            new = [*_others(device, folder, path.name, measured), *map(_rounded, choices)]
            text = {"format": _FORMAT, "key": _key(device), "variants": [c._asdict() for c in new]}
            _write(folder, path.name, json.dumps(text, indent=1).encode())
    except (OSError, _UnfitError) as error:
        _log.warning("the tuner's choices are not kept: %s", error)
        return None
    if os.environ.get(_ENVIRONMENT) == "0":
        _log.warning("%s=0: what is kept in %s is not taken", _ENVIRONMENT, path)
    return str(path)


def _rounded(choice: ChosenVariant) -> ChosenVariant:
    return of_class(choice)._replace(name=choice.name)


def _others(
    device: DeviceInfo, folder: int, name: str, measured: Iterable[ChosenVariant]
) -> list[ChosenVariant]:
    """Return the choices of a file that are of other products than those measured."""
    try:
        kept = _read_file(folder, name)
    except _UnfitError:
        kept = None
    again = {of_class(product) for product in measured}
    old = kept[1] if kept is not None and kept[0] == _key(device) else []
    return [choice for choice in old if of_class(choice) not in again]


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
        "compiler": device.compiler,
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


def _check(info: os.stat_result, what: str, *, folder: bool) -> None:
    """Refuse what is of another kind, or not this user's alone."""
    if stat.S_ISLNK(info.st_mode):
        raise _UnfitError(f"{what} is a symbolic link")
    if not (stat.S_ISDIR if folder else stat.S_ISREG)(info.st_mode):
        raise _UnfitError(f"{what} is no {'folder' if folder else 'file'}")
    if info.st_uid != os.geteuid():
        raise _UnfitError(f"{what} is another user's")
    if info.st_mode & 0o022:
        raise _UnfitError(f"others may write {what}")


@contextmanager
def _opened(
    at: int | None, name: str | Path, flags: int, what: str = "", *, folder: bool = False
) -> Iterator[int]:
    """Open a file or a folder below another; where it has a name to be told by, it is checked."""
    if folder:
        flags |= os.O_DIRECTORY
    try:
        descriptor = os.open(name, flags | os.O_CLOEXEC, 0o600, dir_fd=at)
    except OSError as error:
        if what and error.errno in (errno.ELOOP, errno.ENOTDIR):
            _check(os.stat(name, dir_fd=at, follow_symlinks=False), what, folder=folder)
        raise
    try:
        if what:
            _check(os.fstat(descriptor), what, folder=folder)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _folder(path: Path, *, make: bool) -> Iterator[int]:
    """Open the folder of a file; the two below the user's cache must be this user's alone.

    Each is opened in the one before, so that none can be replaced between its check and its use.
    """
    cache = path.parents[2]
    if make:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        at = stack.enter_context(_opened(None, cache, os.O_RDONLY, folder=True))
        for place in (path.parents[1], path.parent):
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(place.name, 0o700, dir_fd=at)
            flags, what = os.O_RDONLY | os.O_NOFOLLOW, f"the folder {place}"
            at = stack.enter_context(_opened(at, place.name, flags, what, folder=True))
        yield at


@contextmanager
def _locked(folder: int) -> Iterator[None]:
    """Keep other processes and threads out that add to what is kept."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    with _opened(folder, _LOCK, flags, "its lock") as lock:
        with contextlib.suppress(OSError):  # some file systems have no locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(device: DeviceInfo) -> tuple[Any, list[ChosenVariant]] | None:
    """Return the key and the choices of a device's file; None where there is none."""
    path = _path(device)
    if path is None:
        return None
    try:
        with _folder(path, make=False) as folder:
            return _read_file(folder, path.name)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _UnfitError(error.strerror or str(error)) from None


def _read_file(folder: int, name: str) -> tuple[Any, list[ChosenVariant]] | None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        with (
            _opened(folder, name, flags, "it") as descriptor,
            open(descriptor, "rb", closefd=False) as file,
        ):
            return _parsed(file.read(_MOST_BYTES))
    except FileNotFoundError:
        return None


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
        texts: tuple[object, ...] = (choice.op, choice.device_format, choice.name)
        if not all(isinstance(text, str) and _NAME.fullmatch(text) for text in texts):
            raise _UnfitError("it is damaged")
        if not all(type(n) is int and n > 0 for n in (choice.n_rows, choice.k, choice.n_vectors)):
            raise _UnfitError("it is damaged")
    return key, [_rounded(choice) for choice in choices]


def _write(folder: int, name: str, text: bytes) -> None:
    """Replace the file as a whole; it is made for this user alone."""
    temporary = f"new-{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with (
            _opened(folder, temporary, flags) as descriptor,
            open(descriptor, "wb", closefd=False) as file,
        ):
            file.write(text)
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
