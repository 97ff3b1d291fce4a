"""What a report of tools/mac_check.sh holds, as data that a checker walks through.

A type stands for itself, a tuple for any of its types, [x] for a list of x, a dict for an object
with these keys, and {str: x} for an object with any keys. None among types allows null.
"""

from __future__ import annotations

from typing import Any

NUMBER = (int, float)
NUMBER_OR_NULL = (int, float, None)

STAGE = {
    "name": str,
    "outcome": str,
    "status": str,
    "seconds": int,
    "may_fail": bool,
    "tests": ({"passed": int, "failed": int, "skipped": int}, None),
    "tail": [str],
}
KERNEL = {
    "name": str,
    "shape": str,
    "kernels": [str],
    "seconds": NUMBER,
    "bytes": int,
    "share": NUMBER_OR_NULL,
}
VARIANTS = {
    "op": str,
    "format": str,
    "n_rows": int,
    "k": int,
    "seconds": {str: NUMBER},
}
MODEL = {
    "model": str,
    "load_seconds": NUMBER,
    "chunk": int,
    "prompt_tokens": int,
    "first_prompt_seconds": NUMBER,
    "prompt_tokens_per_second": NUMBER,
    "longest_prompt_submission_seconds": NUMBER,
    "decode_tokens": int,
    "decode_tokens_per_second": NUMBER,
    "decode_device_seconds": NUMBER,
    "longest_decode_submission_seconds": NUMBER,
    "stats": {str: NUMBER},
}
REPORT = {
    "version": int,
    "commit": (str, None),
    "python": str,
    "machine": {str: (str, int, bool, None)},
    "device": ({str: (str, int, bool)}, None),
    "stages": [STAGE],
    "failures": [{"stage": str, "test": str, "message": str, "tail": str}],
    "failures_left_out": int,
    "bandwidth_bytes_per_second": NUMBER_OR_NULL,
    "kernels": [KERNEL],
    "variants": [VARIANTS],
    "untimed": [str],
    "models": [MODEL],
}


def problems(value: Any, shape: Any, where: str = "report") -> list[str]:
    """Return what in `value` does not fit `shape`; nothing where all does."""
    if isinstance(shape, tuple):
        tried = [problems(value, one, where) for one in shape]
        return [] if [] in tried else tried[0]
    if shape is None:
        return [] if value is None else [f"{where} is not null"]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{where} is {type(value).__name__}, not a list"]
        return [p for i, one in enumerate(value) for p in problems(one, shape[0], f"{where}[{i}]")]
    if isinstance(shape, dict):
        return _problems_of_object(value, shape, where)
    # In Python a bool is an int; in a report it is not.
    fits = isinstance(value, shape) and isinstance(value, bool) == (shape is bool)
    return [] if fits else [f"{where} is {type(value).__name__}, not {shape.__name__}"]


def _problems_of_object(value: Any, shape: dict[Any, Any], where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where} is {type(value).__name__}, not an object"]
    if str in shape:
        return [
            p for key, one in value.items() for p in problems(one, shape[str], f"{where}.{key}")
        ]
    found = [f"{where}.{key} is missing" for key in shape if key not in value]
    found += [f"{where}.{key} is unknown" for key in value if key not in shape]
    for key in shape:
        if key in value:
            found += problems(value[key], shape[key], f"{where}.{key}")
    return found
