"""What help() and an editor show of the device layer."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from oxibonsai import metal

FOLDER = Path(metal.__file__).parent
ERRORS = [name for name in metal.__all__ if name.endswith("Error")]
PUBLIC = [name for name in metal.__all__ if name not in ERRORS]


def nodes_of(stub: Path) -> dict[str, ast.ClassDef | ast.FunctionDef]:
    """Return the classes and functions of a stub, of overloads the last."""
    found: dict[str, ast.ClassDef | ast.FunctionDef] = {}
    for node in ast.parse(stub.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node
            for member in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(member, ast.FunctionDef):
                    found[f"{node.name}.{member.name}"] = member
    return found


STUBS: dict[str, ast.ClassDef | ast.FunctionDef] = {}
for path in FOLDER.glob("*.pyi"):
    STUBS |= nodes_of(path)

MEMBERS = [name for name in STUBS if name.split(".")[0] in PUBLIC and not name.endswith("__")]


@pytest.mark.parametrize("name", [name for name in PUBLIC if f"{name}.__init__" in STUBS])
def test_a_constructor_shows_its_parameters(name):
    init = STUBS[f"{name}.__init__"]
    parameters = inspect.signature(getattr(metal, name)).parameters.values()
    named = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert named == [a.arg for a in init.args.args[1:]]
    keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert keywords == {
        a.arg: ast.literal_eval(default)
        for a, default in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)
    }


@pytest.mark.parametrize("name", MEMBERS)
def test_a_docstring_is_the_same_at_run_time_and_in_the_stub(name):
    owner, _, member = name.partition(".")
    value = getattr(metal, owner)
    if member:
        value = inspect.getattr_static(value, member)
        value = getattr(value, "__func__", value)
    shown = inspect.getdoc(value)
    written = ast.get_docstring(STUBS[name])
    assert written
    if shown:
        assert shown.endswith(written)
    else:  # a C attribute, which its class describes
        assert written.splitlines()[0] in inspect.getdoc(getattr(metal, owner))


@pytest.mark.parametrize("name", ERRORS)
def test_an_exception_says_when_it_is_raised(name):
    assert "raise" in inspect.getdoc(getattr(metal, name)).splitlines()[0].lower()
