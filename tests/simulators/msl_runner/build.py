"""From MSL source to a shared library of kernels in the cache."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from oxibonsai.msl.constants import constants_of_kernels, words_of_kernels
from oxibonsai.msl.tokens import tokenize

from .cache import PACKAGE, digest, folder, package_digest, processor, work_folder
from .callgraph import LIMIT, CallGraph, read_call_graph
from .entries import generate
from .errors import CompileError
from .lines import read_lines
from .lint import lint
from .rewrite import Instance, Program, Rewriter
from .toolchain import (
    find_compiler,
    header_flags,
    kernel_flags,
    metal_version,
    run,
    run_checked,
    runtime_library,
    support_object,
)
from .typelint import type_errors

MODES = ("check", "fast")
_FAST = ["-O2", "-march=native"]
_SANITIZERS = "bounds,integer-divide-by-zero"
# Vectorised code touches several elements at once: fewer, larger and unaligned accesses to check.
_CHECK = [
    *("-O1", "-march=native", "-fno-vectorize", "-fno-slp-vectorize", "-fsanitize=thread"),
    *("-mllvm", "-tsan-instrument-read-before-write=1"),
    *(f"-fsanitize={_SANITIZERS}", f"-fsanitize-trap={_SANITIZERS}"),
]
_DEBUG_LINES = ["-gline-tables-only", "-gdwarf-4"]
_WARNINGS_AS_ERRORS = [
    f"-Werror={name}" for name in ("uninitialized", "sometimes-uninitialized", "return-type")
]
# A struct cannot be copied out of OpenCL's constant memory; Metal allows it.
_COPIES_CONSTANT = re.compile(
    r"no matching constructor for initialization of|no viable conversion|"
    r"cannot initialize object parameter|no viable overloaded '='|no matching function for call"
)
_VALUE = re.compile(
    r"true|false|[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?[fhuUlL]*|0[xX][0-9a-fA-F]+[uU]?"
)


@dataclass(frozen=True)
class Options:
    """How to compile. `values`: function constants by index, as (type or '', value in C)."""

    mode: str = "check"
    version: str = "2.4"
    values: tuple[tuple[int, str, str], ...] = ()
    kernels: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    defines: tuple[str, ...] = ()
    fast_math: bool = False


@dataclass(frozen=True)
class Build:
    """What a compilation gave."""

    library: Path
    runtime: Path
    warnings: tuple[str, ...]


def preprocess(source: str, name: str, options: Options) -> str:
    """Run the preprocessor as Metal's compiler would, with our headers of the standard library."""
    number = metal_version(options.version)
    command = [
        *find_compiler().command,
        *("-E", "-x", "c++", "-std=c++17", "-undef", "-nostdinc", "-nostdinc++"),
        *("-fno-color-diagnostics", f"-I{PACKAGE / 'stubs'}"),
        *(f"-I{path}" for path in options.include),
        *(f"-D__METAL_VERSION__={number}", "-D__METAL__=1", "-D__METAL_MACOS__=1"),
        *(f"-D{define}" for define in options.defines),
        "-",
    ]
    done = run(command, f'# 1 "{name}"\n{source}')
    if done.returncode:
        raise CompileError(done.stderr.strip())
    return done.stdout


def _check_options(options: Options) -> None:
    if options.mode not in MODES:
        raise CompileError(f"mode '{options.mode}' is not one of {', '.join(MODES)}")
    for index, _, value in options.values:
        if not _VALUE.fullmatch(value):
            raise CompileError(f"function constant {index}: '{value}' is no value")


def _parse(text: str, name: str, options: Options) -> Program:
    """Rewrite the preprocessed text and hold its tokens against Metal's rules."""
    program = Program(name, tokenize(text, name))
    Rewriter(program, {index: value for index, _, value in options.values}).run()
    lint(program, options.version)
    types = {index: type_name for index, type_name, _ in options.values}
    for constant in program.constants.values():
        given = types.get(constant.index)
        if given and given != constant.type:
            program.error(
                constant.token,
                f"function constant {constant.index} '{constant.name}' is of type "
                f"{constant.type}, a {given} was given",
            )
    _raise(program.errors)
    return program


def _raise(errors: Iterable[str]) -> None:
    unique = list(dict.fromkeys(errors))
    if unique:
        raise CompileError("\n".join(unique))


def _chosen(program: Program, kernels: Sequence[str]) -> list[Instance]:
    names = [i.host_name for i in program.instances]
    for name in names:
        if names.count(name) > 1:
            raise CompileError(f"{program.name}: error: two kernels have the name '{name}'")
    for name in kernels:
        if name not in names:
            raise CompileError(f"{program.name}: error: there is no kernel '{name}'")
    return [i for i in program.instances if not kernels or i.host_name in kernels]


def _trap_flags(version: int) -> list[str]:
    """Give the flags that keep a trap of its own, with its line, for each place that can fail."""
    if version < 20:
        return ["-mllvm", "-ubsan-unique-traps"] if version >= 18 else []
    reasons = ["-fsanitize-debug-trap-reasons=none"] if version >= 22 else []
    return ["-fno-sanitize-merge", *reasons]


@dataclass
class _Compilation:
    """The three things clang is asked for, side by side."""

    syntax: subprocess.CompletedProcess[str]
    llvm: subprocess.CompletedProcess[str]
    code: subprocess.CompletedProcess[str]


def _compile(code: str, options: Options, target: Path, constant_is_global: bool) -> _Compilation:
    command = [*find_compiler().command, *kernel_flags(options.version)]
    check = options.mode == "check"
    command.append(f"-DMSL_CHECK_BUILD={int(check)}")
    if constant_is_global:
        command.append("-DMSL_CONSTANT_IS_GLOBAL")
        standard: list[str | Path] = ["-include", "msl_emu.h"]
    else:
        standard = header_flags(options.version)
    optimise = [*(_CHECK if check else _FAST), *(["-ffast-math"] if options.fast_math else [])]
    if check:
        optimise += _trap_flags(find_compiler().version)
    commands: list[list[str | Path]] = [
        [*command, *standard, *_WARNINGS_AS_ERRORS, "-fsyntax-only", "-Xclang", "-ast-dump", "-"],
        [
            *command,
            *standard,
            "-gline-tables-only",
            "-Xclang",
            "-disable-llvm-passes",
            "-S",
            "-emit-llvm",
            "-o",
            "-",
            "-",
        ],
        [*command, "-include", "msl_emu.h", *_DEBUG_LINES, *optimise, "-c", "-", "-o", target],
    ]
    with ThreadPoolExecutor(len(commands)) as pool:
        return _Compilation(*pool.map(lambda c: run(c, code), commands))


def _group_errors(
    graph: CallGraph, instances: Sequence[Instance], sizes: Mapping[str, int]
) -> list[str]:
    errors = graph.recursion_errors()
    for instance in instances:
        size = sizes[instance.host_name]
        if size > LIMIT:
            token = instance.kernel.token
            errors.append(
                f"{token.file}:{token.line}: error: kernel {instance.host_name} has {size} bytes "
                f"of threadgroup variables, the limit is {LIMIT}"
            )
    return errors


def _write_map(
    path: Path, library: Path, sizes: Mapping[str, int], warnings: Sequence[str]
) -> None:
    """Write what the runtime reads beside a library; see runtime/library.cpp."""
    lines = ["msl-map 1"]
    lines += [f"threadgroup {size} {name}" for name, size in sizes.items()]
    lines.append("lines")
    numbers: dict[str, int] = {}
    for row in read_lines(library):
        if row.file and not row.line:
            continue  # code of no line in particular belongs to the line before it
        if row.file and row.file not in numbers:
            numbers[row.file] = len(numbers)
            lines.append(f"file {row.file}")
        lines.append(f"{row.address:x} {numbers.get(row.file, 0)} {row.line}")
    path.write_text("\n".join(lines) + "\n")
    path.with_suffix(".warnings").write_text("\n".join(warnings))


def _link(objects: Sequence[Path], target: Path) -> None:
    runtime = runtime_library()
    arguments = ["-soname", target.name, "-rpath", "$ORIGIN"]
    linker = find_compiler().linker
    if not linker[1].startswith("ld"):
        arguments = ["-Wl," + ",".join(arguments[i : i + 2]) for i in (0, 2)]
    run_checked([*linker, *arguments, "-o", target, *objects, runtime])


def _make(text: str, name: str, options: Options, target: Path) -> None:
    program = _parse(text, name, options)
    instances = _chosen(program, options.kernels)
    values = {index: value for index, _, value in options.values}
    words = words_of_kernels(program.tokens, program.kernels)
    used = constants_of_kernels(words, program.constants.values())
    code = program.code + generate(program, instances, used, values)
    support = support_object(options.mode == "check")
    with work_folder() as work:
        compiled = _compile(code, options, work / "kernels.o", False)
        if compiled.syntax.returncode and _COPIES_CONSTANT.search(compiled.syntax.stderr):
            second = _compile(code, options, work / "kernels.o", True)
            if not second.syntax.returncode:
                compiled = second
                program.warnings.append(
                    f"{name}: warning: a struct is copied out of constant memory; in this source "
                    "constant is checked as const device"
                )
        for step in (compiled.syntax, compiled.llvm, compiled.code):
            if step.returncode:
                raise CompileError(step.stderr.strip())
        graph = read_call_graph(compiled.llvm.stdout)
        sizes = {
            instance.host_name: graph.group_bytes(f"msl_entry_{i}")
            for i, instance in enumerate(instances)
        }
        _raise(type_errors(compiled.syntax.stdout) + _group_errors(graph, instances, sizes))
        library = work / target.name
        _link([work / "kernels.o", support], library)
        _write_map(work / "kernels.map", library, sizes, program.warnings)
        (work / "kernels.warnings").replace(target.with_suffix(".warnings"))
        (work / "kernels.map").replace(target.with_suffix(".map"))
        library.replace(target)  # last: where it is, the others are


def build(source: str, name: str, options: Options) -> Build:
    """Compile a source, or find it compiled.

    `name` is what errors call it. Raises CompileError with the log where the source is refused.
    """
    _check_options(options)
    text = preprocess(source, name, options)
    key = digest(
        text,
        name,
        [options.mode, options.version, options.values, options.kernels, options.fast_math],
        package_digest(),
        find_compiler().identity,
        processor(),
    )
    target = folder() / f"kernels-{key}.so"
    if not target.exists():
        _make(text, name, options, target)
    warnings = target.with_suffix(".warnings").read_text().splitlines()
    return Build(target, runtime_library(), tuple(warnings))
