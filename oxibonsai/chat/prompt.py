"""Prompts: a history as a template writes it, with what a chat has to know of the template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from oxibonsai.chat.tags import THINK
from oxibonsai.chat.template import ChatTemplate, Message
from oxibonsai.model.tokenizer import Tokenizer

__all__ = ["Prompter", "takes_mapping", "with_mappings"]

_TAIL = 16  # tokens that surely hold "<think>" with its line break, should each be a byte


class Prompter:
    """Writes histories by a template.

    Parameters
    ----------
    template : ChatTemplate
        The template.
    tokenizer : Tokenizer
        Of the model.
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        self.template = template
        self._tokenizer = tokenizer
        self._mapping: bool | None = None  # what takes_mapping() found

    def encode(
        self, messages: Sequence[Message], given: Mapping[str, Any], *, open_answer: bool = True
    ) -> list[int]:
        """Return the tokens of a history.

        Parameters
        ----------
        messages : sequence of Message
            The history, with the arguments of tool calls as JSON text or as mappings.
        given : mapping
            What else the template gets.
        open_answer : bool
            Whether an answer begins behind them.

        Returns
        -------
        list of int
            The tokens.

        Raises
        ------
        ChatTemplateError
            If the template does not take the history.
        """
        if any(message.get("tool_calls") for message in messages):
            if self._mapping is None:
                self._mapping = takes_mapping(self.template, given)
            if self._mapping:
                messages = with_mappings(messages)
        return self.template.encode(messages, add_generation_prompt=open_answer, **given)

    def opens_thinking(
        self, messages: Sequence[Message], given: Mapping[str, Any], ids: list[int]
    ) -> bool:
        """Return whether the template, and no message, ended a prompt in an open ``<think>``.

        Parameters
        ----------
        messages : sequence of Message
            The history.
        given : mapping
            What else the template gets.
        ids : list of int
            What encode() returned for them.

        Returns
        -------
        bool
            Whether the answer begins in thinking.
        """
        if not self._ends_in_tag(ids):
            return False
        content = messages[-1].get("content") if messages else None
        if not isinstance(content, str) or not content.rstrip().endswith(THINK):
            return True
        return not self._ends_in_tag(self.encode(messages, given, open_answer=False))

    def _ends_in_tag(self, ids: list[int]) -> bool:
        tail = self._tokenizer.decode(ids[-_TAIL:], skip_special=False)
        return tail.rstrip().endswith(THINK)


_ARGUMENTS = {"oxibonsai_key": "oxibonsai_value"}
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {"oxibonsai_key": {"type": "string"}}},
    },
}


def takes_mapping(template: ChatTemplate, variables: Mapping[str, Any]) -> bool:
    """Return whether a template wants the arguments of a tool call as a mapping.

    Histories hold them as JSON text, as the OpenAI interface does. Templates that write them
    between tags want a mapping; others write the text as it is, or both alike. What a template does
    is seen by trying.

    Parameters
    ----------
    template : ChatTemplate
        The template.
    variables : mapping
        What it is given besides.

    Returns
    -------
    bool
        Whether a mapping is what it writes right.
    """

    def written(arguments: Any) -> str:
        call = {
            "id": "probe0001",  # nine letters and digits, which some templates insist on
            "type": "function",
            "function": {"name": "probe", "arguments": arguments},
        }
        history: list[Message] = [
            {"role": "user", "content": "probe"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        return template.attempt(history, **{**variables, "tools": [_PROBE_TOOL]})

    of_mapping = written(_ARGUMENTS)
    if "oxibonsai_value" not in of_mapping or str(_ARGUMENTS) in of_mapping:
        return False
    return of_mapping != written(json.dumps(_ARGUMENTS))


def with_mappings(messages: Sequence[Message]) -> list[Message]:
    """Return messages in which the arguments of tool calls are mappings.

    Parameters
    ----------
    messages : sequence of Message
        The history, which stays as it is.

    Returns
    -------
    list of Message
        The same, but for arguments that were the JSON text of an object.
    """
    return [
        {**message, "tool_calls": [_with_mapping(call) for call in calls]}
        if isinstance(calls := message.get("tool_calls"), (list, tuple))
        else message
        for message in messages
    ]


def _with_mapping(call: Any) -> Any:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    if not isinstance(arguments, dict):
        return call
    changed = {**function, "arguments": arguments}
    return changed if function is call else {**call, "function": changed}
