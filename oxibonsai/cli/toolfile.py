"""The file of ``chat --tools``: which functions a model may call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from oxibonsai.cli.inputs import read_file, read_input

__all__ = ["read_tools"]


def read_tools(path: Path) -> list[dict[str, Any]]:
    """Return the schemas in a file.

    Parameters
    ----------
    path : Path
        A JSON list of objects, as the OpenAI interface takes them in "tools"; "-" is standard
        input.

    Returns
    -------
    list of dict
        The schemas.

    Raises
    ------
    ValueError
        If it is no such list.
    OSError
        If it cannot be read.
    """
    text = read_input() if path == Path("-") else read_file(path, "--tools")
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(f"--tools {path}: the JSON is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"--tools {path} is no JSON: {error}") from None
    if not isinstance(found, list):
        raise ValueError(
            f"--tools {path} has {_kind(found)}: give a JSON list of the functions' schemas"
        )
    for i, schema in enumerate(found):
        if not isinstance(schema, dict):
            raise ValueError(f"--tools {path}: item {i} is {_kind(schema)}: give a schema's object")
    for i, schema in enumerate(found):
        _check_schema(schema, f"--tools {path}: item {i}")
    return found


def _check_schema(schema: dict[str, Any], where: str) -> None:
    """Raise ValueError unless a schema names a function."""
    function = schema.get("function", schema)
    if not isinstance(function, dict):
        raise ValueError(f'{where}: "function" is {_kind(function)}: give an object')
    place = "its function" if "function" in schema else "it"
    if "name" not in function:
        raise ValueError(
            f'{where}: {place} has no "name": give a schema such as {{"type": "function", '
            '"function": {"name": "add", "parameters": {"type": "object"}}}'
        )
    name = function["name"]
    if not isinstance(name, str) or not name:
        shown = "empty" if name == "" else _kind(name)
        raise ValueError(f'{where}: the "name" of the function is {shown}: give a text')
    for key, kind in (("parameters", dict), ("description", str)):
        if not isinstance(function.get(key, kind()), kind):
            raise ValueError(
                f'{where}: "{key}" of {name!r} is {_kind(function[key])}: give {_kind(kind())}'
            )


def _kind(value: object) -> str:
    """Return what JSON calls a value."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    return names.get(type(value), "null" if value is None else "a number")
