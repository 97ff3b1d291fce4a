"""Compile the C code for macOS with zig, which knows what macOS has and lacks.

Every C file of ``shim/`` and the C that Cython makes of every ``.pyx`` is compiled to an object
file for aarch64 and x86_64, macOS 12, by the flags of setup.py: a universal2 Python builds each
file for both with one set of them. Nothing is linked and nothing runs. The Objective-C driver needs
Apple's own framework headers and is not compiled here.

The Python headers are those of the running interpreter. Their ``pyconfig.h`` describes this
machine, so one with macOS's answers takes its place.
"""

from __future__ import annotations

import argparse
import struct
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from c_flags import C_FLAGS, C_WARNINGS, CYTHON_FLAGS  # noqa: E402

TARGETS = ("aarch64-macos.12.0", "x86_64-macos.12.0")
ZIG = [sys.executable, "-m", "ziglang"]
# The first words of a Mach-O object: a magic number and the type of the CPU.
MACH_O_64 = 0xFEEDFACF
CPU_TYPES = {0x0100000C: "aarch64", 0x01000007: "x86_64"}

# What the public Python headers ask of pyconfig.h and what macOS answers otherwise than Linux.
MACOS_LACKS = {"_GNU_SOURCE", "HAVE_GCC_ASM_FOR_X87", "HAVE_GCC_ASM_FOR_X64"}
MACOS_HAS = {"SIZEOF_PTHREAD_T": "8", "SIZEOF_WCHAR_T": "4", "_DARWIN_C_SOURCE": "1"}
MACOS_HAS_BY_CPU = {
    "aarch64": {"SIZEOF_LONG_DOUBLE": "8", "ALIGNOF_MAX_ALIGN_T": "8"},
    "x86_64": {
        "SIZEOF_LONG_DOUBLE": "16",
        "ALIGNOF_MAX_ALIGN_T": "16",
        "HAVE_GCC_ASM_FOR_X64": "1",
        "HAVE_GCC_ASM_FOR_X87": "1",
    },
}


def macros(text: str) -> dict[str, str]:
    """Return the macros that a compiler has defined after `text`, by name."""
    command = [*ZIG, "cc", "-dM", "-E", "-xc", "-", *include_flags()]
    dump = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    found = {}
    for line in dump.splitlines():
        _, name, *value = line.split(" ", 2)
        found[name] = value[0] if value else ""
    return found


def include_flags() -> list[str]:
    paths = {sysconfig.get_path("include"), sysconfig.get_path("platinclude")}
    return [flag for path in sorted(paths) for flag in ("-isystem", path)]


def write_headers(folder: Path, cpu: str) -> None:
    """Fill `folder` with the Python headers and a ``pyconfig.h`` for macOS on `cpu`."""
    folder.mkdir(parents=True)
    for path in {sysconfig.get_path("platinclude"), sysconfig.get_path("include")}:
        for header in Path(path).iterdir():
            if header.name != "pyconfig.h":
                (folder / header.name).symlink_to(header)
    # Through a preprocessor: Debian's pyconfig.h only includes one of several by architecture.
    known = macros("")
    ours = {k: v for k, v in macros("#include <pyconfig.h>\n").items() if known.get(k) != v}
    ours = {k: v for k, v in ours.items() if k not in MACOS_LACKS and k != "Py_PYCONFIG_H"}
    ours |= MACOS_HAS | MACOS_HAS_BY_CPU[cpu]
    lines = ["#ifndef Py_PYCONFIG_H", "#define Py_PYCONFIG_H"]
    lines += [f"#ifndef {name}\n#define {name} {value}\n#endif" for name, value in ours.items()]
    lines += ["#endif", ""]
    (folder / "pyconfig.h").write_text("\n".join(lines))


def cythonize(scratch: Path) -> list[Path]:
    """Translate every ``.pyx`` of the package; return the C files."""
    made = []
    for source in sorted((ROOT / "oxibonsai").rglob("*.pyx")):
        target = scratch / f"{source.stem}.c"
        command = [sys.executable, "-m", "cython", "-3", "--module-name"]
        command += [".".join(source.relative_to(ROOT).with_suffix("").parts)]
        command += ["-I", str(ROOT), str(source), "-o", str(target)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if result.returncode != 0:
            raise SystemExit(f"Cython refused {source}:\n{result.stdout}{result.stderr}")
        made.append(target)
    return made


def shim_files() -> list[Path]:
    """Return the C files of the shim."""
    found = sorted((ROOT / "shim").rglob("*.c"))
    if not found:
        raise SystemExit(f"no C files under {ROOT / 'shim'}")
    return found


def cpu_of(path: Path) -> str | None:
    """Return the architecture of a 64-bit Mach-O object, or None for another file."""
    head = path.read_bytes()[:8] if path.is_file() else b""
    magic, cpu = struct.unpack("<II", head.ljust(8, b"\0"))
    return CPU_TYPES.get(cpu) if magic == MACH_O_64 else None


def jobs(scratch: Path, only: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield a label and a command for each object file, or those of a part of the shim."""
    shim = [path for path in shim_files() if only in path.as_posix()]
    translated = [] if only else cythonize(scratch)
    for target in TARGETS:
        headers = scratch / target
        write_headers(headers, target.split("-")[0])
        base = [*ZIG, "cc", "-target", target, "-c", *C_FLAGS, "-Wall", "-Werror"]
        base += ["-I", str(ROOT / "shim" / "include"), "-I", str(ROOT / "shim")]
        for path in shim:
            name = path.relative_to(ROOT)
            output = scratch / f"{target}-{'-'.join(name.parts)}.o"
            yield f"{target} {name}", [*base, *C_WARNINGS, str(path), "-o", str(output)]
        for path in translated:
            output = scratch / f"{target}-{path.stem}.o"
            # Generated code: helpers that one module does not use are not ours to remove.
            command = [*base, *CYTHON_FLAGS, "-Wno-unused-function", "-isystem", str(headers)]
            command += [str(path), "-o", str(output)]
            yield f"{target} {path.stem}.pyx", command


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="files compiled at a time (default 2)")
    parser.add_argument("--only", default="", help="C files of the shim with this in their path")
    arguments = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory(prefix="oxibonsai-cross-") as name:
        work = list(jobs(Path(name), arguments.only))
        if not work:
            parser.error(f"no C file under {ROOT / 'shim'} has {arguments.only!r} in its path")
        with ThreadPoolExecutor(arguments.jobs) as pool:
            results = pool.map(
                lambda job: subprocess.run(job[1], capture_output=True, text=True), work
            )
            for (label, command), result in zip(work, results, strict=True):
                # An object of another architecture would be left out of a universal2 module.
                failed = result.returncode != 0 or cpu_of(Path(command[-1])) != label.split("-")[0]
                print(f"{'FAILED' if failed else 'ok    '} {label}", flush=True)
                if failed:
                    print(result.stderr, flush=True)
                    failures += 1
    print(f"{len(work)} files compiled for macOS, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
