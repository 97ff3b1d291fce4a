"""Write the sources of shaders/ as C arrays, with their headers inlined.

Run-time Metal compilation resolves no ``#include "..."``, and the same text goes to every compiler:

    python tools/embed_shaders.py OUTPUT_DIR              writes OUTPUT_DIR/oxb_msl.c
    python tools/embed_shaders.py --cuda OUTPUT_DIR       the same, translated to CUDA C++
    python tools/embed_shaders.py --sources OUTPUT_DIR    writes OUTPUT_DIR/<family>.metal

The output depends on nothing but the sources.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from oxibonsai.msl import CompileError  # noqa: E402
from oxibonsai.msl.cuda import translate  # noqa: E402

SHADERS = ROOT / "shaders"
# Where `#include "name"` looks, in this order.
PRELUDE = ROOT / "shim" / "cuda" / "prelude"
HEADER_DIRS = (SHADERS, ROOT / "shim" / "include", ROOT / "shim", PRELUDE)

INCLUDE = re.compile(r'\s*#\s*include\s+"([^"]+)"')
# A kernel under its own name, and an instance of a template (shaders/instantiate.h).
KERNEL = re.compile(r'^\s*(?:kernel\s+void\s+(\w+)\s*\(|OXB_KERNEL\("(\w+)",)', re.MULTILINE)


class Family(NamedTuple):
    """One file of shaders/: its name, its text with headers inlined, its kernels' names."""

    name: str
    source: str
    functions: tuple[str, ...]


class ShaderError(Exception):
    """A shader source that cannot be embedded."""


def _header(name: str, where: str) -> Path:
    for directory in HEADER_DIRS:
        if (directory / name).is_file():
            return directory / name
    places = " or ".join(str(d.relative_to(ROOT)) for d in HEADER_DIRS)
    raise ShaderError(f'{where}: no header "{name}" in {places}')


def _lines(path: Path, seen: set[Path]) -> Iterator[str]:
    """Yield the lines of a file with its headers in place, each header once."""
    label = path.relative_to(ROOT).as_posix()
    yield f'#line 1 "{label}"'
    for number, line in enumerate(path.read_text(encoding="ascii").splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            yield line
            continue
        header = _header(match[1], f"{label}:{number}")
        if header not in seen:
            seen.add(header)
            yield from _lines(header, seen)
        yield f'#line {number + 1} "{label}"'


def family(path: Path) -> Family:
    """Return the family of one .metal file."""
    functions = tuple(a or b for a, b in KERNEL.findall(path.read_text(encoding="ascii")))
    if not functions:
        raise ShaderError(f"{path.name}: no kernel found")
    return Family(path.stem, "\n".join(_lines(path, set())) + "\n", functions)


def families() -> list[Family]:
    """Return all families of shaders/, by name."""
    found = [family(path) for path in sorted(SHADERS.glob("*.metal"))]
    owner: dict[str, str] = {}
    for one in found:
        for function in one.functions:
            if function in owner:
                raise ShaderError(f"kernel {function} in both {owner[function]} and {one.name}")
            owner[function] = one.name
    return found


def cuda_families() -> list[Family]:
    """Return all families with their text translated to CUDA C++."""
    found = []
    for one in families():
        try:
            source = translate(one.source, f"shaders/{one.name}.metal")
        except CompileError as error:
            raise ShaderError(str(error)) from error
        found.append(one._replace(source=source))
    return found


def cuda_prelude() -> str:
    """Return what is compiled ahead of a translation."""
    return "\n".join(_lines(PRELUDE / "prelude.h", set())) + "\n"


def _array(name: str, text: str) -> list[str]:
    # An array of numbers: a string literal longer than 4095 bytes is outside C11.
    data = [*text.encode("ascii"), 0]
    rows = (",".join(map(str, data[i : i + 32])) for i in range(0, len(data), 32))
    return [f"const char {name}[] = {{", ",\n".join(rows), "};"]


def c_text(found: list[Family], prelude: str | None = None) -> str:
    """Return the C file that defines what shim/gpu/msl_sources.h declares."""
    out = [
        "/* Written by tools/embed_shaders.py from shaders/. */",
        '#include "gpu/msl_sources.h"',
        "",
    ]
    if prelude is not None:
        out += _array("cuda_prelude", prelude)
    for one in found:
        first, *rest = _array(f"source_{one.name}", one.source)
        out += ["static " + first, *rest]
        names = ", ".join(f'"{name}"' for name in one.functions)
        out += [f"static const char *const functions_{one.name}[] = {{{names}}};", ""]
    out.append("const struct msl_family gpu_msl_families[] = {")
    for one in found:
        out.append(
            f'    {{"{one.name}", source_{one.name}, sizeof source_{one.name} - 1,'
            f" functions_{one.name}, {len(one.functions)}}},"
        )
    out += ["};", f"const unsigned gpu_msl_family_count = {len(found)};", ""]
    return "\n".join(out)


def write_c(directory: Path, *, cuda: bool = False) -> Path:
    """Write oxb_msl.c into `directory`, for Metal or for cuda, and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "oxb_msl.c"
    text = c_text(cuda_families(), cuda_prelude()) if cuda else c_text(families())
    # Left alone where nothing changed, so that a build does not compile it again.
    if not path.exists() or path.read_text(encoding="ascii") != text:
        path.write_text(text, encoding="ascii")
    return path


def write_sources(directory: Path) -> list[Path]:
    """Write each family's text into `directory`, and return the paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for one in families():
        path = directory / f"{one.name}.metal"
        path.write_text(one.source, encoding="ascii")
        paths.append(path)
    return paths


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path, help="directory to write into")
    parser.add_argument("--sources", action="store_true", help="write the Metal text, not C")
    parser.add_argument("--cuda", action="store_true", help="write the translations to CUDA C++")
    options = parser.parse_args()
    try:
        if options.sources:
            write_sources(options.output)
        else:
            write_c(options.output, cuda=options.cuda)
    except ShaderError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
