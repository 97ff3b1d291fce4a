"""The tags of answers, and those that a tokenizer hides."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from oxibonsai.model import ScoredToken
    from oxibonsai.model.tokenizer import Tokenizer

__all__ = ["CLOSE", "OPEN", "THINK", "THOUGHT", "HiddenTags", "OnToken"]

THINK: Final = "<think>"
THOUGHT: Final = "</think>"
OPEN: Final = "<tool_call>"
CLOSE: Final = "</tool_call>"

OnToken = Callable[["ScoredToken"], object]


class HiddenTags:
    """Tags that are control tokens, put back into the text of an answer, which leaves those out.

    In most files they are user-defined tokens, or none, and this does nothing. Otherwise the text
    is made of the tokens once more: a tag also ends a character that came in half before it.

    Parameters
    ----------
    tokenizer : Tokenizer
        Of the model that answers.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._names: dict[int, str] = {}
        # The text of the tokens since the last piece, with the tags and as the stream has it.
        self._utf8, self._streams_utf8 = _decoder(), _decoder()
        self._seen = self._streamed = ""
        for tag in (THINK, THOUGHT, OPEN, CLOSE):
            for part, token in tokenizer.split_special(tag):
                if part == tag and token is not None and token in tokenizer.special_ids:
                    self._names[token] = tag

    def listen(self, on_token: OnToken | None) -> OnToken | None:
        """Return a callback for ``Session.stream`` that calls the given one and sees the tags.

        Parameters
        ----------
        on_token : callable, optional
            The caller's own.

        Returns
        -------
        callable or None
            The same, where no tag is hidden: scores cost time.
        """
        if not self._names:
            return on_token

        def see(scored: ScoredToken) -> None:
            if on_token is not None:
                on_token(scored)
            self._take(scored.token)

        return see

    def _take(self, token: int) -> None:
        raw = self._tokenizer.token_bytes(token, skip_special=True)
        self._streamed += self._streams_utf8.decode(raw)
        if tag := self._names.get(token):
            self._seen += self._utf8.decode(b"", final=True) + tag
        else:
            self._seen += self._utf8.decode(raw)

    def whole(self, text: str) -> str:
        """Return the text that came with a piece, and since the last one, with its tags.

        Parameters
        ----------
        text : str
            The piece of the stream; "" at its end.

        Returns
        -------
        str
            The text.
        """
        if not self._names:
            return text
        rest = text[len(self._streamed) :]
        seen, self._seen, self._streamed = self._seen, "", ""
        if rest:  # half a character at the end of the text, or a part of a token
            if self._streams_utf8.getstate()[0] and not self._utf8.getstate()[0]:
                rest = rest[1:]  # a tag has ended that half already
            self._utf8, self._streams_utf8 = _decoder(), _decoder()
        return seen + rest


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")(errors="replace")
