"""Rewrite preprocessed MSL into what clang compiles as C++ for OpenCL.

Attributes go, threadgroup variables become references into the runtime's memory, function constants
get their values, explicit instantiations are noted for the table of entries. Lines stay in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from oxibonsai.msl.signatures import (
    FunctionConstant,
    Kernel,
    check_kernel,
    integer,
    read_parameters,
)
from oxibonsai.msl.tokens import (
    Token,
    Tokens,
    begins_statement,
    closing,
    closing_angle,
    declares_group_variable,
    following,
    follows_template_head,
    instantiated,
    is_attribute,
    join,
    meaningful,
    newlines,
    preceding,
    read_attributes,
    statement_end,
    text_at,
    without_attributes,
)

from .constructors import cast, constructor, find_type_names, static_cast, vector_initialiser

# Pragmas that clang understands alike; the others mean something to Metal's compiler only.
_KEPT_PRAGMAS = ("clang loop", "unroll", "nounroll")


@dataclass
class Instance:
    """A kernel that the host can ask for."""

    host_name: str
    expression: str  # names the function in C++: a name, or a template with its arguments
    kernel: Kernel


@dataclass
class Program:
    """What the front end knows of a source."""

    name: str
    tokens: list[Token]
    code: str = ""
    kernels: dict[str, Kernel] = field(default_factory=dict)
    instances: list[Instance] = field(default_factory=list)
    constants: dict[str, FunctionConstant] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def error(self, token: Token, message: str) -> None:
        """Note an error at a token."""
        self.errors.append(f"{token.file}:{token.line}: error: {message}")


class Rewriter:
    """One pass over the tokens of a program."""

    def __init__(self, program: Program, values: Mapping[int, str]) -> None:
        self.program = program
        self.values = values
        self.tokens = program.tokens
        self.out: list[str] = []
        self.type_names = find_type_names(self.tokens)
        self.initialiser_ends: set[int] = set()
        self.n_variables = 0
        self.pending: list[tuple[str, str]] = []  # attributes before a declaration

    def run(self) -> None:
        """Fill in the program's code, kernels, instances and constants."""
        i, depth = 0, 0
        while i < len(self.tokens):
            token = self.tokens[i]
            if token.kind == "op":
                depth += (token.text == "{") - (token.text == "}")
                if token.text == ";" and depth == 0:
                    self.pending = []
            if i in self.initialiser_ends:
                self.out.append(")")
                depth += 1  # its '{' was left out
                i += 1
                continue
            i = self._step(i, depth)
        self.program.code = "".join(self.out)
        plain = [
            Instance(k.name, k.name, k) for k in self.program.kernels.values() if not k.is_template
        ]
        self.program.instances[:0] = plain

    def _step(self, i: int, depth: int) -> int:
        """Handle the token at i and give the index to go on at."""
        token = self.tokens[i]
        if token.kind == "directive":
            return self._directive(i)
        if is_attribute(self.tokens, i):
            return self._attribute(i)
        if token.kind == "word":
            j = self._keyword(i, depth)
            if j is not None:
                return j
            replaced = constructor(self.tokens, i, self.type_names) or static_cast(
                self.tokens, i, self.type_names
            )
            if replaced:
                self.out.append(replaced[0])
                return replaced[1]
            initialiser = vector_initialiser(self.tokens, i)
            if initialiser:
                self.out.append(initialiser[0])
                self.initialiser_ends.add(initialiser[2])
                return initialiser[1]
        elif token.kind == "number" and token.text.lower().endswith("bf"):
            self.out.append(f"bfloat({token.text[:-2]}f)")
            return i + 1
        elif token.text == "(":
            replaced = cast(self.tokens, i, self.type_names)
            if replaced:
                self.out.append(replaced[0])
                return replaced[1]
        self.out.append(token.text)
        return i + 1

    def _directive(self, i: int) -> int:
        text = self.tokens[i].text
        pragma = text.partition("pragma")[2].strip()
        if not pragma or pragma.startswith(_KEPT_PRAGMAS):
            self.out.append(text)
        return i + 1

    def _attribute(self, i: int) -> int:
        found, end = read_attributes(self.tokens, i)
        self.pending += found
        self.out.append(newlines(self.tokens[i:end]))
        if any(name == "kernel" for name, _ in found):
            return self._kernel(end + 1)
        return end + 1

    def _keyword(self, i: int, depth: int) -> int | None:
        word = self.tokens[i].text
        if word == "template" and text_at(self.tokens, following(self.tokens, i)) != "<":
            return self._instantiation(i) if depth == 0 else None
        if word == "kernel":
            return self._kernel(following(self.tokens, i))
        if word == "constant" and depth == 0 and begins_statement(self.tokens, i):
            end = statement_end(self.tokens, i)
            if any(t.text == "function_constant" for t in self.tokens[i:end]):
                return self._function_constant(i, end)
        if word == "is_function_constant_defined":
            return self._is_defined(i)
        if word == "threadgroup" and depth > 0 and declares_group_variable(self.tokens, i):
            return self._group_variables(i)
        return None

    def _kernel(self, i: int) -> int:
        """Read the head of a kernel from its return type at i; its body follows as it is."""
        tokens = self.tokens
        attributes, self.pending = self.pending, []
        j = i
        while tokens[j].text not in ("(", ";"):
            if is_attribute(tokens, j):
                more, j = read_attributes(tokens, j)
                attributes += more
            j += 1
        if tokens[j].text == ";":
            self.program.error(tokens[i], "'kernel' is not followed by a function")
            return j
        name = tokens[preceding(tokens, j)]
        if "void" not in {t.text for t in tokens[i:j]}:
            self.program.error(name, f"kernel {name.text} must return void")
        close = closing(tokens, j)
        kernel = Kernel(
            name.text,
            name,
            dict(attributes),
            read_parameters(tokens[j + 1 : close]),
            follows_template_head(tokens, i),
        )
        check_kernel(kernel, self.program.error)
        if text_at(tokens, following(tokens, close)) == "{":
            self.program.kernels[kernel.name] = kernel
        self.out.append(join(without_attributes(tokens[i : close + 1])))
        return close + 1

    def _instantiation(self, i: int) -> int:
        """Note template [[host_name("n")]] [[kernel]] T f<...>(...); others stay as they are."""
        tokens = self.tokens
        end = statement_end(tokens, i)
        attributes: list[tuple[str, str]] = []
        j = i
        while j < end:
            if is_attribute(tokens, j):
                more, j = read_attributes(tokens, j)
                attributes += more
            j += 1
        rest = [
            t for t in meaningful(without_attributes(tokens[i + 1 : end])) if t.text != "kernel"
        ]
        names = dict(attributes)
        is_kernel = "kernel" in names or any(t.text == "kernel" for t in tokens[i:end])
        if not is_kernel and "host_name" not in names:
            self.out.append("template " + join(without_attributes(tokens[i + 1 : end + 1])))
            return end + 1
        self.out.append(newlines(tokens[i:end]))  # the table of entries instantiates it
        found = instantiated(rest)
        if found is None or found[0] not in self.program.kernels:
            self.program.error(tokens[i], "an instantiation of what is no kernel template")
            return end + 1
        host_name = names.get("host_name", "").strip().strip('"') or found[1]
        self.program.instances.append(Instance(host_name, found[1], self.program.kernels[found[0]]))
        return end + 1

    def _function_constant(self, i: int, end: int) -> int:
        tokens = self.tokens
        j = i
        while not is_attribute(tokens, j):
            j += 1
        attributes, _ = read_attributes(tokens, j)
        index = integer(dict(attributes)["function_constant"])
        name = tokens[preceding(tokens, j)]
        type_name = join(tokens[i + 1 : preceding(tokens, j)]).strip()
        if index is None or not 0 <= index < 65536:
            self.program.error(name, f"function constant '{name.text}' has no index in 0..65535")
            index = 0
        if any(c.index == index for c in self.program.constants.values()):
            self.program.error(name, f"[[function_constant({index})]] is used twice")
        self.program.constants[name.text] = FunctionConstant(name.text, index, type_name, name)
        value = self.values.get(index, "0")
        self.out.append(f"constexpr constant {type_name} {name.text} = {type_name}({value});")
        return end + 1

    def _is_defined(self, i: int) -> int:
        bracket = following(self.tokens, i)
        close = closing(self.tokens, bracket)
        name = join(self.tokens[bracket + 1 : close]).strip()
        constant = self.program.constants.get(name)
        if constant is None:
            self.program.error(self.tokens[i], f"'{name}' is no function constant")
            return close + 1
        constant.optional = True
        self.out.append("(true)" if constant.index in self.values else "(false)")
        return close + 1

    def _group_variables(self, i: int) -> int:
        """Rewrite threadgroup T a[4], b; into references into the runtime's memory."""
        tokens = self.tokens
        end = i
        while tokens[end].text not in (";", "=", "{"):
            end += 1
        if tokens[end].text != ";":
            self.program.error(tokens[i], "a threadgroup variable cannot have an initialiser")
            end = statement_end(tokens, end)
        words = meaningful(without_attributes(tokens[i + 1 : end]))
        first = _first_declarator(words)
        type_name = " ".join(t.text for t in words[:first])
        for declarator in _declarators(words[first:]):
            name = declarator[0].text
            extent = " ".join(t.text for t in declarator[1:])
            place = f"{name} ({tokens[i].file}:{tokens[i].line})".replace("\\", "/")
            self.out.append(
                f"typedef {type_name} msl_t_{name} {extent}; threadgroup msl_t_{name}& {name} = "
                f'MSL_GROUP_VARIABLE({self.n_variables}, msl_t_{name}, "{place}");'
            )
            self.n_variables += 1
        self.out.append(newlines(tokens[i:end]))
        return end + 1


def _first_declarator(tokens: Tokens) -> int:
    """Give the index of the first declared name: what is before it is the type."""
    i = 0
    while i < len(tokens):
        if tokens[i].text == "<":
            i = closing_angle(tokens, i)
        elif i and tokens[i].kind == "word" and text_at(tokens, i + 1) in ("[", ",", ""):
            return i
        i += 1
    return len(tokens)


def _declarators(tokens: Tokens) -> list[list[Token]]:
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        depth += (token.text in "([{") - (token.text in ")]}")
        if token.text == "," and depth == 0:
            parts.append([])
        else:
            parts[-1].append(token)
    return [part for part in parts if part]
