"""The metallib: kernels compiled by Apple's offline compiler when the package is built.

It is made on request only. Without one the driver compiles the same sources when a kernel is first
used, by the compiler of the system it runs on.

    python tools/metallib.py FILE       makes one by itself, to see which shaders are refused
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path

XCRUN = ("xcrun", "-sdk", "macosx")
METAL = ("metal", "-std=macos-metal2.4", "-fno-fast-math")
HELP = (
    "Xcode has it (the command line tools alone do not); from Xcode 26 on it is a download of its "
    "own: xcodebuild -downloadComponent MetalToolchain"
)
# What xcrun and Xcode's place holder for the tool print where there is none. The first stands also
# before an invalid active developer path, as after an update of macOS.
MISSING = ("xcrun: error", "missing Metal Toolchain", "not a developer tool")
LICENCE = ("Xcode license", "Xcode/iOS license")
ACCEPT = "nobody has agreed to Xcode's licence: sudo xcodebuild -license accept"


class Wish(Enum):
    """Whether a build makes a metallib, and whether it may go on without."""

    NONE = "none"
    TRY = "try"
    REQUIRE = "require"


class MetallibError(Exception):
    """No metallib could be made; the text has the compiler's."""


def wish(environ: Mapping[str, str]) -> Wish:
    """Return what the environment asks for; raise MetallibError for a value other than 0 and 1."""
    found = Wish.NONE
    for name, meaning in (
        ("OXIBONSAI_BUILD_METALLIB", Wish.TRY),
        ("OXIBONSAI_REQUIRE_METALLIB", Wish.REQUIRE),
    ):
        value = environ.get(name, "")
        if value not in ("", "0", "1"):
            raise MetallibError(f"{name} is {value!r}: give 1 for a metallib, or 0")
        if value == "1":
            found = meaning
    return found


class NoCompiler(MetallibError):
    """There is no offline compiler, or it may not be used: no source is to blame."""


def _run(command: Sequence[str], what: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise NoCompiler(f"{what}: no {command[0]} ({error.strerror}). {HELP}") from error
    if done.returncode:
        text = (done.stdout + done.stderr).strip()
        if any(sign in text for sign in LICENCE):
            raise NoCompiler(f"{what}: {ACCEPT}\n{text}")
        if any(sign in text for sign in MISSING):
            raise NoCompiler(f"{what}: there is no offline Metal compiler. {HELP}\n{text}")
        raise MetallibError(f"{what}: Apple's compiler refused it:\n{text}")


def make(sources: Sequence[Path], library: Path, target: str) -> None:
    """Compile `sources` for macOS `target` into `library`, the same for both architectures.

    All sources are compiled before the first error is raised, so that one run of a Mac shows what
    each of them needs. `library` is left alone where one fails.
    """
    objects, errors = [], []
    for source in sources:
        objects.append(str(source.with_suffix(".air")))
        command = [*XCRUN, *METAL, f"-mmacosx-version-min={target}"]
        try:
            _run([*command, "-c", str(source), "-o", objects[-1]], source.name)
        except NoCompiler:
            raise  # the other sources would say it again
        except MetallibError as error:
            errors.append(str(error))
    if errors:
        raise MetallibError("\n".join(errors))
    _run([*XCRUN, "metallib", *objects, "-o", str(library)], library.name)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("library", type=Path, help="the metallib to write")
    library = parser.parse_args().library
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from embed_shaders import write_sources
    from macos_compiler import MACOS_MINIMUM

    with tempfile.TemporaryDirectory(prefix="oxibonsai-metallib-") as scratch:
        try:
            make(write_sources(Path(scratch)), library, MACOS_MINIMUM)
        except MetallibError as error:
            parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
