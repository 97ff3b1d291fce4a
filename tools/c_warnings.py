"""Compile every C file with gcc and with clang, where any warning is an error.

Each of the two warns of what the other does not see. Optimised, because some warnings come from
the analysis of what is optimised; the objects are thrown away. A Mac has clang under both names.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from c_flags import C_WARNINGS  # noqa: E402

FLAGS = ["-std=c11", "-O2", "-D_GNU_SOURCE", *C_WARNINGS]
FLAGS += ["-I", str(ROOT / "shim" / "include"), "-I", str(ROOT / "shim")]
# By name; the first that is installed. clang-19 comes with the simulated Metal.
COMPILERS = {"gcc": ("gcc",), "clang": ("clang-19", "clang")}


def sources() -> list[Path]:
    """Return the C files of the shim and those of the drivers that tests load."""
    simulators = ROOT / "tests" / "simulators"
    return sorted([*(ROOT / "shim").rglob("*.c"), *simulators.glob("*_driver/*.c")])


def compilers() -> dict[str, str]:
    """Return the command of each compiler; exit where one is missing."""
    found = {name: next(filter(None, map(shutil.which, of)), "") for name, of in COMPILERS.items()}
    missing = [name for name, command in found.items() if not command]
    if missing:
        raise SystemExit(f"not installed: {', '.join(missing)} (apt-get install gcc clang-19)")
    return found


def warnings(command: str, path: Path) -> str:
    """Return what a compiler says of a file, nothing where it is content."""
    with tempfile.TemporaryDirectory(prefix="oxibonsai-warnings-") as folder:
        arguments = [command, *FLAGS, "-c", str(path), "-o", str(Path(folder, "warnings.o"))]
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    return done.stderr or ("" if done.returncode == 0 else f"{path}: status {done.returncode}\n")


def main() -> int:
    """Run from the command line."""
    paths = sources()
    if not paths:
        raise SystemExit(f"no C files under {ROOT}")
    failed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, command in compilers().items():
            texts = list(pool.map(lambda path, by=command: warnings(by, path), paths))
            sys.stderr.writelines(texts)
            bad = sum(map(bool, texts))
            print(f"{name}: {len(paths)} files, {bad} with warnings")
            failed += bad
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
