"""Check with numpydoc that what is public says what it takes and returns.

    python tools/check_docstrings.py [PACKAGE ...]

Public is what the __all__ of a package names, and of its classes every method and property without
an underscore. numpydoc checks docstrings and their Parameters sections. What a function returns is
read from its annotation, in the stub where it is compiled: one that returns something, properties
aside, has a section Returns or Yields. A named tuple or dataclass describes its fields as
Attributes.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import sys
from collections.abc import Iterator
from enum import EnumMeta
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from numpydoc.docscrape import get_doc_object
from numpydoc.validate import Validator, validate

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PACKAGES = (
    "oxibonsai.metal",
    "oxibonsai.quant",
    "oxibonsai.gguf",
    "oxibonsai.model",
    "oxibonsai.chat",
    "oxibonsai.formats",
)

# No docstring; unknown section, wrong order of sections; no summary; parameters undocumented,
# unknown, in another order, without a type or a description; a result without a description.
CHECKS = {"GL06", "GL07", "GL08", "SS01", "PR01", "PR02", "PR03", "PR04", "PR07", "RT03"}
PARAMETERS = {"PR01", "PR02", "PR03"}

NOTHING = {"None", "Never", "NoReturn"}


@cache
def returns(path: Path) -> dict[str, str]:
    """Return the annotation of the result of each function of a file, by its qualified name."""
    found: dict[str, str] = {}

    def visit(body: list[ast.stmt], outer: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{outer}{node.name}.")
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns:
                found[f"{outer}{node.name}"] = ast.unparse(node.returns)

    visit(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return found


def source_of(value: object) -> Path:
    """Return the file that has the annotations of a function."""
    path = Path(inspect.getfile(sys.modules[getattr(value, "__module__", "")]))
    if path.suffix == ".py":
        return path
    return path.with_name(path.name.partition(".")[0] + ".pyi")


def has_fields(value: object) -> bool:
    """Say whether the parameters of a class are its fields."""
    return dataclasses.is_dataclass(value) or hasattr(value, "_fields")


def wrong_with(name: str, value: Any) -> Iterator[str]:
    """Yield what is wrong with the docstring of one class, function or property."""
    fields = has_fields(value)
    exempt = fields or isinstance(value, EnumMeta)
    for code, message in validate(name)["errors"]:
        if code in CHECKS and not (exempt and code in PARAMETERS):
            yield f"{name}: {code} {message}"
    if not inspect.getdoc(value):
        return
    doc = Validator(get_doc_object(value)).doc
    if fields:
        listed = {part for p in doc["Attributes"] for part in p.name.split(", ")}
        missing = [p for p in inspect.signature(value).parameters if p not in listed]
        if missing:
            yield f"{name}: no Attributes {', '.join(missing)}"
    elif not isinstance(value, type | property | cached_property):
        annotation = returns(source_of(value)).get(value.__qualname__, "None")
        if annotation not in NOTHING and not doc["Returns"] and not doc["Yields"]:
            yield f"{name}: no Returns, and it returns {annotation}"


def public(package: str) -> Iterator[tuple[str, Any]]:
    """Yield the path and the object of each public name of a package."""
    module = importlib.import_module(package)
    for name in module.__all__:
        value = getattr(module, name)
        if not isinstance(value, type) and not inspect.isroutine(value):
            continue
        yield f"{package}.{name}", value
        for base in value.__mro__ if isinstance(value, type) else ():
            if not base.__module__.startswith("oxibonsai"):
                continue
            for member, found in vars(base).items():
                method = isinstance(found, staticmethod | classmethod) or inspect.isroutine(found)
                if not member.startswith("_") and (method or isinstance(found, property)):
                    yield f"{package}.{name}.{member}", getattr(value, member)


def main() -> int:
    wrong: list[str] = []
    seen: set[Any] = set()  # what has two names is checked once
    for package in sys.argv[1:] or PACKAGES:
        for name, value in public(package):
            if value not in seen:
                wrong += wrong_with(name, value)
            seen.add(value)
    for line in sorted(wrong):
        print(line)
    print(f"{len(seen)} public names, {len(wrong)} faults in their docstrings")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
