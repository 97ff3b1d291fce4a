"""Where conversations are saved: what can be known of a place before anything is lost."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

__all__ = ["check_place", "path_of"]


def path_of(name: str) -> Path:
    """Return the path that somebody typed, whatever the encoding of the locale.

    Parameters
    ----------
    name : str
        The name, whose bytes are those of UTF-8.

    Returns
    -------
    Path
        The path.
    """
    return Path(os.fsdecode(name.encode("utf-8", "surrogateescape")))


def check_place(path: Path, *, read: bool) -> None:
    """Raise unless a conversation can be saved at a path.

    Parameters
    ----------
    path : Path
        As the user gave it.
    read : bool
        Whether it is read as well, so that it has to be a regular file.

    Raises
    ------
    OSError
        If it cannot; the error has the path.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None:
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "a conversation needs a file, not a directory",
                                    str(path))  # fmt: skip
        if not stat.S_ISREG(mode):
            if read or not stat.S_ISCHR(mode):
                raise OSError(errno.EINVAL, "a conversation needs a regular file", str(path))
            return
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, f"No such file or directory: there is no folder {folder}", str(path)
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"nothing can be written in {folder}", str(path))
