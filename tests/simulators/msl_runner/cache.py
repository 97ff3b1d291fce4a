"""Where compiled things are kept, under names that say what they were made of."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import oxibonsai.msl

PACKAGE = Path(__file__).resolve().parent
FRONT_END = Path(oxibonsai.msl.__file__).parent


def folder() -> Path:
    """Give the folder, made on first use: $OXIBONSAI_CACHE_DIR or .cache of the checkout."""
    root = os.environ.get("OXIBONSAI_CACHE_DIR")
    path = (Path(root) if root else PACKAGE.parents[2] / ".cache") / "msl"
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()


def digest(*parts: object) -> str:
    """Hash anything that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


@cache
def sources_digest(*patterns: str) -> str:
    """Hash the runner's own files that match: a change makes anew what came from them."""
    files = sorted({p for pattern in patterns for p in PACKAGE.glob(pattern) if p.is_file()})
    return digest([(p.relative_to(PACKAGE).as_posix(), p.read_bytes().hex()) for p in files])


def runtime_digest() -> str:
    """Hash what the runtime and the standard library are made of."""
    return sources_digest("runtime/*", "include/*", "msl_runtime.h")


def package_digest() -> str:
    """Hash all that a compiled shader depends on."""
    front_end = [path.read_bytes().hex() for path in sorted(FRONT_END.glob("*.py"))]
    return sources_digest("*.py", "stubs/*") + runtime_digest() + digest(front_end)


@cache
def processor() -> str:
    """Hash what the processor can do: compiled code is for this machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return digest([line for line in lines if line.startswith(("flags", "Features"))][:1])


@contextmanager
def work_folder() -> Iterator[Path]:
    """Give a temporary folder in the cache, from where files move to their place by renaming."""
    with tempfile.TemporaryDirectory(dir=folder(), prefix="tmp-") as name:
        yield Path(name)
