"""Conversations in a session."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

from oxibonsai.chat.template import ChatTemplate, ChatTemplateError, Message
from oxibonsai.model.errors import SessionFullError
from oxibonsai.model.generation.filedefaults import recommended

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from oxibonsai.model import ScoredToken
    from oxibonsai.model.generation import GenerationOptions
    from oxibonsai.model.session import Session

__all__ = ["Chat"]


class Chat:
    """A conversation in a session.

    The whole history is rendered for each turn, and only the tokens that the session does not hold
    yet are fed: it is rewound to where the history was changed. So `messages` may be edited at any
    time.

    Parameters
    ----------
    session : Session
        Where the conversation is held.
    system : str, optional
        A first message of the role "system".
    template : ChatTemplate, optional
        The model's own where left out.
    **variables
        For the template, such as ``enable_thinking=False``.

    Attributes
    ----------
    messages : list of dict
        The history.

    Raises
    ------
    ChatTemplateError
        Where the model has no chat template.
    """

    def __init__(
        self,
        session: Session,
        *,
        system: str | None = None,
        template: ChatTemplate | None = None,
        **variables: Any,
    ) -> None:
        self.session = session
        self.template = ChatTemplate.of(session.model) if template is None else template
        self.variables = variables
        self._system: list[Message] = []
        if system is not None:
            self._system.append({"role": "system", "content": system})
        self.messages: list[Message] = list(self._system)

    def send(
        self,
        text: str,
        max_tokens: int = 1024,
        temperature: float | None = None,
        *,
        progress: Callable[[int, int], object] | None = None,
        on_token: Callable[[ScoredToken], object] | None = None,
        n_best: int = 0,
        **options: Unpack[GenerationOptions],
    ) -> Generator[str, None, None]:
        """Send a message of the role "user" and yield the answer in pieces.

        The call feeds the message; the iterator adds the answer to the history as it comes.

        Parameters
        ----------
        text : str
            The message.
        max_tokens : int
            The maximum of tokens of the answer.
        temperature : float, optional
            As of ``Session.generate``. What is left out of the options of sampling is as the
            model's file recommends (``Model.sampling_defaults``), else as of ``Session.generate``.
        progress : callable, optional
            As of ``Session.forward``.
        on_token : callable, optional
            As of ``Session.stream``.
        n_best : int
            As of ``Session.stream``.
        **options
            The other parameters of ``Session.generate``.

        Returns
        -------
        generator of str
            Pieces of the answer. Close it to stop the answer.

        Raises
        ------
        SessionFullError
            Where the conversation does not fit the session: at the call the history is as it was
            before; in the answer, what has come of it stays.
        """
        given: dict[str, Any] = {
            name: value
            for name, value in {"temperature": temperature, **options}.items()
            if value is not None
        }
        given |= recommended(self.session.model, given)
        self.session.check_options(max_tokens, n_best=n_best, **given)
        self.messages.append({"role": "user", "content": text})
        try:
            self._feed(progress)
            pieces = self.session.stream(max_tokens, on_token=on_token, n_best=n_best, **given)
        except BaseException:
            self.messages.pop()
            raise
        return self._answer(pieces)

    def _answer(self, pieces: Iterator[str]) -> Generator[str, None, None]:
        message = {"role": "assistant", "content": ""}
        self.messages.append(message)
        for piece in pieces:
            message["content"] += piece
            yield piece

    def _feed(self, progress: Callable[[int, int], object] | None) -> None:
        """Bring the session to the end of the history."""
        session = self.session
        ids = self.template.encode(self.messages, **self.variables)
        if not ids:
            raise ChatTemplateError(f"the chat template of {session.model.name} gives no text")
        if len(ids) > session.max_seq:
            raise SessionFullError(
                f"{len(ids)} tokens of conversation do not fit: the session holds "
                f"{session.max_seq}; reset() it, take messages out, or make one with a larger "
                "max_seq"
            )
        common = 0
        # The last token is always fed again: the answer begins with its logits.
        for held, wanted in zip(session.tokens, ids[:-1], strict=False):
            if held != wanted:
                break
            common += 1
        session.rewind(common)
        session.forward(ids[common:], logits=None, progress=progress)

    def reset(self) -> None:
        """Drop all messages but the system's."""
        self.messages[:] = self._system

    def undo(self) -> bool:
        """Drop the user's last message and everything after it.

        Returns
        -------
        bool
            Whether there was one.
        """
        for i in reversed(range(len(self.messages))):
            if self.messages[i].get("role") == "user":
                del self.messages[i:]
                return True
        return False

    def __repr__(self) -> str:
        return f"<Chat of {len(self.messages)} messages with {self.session.model.name!r}>"
