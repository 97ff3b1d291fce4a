"""Build of the compiled modules. Metadata is in pyproject.toml."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_py import build_py

MACOS_MINIMUM = "12.0"

if sys.platform == "darwin":
    # python.org builds carry 10.9 to 10.15, for which the Metal calls used here are unguarded. Set
    # before setup() reads it.
    current = os.environ.get("MACOSX_DEPLOYMENT_TARGET") or "0"
    if [int(part) for part in current.split(".")] < [
        int(part) for part in MACOS_MINIMUM.split(".")
    ]:
        os.environ["MACOSX_DEPLOYMENT_TARGET"] = MACOS_MINIMUM

HERE = Path(__file__).resolve().parent
SHIM = Path("shim")

# One set of flags for every file: variants for an instruction set are chosen by function attribute,
# and a universal2 Python compiles each file for both architectures. No fast math.
C_FLAGS = [
    "-std=c11",
    "-O3",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-pthread",
]
C_FLAGS += os.environ.get("OXIBONSAI_CFLAGS", "").split()
LINK_FLAGS = ["-pthread", *os.environ.get("OXIBONSAI_LDFLAGS", "").split()]
MACROS = [("_GNU_SOURCE", "1")] if sys.platform == "linux" else []
LIBRARIES = ["m", "dl"] if sys.platform == "linux" else []

HEADERS = sorted(SHIM.glob("oxb_*.h"))
CORE_SOURCES = sorted([*SHIM.glob("*.c"), *(SHIM / "cpu").glob("*.c")])


def extension(name: str, c_sources: list[Path]) -> Extension:
    """Return the extension module oxibonsai.metal.`name`."""
    return Extension(
        f"oxibonsai.metal.{name}",
        [f"oxibonsai/metal/{name}.pyx", *map(str, c_sources)],
        include_dirs=[str(SHIM)],
        depends=[str(h) for h in [*HEADERS, *(SHIM / "cpu").glob("*.h")]],
        define_macros=MACROS,
        extra_compile_args=C_FLAGS,
        extra_link_args=LINK_FLAGS,
        libraries=LIBRARIES,
    )


# The driver list, the thread-local message and the thread pool exist once: only _core links the
# shim, and the other modules reach it through the function table that _core exports.
EXTENSIONS = [
    extension("_core", CORE_SOURCES),
    extension("_buffer", []),
    extension("_pipeline", []),
    extension("_commands", []),
    extension("_weights", []),
    extension("_phases", []),
    extension("_graph", []),
]


class BuildPyWithHeaders(build_py):
    """Put the C headers into the package, where oxibonsai.get_include() finds them."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "oxibonsai" / "include"
            target.mkdir(parents=True, exist_ok=True)
            for header in HEADERS:
                shutil.copy(HERE / header, target)


setup(
    ext_modules=cythonize(
        EXTENSIONS,
        nthreads=0,
        language_level=3,
        compiler_directives={
            "binding": True,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "embedsignature": True,
            "embedsignature.format": "python",
        },
    ),
    cmdclass={"build_py": BuildPyWithHeaders},
)
