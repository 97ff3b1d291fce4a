"""Kernels, their parameters and function constants, checked by Metal's rules."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from .errors import CompileError
from .tokens import Token, Tokens, closing, is_attribute, is_open, meaningful, read_attributes

ADDRESS_SPACES = frozenset({"device", "constant", "threadgroup", "thread"})
MAX_INDEX = 30  # of [[buffer(n)]] and [[threadgroup(n)]]

# Attribute -> member of struct msl_thread_ids.
VECTOR_IDS = {
    "thread_position_in_grid": "thread_in_grid",
    "thread_position_in_threadgroup": "thread_in_group",
    "threadgroup_position_in_grid": "group_in_grid",
    "threads_per_threadgroup": "threads_per_group",
    "dispatch_threads_per_threadgroup": "full_threads_per_group",
    "threadgroups_per_grid": "groups_per_grid",
    "threads_per_grid": "threads_per_grid",
}
SCALAR_IDS = {
    "thread_index_in_threadgroup": "thread_index",
    "thread_index_in_simdgroup": "lane",
    "simdgroup_index_in_threadgroup": "simdgroup",
    "simdgroups_per_threadgroup": "simdgroups",
    "dispatch_simdgroups_per_threadgroup": "full_simdgroups",
    "threads_per_simdgroup": "simd_width",
    "thread_execution_width": "simd_width",
    "thread_index_in_quadgroup": "quad_lane",
    "quadgroup_index_in_threadgroup": "quad",
    "quadgroups_per_threadgroup": "quads",
}
_KINDS = {"device": 0, "constant": 1, "threadgroup": 2}  # enum msl_argument_kind

Report = Callable[[Token, str], None]


@dataclass
class Parameter:
    """A parameter of a kernel.

    Attributes
    ----------
    token : Token
        Its first token, for messages.
    name, type : str
        Its name and its type, without qualifiers and address spaces.
    spaces : list of str
        Its address spaces as written; one in a valid program.
    is_pointer, is_reference : bool
        Whether it is declared so.
    attributes : list of (str, str)
        Name and argument of each attribute; the argument is '' where there is none.
    kind : str
        What is passed: buffer, threadgroup, vector_id or scalar_id; '' until `check_kernel`.
    index : int
        Of ``[[buffer(index)]]`` or ``[[threadgroup(index)]]``.
    member : str
        Member of struct msl_thread_ids that holds a thread position.
    """

    token: Token
    name: str
    type: str
    spaces: list[str]
    is_pointer: bool
    is_reference: bool
    attributes: list[tuple[str, str]]
    kind: str = ""
    index: int = 0
    member: str = ""

    @property
    def bound(self) -> bool:
        """Whether the host binds memory to it."""
        return self.kind in ("buffer", "threadgroup")

    @property
    def abi_kind(self) -> int:
        """The value of enum msl_argument_kind."""
        return _KINDS[self.spaces[0]]


@dataclass
class Kernel:
    """A kernel function or a kernel template.

    Attributes
    ----------
    name : str
        The function's name.
    token : Token
        The name's token, for messages.
    attributes : dict of str to str
        Argument of each attribute by its name.
    parameters : list of Parameter
        In the order of the source.
    is_template : bool
        Whether it is a template.
    max_threads : int
        Of ``[[max_total_threads_per_threadgroup(n)]]``; 0 where the kernel sets no limit.
    """

    name: str
    token: Token
    attributes: dict[str, str]
    parameters: list[Parameter]
    is_template: bool
    max_threads: int = 0


@dataclass
class FunctionConstant:
    """A program-scope constant with ``[[function_constant(index)]]``.

    Attributes
    ----------
    name, type : str
        The constant's name and type.
    index : int
        Number by which the host gives its value.
    token : Token
        The name's token, for messages.
    optional : bool
        Whether the source asks is_function_constant_defined, so that no value need be given.
    """

    name: str
    index: int
    type: str
    token: Token
    optional: bool = False


def _shift(value: int, count: int) -> int:
    if count >= 64:
        raise OverflowError(count)
    return value << count


_INTEGERS = re.compile(r"(?:0[xX][0-9a-fA-F]+|\d+|[-+*/<|()\s])*")
_OPERATORS: dict[type[ast.AST], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.LShift: _shift,
    ast.BitOr: operator.or_,
}


def integer(text: str) -> int | None:
    """Evaluate the argument of an attribute.

    Parameters
    ----------
    text : str
        An expression of integers with ``+ - * / << |`` and parentheses.

    Returns
    -------
    int or None
        Its value; None where it is no such expression or does not fit in 64 bits.
    """
    text = re.sub(r"(?<=[0-9a-fA-F])[uUlL]+\b", "", text.strip()).replace("/", "//")
    if not _INTEGERS.fullmatch(text):
        return None

    def value(node: ast.AST) -> int:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        raise ValueError(text)

    try:
        result = value(ast.parse(text, mode="eval").body)
    except (ValueError, SyntaxError, ArithmeticError, MemoryError, RecursionError):
        return None
    return result if -(2**63) <= result < 2**64 else None


def _split(tokens: Tokens) -> list[list[Token]]:
    """Split the tokens between the parentheses of a function at its commas."""
    parts: list[list[Token]] = [[]]
    angle, i = 0, 0
    while i < len(tokens):
        token = tokens[i]
        if is_open(token):
            end = closing(tokens, i)
            parts[-1] += tokens[i : end + 1]
            i = end + 1
            continue
        angle += (token.text == "<") - (token.text == ">")
        if token.text == "," and angle == 0:
            parts.append([])
        else:
            parts[-1].append(token)
        i += 1
    return [part for part in parts if meaningful(part)]


def read_parameters(tokens: Tokens) -> list[Parameter]:
    """Read the parameters of a kernel.

    Parameters
    ----------
    tokens : sequence of Token
        What is between the kernel's parentheses.

    Returns
    -------
    list of Parameter
        In the order of the source; `check_kernel` fills in what their attributes say.

    Raises
    ------
    CompileError
        If there is an attribute without a parameter.
    """
    parameters = []
    for part in _split(tokens):
        attributes: list[tuple[str, str]] = []
        body: list[Token] = []
        i = 0
        while i < len(part):
            if is_attribute(part, i):
                more, end = read_attributes(part, i)
                attributes += more
                i = end + 1
                continue
            body.append(part[i])
            i += 1
        tokens_left = meaningful(body)
        if not tokens_left:
            token = meaningful(part)[0]
            raise CompileError(f"{token.file}:{token.line}: error: a parameter has no type")
        words = [t.text for t in tokens_left if t.kind == "word"]
        skip = {"const", "volatile", "*", "&", *ADDRESS_SPACES}
        parameters.append(
            Parameter(
                token=tokens_left[0],
                name=words[-1] if words else "",
                type=" ".join(t.text for t in tokens_left[:-1] if t.text not in skip),
                spaces=[w for w in words if w in ADDRESS_SPACES],
                is_pointer=any(t.text in "*[" for t in tokens_left),
                is_reference=any(t.text == "&" for t in tokens_left),
                attributes=attributes,
            )
        )
    return parameters


def _read_attribute(
    parameter: Parameter, name: str, argument: str, owner: str, report: Report
) -> None:
    token = parameter.token
    if name in ("buffer", "threadgroup"):
        index = integer(argument)
        if index is None:
            report(token, f"{owner}: [[{name}({argument})]] is not an integer constant")
            index = 0
        elif not 0 <= index <= MAX_INDEX:
            report(token, f"{owner}: [[{name}({index})]] is outside 0..{MAX_INDEX}")
            index = 0
        parameter.kind, parameter.index = name, index
    elif name in VECTOR_IDS:
        parameter.kind, parameter.member = "vector_id", VECTOR_IDS[name]
        if not re.fullmatch(r"(?:metal::)?(uint|ushort)[23]?", parameter.type.replace(" ", "")):
            report(
                token,
                f"{owner}: [[{name}]] is a uint or ushort, or a vector of 2 or 3 of them, "
                f"not '{parameter.type}'",
            )
    elif name in SCALAR_IDS:
        parameter.kind, parameter.member = "scalar_id", SCALAR_IDS[name]
        if parameter.type not in ("uint", "ushort"):
            report(token, f"{owner}: [[{name}]] is a uint or ushort, not '{parameter.type}'")
    else:
        report(token, f"{owner}: the attribute [[{name}]] is unknown")


def _check_memory(parameter: Parameter, owner: str, report: Report) -> None:
    if not parameter.is_pointer and not parameter.is_reference:
        report(
            parameter.token,
            f"{owner}: parameter '{parameter.name}' is neither a pointer nor a reference nor a "
            "thread position",
        )
    elif not parameter.spaces:
        report(
            parameter.token,
            f"{owner}: the pointer or reference '{parameter.name}' has no address space",
        )
    elif parameter.kind == "":
        wanted = "threadgroup" if "threadgroup" in parameter.spaces else "buffer"
        report(parameter.token, f"{owner}: '{parameter.name}' needs [[{wanted}(n)]]")
    elif (parameter.kind == "threadgroup") != ("threadgroup" in parameter.spaces) or (
        "thread" in parameter.spaces
    ):
        report(
            parameter.token,
            f"{owner}: '{parameter.name}' is {parameter.spaces[0]} memory, which "
            f"[[{parameter.kind}(n)]] does not bind",
        )


def check_kernel(kernel: Kernel, report: Report) -> None:
    """Fill in what the attributes of a kernel and its parameters say.

    Parameters
    ----------
    kernel : Kernel
        Changed in place: `max_threads`, and kind, index and member of each parameter.
    report : callable (Token, str) -> None
        Called for each thing that Metal refuses, with its place and a message.
    """
    owner = f"kernel {kernel.name}"
    used: set[tuple[str, int]] = set()
    sizes: set[str] = set()
    for parameter in kernel.parameters:
        for name, argument in parameter.attributes:
            _read_attribute(parameter, name, argument, owner, report)
        if parameter.kind == "vector_id":
            sizes |= set(parameter.type[-1:]) & {"2", "3"}
            continue
        if parameter.kind == "scalar_id":
            continue
        _check_memory(parameter, owner, report)
        place = (parameter.kind, parameter.index)
        if parameter.bound and place in used:
            report(
                parameter.token, f"{owner}: [[{parameter.kind}({parameter.index})]] is used twice"
            )
        used.add(place)
    if len(sizes) > 1:
        report(kernel.token, f"{owner}: thread positions are vectors of 2 and of 3 components")
    limit = kernel.attributes.get("max_total_threads_per_threadgroup")
    if limit is not None:
        value = integer(limit)
        if value is None or value < 1:
            report(
                kernel.token,
                f"{owner}: [[max_total_threads_per_threadgroup({limit})]] is no positive integer",
            )
        kernel.max_threads = value or 0
