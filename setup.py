"""Build of the compiled modules. Metadata is in pyproject.toml."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError, PlatformError

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "tools"))
from embed_shaders import write_c, write_sources  # noqa: E402

MACOS_MINIMUM = "12.0"

if sys.platform == "darwin":
    # python.org builds carry 10.9 to 10.15, for which the Metal calls used here are unguarded. Set
    # before setup() reads it.
    current = os.environ.get("MACOSX_DEPLOYMENT_TARGET") or "0"
    if [int(part) for part in current.split(".")] < [
        int(part) for part in MACOS_MINIMUM.split(".")
    ]:
        os.environ["MACOSX_DEPLOYMENT_TARGET"] = MACOS_MINIMUM

SHIM = Path("shim")

# One set of flags for every file: variants for an instruction set are chosen by function attribute,
# and a universal2 Python compiles each file for both architectures. No fast math.
C_FLAGS = [
    "-std=c11",
    "-g0",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-pthread",
]
C_FLAGS += os.environ.get("OXIBONSAI_CFLAGS", "").split()
LINK_FLAGS = ["-pthread", *os.environ.get("OXIBONSAI_LDFLAGS", "").split()]
MACROS = [("_GNU_SOURCE", "1")] if sys.platform == "linux" else []
LIBRARIES = ["m", "dl"] if sys.platform == "linux" else []

HEADERS = sorted((SHIM / "include").glob("*.h"))
CORE_ROOMS = ("front", "ops", "formats", "cpu", "gpu")
CORE_SOURCES = sorted(path for room in CORE_ROOMS for path in (SHIM / room).rglob("*.c"))
CUDA_SOURCES = sorted((SHIM / "cuda").glob("*.c"))
METAL_SOURCES = sorted((SHIM / "metal").glob("*.m"))


def extension(name: str, c_sources: list[Path]) -> Extension:
    """Return the extension module oxibonsai.metal.`name`."""
    return Extension(
        f"oxibonsai.metal.{name}",
        [f"oxibonsai/metal/{name}.pyx", *map(str, c_sources)],
        include_dirs=[str(SHIM / "include"), str(SHIM)],
        depends=[str(h) for h in SHIM.rglob("*.h")],
        define_macros=MACROS,
        # The kernels are in _core. The other modules check arguments and pass pointers on, in some
        # megabytes of generated C that takes three times as long to compile at -O3.
        extra_compile_args=["-O3" if c_sources else "-O1", *C_FLAGS],
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
    extension("_uploads", []),
    extension("_graph", []),
]


class BuildExtWithDrivers(build_ext):
    """Build the driver for GPUs into _core, with its kernels: Metal on macOS, cuda on Linux."""

    def build_extensions(self) -> None:
        if sys.platform == "darwin":
            self.add_metal()
        elif sys.platform == "linux":
            self.add_cuda()
        super().build_extensions()
        if sys.platform == "darwin":
            self.compile_shaders()

    def add_cuda(self) -> None:
        """Needs nothing of CUDA's: the driver loads its libraries when a device is opened."""
        (core,) = (e for e in self.extensions if e.name == "oxibonsai.metal._core")
        core.sources += [*map(str, CUDA_SOURCES), str(write_c(Path(self.build_temp), cuda=True))]
        core.define_macros = [*core.define_macros, ("OXB_HAVE_CUDA", "1")]

    def add_metal(self) -> None:
        if ".m" not in self.compiler.src_extensions:
            self.compiler.src_extensions = [*self.compiler.src_extensions, ".m"]
        scratch = Path(self.build_temp)
        scratch.mkdir(parents=True, exist_ok=True)
        self.check_compiler(scratch)
        (core,) = (e for e in self.extensions if e.name == "oxibonsai.metal._core")
        core.sources += [*map(str, METAL_SOURCES), str(write_c(scratch))]
        core.define_macros = [*core.define_macros, ("OXB_HAVE_METAL", "1")]
        core.extra_compile_args = [
            *core.extra_compile_args,
            "-fno-objc-arc",
            "-Werror=unguarded-availability",
        ]
        core.extra_link_args = [*core.extra_link_args]
        for framework in ("Foundation", "Metal", "CoreGraphics"):
            core.extra_link_args += ["-framework", framework]

    def check_compiler(self, scratch: Path) -> None:
        """Name a compiler that cannot read Apple's headers, before it fails at length."""
        source = scratch / "check_sdk.m"
        source.write_text("#import <Foundation/Foundation.h>\n#import <Metal/Metal.h>\n")
        try:
            self.compiler.compile([str(source)], output_dir=str(scratch))
        except CompileError as error:
            command = shlex.join(self.compiler.compiler_so)
            raise PlatformError(
                f"the compiler '{command}' cannot compile Objective-C against the macOS SDK "
                f"({error}). Apple's clang can: install it with 'xcode-select --install', then "
                "build with CC=clang"
            ) from error

    def compile_shaders(self) -> None:
        """Put a metallib beside _core where Apple's offline compiler is; nothing needs it."""
        library = Path(self.get_ext_fullpath("oxibonsai.metal._core")).parent / "oxibonsai.metallib"
        library.unlink(missing_ok=True)  # of another build's kernels
        if shutil.which("xcrun") is None:
            return
        scratch = Path(self.build_temp)
        metal = ["xcrun", "-sdk", "macosx", "metal", "-std=macos-metal2.4", "-fno-fast-math"]
        metal.append(f"-mmacosx-version-min={MACOS_MINIMUM}")
        objects = []
        commands = []
        for source in write_sources(scratch):
            objects.append(str(source.with_suffix(".air")))
            commands.append([*metal, "-c", str(source), "-o", objects[-1]])
        commands.append(["xcrun", "-sdk", "macosx", "metallib", *objects, "-o", str(library)])
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                self.warn(f"no metallib: kernels are compiled when first used. {done.stderr}")
                library.unlink(missing_ok=True)
                return


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
    cmdclass={"build_ext": BuildExtWithDrivers, "build_py": BuildPyWithHeaders},
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
)
