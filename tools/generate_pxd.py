"""Write oxibonsai/metal/oxb.pxd, the C ABI as Cython sees it, from the headers of shim/include.

    python tools/generate_pxd.py            writes the file
    python tools/generate_pxd.py --check    fails where the file differs from what it would write

The C preprocessor ($CC, or cc) expands the lists of formats and functions first, so that plain
declarations remain. Prototypes are left out: only oxibonsai.metal._core links the shim, and
everybody else calls through the table `oxb_api`.
"""

from __future__ import annotations

import argparse
import keyword
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INCLUDE = ROOT / "shim" / "include"
OUTPUT = ROOT / "oxibonsai" / "metal" / "oxb.pxd"
# Each after those that it includes.
HEADERS = ("oxb_formats.h", "oxb_shim.h", "oxb_args.h", "oxb_driver.h")
LINE_LENGTH = 100

PREAMBLE = """\
# The C ABI of shim/include, as Cython sees it. Every function is called through the table of
# `oxb_api`: only oxibonsai.metal._core links the shim. The headers say what each name means.
#
# Written by tools/generate_pxd.py: change the headers, not this file.
"""

LINE_MARKER = re.compile(r'# \d+ "(.*?)"')
CONSTANT = re.compile(
    r'^#define (OXB_\w+)[ \t]+("[^"]*"|(?:0x[0-9a-fA-F]+|\d+)u?|UINT32_MAX)[ \t]*(?:/\*|$)',
    re.MULTILINE,
)
AGGREGATE = re.compile(r"(typedef )?(enum|struct|union) (\w+)(?: ?\{(.*)\})?(?: (\w+))?")
# A pointer to a function, or, in a typedef, a function.
FUNCTION = re.compile(r"(.+?)(\(\* ?\w+\)|(?<=[ *])\w+) ?\((.*)\)")
VARIABLE = re.compile(r"([\w *]+?[ *])([A-Za-z_]\w*(?: ?\[.+\])?(?:, ?\w+)*)")
PROTOTYPE = re.compile(r"[\w *]+?\b\w+ ?\([^()]*(?:\([^()]*\)[^()]*)*\)")


class HeaderError(Exception):
    """A declaration that this tool does not read."""


def preprocess(header: Path) -> str:
    """Return the text of one header with its macros expanded, without what it includes."""
    compiler = shlex.split(os.environ.get("CC") or "cc")
    done = subprocess.run(
        [*compiler, "-E", "-x", "c", str(header)],
        capture_output=True,
        text=True,
        check=True,
    )
    kept = []
    inside = False
    for line in done.stdout.splitlines():
        marker = LINE_MARKER.match(line)
        if marker:
            inside = Path(marker[1]) == header
        elif inside:
            kept.append(line)
    return " ".join(" ".join(kept).split())


def split(text: str, separator: str) -> list[str]:
    """Split at separators outside all brackets."""
    parts = [""]
    depth = 0
    for c in text:
        depth += (c in "({[") - (c in ")}]")
        if c == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return [part.strip() for part in parts if part.strip()]


def number(text: str) -> int:
    """Return the value of a constant expression, such as (31u + 1u)."""
    if not re.fullmatch(r"(?:\d+u?|[-+*() ])+", text):
        raise HeaderError(f"not a number: {text}")
    return int(eval(text.replace("u", "")))


def variable(text: str) -> str:
    """Return the declaration of a variable or parameter, which may be a function pointer."""
    text = re.sub(r" ?\* ?", "*", text)
    text = re.sub(r"(?<=\w)\*", " *", re.sub(r"\*(?=const\b)", "* ", text))
    text = re.sub(r"\bunsigned (?!int|char|long|short)", "unsigned int ", text)
    text = re.sub(r" ?\[(.*)\]", lambda size: f"[{number(size[1])}]", text)
    last = re.search(r"(\w+)$", text)
    if last and keyword.iskeyword(last[1]):
        text += "_"
    return text


def function(text: str) -> str:
    """Return the declaration of a function or a pointer to one, without its exception clause."""
    match = FUNCTION.fullmatch(text)
    if not match:
        raise HeaderError(f"not a function: {text}")
    result, name, parameters = match.groups()
    listed = [] if parameters.strip() == "void" else split(parameters, ",")
    rewritten = [function(p) if "(*" in p else variable(p) for p in listed]
    result = variable(result.strip())
    return f"{result}{'' if result.endswith('*') else ' '}{name}({', '.join(rewritten)})"


def members(body: str) -> list[str]:
    """Return the members of a struct or union."""
    lines = []
    for member in split(body, ";"):
        if "(*" in member:
            lines.append(f"{function(member)} noexcept nogil")
            continue
        match = VARIABLE.fullmatch(member.removeprefix("struct "))  # Cython needs no tag
        if not match:
            raise HeaderError(f"not a member: {member}")
        lines += [variable(f"{match[1]}{name}") for name in split(match[2], ",")]
    return lines


def declaration(statement: str, forward: set[str]) -> list[str]:
    """Return the lines for one statement.

    `forward` names the structs whose typedef stands before their body: they are declared once, with
    the body.
    """
    match = AGGREGATE.fullmatch(statement)
    if match:
        typedef, kind, tag, body, alias = match.groups()
        if typedef and alias != tag:
            raise HeaderError(f"the tag {tag} and the name {alias} differ: {statement}")
        if body is None and tag in forward:
            return []
        if body is None:
            lines = ["pass"]
        elif kind == "enum":
            lines = [part.split("=")[0].strip() for part in split(body, ",")]
        else:
            lines = members(body)
        prefix = "ctypedef " if typedef or tag in forward else ""
        return [f"{prefix}{kind} {tag}:", *(f"    {line}" for line in lines)]
    if statement.startswith("typedef "):
        text = statement.removeprefix("typedef ")
        if "(" in text:
            return [f"ctypedef {function(text)} noexcept nogil"]
        return [f"ctypedef {variable(text)}"]
    if statement.startswith("_Static_assert") or PROTOTYPE.fullmatch(statement):
        return []
    raise HeaderError(f"not a declaration that this tool reads: {statement}")


def wrap(line: str) -> list[str]:
    """Indent a line of a block; a long one is broken after its parenthesis and after commas."""
    line = f"    {line}"
    if len(line) <= LINE_LENGTH:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    start = line.index("(", line.find("(*") + 1) + 1
    lines = [line[:start], f"{indent}{line[start:]}"]
    while len(lines[-1]) > LINE_LENGTH:
        end = lines[-1].rindex(", ", 0, LINE_LENGTH)
        lines[-1:] = [lines[-1][: end + 1], f"{indent}{lines[-1][end + 2 :]}"]
    return lines


def generate(include: Path = INCLUDE) -> str:
    """Return the text of the file for the headers in the folder `include`."""
    found = {path.name for path in include.glob("*.h")}
    if found != set(HEADERS):
        raise HeaderError(f"{include} holds {sorted(found)}, this tool reads {HEADERS}")
    statements = {header: split(preprocess(include / header), ";") for header in HEADERS}
    opaque: set[str] = set()
    complete: set[str] = set()
    for listed in statements.values():
        for match in filter(None, map(AGGREGATE.fullmatch, listed)):
            (opaque if match[4] is None else complete).add(match[3])
    text = ""
    for header in HEADERS:
        text += f'\n\ncdef extern from "{header}" nogil:\n'
        blocks = []
        constants = [
            f"{'const char *' if value.startswith(chr(34)) else 'unsigned int '}{name}"
            for name, value in CONSTANT.findall((include / header).read_text(encoding="utf-8"))
        ]
        if constants:
            blocks.append(constants)
        blocks += [declaration(s, opaque & complete) for s in statements[header]]
        text += "\n\n".join(
            "\n".join(part for line in block for part in wrap(line)) for block in blocks if block
        )
        text += "\n"
    sized = sorted(set(re.findall(r"\bu?int\d+_t\b", text)))
    return f"{PREAMBLE}from libc.stdint cimport {', '.join(sized)}\n{text}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail on a difference")
    check = parser.parse_args().check
    try:
        text = generate()
    except HeaderError as error:
        print(error)
        return 1
    if OUTPUT.read_text(encoding="utf-8") == text:
        return 0
    if check:
        print(f"{OUTPUT.name} is not that of shim/include: run python tools/generate_pxd.py")
        return 1
    OUTPUT.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
