"""Translate Metal Shading Language to the CUDA C++ that NVRTC compiles after its prelude.

    text = translate(source, "shader.metal")

The source is not preprocessed: conditions and macros stay as they are, and every line keeps its
number. What changes:

- Address spaces are removed: CUDA pointers are generic. A threadgroup variable becomes
  ``__shared__``, a program-scope constant ``__constant__ constexpr``.
- A value read through a cast, ``*(device const T*)p``, is read by one load where it is aligned; a
  packed vector would take one load per element.
- A function constant takes its value from the macro ``MSL_CONSTANT_<index>``.
- After each kernel, and in place of each instantiation of a kernel template, comes an entry
  ``msl_entry_<name>``, which takes the bound arguments and passes them with the thread positions
  to the kernel. The constant reference at the last buffer index, where hosts put their argument
  struct, is passed by value. ``msl_table_<name>`` tells the driver what the entry takes
  (shim/cuda/module.c).
- The entry begins with ``msl_begin()`` unless the kernel calls it somewhere (shaders/early.h).
- A macro that defines a kernel, such as OXB_KERNEL, is expanded here, since it gives the kernel the
  name that the host uses.

With ``MSL_ONE`` defined, only the entries named by ``MSL_ONE_<name>`` are compiled.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from .constants import constants_of_kernels, words_of_kernels
from .errors import CompileError
from .signatures import (
    FunctionConstant,
    Kernel,
    check_kernel,
    integer,
    read_parameters,
)
from .tokens import (
    Token,
    begins_statement,
    closing,
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
    tokenize,
    without_attributes,
)

# The first line of a translation; the driver compiles no source without it.
MARK = "// Translated from Metal Shading Language for shim/cuda/prelude, version 2"

_COMMENT = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)
_INCLUDE = re.compile(r"\s*#\s*include\s*<([^>]*)")
_MACRO = re.compile(r"\s*#\s*define\s+(\w+)\(([^)]*)\)(.*)", re.S)
_MAKES_KERNEL = re.compile(r"\b(?:kernel|host_name)\b")
_SPACE_WORD = re.compile(r"\b(device|threadgroup|thread|constant)\b\s*")
_NAME = re.compile(r"[A-Za-z_]\w*")
_HALF = re.compile(r"(?i)((?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)h")
_WAIT = "msl_begin"  # a kernel that calls it (shaders/early.h) does not do so at its entry
_POINTER, _VALUE, _THREADGROUP = 0, 1, 2  # oxb_argument_kind of shim/include/oxb_shim.h


@dataclass
class _Macro:
    parameters: list[str]
    body: str


@dataclass
class _Entry:
    """A kernel that the host can name, and where its entry goes in the output."""

    name: str
    expression: str
    kernel: Kernel
    line: int  # of the text after the entry
    token: Token
    place: int = 0  # index in the output


@dataclass
class _Translation:
    tokens: list[Token]
    out: list[str] = field(default_factory=list)
    kernels: dict[str, Kernel] = field(default_factory=dict)
    constants: dict[str, FunctionConstant] = field(default_factory=dict)
    entries: list[_Entry] = field(default_factory=list)
    macros: dict[str, _Macro] = field(default_factory=dict)
    pending: list[tuple[str, str]] = field(default_factory=list)
    bodies: dict[int, _Entry] = field(default_factory=dict)  # by the id of a body's last brace
    errors: list[str] = field(default_factory=list)

    def error(self, token: Token, message: str) -> None:
        self.errors.append(f"{token.file}:{token.line}: error: {message}")


def translate(source: str, name: str) -> str:
    """Translate a program in Metal Shading Language to CUDA C++.

    Parameters
    ----------
    source : str
        The program, its quoted includes inlined.
    name : str
        Its file name in messages.

    Returns
    -------
    str
        The program for NVRTC, after the prelude; its first line is `MARK`.

    Raises
    ------
    CompileError
        If the driver could not run a kernel of the program. Other errors are left to the compiler.
    """
    text = _COMMENT.sub(_without_comment, source)
    text = re.sub(r"^[ \t]+#", "#", text, flags=re.M)
    t = _Translation(tokenize(_join_lines(text), name))
    i, depth = 0, 0
    while i < len(t.tokens):
        token = t.tokens[i]
        if token.kind == "op":
            # Declarations in a namespace are at program scope too.
            if token.text == "{" and not _opens_namespace(t, i):
                depth += 1
            elif token.text == "}" and depth:
                depth -= 1
            elif token.text == ";" and depth == 0:
                t.pending = []
        i = _step(t, i, depth)
    if t.errors:
        raise CompileError("\n".join(dict.fromkeys(t.errors)))
    words = words_of_kernels(t.tokens, t.kernels)
    used = constants_of_kernels(words, t.constants.values())
    for entry in t.entries:
        begin = "" if _WAIT in words.get(entry.kernel.name, ()) else f"{_WAIT}(); "
        t.out[entry.place] = _entry_text(entry, used.get(entry.kernel.name, []), begin, t)
    if t.errors:
        raise CompileError("\n".join(dict.fromkeys(t.errors)))
    return f'{MARK}\n#line 1 "{name}"\n' + "".join(t.out)


def kernel_names(translated: str) -> list[str]:
    """Return the names of the kernels in a translation.

    Parameters
    ----------
    translated : str
        What `translate` returned.

    Returns
    -------
    list of str
        Names by which hosts find the kernels, in the program's order.
    """
    return re.findall(r"^#if .*defined\(MSL_ONE_(\w+)\)", translated, re.M)


def _without_comment(match: re.Match[str]) -> str:
    text = match[0]
    if not text.startswith("/"):
        return text
    return " " + "\n" * text.count("\n")


def _join_lines(text: str) -> str:
    """Join continued lines; the line breaks follow, so later lines keep their numbers."""
    lines, joined, breaks = [], "", 0
    for line in text.split("\n"):
        joined += line
        if joined.endswith("\\"):
            joined, breaks = joined[:-1], breaks + 1
            continue
        lines.append(joined + "\n" * breaks)
        joined, breaks = "", 0
    return "\n".join([*lines, joined] if joined else lines)


def _step(t: _Translation, i: int, depth: int) -> int:
    """Translate the token at i, with what belongs to it, and return the index of the next one."""
    token = t.tokens[i]
    if token.kind == "directive":
        return _directive(t, i)
    if is_attribute(t.tokens, i):
        found, end = read_attributes(t.tokens, i)
        t.pending += found
        t.out.append(newlines(t.tokens[i:end]))
        return _kernel(t, end + 1) if any(name == "kernel" for name, _ in found) else end + 1
    if token.kind == "word":
        done = _word(t, i, depth)
        if done is not None:
            return done
    elif token.kind == "number" and _HALF.fullmatch(token.text):
        value = token.text[:-1]
        t.out.append(f"half({value if '.' in value or 'e' in value.lower() else value + '.'}f)")
        return i + 1
    elif token.text == "*":
        done = _read(t, i)
        if done is not None:
            return done
    t.out.append(token.text)
    if id(token) in t.bodies:
        _place_entry(t, t.bodies[id(token)])
    return i + 1


def _directive(t: _Translation, i: int) -> int:
    token = t.tokens[i]
    include = _INCLUDE.match(token.text)
    if include and include[1].startswith(("metal_", "simd/")):
        return i + 1  # the prelude holds what Metal's headers declare
    macro = _MACRO.match(token.text)
    if macro and _MAKES_KERNEL.search(macro[3]):
        parameters = [p.strip() for p in macro[2].split(",")]
        t.macros[macro[1]] = _Macro(parameters, macro[3])
        return i + 1
    if re.match(r"\s*#\s*(pragma|line)", token.text):
        text = token.text if "METAL" not in token.text else ""
    else:
        text = _SPACE_WORD.sub(lambda m: "const " if m[1] == "constant" else "", token.text)
    t.out.append(text)
    return i + 1


def _word(t: _Translation, i: int, depth: int) -> int | None:
    tokens, word = t.tokens, t.tokens[i].text
    if word in t.macros and text_at(tokens, following(tokens, i)) == "(":
        return _expand(t, i)
    if word == "template" and depth == 0 and text_at(tokens, following(tokens, i)) != "<":
        return _instantiation(t, i)
    if word == "kernel" and depth == 0:
        return _kernel(t, following(tokens, i))
    if word == "is_function_constant_defined":
        return _is_defined(t, i)
    if word == "constant" and depth == 0 and begins_statement(tokens, i):
        end = statement_end(tokens, i)
        given = _constant_attribute(tokens, i, end)
        if given is not None:
            return _function_constant(t, i, given, end)
        if _declares_variable(t, i, end):
            t.out.append("static __constant__ constexpr")
            return i + 1
    if word == "constant":
        t.out.append("const")
        return i + 1
    if word == "threadgroup" and depth > 0 and declares_group_variable(tokens, i):
        t.out.append("__shared__")
        return i + 1
    if word in ("device", "thread", "threadgroup"):
        # The space after it goes too, so that the next token takes its column.
        return i + 2 if text_at(tokens, i + 1) == " " else i + 1
    return None


def _read(t: _Translation, i: int) -> int | None:
    """Rewrite the cast in *(device const T*)p so that the T is read by one load."""
    tokens = t.tokens
    bracket = following(tokens, i)
    if text_at(tokens, bracket) != "(":
        return None
    end = closing(tokens, bracket)
    words = meaningful(tokens[bracket + 1 : end])
    texts = [x.text for x in words]
    if texts[:2] not in (["device", "const"], ["const", "device"]) or texts[-1] != "*":
        return None
    if texts.count("*") != 1 or "(" in texts:
        return None
    t.out.append(f"*(msl_reader<{' '.join(texts[2:-1])}>)")
    return end + 1


def _opens_namespace(t: _Translation, i: int) -> bool:
    before = preceding(t.tokens, i)
    return text_at(t.tokens, before) == "namespace" or (
        text_at(t.tokens, preceding(t.tokens, before)) == "namespace"
    )


def _declares_variable(t: _Translation, i: int, end: int) -> bool:
    """Whether the declaration at i is of a variable, not of a function or a pointer."""
    for token in t.tokens[i:end]:
        if token.text in ("=", "["):
            return True
        if token.text in ("(", "*", "&"):
            return False
    return True


def _expand(t: _Translation, i: int) -> int:
    """Replace the use of a macro that defines a kernel by its expansion; return its index."""
    bracket = following(t.tokens, i)
    end = closing(t.tokens, bracket)
    macro = t.macros[t.tokens[i].text]
    arguments = [a.strip() for a in _split_arguments(join(t.tokens[bracket + 1 : end]))]
    values = dict(zip(macro.parameters, arguments, strict=False))
    if macro.parameters[-1:] == ["..."]:
        values["__VA_ARGS__"] = ", ".join(arguments[len(macro.parameters) - 1 :])
    body = re.sub(r"(?<!#)#\s*(\w+)", lambda m: f'"{values.get(m[1], m[1])}"', macro.body)
    body = _NAME.sub(lambda m: values.get(m[0], m[0]), body)
    expansion = tokenize(re.sub(r"\s*##\s*", "", body), t.tokens[i].file)
    for token in expansion:
        token.line = t.tokens[i].line
    t.tokens[i : end + 1] = [*expansion, *_line_breaks(t.tokens[i : end + 1])]
    return i


def _line_breaks(tokens: Sequence[Token]) -> list[Token]:
    return [x for x in tokens if x.kind == "space" and "\n" in x.text]


def _split_arguments(text: str) -> list[str]:
    parts, depth = [""], 0
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return parts


def _kernel(t: _Translation, i: int) -> int:
    """Read the head of a kernel, whose return type is at i; its body is translated after it."""
    tokens = t.tokens
    attributes, t.pending = t.pending, []
    j = i
    while j < len(tokens) and tokens[j].text not in ("(", ";"):
        if is_attribute(tokens, j):
            more, j = read_attributes(tokens, j)
            attributes += more
        j += 1
    if text_at(tokens, j) != "(":
        t.error(tokens[i - 1], "'kernel' is not followed by a function")
        return j
    name = tokens[preceding(tokens, j)]
    close = closing(tokens, j)
    kernel = Kernel(
        name.text,
        name,
        dict(attributes),
        read_parameters(tokens[j + 1 : close]),
        follows_template_head(tokens, i),
    )
    check_kernel(kernel, t.error)
    # The head stays in the input without attributes, so that its address spaces are translated.
    head = without_attributes(tokens[i : close + 1])
    tokens[i : close + 1] = head
    body = following(tokens, i + len(head) - 1)
    if text_at(tokens, body) == "{":
        t.kernels[kernel.name] = kernel
        if not kernel.is_template:
            host_name = kernel.attributes.get("host_name", kernel.name).strip().strip('"')
            end = tokens[closing(tokens, body)]
            t.bodies[id(end)] = _Entry(host_name, kernel.name, kernel, end.line, name)
    if not kernel.is_template:
        t.out.append("inline ")
    return i


def _instantiation(t: _Translation, i: int) -> int:
    """Replace template [[host_name("n")]] [[kernel]] T f<...>(...); by an entry."""
    tokens = t.tokens
    end = statement_end(tokens, i)
    attributes: list[tuple[str, str]] = []
    j = i
    while j < end:
        if is_attribute(tokens, j):
            more, j = read_attributes(tokens, j)
            attributes += more
        j += 1
    rest = [x for x in meaningful(without_attributes(tokens[i + 1 : end])) if x.text != "kernel"]
    names = dict(attributes)
    plain = "kernel" not in names and "host_name" not in names
    if plain and not any(x.text == "kernel" for x in tokens[i:end]):
        t.out.append(tokens[i].text)
        return i + 1
    t.out.append(newlines(tokens[i:end]))
    if end >= len(tokens):
        t.error(tokens[i], "an instantiation has no ';' after it")
        return end
    found = instantiated(rest)
    if found is None or found[0] not in t.kernels:
        t.error(tokens[i], "an instantiation of what is no kernel template")
        return end + 1
    host_name = names.get("host_name", "").strip().strip('"')
    entry = _Entry(host_name, found[1], t.kernels[found[0]], tokens[end].line, tokens[i])
    _place_entry(t, entry)
    return end + 1


def _place_entry(t: _Translation, entry: _Entry) -> None:
    if not _NAME.fullmatch(entry.name):
        t.error(entry.token, f"a kernel needs a name of letters, digits and _, not '{entry.name}'")
    elif any(other.name == entry.name for other in t.entries):
        t.error(entry.token, f"two kernels have the name '{entry.name}'")
    entry.place = len(t.out)
    t.entries.append(entry)
    t.out.append("")


def _constant_attribute(tokens: Sequence[Token], i: int, end: int) -> int | None:
    """Return the position of [[function_constant(n)]] in the statement from i to `end`."""
    for j in range(i + 1, min(end, len(tokens))):
        if is_attribute(tokens, j) and "function_constant" in dict(read_attributes(tokens, j)[0]):
            return j
    return None


def _function_constant(t: _Translation, i: int, j: int, end: int) -> int:
    """Declare the function constant at i, with its attribute at j and its ';' at `end`."""
    tokens = t.tokens
    attributes, _ = read_attributes(tokens, j)
    index = integer(dict(attributes)["function_constant"])
    name = tokens[preceding(tokens, j)]
    type_name = join(tokens[i + 1 : preceding(tokens, j)]).strip()
    if end >= len(tokens):
        t.error(name, f"function constant '{name.text}' has no ';' after it")
        return end
    if index is None or not 0 <= index < 65536:
        t.error(name, f"function constant '{name.text}' has no index in 0..65535")
        index = 0
    if any(c.index == index for c in t.constants.values()):
        t.error(name, f"[[function_constant({index})]] is used twice")
    t.constants[name.text] = FunctionConstant(name.text, index, type_name, name)
    t.out.append(
        f"\n#ifdef MSL_CONSTANT_{index}\n"
        f"constexpr {type_name} {name.text} = {type_name}(MSL_CONSTANT_{index});\n"
        f"#define MSL_GIVEN_{index} true\n#else\nconstexpr {type_name} {name.text} = 0;\n"
        f'#define MSL_GIVEN_{index} false\n#endif\n#line {tokens[end].line} "{name.file}"\n'
    )
    return end + 1


def _is_defined(t: _Translation, i: int) -> int:
    bracket = following(t.tokens, i)
    if text_at(t.tokens, bracket) != "(":
        t.error(t.tokens[i], "is_function_constant_defined is not followed by (name)")
        return bracket
    close = closing(t.tokens, bracket)
    name = join(t.tokens[bracket + 1 : close]).strip()
    constant = t.constants.get(name)
    if constant is None:
        t.error(t.tokens[i], f"'{name}' is no function constant")
        return close + 1
    constant.optional = True
    t.out.append(f"MSL_GIVEN_{constant.index}")
    return close + 1


def _entry_text(
    entry: _Entry, constants: Sequence[FunctionConstant], begin: str, t: _Translation
) -> str:
    """Return the entry of a kernel and the table of what it takes."""
    kernel, name = entry.kernel, entry.name
    function = f"decltype({entry.expression})"
    last = max((p.index for p in kernel.parameters if p.kind == "buffer"), default=-1)
    parameters, arguments, rows = [], [], []
    for place, p in enumerate(kernel.parameters):
        if p.kind in ("vector_id", "scalar_id"):
            arguments.append(f"msl_{p.member}()")
            continue
        if p.kind == "threadgroup":
            if p.index:
                t.error(p.token, f"kernel {kernel.name}: only [[threadgroup(0)]] can be given")
            arguments.append("msl_group_argument()")
            kind = _THREADGROUP
        elif p.is_reference and "constant" in p.spaces and p.index == last:
            parameters.append(f"const __grid_constant__ msl_value<{place}, {function}> a{place}")
            arguments.append(f"a{place}")
            kind = _VALUE
        else:
            parameters.append(f"msl_pointer<{place}, {function}> a{place}")
            arguments.append(f"*a{place}" if p.is_reference else f"a{place}")
            kind = _POINTER
        rows.append(f"{kind}, {p.index}, MSL_ARGUMENT({place}, {function})")
    rows += [
        f"{c.index}, msl_constant_type<{c.type}>::value, {int(not c.optional)}" for c in constants
    ]
    bounds = f"__launch_bounds__({kernel.max_threads}) " if kernel.max_threads else ""
    head = f"1, {len(rows) - len(constants)}, {len(constants)}"
    return (
        f"\n#if !defined(MSL_ONE) || defined(MSL_ONE_{name})\n"
        f'extern "C" __global__ void {bounds}msl_entry_{name}({", ".join(parameters)})\n'
        f"{{ {begin}{entry.expression}({', '.join(arguments)}); }}\n"
        f'extern "C" __device__ unsigned msl_table_{name}[] = {{{", ".join([head, *rows])}}};\n'
        f'#endif\n#line {entry.line} "{entry.token.file}"\n'
    )
