"""Run tests against a build of the extension modules with gcc's sanitizers.

``address``  AddressSanitizer and UndefinedBehaviorSanitizer, the fast tests.
``thread``   ThreadSanitizer, the tests marked ``threads``.

The tree is copied and compiled in a scratch folder; the interpreter itself is an ordinary one, so
the sanitizer's runtime is preloaded. Further arguments go to pytest. Linux with gcc only.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_COPIED = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "__pycache__")
ADDR_NO_RANDOMIZE = 0x0040000


@dataclass(frozen=True)
class Kind:
    flags: str
    runtime: str
    select: str
    options: dict[str, str]


KINDS = {
    "address": Kind(
        flags="-fsanitize=address,undefined -fno-sanitize-recover=all",
        runtime="libasan.so",
        select="not slow and not peer and not timing and not simulated",
        # Leaks are counted by the tests through the device's own numbers; the interpreter itself
        # keeps memory until the end of the process.
        options={
            "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
    ),
    "thread": Kind(
        flags="-fsanitize=thread",
        runtime="libtsan.so",
        select="threads and not slow and not peer and not timing and not simulated",
        # Only accesses of our own code count; locks taken by the interpreter still do.
        options={"TSAN_OPTIONS": "ignore_noninstrumented_modules=1:halt_on_error=1:exitcode=66"},
    ),
}


def runtime(name: str) -> str:
    """Return the path of gcc's sanitizer library `name`."""
    path = subprocess.run(
        ["gcc", f"-print-file-name={name}"], check=True, capture_output=True, text=True
    ).stdout.strip()
    if not Path(path).is_absolute():
        raise SystemExit(f"gcc has no {name}: install the system's sanitizer runtime for gcc")
    return str(Path(path).resolve())


def build(tree: Path, flags: str) -> None:
    shutil.copytree(ROOT, tree, ignore=NOT_COPIED, dirs_exist_ok=True)
    environment = os.environ | {
        "CC": "gcc",
        "OXIBONSAI_CFLAGS": f"{flags} -O1 -g -fno-omit-frame-pointer",
        "OXIBONSAI_LDFLAGS": flags,
    }
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", "--force"]
    subprocess.run(command, cwd=tree, env=environment, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    arguments, pytest_arguments = parser.parse_known_args()
    kind = KINDS[arguments.kind]
    with tempfile.TemporaryDirectory(prefix="oxibonsai-sanitize-") as scratch:
        tree = Path(scratch)
        build(tree, kind.flags)
        environment = os.environ | kind.options
        environment |= {
            "LD_PRELOAD": runtime(kind.runtime),
            "PYTHONPATH": scratch,
            "PYTHONMALLOC": "malloc",
            "OXIBONSAI_SANITIZER": arguments.kind,
        }
        # The thread sanitizer's fixed address layout fails under strong randomisation.
        ctypes.CDLL(None).personality(ADDR_NO_RANDOMIZE)
        # Captured at sys only: the report of a sanitizer that ends the process stays visible.
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--capture=sys"]
        command += ["-m", kind.select, *pytest_arguments]
        return subprocess.run(command, cwd=tree, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
