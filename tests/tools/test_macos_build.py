"""What the build does on macOS: a compiler's check and its errors, the driver's flags, a metallib.

The compilers and xcrun are scripts that print what the real ones print.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import setuptools
from places import ROOT, TOOLS
from setuptools import Distribution
from setuptools.command import build_ext
from setuptools.errors import CompileError, PlatformError

sys.path.insert(0, str(TOOLS))
import macos_compiler
import metallib

NO_HEADER = """\
build/check_sdk.m:9:9: fatal error: 'Foundation/Foundation.h' file not found
#import <Foundation/Foundation.h>
        ^~~~~~~~~~~~~~~~~~~~~~~~~
1 error generated."""
BLOCKS = """\
In file included from /SDK/usr/include/dispatch/dispatch.h:51,
/SDK/usr/include/dispatch/object.h:143:15: error: expected identifier or '(' before '^' token
  143 | typedef void (^dispatch_block_t)(void);"""
NO_TOOLS = (
    "xcrun: error: invalid active developer path (/Library/Developer/CommandLineTools), missing "
    "xcrun at: /Library/Developer/CommandLineTools/usr/bin/xcrun"
)
CLANG = "clang version 18.1.8\nTarget: {}\nThread model: posix\nInstalledDir: {}"
GPL = "Copyright (C) 2024 Free Software Foundation, Inc."
SDKROOT = "export SDKROOT=$(xcrun --sdk macosx --show-sdk-path)"
COMPILERS = {
    # name: what --version prints, what compiling prints, what the error must say, and must not
    "conda's clang": (
        CLANG.format("arm64-apple-darwin20.0.0", "/opt/miniconda3/envs/ml/bin"),
        NO_HEADER,
        ["conda's clang", f"{SDKROOT} && export CONDA_BUILD_SYSROOT=$SDKROOT", "/usr/bin/clang"],
        ["Homebrew"],
    ),
    "conda's clang by its triple": (
        CLANG.format("x86_64-apple-darwin13.4.0", "/somewhere/bin"),
        NO_HEADER,
        ["conda's clang", "CONDA_BUILD_SYSROOT"],
        [],
    ),
    "conda's clang from Homebrew's cask": (
        CLANG.format("arm64-apple-darwin20.0.0", "/opt/homebrew/Caskroom/miniforge/base/bin"),
        NO_HEADER,
        ["conda's clang", "CONDA_BUILD_SYSROOT"],
        ["Homebrew's"],
    ),
    "Homebrew's clang": (
        "Homebrew " + CLANG.format("arm64-apple-darwin24.6.0", "/opt/homebrew/opt/llvm/bin"),
        NO_HEADER,
        ["Homebrew's clang", SDKROOT, "export CC=/usr/bin/clang"],
        ["conda", "CONDA_BUILD_SYSROOT"],
    ),
    "Homebrew's GCC": (
        f"gcc-14 (Homebrew GCC 14.2.0_1) 14.2.0\n{GPL}",
        BLOCKS,
        ["Homebrew's GCC", "blocks", "export CC=/usr/bin/clang", "before '^' token"],
        ["SDKROOT"],
    ),
    "conda's GCC": (
        f"arm64-apple-darwin20.0.0-gcc (conda-forge gcc 14.2.0-1) 14.2.0\n{GPL}",
        BLOCKS,
        ["conda's GCC", "blocks", "export CC=/usr/bin/clang"],
        ["SDKROOT", "Homebrew"],
    ),
    "another GCC": (
        f"gcc (MacPorts gcc14 14.2.0) 14.2.0\n{GPL}",
        BLOCKS,
        ["GCC ('", "blocks"],
        ["conda", "Homebrew"],
    ),
    "Apple's clang without tools": (
        NO_TOOLS,
        NO_TOOLS,
        ["Apple's clang ('", "xcode-select --install", "invalid active developer path"],
        ["conda", "CC="],
    ),
    "Apple's clang": (
        "Apple clang version 16.0.0 (clang-1600.0.26.6)\nTarget: arm64-apple-darwin24.6.0",
        "You have not agreed to the Xcode license agreements.",
        ["Apple's clang", "xcodebuild -license accept", "have not agreed"],
        ["CC="],
    ),
}


def executable(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)
    return str(path)


def fake_compiler(path: Path, version: str, output: str) -> str:
    return executable(
        path,
        f"case \"$1\" in --version) cat <<'END'\n{version}\nEND\nexit 0;; esac\n"
        f"cat >&2 <<'END'\n{output}\nEND\nexit 1\n",
    )


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """setup.py's build_ext as on a Mac, with a compiler that CC names later."""
    called = []
    monkeypatch.setattr(setuptools, "setup", lambda **options: called.append(options))
    monkeypatch.setattr(sys, "argv", ["setup.py", "build_ext"])
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    (options,) = called
    distribution = Distribution({"name": "oxibonsai", "ext_modules": options["ext_modules"]})
    made = options["cmdclass"]["build_ext"](distribution)
    made.build_temp = str(tmp_path / "temp")
    made.build_lib = str(tmp_path / "lib")
    made.ensure_finalized()
    made.platform = "darwin"
    return made


def with_compiler(command, compiler: str, *flags: str):
    command.compiler = build_ext.new_compiler(compiler="unix")
    command.compiler.set_executables(compiler_so=[compiler, *flags])
    return command


@pytest.mark.parametrize("name", COMPILERS)
def test_a_compiler_that_cannot_is_named_with_what_helps(command, tmp_path, capfd, name):
    version, output, says, says_not = COMPILERS[name]
    with_compiler(command, fake_compiler(tmp_path / "cc", version, output), "-O2")
    with pytest.raises(PlatformError) as caught:
        command.add_metal()
    text = str(caught.value).replace(str(tmp_path), "")
    assert [part for part in says if part not in text] == []
    assert [part for part in says_not if part in text] == []
    assert output.splitlines()[0] in text
    assert capfd.readouterr() == ("", ""), "the compiler's text is in the error, once"


def test_a_compiler_that_is_missing_is_named(command, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with_compiler(command, "no-such-compiler")
    with pytest.raises(PlatformError, match=r"no compiler 'no-such-compiler' \(CC names it\).*CC="):
        command.add_metal()


def real_compilers() -> list[str]:
    return [name for name in ("gcc", "clang", "clang-19") if shutil.which(name)]


def fake_sdk(folder: Path, version: str | None) -> Path:
    """Write the headers of an SDK that check_sdk.m reads, in the way of old SDKs and new ones."""
    for framework in ("Foundation", "Metal"):
        (folder / framework).mkdir(parents=True)
        (folder / framework / f"{framework}.h").write_text("")
    line = f"#define __MAC_OS_X_VERSION_MAX_ALLOWED {version}\n" if version else ""
    known = "#define __MAC_10_9 1090\n#define __MAC_10_15 101500\n#define __MAC_11_3 110300\n"
    (folder / "Availability.h").write_text(known + line)
    return folder


@pytest.mark.parametrize("compiler", real_compilers())
@pytest.mark.parametrize("version", ["__MAC_10_9", "__MAC_10_15", "__MAC_11_3", None])
def test_an_sdk_older_than_12_is_refused_by_name(command, tmp_path, monkeypatch, compiler, version):
    sdk = fake_sdk(tmp_path / "MacOSX11.sdk", version)
    monkeypatch.setenv("SDKROOT", str(sdk))
    # As C, which both compilers read here without a runtime for Objective-C.
    with_compiler(command, compiler, "-xc", f"-I{sdk}")
    with pytest.raises(PlatformError) as caught:
        command.add_metal()
    text = str(caught.value)
    assert "needs the SDK of macOS 12 or newer" in text
    assert "xcode-select --install" in text
    assert f"SDKROOT={sdk} names that SDK: unset or change it" in text
    assert "the SDK's version is" in text or version is None
    assert "cannot compile Objective-C" not in text


@pytest.mark.parametrize("compiler", real_compilers())
@pytest.mark.parametrize("version", ["120000", "150000", "260000"])
def test_the_driver_joins_with_an_sdk_of_12_or_newer(command, tmp_path, compiler, version):
    sdk = fake_sdk(tmp_path / "sdk", version)
    with_compiler(command, compiler, "-xc", f"-I{sdk}")
    command.add_metal()
    (core,) = (e for e in command.extensions if e.name == "oxibonsai.metal._core")
    assert {Path(source).suffix for source in core.sources} == {".pyx", ".c", ".m"}
    assert ("OXB_HAVE_METAL", "1") in core.define_macros
    assert core.extra_link_args[-6:] == [
        *("-framework", "Foundation", "-framework", "Metal", "-framework", "CoreGraphics")
    ]
    # One command compiles a file for both architectures of a universal2 Python: no flag may be for
    # one of them, and none for the machine that builds.
    for extension in command.extensions:
        flags = [*extension.extra_compile_args, *extension.extra_link_args]
        assert not [flag for flag in flags if flag.startswith(("-m", "-arch", "-target"))]


@pytest.mark.skipif(not importlib.util.find_spec("ziglang"), reason="ziglang is not installed")
@pytest.mark.parametrize(
    "target", ["aarch64-macos.12.0", "x86_64-macos.12.0", "aarch64-macos.26.0"]
)
def test_apples_own_availability_header_passes_the_check(command, tmp_path, target):
    """zig has the C headers of Apple's SDK; frameworks it has none."""
    sdk = fake_sdk(tmp_path / "sdk", None)
    (sdk / "Availability.h").unlink()
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", target]
    with_compiler(command, zig[0], *zig[1:], f"-I{sdk}")
    command.add_metal()
    assert ("OXB_HAVE_METAL", "1") in command.extensions[0].define_macros


@pytest.mark.parametrize(
    ("asked", "target"),
    [
        (None, "12.0"),
        ("", "12.0"),
        ("10.15", "12.0"),
        ("11", "12.0"),
        ("12.3", "12.3"),
        ("26", "26"),
    ],
)
def test_the_deployment_target_is_raised_and_never_lowered(asked, target):
    assert macos_compiler.deployment_target(asked) == target


@pytest.mark.parametrize("asked", ["x", "12.x", "12.", "-12", "12.0.0.1"])
def test_a_deployment_target_that_is_no_version_ends_the_build_by_name(monkeypatch, asked):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(setuptools, "setup", lambda **options: pytest.fail("it goes on"))
    monkeypatch.setattr(sys, "argv", ["setup.py", "build_ext"])
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MACOSX_DEPLOYMENT_TARGET", asked)
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / "setup.py"))
    assert str(caught.value).startswith(
        f"error: MACOSX_DEPLOYMENT_TARGET is '{asked}', which is no version of macOS: give one"
    )


XCRUN = r"""
log="$(dirname "$0")/log"
echo "$*" >>"$log"
shift 2
tool="$1"
for last; do :; done
if [ "$tool" = metal ]; then
    [ -z "$NO_METAL" ] || { echo "$NO_METAL" >&2; exit 1; }
    for word; do case "$word" in *.metal)
        case " $REFUSED " in *" $(basename "$word") "*)
            echo "$word:7:9: error: use of undeclared identifier 'simd_sum'" >&2; exit 1;; esac
    esac; done
fi
echo "$tool" >"$last"
"""


@pytest.fixture
def xcrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake xcrun on PATH; its log has a line for each call."""
    executable(tmp_path / "bin" / "xcrun", XCRUN)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    for name in ("OXIBONSAI_BUILD_METALLIB", "OXIBONSAI_REQUIRE_METALLIB", "NO_METAL", "REFUSED"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "bin" / "log"


def place(command) -> Path:
    path = Path(command.get_ext_fullpath("oxibonsai.metal._core")).parent / "oxibonsai.metallib"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("of another build")
    return path


@pytest.mark.parametrize("value", [None, "", "0"])
def test_no_metallib_is_made_unless_asked_for(command, xcrun, monkeypatch, value):
    library = place(command)
    if value is not None:
        monkeypatch.setenv("OXIBONSAI_BUILD_METALLIB", value)
    command.compile_shaders()
    assert not library.exists(), "what another build left has other kernels"
    assert not xcrun.exists()


@pytest.mark.parametrize("name", ["OXIBONSAI_BUILD_METALLIB", "OXIBONSAI_REQUIRE_METALLIB"])
def test_a_metallib_has_every_shader(command, xcrun, monkeypatch, name):
    library = place(command)
    monkeypatch.setenv(name, "1")
    command.compile_shaders()
    assert library.read_text() == "metallib\n"
    *compiled, linked = xcrun.read_text().splitlines()
    for path in sorted((ROOT / "shaders").glob("*.metal")):
        (line,) = (line for line in compiled if f"/{path.name} " in line)
        assert line.startswith("-sdk macosx metal ")
        assert "-fno-fast-math" in line
        assert "-mmacosx-version-min=12.0" in line
        assert f"/{path.stem}.air " in linked


def test_a_refused_shader_fails_the_build_where_it_is_required(command, xcrun, monkeypatch):
    library = place(command)
    monkeypatch.setenv("REFUSED", "gemv.metal attention.metal")
    monkeypatch.setenv("OXIBONSAI_REQUIRE_METALLIB", "1")
    with pytest.raises(CompileError) as caught:
        command.compile_shaders()
    text = str(caught.value)
    assert "gemv.metal:7:9: error: use of undeclared identifier 'simd_sum'" in text
    assert "attention.metal:7:9: error" in text, "one build shows every shader that is refused"
    assert not library.exists()


def test_a_refused_shader_is_a_warning_where_a_metallib_is_only_asked_for(
    command, xcrun, monkeypatch
):
    library = place(command)
    warned = []
    monkeypatch.setattr(command, "warn", warned.append)
    monkeypatch.setenv("REFUSED", "gemv.metal")
    monkeypatch.setenv("OXIBONSAI_BUILD_METALLIB", "1")
    command.compile_shaders()
    assert not library.exists()
    assert len(warned) == 1
    assert "undeclared identifier 'simd_sum'" in warned[0]


@pytest.mark.parametrize(
    "text",
    [
        'xcrun: error: unable to find utility "metal", not a developer tool or in PATH',
        "error: cannot execute tool 'metal' due to missing Metal Toolchain; use: xcodebuild "
        "-downloadComponent MetalToolchain",
        NO_TOOLS,
    ],
)
def test_a_missing_compiler_fails_the_build_once_with_the_way_to_get_it(
    command, xcrun, monkeypatch, text
):
    place(command)
    monkeypatch.setenv("NO_METAL", text)
    monkeypatch.setenv("OXIBONSAI_REQUIRE_METALLIB", "1")
    with pytest.raises(CompileError, match="xcodebuild -downloadComponent MetalToolchain"):
        command.compile_shaders()
    assert len(xcrun.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    [
        "You have not agreed to the Xcode license agreements. Please run 'sudo xcodebuild'",
        "Agreeing to the Xcode/iOS license requires admin privileges, please re-run as root",
    ],
)
def test_a_licence_that_nobody_has_agreed_to_is_no_fault_of_a_shader(
    command, xcrun, monkeypatch, text
):
    place(command)
    monkeypatch.setenv("NO_METAL", text)
    monkeypatch.setenv("OXIBONSAI_REQUIRE_METALLIB", "1")
    with pytest.raises(CompileError, match="sudo xcodebuild -license accept") as caught:
        command.compile_shaders()
    assert "refused" not in str(caught.value)
    assert text in str(caught.value)
    assert len(xcrun.read_text().splitlines()) == 1


def test_a_missing_xcrun_is_an_error_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(metallib.MetallibError, match=r"a\.metal: no xcrun \(No such file.*Xcode"):
        metallib.make([tmp_path / "a.metal"], tmp_path / "m.metallib", "12.0")


def test_a_wrong_value_is_refused_before_anything_is_compiled(command, xcrun, monkeypatch):
    monkeypatch.setenv("OXIBONSAI_BUILD_METALLIB", "yes")
    with pytest.raises(PlatformError, match="OXIBONSAI_BUILD_METALLIB is 'yes': give 1"):
        command.build_extensions()
