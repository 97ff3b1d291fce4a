"""The table of a compiled library and the functions that start its kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from oxibonsai.msl.signatures import FunctionConstant, Parameter

from .rewrite import Instance, Program

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
