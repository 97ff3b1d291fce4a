"""Copy the docstrings of oxibonsai/metal/*.pyx into the .pyi stubs beside them, for editors.

    python tools/generate_stubs.py            writes the stubs
    python tools/generate_stubs.py --check    fails where a stub differs from what it would write

The .pyx files are the source: signatures with types stand in the stubs and nowhere else, docstrings
in the .pyx files. A property that a .pyx declares as `cdef readonly` takes its docstring from the
Attributes section of its class. The tool fails where a public name of a stub has no docstring, and
where the signature at the top of a class's docstring, which `help()` and `inspect.signature` show,
is not that of its __init__.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
METAL = ROOT / "oxibonsai" / "metal"

DEFINITION = re.compile(r"( *)(?:cdef )?(class|def) (\w+)(?=[(:])")
SIGNATURE = re.compile(r"(\w+)\((.*)\)\n--\n\s*")
ATTRIBUTE = re.compile(r"^(\w+(?:, \w+)*) : (.*)\n((?:    .*\n?|\n)+)", re.MULTILINE)

Node = ast.ClassDef | ast.FunctionDef


class DocumentationError(Exception):
    """A docstring that is missing or contradicts the code."""


class Definition(NamedTuple):
    """A class or function of a .pyx file."""

    docstring: str | None  # without the signature
    signature: str | None  # what a class's docstring starts with
    parameters: str  # as the .pyx has them


def brackets(line: str) -> int:
    """Return how many brackets a line leaves open, for headers, which hold none in strings."""
    return sum(line.count(c) for c in "([{") - sum(line.count(c) for c in ")]}")


def read_docstring(lines: list[str]) -> str | None:
    """Return the docstring that the first line with text starts, None where there is none."""
    start = next((i for i, line in enumerate(lines) if line.strip()), None)
    if start is None or not lines[start].lstrip().startswith('"""'):
        return None
    text = lines[start].lstrip()
    while text.count('"""') < 2:
        start += 1
        text += "\n" + lines[start]
    value = ast.literal_eval(text.strip())
    assert isinstance(value, str)
    return value


def definitions(source: str) -> dict[str, Definition]:
    """Return the classes and functions of a .pyx file by their qualified name, "" for the file."""
    lines = source.splitlines()
    module = read_docstring(lines)
    found = {"": Definition(module and inspect.cleandoc(module), None, "")}
    outer: list[tuple[int, str]] = []
    for i, line in enumerate(lines):
        match = DEFINITION.match(line)
        if not match:
            continue
        indent, _, name = match.groups()
        while outer and outer[-1][0] >= len(indent):
            outer.pop()
        end = i
        while brackets("\n".join(lines[i : end + 1])) or not lines[end].rstrip().endswith(":"):
            end += 1
        header = " ".join(part.strip() for part in lines[i : end + 1])
        parameters = header[header.index("(") + 1 : header.rindex(")")] if "(" in header else ""
        text = read_docstring(lines[end + 1 :])
        signature = text and SIGNATURE.match(text)
        if text and signature:
            text = text[signature.end() :]
        outer.append((len(indent), name))
        found[".".join(part for _, part in outer)] = Definition(
            text and inspect.cleandoc(text),
            f"{signature[1]}({signature[2]})" if signature else None,
            parameters,
        )
    return found


def python_parameters(parameters: str) -> str:
    """Return the parameters of a method of a .pyx as Python writes them, without types and self."""
    kept = []
    for parameter in re.split(r", *(?![^()\[\]{}]*[)\]}])", parameters)[1:]:
        name, equals, default = parameter.replace(" not None", "").partition("=")
        if equals:
            default = ast.unparse(ast.parse(default.strip(), mode="eval"))
        kept.append(f"{name.split()[-1]}{equals}{default}")
    return ", ".join(kept)


def attributes(docstring: str) -> dict[str, str]:
    """Return the descriptions in the Attributes section of a class's docstring."""
    section = re.search(r"^Attributes\n-+\n(.*?)(?=\n\n\w[^\n]*\n-+\n|\Z)", docstring, re.M | re.S)
    found: dict[str, str] = {}
    for names, _, text in ATTRIBUTE.findall(section[1] + "\n" if section else ""):
        for name in names.split(", "):
            found[name] = inspect.cleandoc("\n" + text)
    return found


def is_docstring(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def is_ellipsis(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and statement.value.value is ...
    )


def quoted(docstring: str) -> list[str]:
    """Return the lines of a docstring between quotes."""
    lines = f'"""{docstring}'.split("\n")
    return [*lines, '"""'] if len(lines) > 1 else [f'{lines[0]}"""']


class Stub:
    """The lines of one stub, of which docstrings are replaced from the last to the first."""

    def __init__(self, text: str, known: dict[str, Definition], name: str) -> None:
        self.lines = text.splitlines()
        self.known = known
        self.name = name
        self.missing: list[str] = []

    def fill(self, nodes: list[ast.stmt], outer: str = "", inherited: str = "") -> None:
        """Put docstrings into `nodes`, the statements of the class `outer` or of the stub."""
        for node in reversed(nodes):
            if not isinstance(node, Node):
                continue
            qualified = f"{outer}.{node.name}" if outer else node.name
            definition = self.known.get(qualified)
            docstring = definition.docstring if definition else None
            if docstring is None and isinstance(node, ast.FunctionDef):
                docstring = attributes(inherited).get(node.name)
            if docstring is None and not node.name.startswith("_"):
                self.missing.append(f"{self.name}: {qualified} has no docstring in the .pyx")
            if isinstance(node, ast.ClassDef):
                self.fill(node.body, qualified, docstring or "")
            if docstring is not None:
                self.put(node, docstring)

    def put(self, node: Node, docstring: str) -> None:
        """Make `docstring` that of a class or function."""
        first = node.body[0]
        indent = " " * (node.col_offset + 4)
        new = [f"{indent}{line}".rstrip() for line in quoted(docstring)]
        start = min((d.lineno for d in getattr(first, "decorator_list", [])), default=first.lineno)
        if not is_docstring(first) and not is_ellipsis(first):
            self.lines[start - 1 : start - 1] = new
            return
        assert first.end_lineno is not None
        header = self.lines[start - 1][: first.col_offset].rstrip()
        self.lines[start - 1 : first.end_lineno] = [header, *new] if header else new


def check_signatures(known: dict[str, Definition], name: str) -> list[str]:
    """Return what is wrong with the signatures in the docstrings of classes."""
    wrong = []
    for qualified, definition in known.items():
        if definition.signature is None:
            continue
        init = known.get(f"{qualified}.__init__")
        right = f"{qualified}({python_parameters(init.parameters if init else '')})"
        if definition.signature != right:
            wrong.append(
                f"{name}: the docstring of {qualified} starts with {definition.signature}, "
                f"its __init__ makes that {right}"
            )
    return wrong


def fill(stub: str, source: str, name: str) -> str:
    """Return the text of a stub with the docstrings of its .pyx; `name` is for the messages."""
    known = definitions(source)
    filled = Stub(stub, known, name)
    tree = ast.parse(stub)
    filled.fill(tree.body)
    wrong = filled.missing[::-1] + check_signatures(known, name)
    if wrong:
        raise DocumentationError("\n".join(wrong))
    if known[""].docstring is not None:
        old = tree.body[0]
        end = old.end_lineno if is_docstring(old) else 0
        filled.lines[:end] = quoted(known[""].docstring)
    return "\n".join(filled.lines) + "\n"


def formatted(text: str, path: Path) -> str:
    """Return the text as `ruff format` leaves it."""
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(path), "-"],
        input=text,
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail on a difference")
    check = parser.parse_args().check
    wrong = []
    for path in sorted(METAL.glob("*.pyi")):
        stub = path.read_text(encoding="utf-8")
        source = path.with_suffix(".pyx").read_text(encoding="utf-8")
        try:
            text = formatted(fill(stub, source, path.name), path)
        except DocumentationError as error:
            wrong.append(str(error))
            continue
        if check and text != stub:
            wrong.append(f"{path.name} is not that of its .pyx: run python tools/generate_stubs.py")
        elif text != stub:
            path.write_text(text, encoding="utf-8")
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
