"""Conversations in files: JSON that a person can read and edit.

Nothing in a file is executed or believed: every value is checked before a conversation is made of
it.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, Final, NamedTuple

from oxibonsai.chat.checks import NO_VARIABLES
from oxibonsai.writing import written_whole

__all__ = ["ChatFileError", "SavedChat", "read", "write"]

_FORMAT: Final = "oxibonsai chat"
_VERSION: Final = 1
_MAX_BYTES: Final = 1 << 28


class ChatFileError(ValueError):
    """A file holds no conversation, or is damaged."""


class SavedChat(NamedTuple):
    """What a file holds; attributes as of `Chat`, and `model`, whose name it was held with."""

    model: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    documents: list[dict[str, Any]] | None
    thinking: bool | None
    show_thinking: bool
    variables: dict[str, Any]


def write(path: str | os.PathLike[str], chat: SavedChat) -> None:
    """Write a conversation to a file, all of it or nothing.

    Parameters
    ----------
    path : str or path-like
        Where it goes. A link is followed; what is no regular file, such as a pipe, is written to.
    chat : SavedChat
        The conversation.

    Raises
    ------
    TypeError, ValueError
        For a value that JSON cannot hold; the message names it.
    OSError
        If the file cannot be written; an existing one is unchanged then.
    """
    name = os.fsdecode(path)
    raw = _encoded(name, {"format": _FORMAT, "version": _VERSION, **chat._asdict()})
    with written_whole(name) as file:
        file.write(raw)


def _encoded(path: str, document: dict[str, Any]) -> bytes:
    try:
        for key, value in document.items():
            _check_json(value, key)
    except RecursionError:
        raise ValueError(f"{path}: {key} is nested too deeply to be saved") from None
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from None
    try:
        text = json.dumps(document, ensure_ascii=False, indent=1)
        return f"{text}\n".encode()
    except UnicodeEncodeError:  # half a character, for which JSON has an escape
        return f"{json.dumps(document, indent=1)}\n".encode()


def _check_json(value: Any, where: str) -> None:
    """Raise TypeError or ValueError unless JSON gives a value back as it is, but for tuples."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}: JSON has text alone as keys")
            _check_json(item, f"{where}.{key}")
        if not isinstance(value, dict):
            raise TypeError(f"{where} is a {type(value).__name__}, not a dict")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _check_json(item, f"{where}[{i}]")
    elif isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError(f"{where} is {value!r}, which JSON has not")
    elif isinstance(value, int):
        try:
            str(value)
        except ValueError:
            raise ValueError(f"{where} is a number of too many digits to be written") from None
    elif value is not None and not isinstance(value, str):
        raise TypeError(f"{where} is a {type(value).__name__}, which JSON has not")


# Reading


def read(path: str | os.PathLike[str]) -> SavedChat:
    """Return the conversation in a file.

    Parameters
    ----------
    path : str or path-like
        The file.

    Returns
    -------
    SavedChat
        What it holds.

    Raises
    ------
    ChatFileError
        If it holds none; the message names the file and the key.
    OSError
        If it cannot be read.
    """
    name = os.fsdecode(path)
    with open(path, "rb") as file:
        raw = file.read(_MAX_BYTES + 1)
    try:
        if len(raw) > _MAX_BYTES:
            raise _Wrong(f"more than {_MAX_BYTES} bytes: no conversation")
        return _checked(_parsed(raw))
    except _Wrong as wrong:
        raise ChatFileError(f"{name}: {wrong}") from None


class _Wrong(Exception):
    """What is wrong with a file."""


def _parsed(raw: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> Any:
        raise _Wrong(f"{constant} is no JSON")

    try:
        document = json.loads(
            raw.decode("utf-8-sig"),
            parse_constant=refuse,
            parse_int=_whole_number,
            object_pairs_hook=_Object,
        )
    except UnicodeDecodeError as error:
        raise _Wrong(f"no conversation: byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise _Wrong("no conversation: nested too deeply") from None
    except ValueError as error:
        raise _Wrong(f"no conversation: {error}") from None
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise _Wrong(f'no conversation: it has no "format": "{_FORMAT}"')
    version = document.get("version")
    if version != _VERSION or isinstance(version, bool):
        raise _Wrong(f"version {version!r} of the format; this package reads {_VERSION}")
    return _plain(document)


class _Object(dict[str, Any]):
    """An object with the first key that comes twice in it, which a dict would hide."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.doubled: str | None = None
        if len(self) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            self.doubled = next(key for key, n in counts.items() if n > 1)


class _Digits(NamedTuple):
    """A whole number of more digits than Python reads."""

    n: int


def _whole_number(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        return _Digits(len(text.lstrip("-")))


def _plain(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document of plain dicts; refuse what JSON has, and this format has not."""
    plain: dict[str, Any] = {}
    todo: list[tuple[Any, Any, Any, str]] = [(plain, key, document[key], key) for key in document]
    if isinstance(document, _Object) and document.doubled is not None:
        raise _Wrong(f"the key {document.doubled!r} comes twice")
    while todo:  # without recursion: a file may be nested as deeply as the parser allows
        into, key, value, where = todo.pop()
        if isinstance(value, _Object):
            if value.doubled is not None:
                raise _Wrong(f"the key {value.doubled!r} comes twice in {where}")
            into[key] = dict.fromkeys(value)
            todo += [(into[key], k, item, f"{where}.{k}") for k, item in value.items()]
        elif isinstance(value, list):
            into[key] = [None] * len(value)
            todo += [(into[key], i, item, f"{where}[{i}]") for i, item in enumerate(value)]
        elif isinstance(value, _Digits):
            raise _Wrong(f"{where} is a number of {value.n} digits: too many")
        elif isinstance(value, float) and not isfinite(value):
            raise _Wrong(f"{where} is a number that is too large for a float")
        else:
            into[key] = value
    return {key: plain[key] for key in document}


def _checked(document: dict[str, Any]) -> SavedChat:
    known = {"format", "version", *SavedChat._fields}
    for key in document:
        if key not in known:
            raise _Wrong(f"{key!r} is no key of the format; there are {', '.join(sorted(known))}")
    for key in SavedChat._fields:
        if key not in document:
            raise _Wrong(f"{key} is missing")
    _expect(document["model"], "model", str)
    _expect(document["messages"], "messages", list)
    for i, message in enumerate(document["messages"]):
        _check_message(message, f"messages[{i}]")
    for key in ("tools", "documents"):
        if document[key] is not None:
            _expect_objects(document[key], key)
    if document["thinking"] is not None:
        _expect(document["thinking"], "thinking", bool)
    _expect(document["show_thinking"], "show_thinking", bool)
    _expect(document["variables"], "variables", dict)
    for name in document["variables"]:
        if name in NO_VARIABLES:
            raise _Wrong(f"variables.{name} is no variable: the template gets it otherwise")
    if document["thinking"] is not None and "enable_thinking" in document["variables"]:
        raise _Wrong("thinking and variables.enable_thinking say the same: leave one out")
    return SavedChat(*(document[key] for key in SavedChat._fields))


_WORDS: Final = {str: "text", list: "a list", dict: "an object", bool: "true or false"}


def _expect(value: Any, where: str, *kinds: type) -> None:
    if not isinstance(value, kinds):
        wanted = " or ".join(_WORDS[kind] for kind in kinds)
        raise _Wrong(f"{where} is {_shown(value)}, not {wanted}")


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."


def _expect_objects(value: Any, where: str) -> None:
    _expect(value, where, list)
    for i, item in enumerate(value):
        _expect(item, f"{where}[{i}]", dict)


def _check_message(message: Any, where: str) -> None:
    _expect(message, where, dict)
    if "role" not in message:
        raise _Wrong(f"{where}.role is missing")
    _expect(message["role"], f"{where}.role", str)
    checks: dict[str, Callable[[Any, str], None]] = {
        "content": _check_content,
        "reasoning_content": lambda value, at: _expect(value, at, str),
        "name": lambda value, at: _expect(value, at, str),
        "tool_call_id": lambda value, at: _expect(value, at, str),
        "tool_calls": _check_calls,
    }
    for key, check in checks.items():
        if message.get(key) is not None:
            check(message[key], f"{where}.{key}")


def _check_content(content: Any, where: str) -> None:
    _expect(content, where, str, list)
    if isinstance(content, list):
        _expect_objects(content, where)
        for i, part in enumerate(content):
            if part.get("type") != "text":
                raise _Wrong(f"{where}[{i}].type is {_shown(part.get('type'))}, not 'text'")
            _expect(part.get("text"), f"{where}[{i}].text", str)


def _check_calls(calls: Any, where: str) -> None:
    _expect_objects(calls, where)
    for i, call in enumerate(calls):
        at = f"{where}[{i}]"
        if call.get("id") is not None:
            _expect(call["id"], f"{at}.id", str)
        if "function" in call:
            call, at = call["function"], f"{at}.function"
            _expect(call, at, dict)
        for key, kinds in (("name", (str,)), ("arguments", (str, dict))):
            if key not in call:
                raise _Wrong(f"{at}.{key} is missing")
            _expect(call[key], f"{at}.{key}", *kinds)
