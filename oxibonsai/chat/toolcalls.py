"""Tool calls as models write them: the JSON of Qwen3 and the tags of Qwen3.5.

Between ``<tool_call>`` and ``</tool_call>`` stands one of::

    {"name": "add", "arguments": {"a": 1, "b": 2}}

    <function=add>
    <parameter=a>
    1
    </parameter>
    <parameter=b>
    2
    </parameter>
    </function>

Nothing that a model writes raises an exception here: what is no call is None.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from typing import Any, Final, TypeAlias

__all__ = [
    "BEGINNING",
    "CallReader",
    "Inside",
    "OpenValues",
    "Tool",
    "ToolCall",
    "may_begin_call",
    "read_call",
]

BEGINNING: Final = 64
"""Characters behind the opening tag that tell whether a call may stand there."""

Tool: TypeAlias = Mapping[str, Any]
"""A function's JSON schema, as the OpenAI interface takes it: its "function", or that alone."""

OpenValues: TypeAlias = dict[frozenset[str], tuple[int, int]]
"""By the parameters that may end a value: a stretch of text in which none that begins there ends.

A model may open one call in another, each with a value to the end of the text; all of them end as
the first does.
"""

ToolCall: TypeAlias = dict[str, Any]
"""A call in the structure of the OpenAI interface: "id", "type" and "function"."""

_ARGUMENTS: Final = ("arguments", "parameters")  # the second is Llama's word; the first one wins
_FUNCTION: Final = "<function="
_SPACE: Final = " \t\r\n"
_FUNCTION_END: Final = "</function>"
_NAME = re.compile(r"<function=([^<>\n]+)>")
_PARAMETER = re.compile(r"\s*<parameter=([^<>\n]+)>")
# What may end a value. The break before a closing tag is not part of the value, nor is the one
# behind the opening tag.
_VALUE_END = re.compile(
    r"\n?</parameter>(?=\s*(?:<parameter=[^<>\n]+>|</function>\Z|\Z))"
    r"|\n(?=<parameter=([^<>\n]+)>)"
    r"|\n?(?=</function>\Z)"
)
_SPACES = re.compile(f"[{_SPACE}]*")
_IN_STRING = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\]|\\.)*("?)', re.DOTALL)


class Inside(Enum):
    """The closing tag that ended the text is part of a value: the call goes on."""

    VALUE = 1


def may_begin_call(beginning: str) -> bool:
    """Return whether a call may begin so: by as much as there is of the first BEGINNING characters.

    Space alone is no beginning once there is so much of it.
    """
    text = beginning.lstrip(_SPACE)
    if not text:
        return len(beginning) < BEGINNING
    return text[0] == "{" or text.startswith(_FUNCTION) or _FUNCTION.startswith(text)


def read_call(body: str, tools: Sequence[Tool] | None) -> ToolCall | Inside | None:
    """Return the call that stands between two tags; arguments and result as of `CallReader`."""
    return CallReader(tools).read(body, 0, len(body))


class CallReader:
    """Reads one call, whose values may hold closing tags: each is tried in turn.

    What was read up to a closing tag inside a value is not read again for the next one.

    Parameters
    ----------
    tools : sequence of Tool, optional
        By whose schemas the values between tags are read.
    base : int
        Where the text begins in the one that all calls are read from.
    open_values : OpenValues, optional
        What the readers of that text have found before.
    """

    def __init__(
        self,
        tools: Sequence[Tool] | None,
        base: int = 0,
        open_values: OpenValues | None = None,
    ) -> None:
        self._tools = tools
        self._base = base
        self._open_values = {} if open_values is None else open_values
        self._body: _JsonBody | _TagsBody | None = None

    @property
    def open_until(self) -> int:
        """Up to where in the text every closing tag is known to be part of a value."""
        return self._body.open_until if self._body is not None else 0

    def read(self, text: str, start: int, end: int) -> ToolCall | Inside | None:
        """Return the call that stands between two tags.

        Parameters
        ----------
        text : str
            Holds them; the same as in the last call up to where that ended.
        start : int
            Behind the opening tag.
        end : int
            Before a closing one, each time a later one.

        Returns
        -------
        ToolCall, Inside.VALUE or None
            The call; whether the closing tag lies inside a value of it; None for what is no call.
        """
        while end > start and text[end - 1] in _SPACE:
            end -= 1
        if self._body is None:
            start = _SPACES.match(text, start, end).end()  # type: ignore[union-attr]  # it matches ""
            if text.startswith("{", start, end):
                self._body = _JsonBody(start)
            elif text.startswith(_FUNCTION, start, end):
                self._body = _TagsBody(start, self._tools, self._base, self._open_values)
            else:
                return None
        return self._body.read(text, end)


def _call(name: str, arguments: str) -> ToolCall | None:
    try:
        # An escape such as \ud800 stands for half a character, which no prompt could hold.
        f"{name}{json.dumps(json.loads(arguments), ensure_ascii=False)}".encode()
    except (ValueError, RecursionError):
        return None
    return {
        "id": f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


# JSON


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


class _JsonBody:
    """The object of a call, which may end at one of several places."""

    def __init__(self, start: int) -> None:
        self._start = start
        self._parsed = 0  # characters that were found to be the beginning of an object
        self._at = 0  # up to where it is known what is inside a string
        self._in_string = True
        self.open_until = 0

    def read(self, text: str, end: int) -> ToolCall | Inside | None:
        # The whole is parsed again only when it has doubled: what is wrong with it is found early
        # enough, and all parsing together is no more than twice the text.
        if self._parsed and self._is_open(text, end) and end - self._start < 2 * self._parsed:
            return Inside.VALUE
        body = text[self._start : end]
        try:
            members = _members(body)
        except json.JSONDecodeError as error:
            string = _STRING.match(body, error.pos)
            if string is None or string[1]:
                return None
            self._parsed = len(body)
            self._at, self._in_string = self._start + string.end(), True
            return Inside.VALUE
        except (ValueError, RecursionError):
            return None
        return _json_call(members)

    def _is_open(self, text: str, end: int) -> bool:
        """Return whether a string is open at a place behind those that were asked for before."""
        while self._at < end:
            if self._in_string:
                found = _IN_STRING.match(text, self._at, end)
                assert found is not None
                self._at = found.end()
                if not text.startswith('"', self._at, end):
                    break  # the string goes on, perhaps in the middle of an escape
                self._at += 1
            else:
                quote = text.find('"', self._at, end)
                self._at = end if quote < 0 else quote + 1
                if quote < 0:
                    break
            self._in_string = not self._in_string
        return self._in_string


def _json_call(members: Mapping[str, tuple[Any, str]]) -> ToolCall | None:
    name, _ = members.get("name", (None, ""))
    if not isinstance(name, str) or not name.strip():
        return None
    keys = [key for key in _ARGUMENTS if key in members]
    if not keys and len(members) > 1:  # the arguments may go by another word
        return None
    arguments, source = next((members[k] for k in keys if members[k][0] is not None), (None, ""))
    if arguments is None:
        return _call(name, "{}")
    if isinstance(arguments, str):  # the object once more as text
        arguments, source = _json_of(arguments), arguments.strip()
    return _call(name, source) if isinstance(arguments, dict) else None


def _members(text: str) -> dict[str, tuple[Any, str]]:
    """Return the members of the object that is the whole text, each with its own characters."""
    members: dict[str, tuple[Any, str]] = {}
    at = _skip(text, 1)
    while text[at : at + 1] != "}":
        key, at = _DECODER.raw_decode(text, at)
        at = _skip(text, at)
        if not isinstance(key, str) or text[at : at + 1] != ":":
            raise ValueError("no member")
        start = _skip(text, at + 1)
        value, at = _DECODER.raw_decode(text, start)
        members[key] = value, text[start:at]
        at = _skip(text, at)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
            if text[at : at + 1] == "}":
                raise ValueError("no member behind the comma")
        elif text[at : at + 1] != "}":
            raise ValueError("no end of the object")
    if at + 1 != len(text):
        raise ValueError("something behind the object")
    return members


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _json_of(text: str) -> Any:
    """Return what JSON text stands for; the text itself where it is none."""
    try:
        value, end = _DECODER.raw_decode(text, _skip(text, 0))
        if _skip(text, end) == len(text):
            json.dumps(value, allow_nan=False)  # 1e999 is JSON, and no number
            return value
    except (ValueError, RecursionError):
        pass
    return text


# Tags


class _TagsBody:
    """The function and the values of a call, which go on where the last closing tag was."""

    def __init__(
        self, start: int, tools: Sequence[Tool] | None, base: int, open_values: OpenValues
    ) -> None:
        self.open_until = 0
        self._at = start
        self._tools = tools
        self._base = base
        self._open_values = open_values
        self._name = ""
        self._schemas: _Schemas
        self._names: set[str] = set()  # of parameters without a value so far
        self._arguments: dict[str, Any] = {}
        self._key: str | None = None  # of the value that is open
        self._value = 0  # where that begins
        self._begin = 0  # the same, with a line break
        self._searched = 0  # up to where it has no end

    def read(self, text: str, end: int) -> ToolCall | Inside | None:
        if not self._name and not self._read_name(text, end):
            return None
        while self._key is not None or self._open_value(text, end):
            assert self._key is not None
            if end <= self.open_until:
                return Inside.VALUE
            closing = _value_end(text, self._searched, end, self._names)
            if closing is None:
                # No end holds a closing tag of a call, nor may what is behind one.
                self._searched = max(self._searched, end)
                self._remember()
                return Inside.VALUE
            value = text[self._value : max(self._value, closing.start())]
            self._arguments[self._key] = self._schemas.value(self._key, value)
            self._key = None
            self._at = closing.end()
        if text[self._at : end].strip() != _FUNCTION_END:
            return None
        return _call(self._name, json.dumps(self._arguments, ensure_ascii=False))

    def _read_name(self, text: str, end: int) -> bool:
        head = _NAME.match(text, self._at, end)
        if head is None or not head[1].strip():
            return False
        self._name = head[1].strip()
        self._at = head.end()
        self._schemas = _Schemas(self._name, self._tools)
        self._names.update(self._schemas.names)
        return True

    def _open_value(self, text: str, end: int) -> bool:
        found = _PARAMETER.match(text, self._at, end)
        if found is None:
            return False
        self._key = found[1].strip()
        self._names.discard(self._key)
        # An empty value may have no line: the break behind the opening tag is the one that ends it.
        self._begin = self._searched = found.end()
        self._value = found.end() + text.startswith("\n", found.end())
        self._recall()
        return True

    def _recall(self) -> None:
        """Skip where a value that began earlier, and ends alike, was found to have no end."""
        begin, until = self._open_values.get(frozenset(self._names), (0, 0))
        if begin <= self._base + self._searched < until:
            self._searched = self.open_until = until - self._base

    def _remember(self) -> None:
        names = frozenset(self._names)
        begin, until = self._open_values.get(names, (0, 0))
        here = self._base + self._begin
        if not begin <= here < until:
            begin = here
        self._open_values[names] = begin, self._base + self._searched


def _value_end(text: str, at: int, end: int, names: AbstractSet[str]) -> re.Match[str] | None:
    """Return what ends the value of a parameter, from a place in it on.

    Its own closing tag may be missing, as in other programs that read this form: the value ends
    then at the end of the function, or at a line that opens one of the parameters in `names`, which
    the function has and which have no value yet. Any other tag is part of the value.
    """
    for found in _VALUE_END.finditer(text, at, end):
        if found[1] is None or found[1].strip() in names:
            return found
    return None


class _Schemas:
    """The schemas of a function's parameters, as far as tools say something about them."""

    def __init__(self, name: str, tools: Sequence[Tool] | None) -> None:
        self._root: Mapping[str, Any] = {}
        for tool in tools or ():
            function = _mapping(_mapping(tool).get("function", tool))
            if function.get("name") == name:
                self._root = _mapping(function.get("parameters"))
        self._properties = _mapping(self._root.get("properties"))

    @property
    def names(self) -> frozenset[str]:
        """The parameters that are known."""
        return frozenset(self._properties)

    def value(self, key: str, text: str) -> Any:
        """Return the value that a text stands for: the text, unless the schema has another type."""
        types = set(self._types(self._properties.get(key), set()))
        word = text.strip()
        # Templates that write null and true as Python does teach models to do the same.
        if "null" in types and word in ("null", "None"):
            return None
        if not types or "string" in types:
            return text
        if "boolean" in types and word in ("True", "False"):
            return word == "True"
        value = _json_of(text)
        return value if any(_is_of_type(value, name) for name in types) else text

    def _types(self, schema: Any, followed: set[str]) -> Iterator[str]:
        schema = _mapping(schema)
        kind = schema.get("type")
        if isinstance(kind, str):
            yield kind
        elif isinstance(kind, Sequence):
            yield from (name for name in kind if isinstance(name, str))
        for word in ("anyOf", "oneOf", "allOf"):
            options = schema.get(word)
            for option in options if isinstance(options, Sequence) else ():
                yield from self._types(option, followed)
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference[:2] == "#/" and reference not in followed:
            followed.add(reference)
            target: Any = self._root
            for step in reference[2:].split("/"):
                target = _mapping(target).get(step.replace("~1", "/").replace("~0", "~"))
            yield from self._types(target, followed)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_of_type(value: Any, name: str) -> bool:
    if name == "null":
        return value is None
    if name == "boolean" or isinstance(value, bool):
        return name == "boolean" and isinstance(value, bool)
    if name == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if name == "number":
        return isinstance(value, (int, float))
    if name == "array":
        return isinstance(value, list)
    return name == "object" and isinstance(value, dict)
