"""The checks of the layers, which have to fail on trees that are broken on purpose."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT, TOOLS

LAYERS = runpy.run_path(str(TOOLS / "check_layers.py"))

TREE = {
    "shim/include/oxb_shim.h": "int oxb_open(void);\n",
    "shim/base/clock.h": "static inline double base_now(void) { return 0; }\n",
    "shim/front/front.h": '#include "oxb_shim.h"\n\nint front_fail(int status);\n',
    "shim/front/front.c": '#include "front.h"\n#include "base/clock.h"\n\n'
    "int front_fail(int status) { return status; }\nint oxb_open(void) { return 0; }\n",
    "shim/ops/ops.c": '#include "front/front.h"\n\nstatic int helper(void) { return 1; }\n'
    "int ops_gemv(void) { return front_fail(helper()); }\n",
    "shim/cpu/cpu.h": "#define INLINE static inline\n/* int other(void); */\n"
    "INLINE int two(void) { return 2; }\nextern const char *const cpu_names[2];\n",
    "shim/cpu/isa/isa.c": '#include "cpu/cpu.h"\n\nconst char *const cpu_names[2] = {"{", "}"};\n'
    "int cpu_three(int n) {\n    if (n) { return two(); }\n    return 3;\n}\n",
    "shim/gpu/gpu.h": "struct gpu_tile {\n    int x;\n};\n",
    "shim/metal/driver.m": '#include "gpu/gpu.h"\n\n@interface Thing : NSObject {\n    int x;\n}\n'
    "- (void)go;\n@end\n@implementation Thing\n- (void)go {\n}\n@end\n"
    "int metal_open(void) { return 0; }\n",
    "shaders/gemv.metal": '#include "oxb_shim.h"\nkernel void gemv(void) {\n}\n',
}


def findings(folder: Path, changes: dict[str, str]) -> list[str]:
    for name, text in (TREE | changes).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return [str(finding) for finding in LAYERS["check"](folder)]


def test_a_tree_in_its_layers_has_no_findings(tmp_path):
    assert findings(tmp_path, {}) == []


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (
            {"shim/cpu/pool.c": '#include "front/front.h"\n'},
            [
                "shim/cpu/pool.c:1: cpu must not include shim/front/front.h (it may include "
                "base, include)"
            ],
        ),
        (
            {
                "shim/gpu/a.c": '#include "base/clock.h"\n#include "ops/a.h"\n',
                "shim/ops/a.h": "",
            },
            ["shim/gpu/a.c:2: gpu must not include shim/ops/a.h (it may include base, include)"],
        ),
        (
            {"shim/metal/metal.h": "", "shim/cuda/driver.c": '#import "metal/metal.h"\n'},
            [
                "shim/cuda/driver.c:1: cuda must not include shim/metal/metal.h (it may include "
                "base, gpu, include)"
            ],
        ),
        (
            {"shaders/rows.h": '#include "cpu.h"\n'},
            [
                'shaders/rows.h:1: include "cpu.h": write "file.h" within a folder and for '
                'shim/include, else "room/file.h"'
            ],
        ),
        (
            {"shim/cpu/pool.c": '#include "cpu/cpu.h"\n'},
            [
                'shim/cpu/pool.c:1: include "cpu/cpu.h": write "file.h" within a folder and for '
                'shim/include, else "room/file.h"'
            ],
        ),
        (
            {"shim/cpu/a.h": '#include "b.h"\n', "shim/cpu/b.h": '\n#include "a.h"\n'},
            ["shim/cpu/a.h:1: a circle of files: shim/cpu/a.h -> shim/cpu/b.h -> shim/cpu/a.h"],
        ),
        (
            {"shim/front/run.c": '#include "ops/ops.h"\n', "shim/ops/ops.h": ""},
            [
                "shim/front/run.c:1: front must not include shim/ops/ops.h (it may include base, "
                "formats, include)",
                "front:1: a circle of rooms: front -> ops -> front",
            ],
        ),
        (
            {"shim/attic/old.c": '#include "oxb_shim.h"\n'},
            ["shim/attic/old.c:1: no room 'attic' in ALLOWED of check_layers.py"],
        ),
        (
            {"shim/cpu/pool.c": "\nint pool_run(void) { return 0; }\n"},
            ["shim/cpu/pool.c:2: pool_run has to start with cpu_"],
        ),
        (
            {"shim/cpu/pool.c": "const struct kernel *const kernels[] = {0};\n"},
            ["shim/cpu/pool.c:1: kernels has to start with cpu_"],
        ),
        (
            {"shim/front/api.c": "int oxb_secret(void) { return 0; }\n"},
            ["shim/front/api.c:1: oxb_secret is declared by no header of shim/include"],
        ),
        (
            {"shim/ops/ops.h": "int oxb_open(void);\n"},
            [
                "shim/ops/ops.h:1: oxb_open is declared in ops/; oxb_ is for what shim/include "
                "declares"
            ],
        ),
        (
            {"shim/ops/ops.h": f"/*{'x' * 100}*/\n"},
            ["shim/ops/ops.h:1: 104 columns, more than the limit of 100"],
        ),
    ],
)
def test_a_broken_tree_is_named(tmp_path, changes, found):
    assert findings(tmp_path, changes) == found


def test_the_command_fails_with_the_finding(tmp_path, capsys):
    findings(tmp_path, {"shim/cpu/pool.c": '#include "front/front.h"\n'})
    assert LAYERS["main"]([str(tmp_path)]) == 1
    assert "cpu must not include shim/front/front.h" in capsys.readouterr().out
    (tmp_path / "shim/cpu/pool.c").unlink()
    assert LAYERS["main"]([str(tmp_path)]) == 0


def lint_imports(folder: Path, contract: str) -> tuple[int, str]:
    """Run import-linter with the contracts of pyproject.toml on the package in `folder`."""
    code = "import sys; from importlinter.cli import lint_imports_command as c; c()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache", "--contract", contract],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": ""},
        capture_output=True,
        text=True,
    )
    return done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr)


@pytest.mark.parametrize(
    ("contract", "module", "line", "chain"),
    [
        (
            "rooms",
            "gguf/errors.py",
            "import oxibonsai.cli",
            "oxibonsai.gguf is not allowed to import oxibonsai.cli: - oxibonsai.gguf.errors -> "
            "oxibonsai.cli",
        ),
        (
            "rooms",
            "quant/tensor.py",
            "import oxibonsai.metal",
            "oxibonsai.quant is not allowed to import oxibonsai.metal: - oxibonsai.quant.tensor -> "
            "oxibonsai.metal",
        ),
        (
            "circles",
            "gguf/errors.py",
            "import oxibonsai.cli",
            "- .gguf -> .cli (1 import)",
        ),
    ],
    ids=["gguf imports cli", "quant imports metal", "a circle"],
)
def test_an_import_against_the_layers_breaks_its_contract(tmp_path, contract, module, line, chain):
    pytest.importorskip("importlinter", reason="no import-linter: pip install import-linter")
    package = tmp_path / "oxibonsai"
    shutil.copytree(ROOT / "oxibonsai", package, ignore=shutil.ignore_patterns("*.so", "data"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    _, before = lint_imports(tmp_path, contract)
    assert chain not in before
    with (package / module).open("a") as file:
        file.write(f"\n{line}\n")
    status, after = lint_imports(tmp_path, contract)
    assert status == 1
    assert chain in after
