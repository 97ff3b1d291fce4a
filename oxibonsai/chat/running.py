"""Answers that are being given: a step of the model at a time, into a message of the history."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from oxibonsai.chat.answer import AnswerParser, Piece
from oxibonsai.chat.guard import Guard
from oxibonsai.chat.tags import HiddenTags, OnToken
from oxibonsai.chat.template import Message

if TYPE_CHECKING:
    from oxibonsai.model import ScoredToken
    from oxibonsai.model.session import Session

__all__ = ["Pieces", "RunningAnswer", "feed"]


def feed(
    session: Session, ids: list[int], progress: Callable[[int, int], object] | None = None
) -> None:
    """Bring a session to the end of a prompt, of which only what differs is fed.

    Parameters
    ----------
    session : Session
        The session.
    ids : list of int
        The prompt.
    progress : callable, optional
        As of ``Session.forward``.
    """
    common = 0
    # The last token is always fed again: the answer begins with its logits.
    for held, wanted in zip(session.tokens, ids[:-1], strict=False):
        if held != wanted:
            break
        common += 1
    session.rewind(common)
    session.forward(ids[common:], logits=None, progress=progress)


_MOVED = (
    "the session was moved while an answer was being given in it, which ends here: give each chat "
    "a session of its own, and use it through the chat alone until the answer is complete"
)


class RunningAnswer:
    """An answer, from the fed prompt to its last piece.

    Whoever moves the session meanwhile ends it: what came behind would be another text's.

    Parameters
    ----------
    session : Session
        Fed with the prompt.
    history : list of Message
        Where the answer goes once its first piece is asked for.
    parser : AnswerParser
        Takes it apart.
    tags : HiddenTags
        Of the session's tokenizer.
    guard : Guard
        Entered for each step.
    asked : Message, optional
        The user's message that waits for this answer, if send() added it.

    Attributes
    ----------
    asked : Message or None
        As given.
    started : bool
        Whether a piece has been asked for, so that the answer is in the history.
    finish_reason : str or None
        As of ``Chat.finish_reason``.
    is_thinking : bool
        Whether the last piece is thinking.
    """

    def __init__(
        self,
        session: Session,
        history: list[Message],
        parser: AnswerParser,
        tags: HiddenTags,
        guard: Guard,
        asked: Message | None,
    ) -> None:
        self.asked = asked
        self.started = False
        self.finish_reason: str | None = None
        self.is_thinking = False
        self._session = session
        self._history = history
        self._parser = parser
        self._tags = tags
        self._guard = guard
        self._message: dict[str, Any] = {"role": "assistant", "content": ""}
        self._texts: Iterator[str] | None = None
        self._epoch = session.epoch
        self._ready: deque[Piece] = deque()
        self._left = False

    def begin(
        self,
        max_tokens: int,
        on_token: OnToken | None,
        n_best: int,
        settings: Mapping[str, Any],
    ) -> None:
        """Prepare the generation; arguments as of ``Chat.send``."""
        listener = self._tags.listen(None if on_token is None else self._watched(on_token))
        self._check_place()
        self._texts = self._session.stream(max_tokens, on_token=listener, n_best=n_best, **settings)

    @property
    def over(self) -> bool:
        """Whether no piece can come any more."""
        return self._left or (self.started and self._texts is None and not self._ready)

    def leave(self) -> None:
        """End the answer where it is; the caller is inside the guard."""
        self._left = True
        self._ready.clear()
        self._end_texts()

    def next_piece(self, show_thinking: bool) -> Piece | None:
        """Return the next piece, without those of the thinking unless they are shown.

        None at the end of the answer.
        """
        with self._guard:
            if not (self.started or self._left):
                self.started = True
                self._history.append(self._message)
            while True:
                while self._ready:
                    piece = self._ready.popleft()
                    if show_thinking or not piece.thinking:
                        self.is_thinking = piece.thinking
                        return piece
                if self._texts is None:
                    return None
                self._step(self._texts)

    def _step(self, texts: Iterator[str]) -> None:
        try:
            self._check_place()
            text = next(texts, None)
            self._epoch = self._session.epoch
        except BaseException:
            self._left = True
            self._end_texts()
            raise
        if text is not None:
            self._ready.extend(self._parser.push(self._tags.whole(text)))
            self._set_message()
            return
        reason = self._session.finish_reason
        self._ready.extend(self._end_texts())
        called = reason == "stop" and bool(self._message.get("tool_calls"))
        self.finish_reason = "tool_calls" if called else reason

    def _end_texts(self) -> list[Piece]:
        """Take what was held back as what it looks like: it has been said."""
        if self._texts is None:
            return []
        self._texts = None
        rest = self._parser.push(self._tags.whole("")) + self._parser.finish()
        self._set_message()
        return rest

    def _set_message(self) -> None:
        """Make the message what is known now: what seemed to be thinking may be a call."""
        found = self._parser.answer().message()
        self._message.update(found)
        for key in self._message.keys() - found.keys():
            del self._message[key]

    def _watched(self, on_token: OnToken) -> OnToken:
        def watch(scored: ScoredToken) -> None:
            epoch = self._session.epoch
            on_token(scored)
            if self._session.epoch != epoch:
                raise RuntimeError(_MOVED)

        return watch

    def _check_place(self) -> None:
        if self._session.epoch != self._epoch:
            raise RuntimeError(_MOVED)


class Pieces(Generator[str, None, None]):
    """The iterator over the pieces of an answer, which ends it where it is closed or dropped.

    It is no generator of Python's, of which threads and callbacks would get errors of other types.

    Parameters
    ----------
    answer : RunningAnswer
        The answer.
    guard : Guard
        The same as the answer's.
    show_thinking : bool
        Whether pieces of the thinking are among them.
    """

    def __init__(self, answer: RunningAnswer, guard: Guard, *, show_thinking: bool) -> None:
        self._answer = answer
        self._guard = guard
        self._show_thinking = show_thinking

    def send(self, value: None = None) -> str:
        """Return the next piece, as next() does."""
        piece = self._answer.next_piece(self._show_thinking)
        if piece is None:
            raise StopIteration
        return piece.text

    def throw(self, typ: Any, val: Any = None, tb: Any = None, /) -> str:
        """End the answer and raise an exception."""
        self.close()
        return super().throw(typ, val, tb)

    def close(self) -> None:
        """End the answer; RuntimeError in its callbacks, or while another thread takes a piece."""
        if not self._answer.over:
            with self._guard:
                self._answer.leave()

    def __del__(self) -> None:
        # Whoever is inside the guard ends this answer himself before he does anything.
        if not self._answer.over and self._guard.enter():
            try:
                self._answer.leave()
            finally:
                self._guard.leave()
