"""Check that the C code and the shaders keep to the layers of docs/architecture.md.

    python tools/check_layers.py [ROOT]

``shim/`` has a folder for each layer, here called a room. The check fails for

- an include from a room that ``ALLOWED`` does not give it, and one not written ``"room/file.h"``
  (``"file.h"`` within a folder and for the shipped headers);
- a circle of includes, between files or between rooms;
- a function or variable with external linkage whose name does not start with its room's, or with
  ``oxb_`` where no header of ``shim/include`` declares it;
- a line longer than 100 columns.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

COLUMNS = 100
SHIPPED = "include"
# What each room may include besides itself.
ALLOWED: Mapping[str, frozenset[str]] = {
    SHIPPED: frozenset(),
    "base": frozenset({SHIPPED}),
    "formats": frozenset({SHIPPED, "base"}),
    "front": frozenset({SHIPPED, "base", "formats"}),
    "ops": frozenset({SHIPPED, "base", "front"}),
    "cpu": frozenset({SHIPPED, "base"}),
    "gpu": frozenset({SHIPPED, "base"}),
    "metal": frozenset({SHIPPED, "base", "gpu"}),
    "cuda": frozenset({SHIPPED, "base", "gpu"}),
    "shaders": frozenset({"base", SHIPPED}),
}
# Names that a room may give besides those that start with its own.
MORE_NAMES = {"cuda": ("nvrtc",)}  # as in nvrtc_load: the driver calls two libraries
SUFFIXES = {".c", ".h", ".m", ".metal"}

INCLUDE = re.compile(r'^[ \t]*#[ \t]*(?:include|import)[ \t]+"([^"]+)"', re.MULTILINE)
NOT_CODE = re.compile(
    r"""/\*.*?\*/ | //[^\n]* | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*'""", re.DOTALL | re.VERBOSE
)
DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n\\]|\\.|\\\n)*", re.MULTILINE)
# A macro that makes what it stands before static.
STATIC_MACRO = re.compile(
    r"^[ \t]*#[ \t]*define[ \t]+(\w+)(?:\([^)]*\))?(?=[^\n]*\bstatic\b)", re.MULTILINE
)
OBJECTIVE_C = re.compile(
    r"^@(?:interface|implementation|protocol)\b.*?^@end\b|^@[^\n]*;", re.DOTALL | re.MULTILINE
)
ATTRIBUTE = re.compile(r"__attribute__\s*\(\((?:[^()]|\([^()]*\))*\)\)|\b_Alignas\s*\([^()]*\)")
NAME_OF_FUNCTION = re.compile(r"(\w+)\s*\(")
NAME_OF_VARIABLE = re.compile(r"(\w+)\s*(?:\[[^\]]*\]\s*)*(?:=.*)?$", re.DOTALL)
NO_LINKAGE = re.compile(r"^\s*(?:typedef|_Static_assert|static_assert)\b|\bstatic\b")
ONLY_A_TYPE = re.compile(r"^\s*(?:const\s+)?(?:struct|union|enum)(?:\s+\w+)?\s*$")


class Finding(NamedTuple):
    """One thing wrong: where, and what."""

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


class Include(NamedTuple):
    """An include of one file by another, both relative to the root."""

    source: Path
    line: int
    target: Path


def room_of(path: Path) -> str:
    """Return the room of a file below the root: ``shim/cpu/isa/isa.h`` is in ``cpu``."""
    return path.parts[1] if path.parts[0] == "shim" else path.parts[0]


def files(root: Path) -> list[Path]:
    """Return all files that are checked, relative to the root."""
    found = [path for top in ("shim", "shaders") for path in (root / top).rglob("*")]
    return sorted(p.relative_to(root) for p in found if p.suffix in SUFFIXES)


def line_at(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1


def resolve(root: Path, source: Path, spelled: str) -> Path | None:
    """Return the file that a quoted include means, where it is spelled by the rule."""
    if "/" in spelled:
        places = [Path("shim") / spelled]
    else:
        places = [source.parent / spelled, Path("shim", SHIPPED, spelled)]
    found = next((place for place in places if (root / place).is_file()), None)
    if found is not None and "/" in spelled and found.parent == source.parent:
        return None
    return found


def includes(root: Path, paths: Iterable[Path]) -> tuple[list[Include], list[Finding]]:
    """Return the graph of quoted includes, and those that the rule of spelling refuses."""
    graph, findings = [], []
    for path in paths:
        text = (root / path).read_text(encoding="utf-8")
        for match in INCLUDE.finditer(text):
            line = line_at(text, match.start())
            target = resolve(root, path, match[1])
            if target is None:
                rule = 'write "file.h" within a folder and for shim/include, else "room/file.h"'
                findings.append(Finding(str(path), line, f'include "{match[1]}": {rule}'))
            else:
                graph.append(Include(path, line, target))
    return graph, findings


def wrong_directions(graph: Iterable[Include]) -> Iterator[Finding]:
    """Find includes of a room that the including room may not know."""
    for source, line, target in graph:
        here, there = room_of(source), room_of(target)
        if here not in ALLOWED:
            yield Finding(str(source), line, f"no room {here!r} in ALLOWED of check_layers.py")
        elif there != here and there not in ALLOWED[here]:
            known = ", ".join(sorted(ALLOWED[here])) or "nothing"
            yield Finding(
                str(source), line, f"{here} must not include {target} (it may include {known})"
            )


def circle(edges: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the nodes of one circle, the first one again at its end, or an empty list."""
    done: set[str] = set()
    trail: list[str] = []

    def visit(node: str) -> list[str]:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return []
        trail.append(node)
        found: list[str] = []
        for other in edges.get(node, ()):
            found = found or visit(other)
        trail.pop()
        done.add(node)
        return found

    for node in sorted(edges):
        found = visit(node)
        if found:
            return found
    return []


def circles(graph: Iterable[Include]) -> Iterator[Finding]:
    """Find a circle between files and one between rooms."""
    between_files: dict[str, list[str]] = {}
    between_rooms: dict[str, set[str]] = {}
    for source, _, target in graph:
        between_files.setdefault(str(source), []).append(str(target))
        if room_of(source) != room_of(target):
            between_rooms.setdefault(room_of(source), set()).add(room_of(target))
    sorted_rooms = {room: sorted(others) for room, others in between_rooms.items()}
    for what, edges in (("files", between_files), ("rooms", sorted_rooms)):
        found = circle(edges)
        if found:
            yield Finding(found[0], 1, f"a circle of {what}: {' -> '.join(found)}")


def blank(match: re.Match[str]) -> str:
    """Replace a match by its line ends: offsets in lines stay."""
    return "\n" * match[0].count("\n") or " "


def external_names(text: str, static: Iterable[str] = ()) -> Iterator[tuple[str, int]]:
    """Yield the functions and variables with external linkage, each with its line.

    `static` are the macros that expand to the keyword.
    """
    no_linkage = re.compile("|".join([NO_LINKAGE.pattern, *(rf"\b{name}\b" for name in static)]))
    for pattern in (NOT_CODE, DIRECTIVE, OBJECTIVE_C, ATTRIBUTE):
        text = pattern.sub(blank, text)
    start, depth, head = 0, 0, ""
    for match in re.finditer(r"[{};]", text):
        mark = match[0]
        if mark == "{":
            if depth == 0:
                head = text[start : match.start()]
            depth += 1
            continue
        if mark == "}":
            depth -= 1
            if depth == 0 and "(" in head and "=" not in head:  # the end of a function
                if not no_linkage.search(head):
                    yield from name_in(head, line_at(text, start))
                start, head = match.end(), ""
            continue
        if depth == 0:
            declaration = head or text[start : match.start()]
            if not no_linkage.search(declaration):
                yield from name_in(declaration, line_at(text, start))
            start, head = match.end(), ""


def name_in(declaration: str, line: int) -> Iterator[tuple[str, int]]:
    """Yield the name that a declaration at file scope gives, macros in capitals left out."""
    line += len(declaration[: len(declaration) - len(declaration.lstrip())].split("\n")) - 1
    if not declaration.strip() or ONLY_A_TYPE.match(declaration):
        return
    before_value = declaration.partition("=")[0]
    pattern = NAME_OF_FUNCTION if "(" in before_value else NAME_OF_VARIABLE
    match = pattern.search(before_value.strip())
    if match and not match[1].isupper():
        yield match[1], line


def wrong_names(root: Path, paths: Iterable[Path]) -> Iterator[Finding]:
    """Find names with external linkage that do not say whose they are."""
    paths = [path for path in paths if path.parts[0] == "shim"]
    shipped = "\n".join(
        (root / path).read_text(encoding="utf-8") for path in paths if room_of(path) == SHIPPED
    )
    # By word, for functions that a list macro declares as oxb_##name as well.
    declared = set(re.findall(r"\w+", shipped))
    texts = {path: (root / path).read_text(encoding="utf-8") for path in paths}
    static = {name for text in texts.values() for name in STATIC_MACRO.findall(text)}
    for path, code in texts.items():
        room = room_of(path)
        if room == SHIPPED or "prelude" in path.parts:
            continue
        for name, line in external_names(code, static):
            # What any room may use is declared in base, whoever defines it.
            owners = tuple(ALLOWED) if room == "base" else (room, *MORE_NAMES.get(room, ()))
            if name in owners or name.startswith(tuple(f"{owner}_" for owner in owners)):
                continue
            if name.startswith("oxb_"):
                if path.suffix == ".h":
                    text = f"{name} is declared in {room}/; oxb_ is for what shim/include declares"
                elif name in declared or name.removeprefix("oxb_") in declared:
                    continue
                else:
                    text = f"{name} is declared by no header of shim/include"
            else:
                text = f"{name} has to start with {room}_"
            yield Finding(str(path), line, text)


def long_lines(root: Path, paths: Iterable[Path]) -> Iterator[Finding]:
    """Find lines of more than COLUMNS characters."""
    for path in paths:
        lines = (root / path).read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, 1):
            if len(line) > COLUMNS:
                yield Finding(
                    str(path), number, f"{len(line)} columns, more than the limit of {COLUMNS}"
                )


def check(root: Path) -> list[Finding]:
    """Return all findings in the tree at `root`."""
    paths = files(root)
    graph, findings = includes(root, paths)
    findings += [*wrong_directions(graph), *circles(graph)]
    return [*findings, *wrong_names(root, paths), *long_lines(root, paths)]


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "root", type=Path, nargs="?", default=Path(__file__).resolve().parent.parent
    )
    options = parser.parse_args(arguments)
    findings = check(options.root)
    for finding in findings:
        print(finding)
    print(f"{len(files(options.root))} files in their layers, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
