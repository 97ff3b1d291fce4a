"""What forms a template wants its messages in, found out by trying.

Messages have one form in a history. Templates differ in what they read: some write tool calls only
of messages whose content is None, and those of models that see pictures read content as a list of
parts. Each is tried once, and a template that takes the usual form gets it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from oxibonsai.chat.contents import parts_of, traced

__all__ = ["Wants"]

_WORD: Final = "oxibonsai_probe"
_OTHER_WORD: Final = "a different one"  # as long, with other letters at most places
_ARGUMENTS: Final = {"a": 1}
_PRINTED: Final = re.compile(r"['\"]type['\"]")
_USER: Final = {"role": "user", "content": "Hello"}
_FIRST: Final = ("system", "developer")  # roles that begin a conversation

_Write = Callable[[Sequence[Any]], str | None]


class Wants:
    """The forms that a template wants, each tried when it is first needed.

    A trial of which nothing came out does not count, since it may have been for the variables.
    """

    def __init__(self) -> None:
        self._parts: dict[str, bool] = {}
        self._no_content: bool | None = None
        self._text_arguments = False

    def parts(self, role: str, write: Callable[[Sequence[Any]], str | None]) -> bool:
        """Return whether messages of a role shall have their text in a list of parts.

        Parameters
        ----------
        role : str
            The role.
        write : callable
            Returns the text of messages, or None where the template does not take them.

        Returns
        -------
        bool
            Whether text is lost unless it is.
        """
        if role not in self._parts:
            found = self._try_parts(role, write)
            if found is None:
                return False
            self._parts[role] = found
        return self._parts[role]

    def _try_parts(self, role: str, write: _Write) -> bool | None:
        def written(content: Any) -> str | None:
            probe: dict[str, Any] = {"role": role, "content": content}
            other: dict[str, Any] = dict(_USER)
            if role == "user":
                return write([traced(probe)])
            if self.parts("user", write):
                other["content"] = parts_of([_USER["content"]])
            history = [probe, other] if role in _FIRST else [other, probe]
            return write([traced(message) for message in history])

        as_text = written(_WORD)
        if as_text is not None and as_text != written(_OTHER_WORD):
            return False  # it makes something of text
        as_parts = written(parts_of([_WORD]))
        if as_text is None and as_parts is None:
            return None
        # Where the name of a key comes out, a list was printed as it is.
        return as_parts is not None and _WORD in as_parts and not _PRINTED.search(as_parts)

    def no_content(self, write: Callable[[Sequence[Any]], str | None]) -> bool:
        """Return whether messages with tool calls and no text shall have None as their content.

        Parameters
        ----------
        write : callable
            As of parts().

        Returns
        -------
        bool
            Whether calls are lost unless they do.
        """
        if self._no_content is None:
            self._no_content = self._try_no_content(write)
        return bool(self._no_content)

    def text_arguments(self) -> bool:
        """Return whether calls beside no content shall have their arguments as JSON text.

        Returns
        -------
        bool
            Whether no_content() saw that they cannot be mappings.
        """
        return self._text_arguments

    def _try_no_content(self, write: _Write) -> bool | None:
        def written(content: str | None) -> list[str | None]:
            texts: list[str | None] = []
            for arguments in (json.dumps(_ARGUMENTS), _ARGUMENTS):
                function = {"name": _WORD, "arguments": arguments}
                # Some templates insist on nine letters and digits.
                call = {"id": "probe0001", "type": "function", "function": function}
                answer = {"role": "assistant", "content": content, "tool_calls": [call]}
                texts.append(write([traced(_USER), traced(answer)]))
            return texts

        def shown(texts: list[str | None]) -> list[bool]:
            return [text is not None and _WORD in text for text in texts]

        with_text = written("")
        if any(shown(with_text)):
            return False
        without = written(None)
        if set(with_text + without) == {None}:
            return None
        self._text_arguments = shown(without) == [True, False]
        return any(shown(without))
