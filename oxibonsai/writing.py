"""Files that are written whole: an existing one is replaced only once the new one is complete."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, Final

__all__ = ["written_whole"]

# Names of what is open already; a rename would part the name from it.
_OPEN: Final = ("/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/")

# Of a write that fails, which the system gives no name.
_OF_WRITING: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file to be written in the body of a with statement.

    A link is followed and stays a link. What is no regular file, such as a pipe or ``/dev/stdout``,
    is written into. The mode of an existing file stays.

    Parameters
    ----------
    path : str or path-like
        Where it goes.

    Yields
    ------
    binary file
        To be written; an exception in the body leaves a regular file at `path` as it was.

    Raises
    ------
    OSError
        If it cannot be written; it names `path`. An existing file is replaced as a whole, for
        which its folder has to be writable.
    """
    name = os.fsdecode(path)
    if not name:
        raise FileNotFoundError(errno.ENOENT, "a file to write to needs a name", name)
    try:
        mode = os.stat(name).st_mode
    except FileNotFoundError:
        mode = None
        if not os.path.basename(name):
            raise IsADirectoryError(errno.EISDIR, "a folder is no file to write to", name) from None
    if mode is not None and (not stat.S_ISREG(mode) or os.path.abspath(name).startswith(_OPEN)):
        with open(name, "wb") as file:
            yield file
        return
    target = os.path.realpath(name)
    # In the same folder: a rename is atomic only within one file system.
    folder, last = os.path.split(target)
    start = os.fsdecode(os.fsencode(last)[:200])
    part = os.path.join(folder, f".{start}.{secrets.token_hex(4)}.part")
    try:
        handle = os.open(
            part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666
        )
    except OSError as e:
        why = e.strerror
        if mode is not None and e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            why = f"{why}: a new file replaces it, for which its folder {folder} is read-only"
        raise OSError(e.errno, why, name) from None
    try:
        with open(handle, "wb") as file:
            if mode is not None:
                os.fchmod(handle, stat.S_IMODE(mode))
            yield file
            file.flush()
            os.fsync(handle)
        os.replace(part, target)
    except BaseException as e:
        with suppress(FileNotFoundError):
            os.unlink(part)
        if isinstance(e, OSError) and (
            e.filename == part or (e.filename is None and e.errno in _OF_WRITING)
        ):
            # It names the temporary file, or none.
            raise OSError(e.errno, e.strerror, name) from None
        raise
