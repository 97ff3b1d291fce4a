"""Answers taken apart: what the model thought, what it says, and the tools that it calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from oxibonsai.chat.tags import CLOSE, OPEN, THINK, THOUGHT
from oxibonsai.chat.toolcalls import (
    BEGINNING,
    CallReader,
    Inside,
    OpenValues,
    Tool,
    ToolCall,
    may_begin_call,
    read_call,
)

__all__ = ["Answer", "AnswerParser", "Piece", "parse_answer"]


@dataclass(frozen=True)
class Answer:
    """An answer of a model.

    Attributes
    ----------
    content : str
        What it says. A call that is no call, cut off or without a name, stays here as text.
    reasoning : str
        What it thought before, without the tags.
    tool_calls : list of dict
        The tools that it calls, in the structure of the OpenAI interface:
        ``{"id": "call_...", "type": "function", "function": {"name": ..., "arguments": ...}}`` with
        the arguments as JSON text.
    """

    content: str
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)

    def message(self) -> dict[str, Any]:
        """Return the message of a history that holds this answer.

        Returns
        -------
        dict
            With "role" and "content", and with "reasoning_content" and "tool_calls" where there are
            some.
        """
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = list(self.tool_calls)
        return message


class Piece(NamedTuple):
    """A part of an answer's text that is no call.

    Attributes
    ----------
    text : str
        As the model wrote it, tags included.
    thinking : bool
        Whether it belongs to what the model thought.
    """

    text: str
    thinking: bool


def parse_answer(
    text: str, *, thinking: bool = False, tools: Sequence[Tool] | None = None
) -> Answer:
    """Take the whole text of an answer apart.

    Parameters
    ----------
    text : str
        What the model wrote.
    thinking : bool
        Whether the prompt ended inside an open ``<think>``, so that the text begins in thinking.
    tools : sequence of dict, optional
        The JSON schemas of the tools. In the form with tags, a value is text unless the schema of
        its parameter has another type.

    Returns
    -------
    Answer
        Its parts. No text is an error.

    Raises
    ------
    TypeError
        For anything but a str.
    """
    if not isinstance(text, str):
        raise TypeError(f"text is a {type(text).__name__}, not a str")
    parser = AnswerParser(thinking=thinking, tools=tools)
    parser.push(text)
    parser.finish()
    return parser.answer()


class AnswerParser:
    """Takes an answer apart while it comes.

    No piece ends in what may be the beginning of a tag. However a text is cut, the result is that
    of `parse_answer`.

    Parameters
    ----------
    thinking : bool
        As of parse_answer().
    tools : sequence of dict, optional
        As of parse_answer().
    calls : bool
        Whether calls of tools are looked for; they are text otherwise.
    """

    def __init__(
        self,
        *,
        thinking: bool = False,
        tools: Sequence[Tool] | None = None,
        calls: bool = True,
    ) -> None:
        self._thinking = thinking
        self._tools = tools
        self._calls = calls
        self._state: Literal["start", "thinking", "gap", "content", "call"] = "start"
        self._held = ""  # not given out: it may be a tag or a call
        self._searched = 0  # characters of `_held` in which no call ends
        self._reader = CallReader(tools)
        self._open_values: OpenValues = {}
        self._n_pushed = 0  # characters
        self._after_call = False
        self._ended = False
        self._content = ""
        self._reasoning = ""
        self._found: list[ToolCall] = []
        self._pieces: list[Piece] = []

    def push(self, text: str) -> list[Piece]:
        """Take more text.

        Parameters
        ----------
        text : str
            What comes next.

        Returns
        -------
        list of Piece
            What is certain to be no tag of a call.
        """
        self._held += text
        self._n_pushed += len(text)
        return self._run()

    def finish(self) -> list[Piece]:
        """End the text: what is held back is what it looks like.

        Returns
        -------
        list of Piece
            The rest.
        """
        self._ended = True
        rest = self._run()
        if self._state == "thinking" and self._calls:
            self._take_last_calls()
        return rest

    def answer(self) -> Answer:
        """Return the answer as far as it is known.

        Returns
        -------
        Answer
            Its parts, without what is held back.
        """
        content = self._content
        if self._found:  # templates put their own line breaks between the text and the calls
            content = content.rstrip()
        return Answer(content, self._reasoning.strip("\n"), list(self._found))

    def _run(self) -> list[Piece]:
        steps = {
            "start": self._start,
            "thinking": self._think,
            "gap": self._skip_gap,
            "content": self._say,
            "call": self._read,
        }
        while self._held and steps[self._state]():
            pass
        pieces, self._pieces = self._pieces, []
        return pieces

    # Each step takes a part of what is held, or returns False where more text has to come first.

    def _start(self) -> bool:
        text = self._held.lstrip()
        if text.startswith(THINK):
            self._give_thinking(len(self._held) - len(text) + len(THINK))
            self._state = "thinking"
        elif THINK.startswith(text) and not self._ended:
            return False
        else:
            self._state = "thinking" if self._thinking else "content"
        return True

    def _think(self) -> bool:
        end = self._held.find(THOUGHT)
        certain = self._before_tag(THOUGHT) if end < 0 else end
        self._reasoning += self._held[:certain]
        self._give_thinking(certain if end < 0 else end + len(THOUGHT))
        if end < 0:
            return False
        self._state = "gap"
        return True

    def _skip_gap(self) -> bool:
        self._give_thinking(len(self._held) - len(self._held.lstrip("\n")))
        if not self._held:
            return False
        self._state = "content"
        return True

    def _say(self) -> bool:
        if not self._calls:
            self._give_content(len(self._held))
            return False
        if self._after_call:
            text = self._held.lstrip()
            if not text or (OPEN.startswith(text) and text != OPEN and not self._ended):
                if self._ended:
                    self._held = ""
                return False
            self._after_call = False
            if text.startswith(OPEN):
                self._held = text
        begin = self._held.find(OPEN)
        self._give_content(self._before_tag(OPEN) if begin < 0 else begin)
        if begin < 0:
            return False
        self._state = "call"
        self._reader = CallReader(self._tools, self._n_pushed - len(self._held), self._open_values)
        self._searched = len(OPEN)
        return True

    def _read(self) -> bool:
        if not may_begin_call(self._held[len(OPEN) : len(OPEN) + BEGINNING]):
            return self._refuse()
        while (end := self._held.find(CLOSE, self._searched)) >= 0:
            found = self._reader.read(self._held, len(OPEN), end)
            self._searched = max(end + len(CLOSE), self._reader.open_until)
            if found is None:
                return self._refuse()
            if not isinstance(found, Inside):
                self._found.append(found)
                self._held = self._held[end + len(CLOSE) :]
                self._state = "content"
                self._after_call = True
                return True
        if self._ended:
            return self._refuse()
        self._searched = max(self._searched, len(self._held) - len(CLOSE) + 1)
        return False

    def _refuse(self) -> bool:
        """Take the opening tag as text; another call may begin behind it."""
        self._give_content(len(OPEN))
        self._state = "content"
        return True

    def _take_last_calls(self) -> None:
        """Take the calls that end what was thought to the end of the answer.

        Models of Qwen3.5 may call a tool without closing their thinking first, and wait then.
        """
        text = self._reasoning.rstrip()
        while text.endswith(CLOSE) and (begin := text.rfind(OPEN)) >= 0:
            found = read_call(text[begin + len(OPEN) : -len(CLOSE)], self._tools)
            if found is None or isinstance(found, Inside):
                break
            self._found.insert(0, found)
            text = self._reasoning = text[:begin].rstrip()

    def _before_tag(self, tag: str) -> int:
        """Return how much of what is held is certain to be no beginning of a tag."""
        n = len(self._held)
        begin = -1 if self._ended else self._held.rfind("<", max(0, n - len(tag) + 1))
        return begin if begin >= 0 and tag.startswith(self._held[begin:]) else n

    def _give_thinking(self, n: int) -> None:
        self._give(n, thinking=True)

    def _give_content(self, n: int) -> None:
        self._content += self._held[:n]
        self._give(n, thinking=False)

    def _give(self, n: int, *, thinking: bool) -> None:
        if n:
            self._pieces.append(Piece(self._held[:n], thinking))
            self._held = self._held[n:]
