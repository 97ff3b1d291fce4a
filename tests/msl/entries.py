"""The table of a compiled library and the functions that start its kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .rewrite import Instance, Program
from .signatures import FunctionConstant, Parameter
from .tokens import Token, Tokens, closing, following, is_attribute, meaningful, read_attributes

# What the generated part is called in place of a file.
ENTRIES = "msl-entries"


def _argument(parameter: Parameter) -> str:
    if parameter.kind == "buffer":
        form = "msl_reference_argument" if parameter.is_reference else "msl_pointer_argument"
        return f"{form}{{a->buffers[{parameter.index}]}}"
    if parameter.kind == "threadgroup":
        return f"msl_group_argument{{a->threadgroups[{parameter.index}]}}"
    form = "msl_vector_id" if parameter.kind == "vector_id" else "msl_scalar_id"
    return f"{form}{{t->{parameter.member}}}"


def generate(
    program: Program,
    instances: Sequence[Instance],
    used: Mapping[str, Sequence[FunctionConstant]],
    values: Mapping[int, str],
) -> str:
    """Write the code that makes a library of the rewritten program."""
    lines = [f'\n# 1 "{ENTRIES}"']
    table = []
    for i, instance in enumerate(instances):
        kernel = instance.kernel
        arguments = ", ".join(_argument(p) for p in kernel.parameters)
        lines.append(
            f'extern "C" void msl_entry_{i}(const struct msl_arguments *a, '
            f"const struct msl_thread_ids *t) {{ {instance.expression}({arguments}); }}"
        )
        lines.append(f"typedef decltype({instance.expression}) msl_type_{i};")
        rows = [
            f'MSL_ARGUMENT(msl_type_{i}, {place}, {p.abi_kind}, {p.index}, "{p.name}")'
            for place, p in enumerate(kernel.parameters)
            if p.bound
        ]
        constants = [
            f"{{{c.index}, {int(not c.optional)}, {int(c.index in values)}, "
            f'"{c.name}", "{c.type}"}}'
            for c in used.get(kernel.name, ())
        ]
        table.append(
            f'{{"{instance.host_name}", {_table(lines, "argument", i, rows)}, '
            f"{_table(lines, 'constant', i, constants)}, {len(rows)}, {len(constants)}, "
            f"{kernel.max_threads}}}"
        )
    entries = ", ".join(table) or "{0, 0, 0, 0, 0, 0}"
    lines.append(f'extern "C" MSL_TABLE struct msl_entry msl_entries[] = {{{entries}}};')
    lines.append(f'extern "C" MSL_TABLE unsigned msl_n_entries = {len(table)};')
    lines.append('extern "C" MSL_TABLE unsigned msl_check_build = MSL_CHECK_BUILD;')
    return "\n".join(lines) + "\n"


def _table(lines: list[str], what: str, i: int, rows: Sequence[str]) -> str:
    """Write a table where there are rows, and give what refers to it."""
    if not rows:
        return "0"
    name = f"msl_{what}s_{i}"
    lines.append(f"MSL_TABLE struct msl_entry_{what} {name}[] = {{{', '.join(rows)}}};")
    return name


def _declared_names(tokens: Tokens) -> set[str]:
    """Names that a program-scope declaration may give something: guesses err on too many."""
    words = meaningful(tokens)
    names = set()
    for i, token in enumerate(words[:-1]):
        if token.kind != "word":
            continue
        after = words[i + 1].text
        if after in ("(", "=", ";", "{", "[", ":"):
            names.add(token.text)
        if token.text in ("struct", "class", "union", "enum"):
            names.add(after)
        if after in ("(", "=", "{"):
            break
    return names


def constants_of_kernels(program: Program) -> dict[str, list[FunctionConstant]]:
    """Find the function constants that each kernel uses, directly or through what it names."""
    uses: dict[str, set[str]] = {}
    for begin, end in _declarations(program.tokens):
        part = program.tokens[begin:end]
        words = {t.text for t in part if t.kind == "word"}
        for name in _declared_names(_plain(part)):
            uses.setdefault(name, set()).update(words)
    found = {}
    for name in program.kernels:
        seen: set[str] = set()
        todo = [name]
        while todo:
            word = todo.pop()
            if word not in seen:
                seen.add(word)
                todo += uses.get(word, ())
        found[name] = [c for c in program.constants.values() if c.name in seen]
    return found


def _plain(tokens: Tokens) -> list[Token]:
    """Leave out attributes, which hide the declared name."""
    out: list[Token] = []
    i = 0
    while i < len(tokens):
        if is_attribute(tokens, i):
            i = read_attributes(tokens, i)[1] + 1
            continue
        out.append(tokens[i])
        i += 1
    return out


def _declarations(tokens: Tokens) -> list[tuple[int, int]]:
    """Give the extents of the program's declarations."""
    found = []
    begin = i = 0
    while i < len(tokens):
        text = tokens[i].text
        if text == "(" or text == "[":
            i = closing(tokens, i)
        elif text == "{":
            i = closing(tokens, i)
            if following(tokens, i) < len(tokens) and tokens[following(tokens, i)].text != ";":
                found.append((begin, i + 1))
                begin = i + 1
        elif text == ";":
            found.append((begin, i + 1))
            begin = i + 1
        i += 1
    found.append((begin, len(tokens)))
    return found
