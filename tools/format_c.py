"""Bring C, Objective-C, C++ and Metal sources into the style of .clang-format.

    python tools/format_c.py [--check] [FILE ...]

Without files all of shim/, shaders/, tests/ and examples/. ``--check`` changes nothing and fails
where a file would change. clang-format does not know ``.metal``: it reads those as C++.
"""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("shim", "shaders", "tests", "examples")
SUFFIXES = {".c", ".h", ".m", ".cpp", ".metal"}


def sources(root: Path) -> list[Path]:
    """Return all files below `root` that have a style."""
    found = [path for folder in FOLDERS for path in (root / folder).rglob("*")]
    return sorted(path for path in found if path.suffix in SUFFIXES)


def formatted(command: str, path: Path, text: str) -> str:
    """Return `text` in the style for `path`."""
    name = path.with_suffix(".cpp") if path.suffix == ".metal" else path
    arguments = [command, f"--assume-filename={name}"]
    return subprocess.run(arguments, input=text, capture_output=True, text=True, check=True).stdout


def clang_format() -> str:
    """Return the command, the one beside this interpreter first; exit where there is none."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    found = shutil.which("clang-format", path=os.pathsep.join(places))
    if found is None:
        raise SystemExit("no clang-format: pip install clang-format==19.1.7")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="print differences, change nothing")
    parser.add_argument("files", type=Path, nargs="*")
    options = parser.parse_args(arguments)
    command = clang_format()
    paths = options.files or sources(ROOT)
    texts = [path.read_text(encoding="utf-8") for path in paths]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        wanted = list(pool.map(partial(formatted, command), paths, texts))
    changed = 0
    for path, text, want in zip(paths, texts, wanted, strict=True):
        if text == want:
            continue
        changed += 1
        if options.check:
            before, after = (t.splitlines(keepends=True) for t in (text, want))
            sys.stdout.writelines(difflib.unified_diff(before, after, str(path), "formatted"))
        else:
            path.write_text(want, encoding="utf-8")
    print(f"{len(paths)} files, {changed} {'not in the style' if options.check else 'formatted'}")
    return 1 if options.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
