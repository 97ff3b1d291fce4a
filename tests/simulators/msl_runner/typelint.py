"""What only types show, read from clang's dump of the syntax tree."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .entries import ENTRIES
from .toolchain import INCLUDE

_NODE = re.compile(
    r"(?P<indent>[|` -]*)(?P<kind>\w+) 0x\w+ (?:(?:prev|parent) 0x\w+ )*"
    r"<(?P<range>[^>]*(?:<[^>]*>[^>]*)?)> ?(?P<rest>.*)"
)
_PLACE = re.compile(r"line:(?P<line>\d+):\d+|col:\d+|(?P<file>[^\s,<>]+?):(?P<file_line>\d+):\d+")
_POINTER_TO_GENERIC = re.compile(r"__generic [^*&()]*[*&]")
_FUNCTION_POINTER = re.compile(r"\((?:__\w+ )*\*[^)]*\)\(")
_WORD = re.compile(r"[A-Za-z_]\w*")
_DECLARATIONS = ("VarDecl", "ParmVarDecl", "FieldDecl", "TypedefDecl", "TypeAliasDecl")
_CASTS = (
    "CStyleCastExpr",
    "CXXStaticCastExpr",
    "CXXReinterpretCastExpr",
    "CXXFunctionalCastExpr",
)
_GROUP_POINTER = re.compile(
    r"(?=.*__local)(?:const |volatile |__local )*(?:unsigned )?(?P<element>bool|u?char|u?short|"
    r"half|u?int|float|u?long)(?P<n>[234]?)(?: const| volatile| __local)* ?\*"
    r"(?: __attribute__\(\(ext_vector_type\((?P<vector>\d)\)\)\))?"
)
_SIZES = {"bool": 1, "char": 1, "short": 2, "half": 2, "int": 4, "float": 4, "long": 8}
_ASIDE = ("used", "referenced", "invalid", "implicit", "constexpr", "static", "inline")


@dataclass
class _Node:
    kind: str
    depth: int
    place: tuple[str, int]
    rest: str
    types: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        words = [w for w in self.rest.partition("'")[0].split() if _WORD.fullmatch(w)]
        words = [w for w in words if w not in _ASIDE]
        return words[-1] if words else "?"


class _Reader:
    """Follows the dump, which names a file or a line only where it changes."""

    def __init__(self) -> None:
        self.file, self.line = "", 0
        self.errors: dict[str, None] = {}
        self.method_call: int | None = None  # depth of a call whose object is still to come
        self.cast: _Node | None = None  # whose operand is still to come

    def places(self, text: str) -> list[tuple[str, int]]:
        found = []
        for match in _PLACE.finditer(text):
            if match["line"]:
                self.line = int(match["line"])
            elif match["file"]:
                self.file, self.line = match["file"], int(match["file_line"])
            found.append((self.file, self.line))
        return found

    def read(self, text: str) -> _Node | None:
        match = _NODE.match(text)
        if not match:
            return None
        places = self.places(match["range"])
        location, _, rest = match["rest"].partition(" ")
        if _PLACE.fullmatch(location):
            places += self.places(location)
        else:
            rest = match["rest"]
        # A declaration that begins with a macro of ours begins in our header.
        own = [p for p in places or [(self.file, self.line)] if not _is_ours(p[0])]
        if not own:
            return None
        return _Node(
            match["kind"], len(match["indent"]), own[0], rest, re.findall(r"'([^']*)'", rest)
        )

    def error(self, node: _Node, message: str) -> None:
        self.errors[f"{node.place[0]}:{node.place[1]}: error: {message}"] = None


def _is_ours(file: str) -> bool:
    return file in ("", ENTRIES) or file.startswith((str(INCLUDE), "<"))


def _declaration(reader: _Reader, node: _Node) -> None:
    type_name = node.types[0]
    aliases = ("TypedefDecl", "TypeAliasDecl")
    quiet = " implicit" in f" {node.rest}" or "lambda" in node.rest
    if _FUNCTION_POINTER.search(type_name):
        if node.kind not in aliases:
            reader.error(node, f"'{node.name}': there are no function pointers in Metal")
    elif _POINTER_TO_GENERIC.search(type_name) and not quiet:
        reader.error(
            node,
            f"the pointer or reference '{node.name}' has no address space (device, constant, "
            "threadgroup or thread)",
        )
    elif node.kind == "VarDecl" and re.match(r"(const |volatile )*__global [^*&]*$", type_name):
        reader.error(
            node, f"'{node.name}': a program-scope or static variable has to be in constant memory"
        )
    if node.kind not in aliases and re.search(r"\bdouble\b|\blong long\b", type_name):
        reader.error(node, f"the type '{type_name}' does not exist in Metal")


def _group_alignment(type_name: str) -> int | None:
    """Return the alignment of what a pointer into threadgroup memory points to, if it is known."""
    match = _GROUP_POINTER.fullmatch(type_name)
    if not match:
        return None
    n = int(match["n"] or match["vector"] or 1)
    return _SIZES[match["element"].removeprefix("u")] * (4 if n == 3 else n)


def _cast_operand(reader: _Reader, cast: _Node, operand: _Node) -> None:
    """Under a cast of a pointer. Threadgroup memory is as aligned as its declaration says.

    Of device memory the caller says how it is aligned, so that its types do not tell.
    """
    to, of = _group_alignment(cast.types[0]), _group_alignment(operand.types[0])
    if to is not None and of is not None and to > of:
        reader.error(
            cast,
            f"this cast of a threadgroup pointer asks for an alignment of {to}, and what it points "
            f"to has {of}: declare the memory with the more aligned type and cast the other way",
        )


def _cast(reader: _Reader, node: _Node) -> None:
    if "<BitCast>" in node.rest and "__local" in node.types[0]:
        reader.cast = node
    if _POINTER_TO_GENERIC.search(node.types[0]):
        reader.error(node, "a cast to a pointer or reference without an address space")
    elif (
        "<BitCast>" in node.rest
        and not re.search(r"[*&]", node.types[0])
        and re.search(r"ext_vector_type|msl_vec", node.rest)
    ):
        reader.error(
            node,
            "this cast of a vector keeps the bits in clang and the values in Metal: use as_type",
        )


def _method_object(reader: _Reader, node: _Node) -> None:
    """Under a method's call: whose object is it? Metal's methods see thread memory only."""
    if node.kind == "ImplicitCastExpr" and "<AddressSpaceConversion>" in node.rest:
        return
    if node.kind in ("MemberExpr", "ParenExpr") and "bound member function" in node.rest:
        if ".operator " in node.rest:  # a packed vector becomes a vector
            reader.method_call = None
        return
    if node.types and re.match(r"(const )?__(global|local|constant) ", node.types[0]):
        reader.error(node, "a method is called on an object outside thread memory")
    reader.method_call = None


def type_errors(dump: str) -> list[str]:
    """Give the errors of a program by the dump of its syntax tree."""
    reader = _Reader()
    skipped: int | None = None  # depth of what the compiler itself declares
    for text in dump.splitlines():
        node = reader.read(text)
        if node is None:
            continue
        if skipped is not None and node.depth > skipped:
            continue
        implicit = "implicit" in node.rest.partition("'")[0].split()
        skipped = node.depth if implicit and node.kind.startswith("CXX") else None
        if reader.cast is not None:
            if node.depth > reader.cast.depth and node.types:
                _cast_operand(reader, reader.cast, node)
            reader.cast = None
        if reader.method_call is not None:
            if node.depth <= reader.method_call:
                reader.method_call = None
            else:
                _method_object(reader, node)
        if not node.types:
            continue
        if node.kind == "CXXMemberCallExpr":
            reader.method_call = node.depth
        elif node.kind in _DECLARATIONS:
            _declaration(reader, node)
        elif node.kind in _CASTS:
            _cast(reader, node)
        elif node.kind == "NonTypeTemplateParmDecl" and re.search(r"\([*&]", node.types[0]):
            reader.error(node, "function pointers as template arguments are not for all compilers")
        elif (
            node.kind == "FunctionDecl"
            and re.match(r"[^(]*__generic [^(]*[*&]", node.types[0])
            and "implicit" not in node.rest
        ):
            reader.error(node, "the function returns a pointer or reference without address space")
    return list(reader.errors)
