"""What tokens show that Metal refuses, or that the shaders' subset leaves out, and clang takes."""

from __future__ import annotations

import re

from oxibonsai.msl.tokens import (
    Token,
    Tokens,
    closing,
    closing_angle,
    declares_group_variable,
    following,
    opening,
    preceding,
    statement_end,
    text_at,
)

from .cache import PACKAGE
from .rewrite import Program
from .stdlib_names import AVAILABLE_SINCE
from .toolchain import metal_version

_NO_EXCEPTIONS = "there are no exceptions in Metal"
_RELAXED = "memory_order_relaxed is the only order in Metal"
_OPENCL = "a word of OpenCL"
_REFUSED = {
    "double": "there is no double in Metal",
    "goto": "there is no goto in Metal",
    "new": "there is no new in Metal",
    "delete": "there is no delete in Metal",
    "throw": _NO_EXCEPTIONS,
    "try": _NO_EXCEPTIONS,
    "catch": _NO_EXCEPTIONS,
    "virtual": "there are no virtual functions in Metal",
    "dynamic_cast": "there is no dynamic_cast in Metal",
    "typeid": "there is no typeid in Metal",
    "thread_local": "there is no thread_local in Metal",
    "asm": "there is no inline assembly in Metal",
    "wchar_t": "there is no wchar_t in Metal",
    "std": "there is no namespace std in Metal",
    "vertex": "a reserved word of Metal",
    "fragment": "a reserved word of Metal",
    "visible": "a reserved word of Metal",
    "ray_data": "a reserved word of Metal",
    "object_data": "a reserved word of Metal",
    "threadgroup_imageblock": "a reserved word of Metal",
    "memory_order_seq_cst": _RELAXED,
    "memory_order_acquire": _RELAXED,
    "memory_order_release": _RELAXED,
    "memory_order_acq_rel": _RELAXED,
    "atomic_thread_fence": "not before Metal 3.2, and it does not make flags safe",
    "float8": "not a type of Metal",
    "float16": "not a type of Metal",
    "barrier": _OPENCL,
    "get_global_id": _OPENCL,
    "get_local_id": _OPENCL,
    "get_group_id": _OPENCL,
}
_OF_MUTANTS = ("msl_rt_mutant", "msl_rt_guard")
_OWN_UNDERSCORES = {"__METAL_VERSION__", "__LINE__", "__FILE__"}
_FLOAT = re.compile(r"(\d+\.\d*|\.\d+)([eE][+-]?\d+)?|\d+[eE][+-]?\d+")
_WAITS = ("atomic_load_explicit", "atomic_exchange_explicit")


def lint(program: Program, version: str) -> None:
    """Add to the program's errors."""
    number = metal_version(version)
    tokens = program.tokens
    qualified = any(
        t.text == "using" and text_at(tokens, following(tokens, i)) == "namespace"
        for i, t in enumerate(tokens)
    )
    for i, token in enumerate(tokens):
        if not _is_own(token):
            continue
        if token.kind == "word":
            _word(program, i, number)
            if token.text in ("while", "for"):
                _loop(program, i)
            elif token.text == "threadgroup":
                _group_variable(program, i)
            elif qualified and token.text in AVAILABLE_SINCE:
                _redefined(program, i)
        elif token.kind == "number":
            _number(program, token)
        elif token.text == ")":
            _qualified_method(program, i)
        elif token.text == "[" or token.text == "<":
            _constant_as_size(program, i)


def _is_own(token: Token) -> bool:
    return not token.file.startswith("<") and not token.file.startswith(str(PACKAGE))


def _word(program: Program, i: int, version: int) -> None:
    tokens, word = program.tokens, program.tokens[i].text
    if word in _REFUSED and text_at(tokens, preceding(tokens, i)) not in (".", "->"):
        program.error(tokens[i], f"'{word}': {_REFUSED[word]}")
    elif word == "long" and text_at(tokens, following(tokens, i)) == "long":
        program.error(tokens[i], "'long long': long has 64 bits in Metal")
    elif word.startswith("msl_") and word not in _OF_MUTANTS:
        program.error(tokens[i], f"'{word}': names that begin with msl_ are the runner's own")
    elif (word.startswith("__") or re.match(r"_[A-Z]", word)) and word not in _OWN_UNDERSCORES:
        if word not in ("_Pragma",) and not word.startswith("__builtin_"):
            program.error(tokens[i], f"'{word}': a name reserved for the compiler")
    elif AVAILABLE_SINCE.get(word, 0) > version:
        since = AVAILABLE_SINCE[word]
        program.error(
            tokens[i],
            f"'{word}' came with Metal {since // 100}.{since // 10 % 10}; this is "
            f"{version // 100}.{version // 10 % 10}",
        )


def _number(program: Program, token: Token) -> None:
    text = token.text
    if re.search(r"[lL][lL]", text):
        program.error(token, f"'{text}': long long does not exist in Metal")
    elif not text.lower().startswith("0x"):
        if _FLOAT.fullmatch(text):
            program.error(token, f"'{text}': without f it is a double to other compilers")
        elif _FLOAT.fullmatch(text[:-1]) and text[-1] in "lL":
            program.error(token, f"'{text}': long double does not exist in Metal")


def _loop(program: Program, i: int) -> None:
    """Refuse to wait for other threads: nothing says that they ever run."""
    tokens = program.tokens
    bracket = following(tokens, i)
    if text_at(tokens, bracket) != "(":
        return
    condition = tokens[bracket : closing(tokens, bracket)]
    if tokens[i].text == "for":
        parts = [k for k, t in enumerate(condition) if t.text == ";"]
        condition = condition[parts[0] : parts[1]] if len(parts) == 2 else []
    for token in condition:
        if token.text in _WAITS:
            program.error(
                token,
                "a loop waits for an atomic: threadgroups may run one after another, and only "
                "the end of a dispatch orders their memory",
            )


def _function_around(tokens: Tokens, i: int) -> Token | None:
    """Give the name of the function whose body token i is in."""
    name = None
    depth = 0
    for j in range(i - 1, -1, -1):
        if tokens[j].kind != "op":
            continue
        if tokens[j].text == "}":
            depth += 1
        elif tokens[j].text == "{":
            depth -= 1
            if depth < 0:
                depth = 0
                before = preceding(tokens, j)
                if text_at(tokens, before) == ")":
                    head = preceding(tokens, opening(tokens, before))
                    if tokens[head].kind == "word":
                        name = tokens[head]
    return name


def _group_variable(program: Program, i: int) -> None:
    if not declares_group_variable(program.tokens, i):
        return
    function = _function_around(program.tokens, i)
    if function is not None and function.text not in program.kernels:
        program.error(
            program.tokens[i], "threadgroup variables can only be declared in a kernel function"
        )


def _redefined(program: Program, i: int) -> None:
    """Refuse a function at program scope with a name of namespace metal, which is `used`."""
    tokens = program.tokens
    bracket = following(tokens, i)
    before = preceding(tokens, i)
    if text_at(tokens, bracket) != "(" or before < 0 or tokens[before].kind != "word":
        return
    if tokens[before].text in ("return", "else", "case", "do"):
        return
    after = following(tokens, closing(tokens, bracket))
    if text_at(tokens, after) == "{" and _depth(tokens, i) == 0:
        program.error(tokens[i], f"'{tokens[i].text}' is a function of namespace metal already")


def _depth(tokens: Tokens, i: int) -> int:
    return sum((t.text == "{") - (t.text == "}") for t in tokens[:i] if t.kind == "op")


def _qualified_method(program: Program, i: int) -> None:
    tokens = program.tokens
    j = following(tokens, i)
    if text_at(tokens, j) == "const":
        j = following(tokens, j)
    if text_at(tokens, j) in ("device", "constant", "threadgroup") and text_at(
        tokens, following(tokens, j)
    ) in ("{", ";"):
        program.error(
            tokens[j], "methods on objects outside thread memory are not for all compilers"
        )


def _constant_as_size(program: Program, i: int) -> None:
    """A function constant has no value when Metal compiles the source."""
    tokens = program.tokens
    if not program.constants:
        return
    before = preceding(tokens, i)
    if before < 0 or tokens[before].kind != "word":
        return
    if tokens[i].text == "<":
        end = closing_angle(tokens, i)
    else:  # T name[n]: a word or '>' stands before the name, and it begins a statement
        end = closing(tokens, i)
        type_end = preceding(tokens, before)
        if tokens[type_end].kind != "word" and tokens[type_end].text != ">":
            return
        if tokens[type_end].text in ("return", "case", "else"):
            return
    if end < 0 or end > statement_end(tokens, i):
        return
    for token in tokens[i:end]:
        if token.text in program.constants:
            program.error(
                token,
                f"function constant '{token.text}' sizes an array or is a template's argument, but "
                "it gets its value after compilation",
            )
