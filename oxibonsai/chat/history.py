"""Histories: their turns, and what of them fits a session."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from oxibonsai.chat.tags import CLOSE
from oxibonsai.chat.template import Message
from oxibonsai.model.errors import SessionFullError

__all__ = ["ConversationFullError", "Fitting", "Snapshot", "fit", "leading", "openings"]


class ConversationFullError(SessionFullError):
    """Not even the last turn of a conversation fits its session.

    Parameters
    ----------
    n_tokens : int
        Tokens of the last turn and of what is never dropped.
    max_seq : int
        Positions of the session.
    rest : str
        What was left out, for the message.

    Attributes
    ----------
    n_tokens, max_seq : int
        As given.
    """

    def __init__(self, n_tokens: int, max_seq: int, rest: str = "") -> None:
        super().__init__(
            f"{n_tokens} tokens of conversation{rest} do not fit: the session holds {max_seq}, and "
            "an answer needs one; reset() it, take messages out, or make one with a larger max_seq"
        )
        self.n_tokens = n_tokens
        self.max_seq = max_seq


_KEPT_ROLES = ("system", "developer")


def leading(messages: Sequence[Any]) -> list[Message]:
    """Return the messages that begin a history and belong to no turn."""
    found: list[Message] = []
    for message in messages:
        if not isinstance(message, Mapping) or message.get("role") not in _KEPT_ROLES:
            break
        found.append(message)
    return found


def openings(messages: Sequence[Message]) -> list[int]:
    """Return the indices of the messages that begin a turn: the user's.

    The result of a tool is none, also where it comes as the user's, between tags of Qwen's. So it
    does behind an answer with calls alone; anywhere else such a text is what the user says.
    """
    found: list[int] = []
    called = False  # whether results may come
    for i, message in enumerate(messages):
        role = message.get("role")
        if role == "user" and not (called and _is_result(message)):
            found.append(i)
            called = False
        elif role == "assistant":
            called = bool(message.get("tool_calls")) or _ends(message, CLOSE)
    return found


def _is_result(message: Message) -> bool:
    content = message.get("content")
    begins = isinstance(content, str) and content.lstrip().startswith("<tool_response>")
    return begins and _ends(message, "</tool_response>")


def _ends(message: Message, tag: str) -> bool:
    content = message.get("content")
    return isinstance(content, str) and content.rstrip().endswith(tag)


def _turns(messages: Sequence[Message]) -> list[list[int]]:
    """Return the indices of each turn's messages: the user's, and all until the next of his."""
    turns: list[list[int]] = []
    begins = set(openings(messages))
    for i, message in enumerate(messages):
        if message.get("role") in _KEPT_ROLES:
            continue
        if not turns or i in begins:
            turns.append([])
        turns[-1].append(i)
    return turns


class Snapshot:
    """A history as it was, to see whether a callback changed it, and to bring it back.

    Parameters
    ----------
    messages : list of Message
        The history.
    """

    def __init__(self, messages: list[Message]) -> None:
        self._list = messages
        self._messages = [(message, dict(message)) for message in messages]

    def check(self, messages: list[Message]) -> None:
        """Raise RuntimeError unless a history is the same list of the same messages."""
        if (
            messages is not self._list
            or len(messages) != len(self._messages)
            or any(m is not one for m, (one, _) in zip(messages, self._messages, strict=True))
            or any(message != was for message, was in self._messages)
        ):
            raise RuntimeError(
                "a callback changed the messages while they were being fed: do it before the call, "
                "or behind the answer"
            )

    def restore(self) -> list[Message]:
        """Make the list and its messages what they were, and return it."""
        for message, was in self._messages:
            if message != was and isinstance(message, dict):
                message.clear()
                message.update(was)
        self._list[:] = [message for message, _ in self._messages]
        return self._list


class Fitting(NamedTuple):
    """What fits a session.

    Attributes
    ----------
    messages : list of Message
        The history without its oldest turns.
    ids : list of int
        Its tokens.
    n_dropped : int
        Messages that were left out.
    """

    messages: list[Message]
    ids: list[int]
    n_dropped: int


def fit(
    messages: Sequence[Message],
    encode: Callable[[Sequence[Message]], list[int]],
    max_seq: int,
    max_tokens: int,
) -> Fitting:
    """Leave out the oldest turns of a history that leaves too little room for an answer.

    Too little is less than `max_tokens`, and less than a quarter of the session. Turns are left out
    until there is a quarter more than that: otherwise each of the next turns would have to drop one
    as well, and to feed the whole rest again. Where not even the last turn alone leaves so
    much, the fewest are left out that leave enough. Messages of the system and the last turn stay.

    Parameters
    ----------
    messages : sequence of Message
        The history.
    encode : callable
        Returns the tokens of a history.
    max_seq : int
        Positions of the session.
    max_tokens : int
        The most tokens of the answer.

    Returns
    -------
    Fitting
        What is left.

    Raises
    ------
    SessionFullError
        If not even the last turn leaves room for a token.
    """
    quarter = max(1, max_seq // 4)
    enough = max(1, min(max_tokens, quarter))
    oldest = _turns(messages)[:-1]
    tried: dict[int, Fitting] = {}

    def without(n_turns: int) -> Fitting:
        if n_turns not in tried:
            dropped = {i for turn in oldest[:n_turns] for i in turn}
            rest = [m for i, m in enumerate(messages) if i not in dropped]
            tried[n_turns] = Fitting(rest, encode(rest), len(dropped))
        return tried[n_turns]

    def has_room(n_turns: int, wanted: int) -> bool:
        return max_seq - len(without(n_turns).ids) >= wanted

    found = without(0)
    if oldest and not has_room(0, enough):
        counts = range(1, len(oldest) + 1)
        wanted = enough + quarter if has_room(len(oldest), enough + quarter) else enough
        at = bisect_left(counts, True, key=lambda n: has_room(n, wanted))
        found = without(min(at + 1, len(oldest)))
    if len(found.ids) >= max_seq:
        rest = " without the turns before the last" if oldest else ""
        raise ConversationFullError(len(found.ids), max_seq, rest)
    return found
