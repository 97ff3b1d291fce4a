"""The check of a compiler against Apple's headers, and what its errors mean.

A build calls it first on macOS: what cannot compile the Metal driver is named, with the command
that helps, before it fails at length.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

MACOS_MINIMUM = "12.0"
SDK_TOO_OLD = "oxibonsai needs the SDK of macOS 12 or newer"
CHECK_SDK = f"""\
/* Numbers instead of __MAC_12_0, which older SDKs lack. They count 10.15 as 101500. */
#include <Availability.h>
#define OXB_TEXT_OF(x) #x
#define OXB_TEXT(x) OXB_TEXT_OF(x)
#if !defined(__MAC_OS_X_VERSION_MAX_ALLOWED)
#error "{SDK_TOO_OLD}: this SDK is not one of macOS"
#elif __MAC_OS_X_VERSION_MAX_ALLOWED < 120000
#pragma message "the SDK's version is " OXB_TEXT(__MAC_OS_X_VERSION_MAX_ALLOWED)
#error "{SDK_TOO_OLD}: install it with xcode-select --install, or update Xcode"
#else
#import <Foundation/Foundation.h>
#import <Metal/Metal.h>
#endif
"""

# What a user sees of a compiler's text: it repeats itself, and the first lines have the cause.
LINES_SHOWN = 12
INSTALL = "install Apple's compiler and SDK with: xcode-select --install"
APPLE = f"Apple's clang compiles it: export CC=/usr/bin/clang. If there is none, {INSTALL}"
SDKROOT = "export SDKROOT=$(xcrun --sdk macosx --show-sdk-path)"
# Variables that name an SDK, the one that wins first.
SDK_VARIABLES = ("SDKROOT", "CONDA_BUILD_SYSROOT")


def deployment_target(asked: str | None) -> str:
    """Return the oldest macOS to build for: what was asked for, or 12.0 where that is older.

    Raise ValueError where that is no version. Pythons from python.org carry 10.9 to 10.15, for
    which the Metal calls of the driver are unguarded.
    """

    if asked and not re.fullmatch(r"[0-9]+(\.[0-9]+){0,2}", asked):
        raise ValueError(
            f"MACOSX_DEPLOYMENT_TARGET is {asked!r}, which is no version of macOS: give one such "
            f"as {MACOS_MINIMUM}, or unset it"
        )

    def numbers(version: str) -> list[int]:
        return [int(part) for part in version.split(".")]

    return asked if asked and numbers(asked) >= numbers(MACOS_MINIMUM) else MACOS_MINIMUM


def program(command: Sequence[str]) -> list[str]:
    """Return the part of a command before its flags: a compiler, and ccache before it."""
    end = next((i for i, word in enumerate(command) if word.startswith("-")), len(command))
    return list(command[: max(end, 1)])


def run(command: Sequence[str]) -> tuple[int, str]:
    """Return a command's exit status, 127 where it cannot be started, and its text."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        return 127, f"{command[0]}: {error.strerror}"
    return done.returncode, (done.stdout + done.stderr).strip()


def describe(version: str) -> tuple[str, str]:
    """Return a compiler's name and what gets it to compile, from its ``--version``."""
    text = version.lower()
    # conda's before Homebrew's, which has conda among its casks. conda-forge's clang does not print
    # its maker, but an environment's folder or the triple that it was built for.
    signs = ("conda", "miniforge", "mambaforge", "/envs/", "apple-darwin13.4.0")
    conda = any(sign in text for sign in signs)
    homebrew = any(sign in text for sign in ("homebrew", "/cellar/"))
    maker = "conda's " if conda else "Homebrew's " if homebrew else ""
    # The last two are what /usr/bin/clang prints without the tools that it stands for.
    if any(sign in text for sign in ("apple clang", "apple llvm", "xcrun: ", "xcode-select: ")):
        licence = "If Xcode was updated, agree to its licence: sudo xcodebuild -license accept"
        return "Apple's clang", f"If there is no SDK, {INSTALL}. {licence}"
    if "clang" in text:
        help_ = f"{SDKROOT} && export CONDA_BUILD_SYSROOT=$SDKROOT" if conda else SDKROOT
        return f"{maker}clang", f"It finds no SDK by itself: {help_}. Or: {APPLE}"
    if "free software foundation" in text or "gcc" in text:
        return f"{maker}GCC", f"GCC has no blocks, which Apple's headers use. {APPLE}"
    return "a compiler that prints no known name", APPLE


def explain(command: Sequence[str], text: str, environ: Mapping[str, str]) -> str:
    """Say why `command` failed on CHECK_SDK with the output `text`, and what helps."""
    words = program(command)
    status, version = run([*words, "--version"])
    shown = "\n".join(f"    {line}" for line in text.splitlines()[:LINES_SHOWN])
    if status == 127:
        where = "CC names it" if environ.get("CC") else "the Python was built with it"
        return f"there is no compiler '{shlex.join(words)}' ({where}). {APPLE}"
    name, help_ = describe(f"{shlex.join(words)}\n{version}")
    if SDK_TOO_OLD in text:
        named = [f"{key}={environ[key]}" for key in SDK_VARIABLES if environ.get(key)]
        named += [f"-isysroot {path}" for path in _sysroots(command)]
        ways = f"; {' and '.join(named)} names that SDK: unset or change it" if named else ""
        return (
            f"{SDK_TOO_OLD}, and {name} ('{shlex.join(words)}') reads an older one: {INSTALL}, "
            f"or update Xcode, then look: xcrun --sdk macosx --show-sdk-version{ways}:\n{shown}"
        )
    return (
        f"{name} ('{shlex.join(words)}') cannot compile Objective-C against Apple's SDK. "
        f"{help_}. The compiler said:\n{shown}"
    )


def _sysroots(command: Sequence[str]) -> list[str]:
    return [after for word, after in itertools.pairwise(command) if word == "-isysroot"]


def write_check(folder: Path) -> Path:
    """Write the file that a compiler has to compile, and return its path."""
    source = folder / "check_sdk.m"
    source.write_text(CHECK_SDK)
    return source


@contextmanager
def captured_output() -> Iterator[Callable[[], str]]:
    """Keep what this process and those it starts print from the terminal; yield what returns it.

    By the file descriptors: setuptools starts a compiler in another way from version to version.
    """
    with tempfile.TemporaryFile() as file:

        def text() -> str:
            return kept[0]

        kept = [""]
        sys.stdout.flush()
        sys.stderr.flush()
        before = [(number, os.dup(number)) for number in (1, 2)]
        try:
            for number, _ in before:
                os.dup2(file.fileno(), number)
            yield text
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in before:
                os.dup2(copy, number)
                os.close(copy)
            file.seek(0)
            kept[0] = file.read().decode(errors="replace").strip()
