"""The declarations and stubs that tools write, and that they fail where they must."""

from __future__ import annotations

import ast
import importlib.util
import shutil
import sys
from types import ModuleType

import pytest
from places import ROOT, SHIM, TOOLS

METAL = ROOT / "oxibonsai" / "metal"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate_pxd = load("generate_pxd")
generate_stubs = load("generate_stubs")


@pytest.fixture
def include(tmp_path):
    return shutil.copytree(SHIM / "include", tmp_path / "include")


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_pxd_is_that_of_the_headers():
    assert generate_pxd.generate() == (METAL / "oxb.pxd").read_text()


@pytest.mark.parametrize(
    ("header", "old", "new", "line"),
    [
        (
            "oxb_formats.h",
            'X(Q1_0, "Q1_0", 41,',
            'X(Q9_0, "Q9_0", 99, 128, 18, 0, Q1_G128) X(Q1_0, "Q1_0", 41,',
            "        OXB_FILE_FORMAT_Q9_0",
        ),
        (
            "oxb_shim.h",
            "X(uint32_t, driver_count, (void))",
            "X(const void *const *, new_function, (int from, void (*f)(void *), char x[2u * 3u]))",
            "        const void * const *(*new_function)("
            "int from_, void (*f)(void *), char x[6]) noexcept nogil",
        ),
        ("oxb_shim.h", "uint64_t in_flight;", "int32_t in_flight;", "        int32_t in_flight"),
        (
            "oxb_driver.h",
            "typedef struct oxb_host {",
            "typedef int oxb_callback(unsigned a); typedef struct oxb_host {",
            "    ctypedef int oxb_callback(unsigned int a) noexcept nogil",
        ),
        (
            "oxb_args.h",
            "#define OXB_NO_INDEX",
            "#define OXB_MORE 7u /* of them */\n#define OXB_NO_INDEX",
            "    unsigned int OXB_MORE",
        ),
    ],
)
def test_a_change_of_a_header_reaches_the_pxd(include, header, old, new, line):
    assert line not in generate_pxd.generate(include).splitlines()
    replace(include / header, old, new)
    assert line in generate_pxd.generate(include).splitlines()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("uint32_t index;", "uint32_t index : 3;", "not a member: uint32_t index : 3"),
        ("char name[128];", "char name[N];", "not a number: N"),
        (
            "typedef struct oxb_size {",
            "extern int x; typedef struct oxb_size {",
            "not a declaration that this tool reads: extern int x",
        ),
    ],
)
def test_a_declaration_that_the_tool_cannot_read_is_an_error(include, old, new, message):
    replace(include / "oxb_shim.h", old, new)
    with pytest.raises(generate_pxd.HeaderError, match=message.replace("[", r"\[")):
        generate_pxd.generate(include)


def test_a_header_that_the_tool_does_not_know_is_an_error(include):
    (include / "oxb_more.h").write_text("typedef int oxb_more;\n")
    with pytest.raises(generate_pxd.HeaderError, match=r"oxb_more\.h"):
        generate_pxd.generate(include)


def test_check_fails_on_a_difference_and_writes_nothing(tmp_path, monkeypatch, capsys):
    output = tmp_path / "oxb.pxd"
    output.write_text("cdef int x\n")
    monkeypatch.setattr(generate_pxd, "OUTPUT", output)
    monkeypatch.setattr(sys, "argv", ["generate_pxd.py", "--check"])
    assert generate_pxd.main() == 1
    assert "run python tools/generate_pxd.py" in capsys.readouterr().out
    assert output.read_text() == "cdef int x\n"
    monkeypatch.setattr(sys, "argv", ["generate_pxd.py"])
    assert generate_pxd.main() == 0
    assert output.read_text() == generate_pxd.generate()


@pytest.mark.parametrize("path", sorted(METAL.glob("*.pyi")), ids=lambda p: p.stem)
def test_a_stub_has_the_docstrings_of_its_module(path):
    stub = path.read_text()
    filled = generate_stubs.fill(stub, path.with_suffix(".pyx").read_text(), path.name)
    assert ast.dump(ast.parse(filled)) == ast.dump(ast.parse(stub))


SOURCE = '''\
"""A module."""

cdef class Thing:
    """Thing(size, *, name='x', others=(1, 2))\\n--\\n
    A thing.

    Attributes
    ----------
    size, shape : int
        How large
        it is.
    name : str
        Its name.

    Notes
    -----
    None : of these is an attribute.
    """

    def __init__(self, Py_ssize_t size not None, *, str name="x", others=(1, 2)):
        pass

    cdef int hidden(self) except -1:
        """Not for Python."""

    def run(self, const float[::1] x not None,
            n=None):
        """Run it.

        class A (in a text): twice.
        """
        return x


def count(a: dict = {}) -> int:
    """Count."""
'''

STUB = '''\
from typing import overload
class Thing:
    """An old docstring
    of two lines."""
    def __init__(self, size: int, *, name: str = "x", others: tuple[int, int] = (1, 2)) -> None: ...
    @property
    def size(self) -> int: ...
    @property
    def name(self) -> str:
        """Old."""
    @overload
    def run(self, x: list[float], n: None = None) -> None: ...
    @overload
    def run(
        self, x: list[float], n: int
    ) -> int: ...
def count(a: dict[str, int] = {}) -> int: ...
'''

FILLED = '''\
"""A module."""
from typing import overload
class Thing:
    """A thing.

    Attributes
    ----------
    size, shape : int
        How large
        it is.
    name : str
        Its name.

    Notes
    -----
    None : of these is an attribute.
    """
    def __init__(self, size: int, *, name: str = "x", others: tuple[int, int] = (1, 2)) -> None: ...
    @property
    def size(self) -> int:
        """How large
        it is.
        """
    @property
    def name(self) -> str:
        """Its name."""
    @overload
    def run(self, x: list[float], n: None = None) -> None:
        """Run it.

        class A (in a text): twice.
        """
    @overload
    def run(
        self, x: list[float], n: int
    ) -> int:
        """Run it.

        class A (in a text): twice.
        """
def count(a: dict[str, int] = {}) -> int:
    """Count."""
'''


def test_docstrings_are_copied_into_a_stub():
    assert generate_stubs.fill(STUB, SOURCE, "t.pyi") == FILLED
    assert generate_stubs.fill(FILLED, SOURCE, "t.pyi") == FILLED


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '        """Run it.\n\n        class A (in a text): twice.\n        """\n',
            "",
            r"Thing\.run has no docstring",
        ),
        ("    name : str\n        Its name.\n", "", r"Thing\.name has no docstring"),
        ("Thing(size, *", "Thing(length, *", r"starts with Thing\(length, .* Thing\(size, \*"),
        ('str name="x"', 'str name="y"', r"its __init__ makes that Thing\(size, \*, name='y'"),
    ],
)
def test_what_is_not_documented_is_an_error(old, new, message):
    assert old in SOURCE
    with pytest.raises(generate_stubs.DocumentationError, match=message):
        generate_stubs.fill(STUB, SOURCE.replace(old, new), "t.pyi")
