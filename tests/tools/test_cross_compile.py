"""The same flags compile the files of a universal2 build for both of its architectures."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
from places import TOOLS

sys.path.insert(0, str(TOOLS))
import cross_compile_macos


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("ziglang"), reason="ziglang is not installed")
def test_files_for_an_instruction_set_compile_for_both_architectures():
    """They are where a flag or a header that is right for one architecture breaks the other."""
    command = [sys.executable, TOOLS / "cross_compile_macos.py", "--only", "shim/cpu/isa"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("ok")]
    files = {target: {name for _, t, name in lines if t == target} for _, target, _ in lines}
    assert sorted(files) == ["aarch64-macos.12.0", "x86_64-macos.12.0"]
    assert files["aarch64-macos.12.0"] == files["x86_64-macos.12.0"]


@pytest.mark.parametrize(
    ("head", "cpu"),
    [
        (b"\xcf\xfa\xed\xfe\x0c\0\0\1", "aarch64"),
        (b"\xcf\xfa\xed\xfe\7\0\0\1", "x86_64"),
        (b"\x7fELF\2\1\1\0", None),
        (b"", None),
    ],
)
def test_an_object_is_known_by_its_architecture(tmp_path, head, cpu):
    (tmp_path / "a.o").write_bytes(head)
    assert cross_compile_macos.cpu_of(tmp_path / "a.o") == cpu
    assert cross_compile_macos.cpu_of(tmp_path / "missing.o") is None
