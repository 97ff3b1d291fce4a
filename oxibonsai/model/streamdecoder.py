"""Tokens that come one by one, as text."""

from __future__ import annotations

import codecs
from typing import Protocol

from oxibonsai.model.arguments import flag

__all__ = ["StreamDecoder"]


class _Tokenizer(Protocol):
    def token_bytes(self, token: int, *, skip_special: bool = ...) -> bytes: ...


class StreamDecoder:
    """Turn tokens into text one by one, never giving out half a character.

    Bytes that are not UTF-8 become U+FFFD, as in `Tokenizer.decode`: the pieces of a sequence of
    tokens joined are the text of the sequence.
    """

    def __init__(self, tokenizer: _Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = flag("skip_special", skip_special)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Return the text that `token` completes, often empty in the middle of a character."""
        return self._utf8.decode(
            self._tokenizer.token_bytes(token, skip_special=self._skip_special)
        )

    def flush(self) -> str:
        """Return U+FFFD for an unfinished character, or nothing, and reset the decoder."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest
