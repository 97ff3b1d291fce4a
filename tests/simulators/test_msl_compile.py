"""The runner as C code uses it: the compiler as a process, the runtime as a library."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from msl_runner.testing import HEADER, require_runner
from places import SIMULATORS

require_runner()

SOURCE = (
    HEADER
    + """constant int N [[function_constant(2)]];
struct args { uint n; uint pad[3]; };
kernel void fill(device float* o [[buffer(0)]], constant args& a [[buffer(1)]],
                 uint i [[thread_position_in_grid]]) {
    if (i < a.n) o[i] = float(N);
}
kernel void other(device float* o [[buffer(0)]]) { o[0] = 1.0f; }
"""
)
PROGRAM = r"""
#include <stdio.h>
#include <string.h>
#include "msl_runtime.h"

int main(int argc, char **argv)
{
    char error[512];
    struct { uint32_t n, pad[3]; } args = {4, {0}};
    struct msl_launch launch;
    float *out = msl_alloc(16);
    msl_library *library = msl_library_open(argv[argc - 1], error, sizeof error);
    if (!library || !out) return fprintf(stderr, "%s\n", error), 1;
    for (uint32_t i = 0; i < msl_library_count(library); i++) {
        const struct msl_kernel *k = msl_library_kernel(library, i);
        printf("%s", k->name);
        for (uint32_t j = 0; j < k->n_arguments; j++)
            printf(" %s:%u:%u:%u", k->arguments[j].name, k->arguments[j].kind,
                   k->arguments[j].index, (unsigned)k->arguments[j].size);
        for (uint32_t j = 0; j < k->n_constants; j++)
            printf(" %s:%s:%u:%u", k->constants[j].name, k->constants[j].type,
                   k->constants[j].required, k->constants[j].defined);
        printf("\n");
    }
    if (msl_library_find(library, "none")) return 2;
    memset(&launch, 0, sizeof launch);
    launch.buffers[0] = (struct msl_binding){out, 16, 0};
    launch.buffers[1] = (struct msl_binding){&args, sizeof args, 0};
    launch.threadgroups[0] = launch.threadgroups[1] = launch.threadgroups[2] = 1;
    launch.threads_per_threadgroup[0] = 32;
    launch.threads_per_threadgroup[1] = launch.threads_per_threadgroup[2] = 1;
    for (; args.n < 6; args.n++) {
        const struct msl_kernel *fill = msl_library_find(library, "fill");
        int failed = msl_run(library, fill, &launch, error, sizeof error);
        printf("%d %g %g %s\n", failed, out[0], out[3], error);
    }
    msl_library_close(library);
    msl_free(out);
    return 0;
}
"""


def run(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "msl_runner.compile", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(SIMULATORS)},
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )


def paths(done):
    assert done.returncode == 0, done.stderr
    return {
        key: Path(path) for key, _, path in (x.partition(" ") for x in done.stdout.splitlines())
    }


@pytest.fixture
def shader(tmp_path):
    path = tmp_path / "fill.metal"
    path.write_text(SOURCE)
    return path


def test_prints_the_runtime_and_the_library(shader):
    found = paths(run("--constant", "2:int=7", shader))
    assert found.keys() == {"runtime", "library"}
    assert all(path.is_file() for path in found.values())
    assert paths(run("--runtime")) == {"runtime": found["runtime"]}
    assert paths(run("--constant", "2:int=7", shader)) == found
    assert paths(run("--constant", "2:int=8", shader)) != found


def test_an_error_in_the_source_is_status_1_with_the_log(shader):
    shader.write_text(SOURCE.replace("float(N)", "float(M)"))
    done = run(shader)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{shader}:7:31: error: use of undeclared identifier 'M'" in done.stderr
    assert "inlined.metal:7:31: error: " in run("--name", "inlined.metal", shader).stderr


@pytest.mark.parametrize(
    "arguments", [["--constant", "2=7", "x"], ["missing.metal"], [], ["--mode", "slow", "x"]]
)
def test_wrong_arguments_are_status_2(arguments, tmp_path):
    done = run(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr


@pytest.mark.parametrize("option", [["--kernel", "none"], ["--version", "1.0"]])
def test_options_that_do_not_fit_the_source_are_status_1(option, shader):
    done = run(*option, shader)
    assert (done.returncode, done.stdout) == (1, "")
    assert option[1] in done.stderr


def test_without_a_compiler_the_message_says_how_to_get_one(shader, monkeypatch):
    monkeypatch.setenv("OXIBONSAI_MSL_CLANG", "no-such-compiler")
    done = run(shader)
    assert done.returncode == 2
    assert "apt-get install clang-19, or pip install ziglang" in done.stderr


def test_a_requirement_turns_the_skip_into_an_error(monkeypatch):
    monkeypatch.setenv("OXIBONSAI_MSL_CLANG", "no-such-compiler")
    command = [
        sys.executable,
        "-c",
        "from msl_runner.testing import require_runner; require_runner()",
    ]
    for required, outcome in (("", "Skipped"), ("1", "CompilerMissingError")):
        environment = {
            **os.environ,
            "PYTHONPATH": str(SIMULATORS),
            "OXIBONSAI_REQUIRE_METAL_SIM": required,
        }
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert outcome in done.stderr


def test_processes_that_compile_the_same_source_at_once_agree(shader, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    warm = paths(run("--runtime"))["runtime"]
    (cache / "msl").mkdir(parents=True)
    shutil.copy(warm, cache / "msl")  # the slow part
    monkeypatch.setenv("OXIBONSAI_CACHE_DIR", str(cache))
    command = [sys.executable, "-m", "msl_runner.compile", str(shader)]
    environment = {**os.environ, "PYTHONPATH": str(SIMULATORS)}
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(outputs) == 1
    assert not list((cache / "msl").glob("tmp-*"))


@pytest.mark.parametrize("mode", ["check", "fast"])
def test_a_c_program_runs_a_kernel(shader, tmp_path, mode):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        pytest.skip("no C compiler")
    library = paths(run("--mode", mode, "--constant", "2:int=7", shader))
    program = tmp_path / "program.c"
    program.write_text(PROGRAM)
    runtime = library["runtime"]
    subprocess.run(
        [
            compiler,
            "-Wall",
            "-Wextra",
            "-Werror",
            f"-I{SIMULATORS / 'msl_runner'}",
            program,
            runtime,
            f"-Wl,-rpath,{runtime.parent}",
            "-o",
            tmp_path / "program",
        ],
        check=True,
    )
    done = subprocess.run(
        [tmp_path / "program", library["library"]], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[:3] == [
        "fill o:0:0:4 a:1:1:16 N:int:1:1",
        "other o:0:0:4",
        "0 7 7 ",
    ]
    assert lines[3].startswith("1 7 7 out of bounds: kernel fill, threadgroup (0,0,0), thread 4")
    assert lines[3].endswith(f"at {shader}:7")
