"""What make lint says of the C code that a compiler warns of."""

from __future__ import annotations

import sys

import pytest
from places import TOOLS

sys.path.insert(0, str(TOOLS))
import c_warnings

SHADOWED = "int read(int);\nint f(int n) { { int n = read(1); return n; } }\n"


def compiler(name):
    try:
        return c_warnings.compilers()[name]
    except SystemExit as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", c_warnings.COMPILERS)
def test_a_local_that_hides_another_is_a_warning(tmp_path, name):
    path = tmp_path / "shadowed.c"
    path.write_text(SHADOWED)
    assert "shadow" in c_warnings.warnings(compiler(name), path)
    path.write_text("int f(int n);\nint f(int n) { return n; }\n")
    assert not c_warnings.warnings(compiler(name), path)


def test_every_c_file_of_the_shim_is_compiled():
    assert {"isa.c", "toy_driver.c"} <= {path.name for path in c_warnings.sources()}


def test_a_compiler_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(c_warnings.shutil, "which", lambda name: name if name == "gcc" else None)
    with pytest.raises(SystemExit, match="not installed: clang"):
        c_warnings.compilers()
