"""Build of the compiled modules. Metadata is in pyproject.toml."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError, PlatformError
from setuptools.modified import newer_group

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "tools"))
import macos_compiler  # noqa: E402
import metallib  # noqa: E402
from c_flags import C_FLAGS, CYTHON_FLAGS  # noqa: E402
from embed_shaders import write_c, write_sources  # noqa: E402

if sys.platform == "darwin":
    # Set before setup() reads it.
    asked = os.environ.get("MACOSX_DEPLOYMENT_TARGET")
    try:
        os.environ["MACOSX_DEPLOYMENT_TARGET"] = macos_compiler.deployment_target(asked)
    except ValueError as error:
        sys.exit(f"error: {error}")

SHIM = Path("shim")

USER_FLAGS = os.environ.get("OXIBONSAI_CFLAGS", "").split()
C_FLAGS = [*C_FLAGS, *USER_FLAGS]
LINK_FLAGS = ["-pthread", *os.environ.get("OXIBONSAI_LDFLAGS", "").split()]
MACROS = [("_GNU_SOURCE", "1")] if sys.platform == "linux" else []
LIBRARIES = ["m", "dl"] if sys.platform == "linux" else []

HEADERS = sorted((SHIM / "include").glob("*.h"))
# What any object file may depend on besides its own source.
SHARED_INPUTS = [Path("setup.py"), Path("tools/c_flags.py"), *sorted(SHIM.rglob("*.h"))]
DECLARATIONS = sorted(Path("oxibonsai/metal").glob("*.pxd"))
EMBEDDED = [Path("tools/embed_shaders.py")]
EMBEDDED += [
    path
    for folder in ("shaders", "oxibonsai/msl", "shim/base", "shim/include")
    for path in Path(folder).glob("*.*")
]
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
        depends=[
            str(path) for path in (*SHARED_INPUTS, *DECLARATIONS, *(EMBEDDED if c_sources else []))
        ],
        define_macros=MACROS,
        extra_compile_args=C_FLAGS,
        extra_link_args=LINK_FLAGS,
        libraries=LIBRARIES,
    )


# The driver list, the thread-local message and the thread pool exist once: only _core links the
# shim, and the other modules reach it through the function table that _core exports.
EXTENSIONS = [
    extension("_core", CORE_SOURCES),
    extension("_owners", []),
    extension("_buffer", []),
    extension("_pipeline", []),
    extension("_recurrent", []),
    extension("_commands", []),
    extension("_weights", []),
    extension("_phases", []),
    extension("_uploads", []),
    extension("_graph", []),
]


def processors() -> int:
    """Return how many processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return (len(affinity(0)) if affinity else os.cpu_count()) or 1


class BuildExtWithDrivers(build_ext):
    """Build the driver for GPUs into _core, with its kernels: Metal on macOS, cuda on Linux.

    Each source is compiled once, on all processors: what is up to date is left as it is, extension
    by extension and, where the build folder is kept, object by object.
    """

    platform = sys.platform  # what the drivers are chosen by

    def finalize_options(self) -> None:
        super().finalize_options()
        # A thread for each extension; what they compile goes to one pool, made in build_extensions.
        self.parallel = len(self.extensions)
        self.written_c: set[str] = set()  # by Cython

    def run(self) -> None:
        """Build, in place without the copy in build/lib that setuptools makes first.

        An editable install builds in place as well, and compiles nothing after `build_ext
        --inplace`; the other way round neither.
        """
        if not self.inplace:
            super().run()
            return
        place = self.get_finalized_command("build_py").get_package_dir("oxibonsai.metal")
        root = Path(place).resolve().parents[1]
        before, self.build_lib, self.inplace = self.build_lib, str(root), False
        try:
            super().run()
        finally:
            self.build_lib, self.inplace = before, True

    def build_extensions(self) -> None:
        if self.platform == "darwin":
            self.wish_of_metallib()  # a wrong value is told before minutes of compilation
            self.add_metal()
        elif self.platform == "linux":
            self.add_cuda()
        stale = [e for e in self.extensions if self.is_stale(e)]
        self.write_c_of(stale)
        every, self.extensions = self.extensions, stale
        with ThreadPoolExecutor(processors()) as pool:
            self.compiler.compile = partial(self.compile_on, pool, self.compiler.compile)
            super().build_extensions()
        self.extensions = every
        if self.platform == "darwin":
            self.compile_shaders()

    def is_stale(self, extension: Extension) -> bool:
        """Say whether a source or a file it may include is newer than the built module."""
        # Not what this build has just written itself: its own inputs are among `depends`.
        scratch = Path(self.build_temp)
        sources = [path for path in extension.sources if scratch not in Path(path).parents]
        inputs = [*sources, *extension.depends]
        return self.force or newer_group(inputs, self.get_ext_fullpath(extension.name), "newer")

    def write_c_of(self, extensions: list[Extension]) -> None:
        """Run Cython, in several processes, and put the C files into the build folder."""
        if not extensions:
            return
        from Cython.Build import cythonize

        # Without the C sources and what they depend on, which Cython would copy beside its own.
        modules = {e.name: e.sources[0] for e in extensions}
        written = cythonize(
            [Extension(name, [source]) for name, source in modules.items()],
            build_dir=self.build_temp,
            nthreads=min(processors(), len(extensions)),
            force=self.force,
            quiet=self.verbose == 0,
            language_level=3,
            compiler_directives=DIRECTIVES,
        )
        c_files = {module.name: module.sources[0] for module in written}
        self.written_c.update(c_files.values())
        for extension in extensions:
            extension.sources = [c_files[extension.name], *extension.sources[1:]]

    def compile_on(
        self, pool, compile_serially, sources, output_dir=None, extra_postargs=(), **options
    ):
        """Compile each source that is newer than its object as a job of `pool`."""
        shared = [str(path) for path in SHARED_INPUTS]

        def compile_one(source: str) -> str:
            (made,) = self.compiler.object_filenames([source], output_dir=output_dir)
            if self.force or newer_group([source, *shared], made, "newer"):
                flags = [*extra_postargs]
                if source in self.written_c:
                    flags += [*CYTHON_FLAGS, *USER_FLAGS]  # the user has the last word
                compile_serially([source], output_dir, extra_postargs=flags, **options)
            return made

        return list(pool.map(compile_one, sources))

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
        source = macos_compiler.write_check(scratch)
        with macos_compiler.captured_output() as text:
            try:
                self.compiler.compile([str(source)], output_dir=str(scratch))
            except CompileError as failure:
                error = failure
            else:
                return
        found = macos_compiler.explain(self.compiler.compiler_so, text(), os.environ)
        raise PlatformError(found) from error

    def wish_of_metallib(self) -> metallib.Wish:
        try:
            return metallib.wish(os.environ)
        except metallib.MetallibError as error:
            raise PlatformError(str(error)) from error

    def compile_shaders(self) -> None:
        """Put a metallib beside _core where one is asked for; nothing needs it."""
        library = Path(self.get_ext_fullpath("oxibonsai.metal._core")).parent / "oxibonsai.metallib"
        library.unlink(missing_ok=True)  # of another build's kernels
        wish = self.wish_of_metallib()
        if wish is metallib.Wish.NONE:
            return
        sources = write_sources(Path(self.build_temp))
        try:
            metallib.make(sources, library, macos_compiler.MACOS_MINIMUM)
        except metallib.MetallibError as error:
            library.unlink(missing_ok=True)
            if wish is metallib.Wish.REQUIRE:
                raise CompileError(f"OXIBONSAI_REQUIRE_METALLIB=1, and {error}") from error
            self.warn(f"no metallib: kernels are compiled when first used. {error}")


class BuildPyWithHeaders(build_py):
    """Put the C headers into the package, where oxibonsai.get_include() finds them."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "oxibonsai" / "include"
            target.mkdir(parents=True, exist_ok=True)
            for header in HEADERS:
                shutil.copy(HERE / header, target)


DIRECTIVES = {
    "binding": True,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "embedsignature": True,
    "embedsignature.format": "python",
}
# The commands by which pip and other front ends build: they leave nothing behind in the source
# folder but, for an editable install, the modules.
FRONT_END = {"bdist_wheel", "dist_info", "editable_wheel", "egg_info"}


def options() -> dict[str, dict[str, str]]:
    """Return the commands' options: scratch folders outside of the source for a front end."""
    if FRONT_END.isdisjoint(sys.argv):
        return {}
    scratch = tempfile.mkdtemp(prefix="oxibonsai-build-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    return {"build": {"build_base": scratch}, "egg_info": {"egg_base": scratch}}


setup(
    ext_modules=EXTENSIONS,
    cmdclass={"build_ext": BuildExtWithDrivers, "build_py": BuildPyWithHeaders},
    options=options(),
)
