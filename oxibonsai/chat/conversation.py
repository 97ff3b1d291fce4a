"""Conversations in a session."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from oxibonsai.chat import saved
from oxibonsai.chat.answer import AnswerParser
from oxibonsai.chat.checks import check_answerable, check_callback, check_messages, check_options
from oxibonsai.chat.guard import Guard
from oxibonsai.chat.history import Snapshot, fit, leading, openings
from oxibonsai.chat.prompt import Prompter
from oxibonsai.chat.running import Pieces, RunningAnswer, feed
from oxibonsai.chat.tags import HiddenTags, OnToken
from oxibonsai.chat.template import ChatTemplate, ChatTemplateError, Message
from oxibonsai.chat.toolcalls import Tool, ToolCall
from oxibonsai.model.generation.filedefaults import recommended
from oxibonsai.model.session import Session

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from oxibonsai.model.generation import GenerationOptions

__all__ = ["Chat"]


class Chat:
    """A conversation in a session.

    The whole history is rendered for each answer, and only the tokens that the session does not
    hold yet are fed: it is rewound to where the history was changed. So `messages` may be edited at
    any time.

    Where the history leaves too little room for an answer, its oldest turns are dropped: a turn is
    a message of the user and all that follows until his next one. Too little is less than
    `max_tokens`, and less than a quarter of the session; then turns go until there is a quarter
    more than that, so that it does not happen in each turn. Messages of the system and the last
    turn are never dropped.

    Parameters
    ----------
    session : Session
        Where the conversation is held.
    system : str, optional
        A first message of the role "system".
    template : ChatTemplate or str, optional
        A template, or the text of one; the model's own where left out.
    tools : sequence of dict, optional
        The JSON schemas of the functions that the model may call, as the OpenAI interface takes
        them. Where they are given, calls are taken out of the answers: see `tool_calls`.
    documents : sequence of dict, optional
        For templates that know them.
    thinking : bool, optional
        Whether the model thinks before it answers: given to the template as ``enable_thinking`` and
        ``thinking``, one of which most templates know. None leaves the template's default.
    show_thinking : bool
        Whether what the model thinks is among the pieces of an answer, with its tags.
    on_drop : callable, optional
        Called with the number of messages when some have been dropped, before the answer begins.
    **variables
        Others for the template.

    Attributes
    ----------
    messages : list of dict
        The history. An answer is ``{"role": "assistant", "content": ...}``, with
        "reasoning_content" where the model thought and "tool_calls" where it called tools.
    session, template, tools, documents, thinking, show_thinking, on_drop, variables
        As given; those but the session may be changed between answers.

    Raises
    ------
    ChatTemplateError
        Where the model has no chat template.
    TypeError, ValueError
        For an argument that is not what it has to be.
    RuntimeError
        From any method that changes the conversation, while another thread is in one, and in
        callbacks: those of an answer, `progress` and `on_drop`.
    """

    def __init__(
        self,
        session: Session,
        *,
        system: str | None = None,
        template: ChatTemplate | str | None = None,
        tools: Sequence[Tool] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool | None = None,
        show_thinking: bool = True,
        on_drop: Callable[[int], object] | None = None,
        **variables: Any,
    ) -> None:
        if not isinstance(session, Session):
            raise TypeError(
                f"session is a {type(session).__name__}, not a Session: model.session() makes one"
            )
        if system is not None and not isinstance(system, str):
            raise TypeError(f"system is a {type(system).__name__}, not a str")
        self.session = session
        self.tools = tools
        self.documents = documents
        self.thinking = thinking
        self.show_thinking = show_thinking
        self.on_drop = on_drop
        self.variables = variables
        self.messages: list[Message] = []
        if system is not None:
            self.messages.append({"role": "system", "content": system})
        self._guard = Guard()
        self._running: RunningAnswer | None = None
        self._prompter: Prompter | None = None
        check_options(self, template)
        self.template = _template(session, template)

    def _check(self) -> ChatTemplate:
        """Raise what is wrong with the attributes, which may have been changed."""
        check_options(self, self.template)
        self.template = _template(self.session, self.template)
        return self.template

    # Answers

    def send(
        self,
        text: str,
        max_tokens: int = 1024,
        temperature: float | None = None,
        *,
        progress: Callable[[int, int], object] | None = None,
        on_token: OnToken | None = None,
        n_best: int = 0,
        **options: Unpack[GenerationOptions],
    ) -> Generator[str, None, None]:
        """Send a message of the role "user" and yield the answer in pieces.

        The call feeds the message; the iterator adds the answer to the history as it comes. An
        earlier answer that is still being given ends with the call, and stays as far as it came.
        Where no piece of it was asked for, its message is taken out: two messages of the user
        without an answer between them are what many templates refuse.

        Parameters
        ----------
        text : str
            The message.
        max_tokens : int
            The maximum of tokens of the answer, what the model thinks included.
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
            Pieces of the answer, of whole tags. Calls of tools are not among them. Close it to stop
            the answer. Where the session is full it ends, with the `finish_reason` "context".

        Raises
        ------
        SessionFullError
            If not even the message, without older turns, fits the session.
        ChatTemplateError
            If the template does not take the history.
        RuntimeError
            In a callback, while another thread uses the chat, or where `progress` or `on_drop`
            changed the messages. From the iterator: where somebody else moved the session.

        Notes
        -----
        Any exception during the call leaves the history as it was before it. After one in the
        answer, what has come of it stays.
        """
        if not isinstance(text, str):
            raise TypeError(f"text is a {type(text).__name__}, not a str")
        given = {"temperature": temperature, **options}
        added = {"role": "user", "content": text}
        return self._begin([added], max_tokens, given, progress, on_token, n_best)

    def respond(
        self,
        max_tokens: int = 1024,
        temperature: float | None = None,
        *,
        progress: Callable[[int, int], object] | None = None,
        on_token: OnToken | None = None,
        n_best: int = 0,
        **options: Unpack[GenerationOptions],
    ) -> Generator[str, None, None]:
        """Answer the history as it is: after results of tools, or after it was edited.

        Parameters
        ----------
        max_tokens : int
            As of send().
        temperature : float, optional
            As of send().
        progress, on_token : callable, optional
            As of send().
        n_best : int
            As of send().
        **options
            As of send().

        Returns
        -------
        generator of str
            As of send().

        Raises
        ------
        ValueError
            If the history is empty, or ends with an answer.
        SessionFullError, ChatTemplateError, RuntimeError
            As of send().
        """
        given = {"temperature": temperature, **options}
        return self._begin([], max_tokens, given, progress, on_token, n_best)

    def add_tool_result(
        self, content: str, *, tool_call_id: str | None = None, name: str | None = None
    ) -> None:
        """Add what a tool gave back, as a message of the role "tool"; respond() answers it.

        Parameters
        ----------
        content : str
            The result; other values as JSON text.
        tool_call_id : str, optional
            The "id" of the call. Most templates go by the order of the results.
        name : str, optional
            The name of the function, for templates that want it.

        Raises
        ------
        TypeError
            For a result that is no text.
        ValueError
            For an id that no call in the history has.
        """
        if not isinstance(content, str):
            raise TypeError(
                f"content is a {type(content).__name__}, not a str: give it as json.dumps() does"
            )
        with self._guard:
            self._end_answer()
            check_messages(self.messages)
            message = {"role": "tool", "content": content}
            if tool_call_id is not None:
                calls = [call for m in self.messages for call in m.get("tool_calls") or ()]
                known = [call["id"] for call in calls if "id" in call]
                if tool_call_id not in known:
                    raise ValueError(
                        f"tool_call_id = {tool_call_id!r}: no call in the history has it; there "
                        f"are {', '.join(map(repr, known)) or 'none'}"
                    )
                message["tool_call_id"] = tool_call_id
            if name is not None:
                message["name"] = name
            self.messages.append(message)

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls of the last answer that no user's message follows, in OpenAI's structure."""
        check_messages(self.messages)
        for message in reversed(self.messages):
            if message.get("role") == "assistant":
                return list(message.get("tool_calls") or ())
            if message.get("role") != "tool":
                break
        return []

    @property
    def finish_reason(self) -> str | None:
        """What ended the last answer.

        "stop": the model, or a stop text; "tool_calls": the model, to have tools called; "length":
        max_tokens; "context": the session was full. None before an answer, while one is given, and
        after one that was left.
        """
        return None if self._running is None else self._running.finish_reason

    @property
    def is_thinking(self) -> bool:
        """Whether the model thinks the piece that was yielded last, and does not say it."""
        return self._running is not None and self._running.is_thinking

    # Histories

    def reset(self) -> None:
        """Drop all messages but those of the system, or the developer, that begin the history."""
        with self._guard:
            self._end_answer()
            self._running = None
            self.messages[:] = leading(self.messages)

    def undo(self) -> bool:
        """Drop the user's last message and everything after it.

        Returns
        -------
        bool
            Whether there was one.
        """
        with self._guard:
            self._end_answer()
            self._running = None
            check_messages(self.messages)
            begins = openings(self.messages)
            if begins:
                del self.messages[begins[-1] :]
            return bool(begins)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation to a file, for load().

        The file is JSON, with the messages, the tools, the documents, the template's variables and
        whether the model thinks; neither the template nor the state of the session is in it. It
        replaces an existing one only once it is complete, and a link to one stays a link.

        Parameters
        ----------
        path : str or path-like
            Where it goes.

        Raises
        ------
        TypeError, ValueError
            For a value that JSON cannot hold; the message names it.
        OSError
            If the file cannot be written; an existing one is unchanged then.
        """
        self._check()
        check_messages(self.messages)
        saved.write(
            path,
            saved.SavedChat(
                self.session.model.name,
                [dict(message) for message in self.messages],
                None if self.tools is None else [dict(tool) for tool in self.tools],
                None if self.documents is None else [dict(one) for one in self.documents],
                self.thinking,
                self.show_thinking,
                dict(self.variables),
            ),
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        session: Session,
        *,
        template: ChatTemplate | str | None = None,
        on_drop: Callable[[int], object] | None = None,
    ) -> Chat:
        """Return a conversation that save() wrote.

        Parameters
        ----------
        path : str or path-like
            The file.
        session : Session
            Where it is held from now on, of any model.
        template : ChatTemplate or str, optional
            As of `Chat`.
        on_drop : callable, optional
            As of `Chat`.

        Returns
        -------
        Chat
            The conversation. What else it was made with is in the file, and may be changed.

        Raises
        ------
        ChatFileError
            If the file holds no conversation, or something in it is not what it has to be.
        OSError
            If it cannot be read.
        """
        found = saved.read(path)
        chat = cls(
            session,
            template=template,
            tools=found.tools,
            documents=found.documents,
            thinking=found.thinking,
            show_thinking=found.show_thinking,
            on_drop=on_drop,
        )
        chat.variables = found.variables
        chat.messages[:] = found.messages
        return chat

    # How an answer comes

    def _begin(
        self,
        added: list[Message],
        max_tokens: int,
        given: Mapping[str, Any],
        progress: Callable[[int, int], object] | None,
        on_token: OnToken | None,
        n_best: int,
    ) -> Generator[str, None, None]:
        with self._guard:
            self._end_answer()
            template, session = self._check(), self.session
            check_messages(self.messages)
            settings = {name: value for name, value in given.items() if value is not None}
            settings |= recommended(session.model, settings)
            session.check_options(max_tokens, n_best=n_best, **settings)
            check_callback("on_token", on_token)
            check_callback("progress", progress)
            waiting = self._waiting()
            history = [*self.messages, *added]
            if added:
                history = [message for message in history if message is not waiting]
                waiting = added[0]
            check_answerable(history)
            prompts, variables = self._prompts(template), self._given()
            encode = partial(prompts.encode, given=variables)
            before = now = Snapshot(self.messages)
            try:
                kept, ids, n_dropped = fit(history, encode, session.max_seq, max_tokens)
                if not ids:
                    raise ChatTemplateError(
                        f"the chat template of {session.model.name} gives no text"
                    )
                thinking = prompts.opens_thinking(kept, variables, ids)
                now.check(self.messages)
                self.messages[:] = kept
                now = Snapshot(self.messages)
                feed(session, ids, progress)
                parser = AnswerParser(
                    thinking=thinking, tools=self.tools, calls=self.tools is not None
                )
                tags = HiddenTags(session.model.tokenizer)
                answer = RunningAnswer(session, self.messages, parser, tags, self._guard, waiting)
                if n_dropped and self.on_drop is not None:
                    self.on_drop(n_dropped)
                now.check(self.messages)
                answer.begin(max_tokens, on_token, n_best, settings)
            except BaseException:
                now.restore()
                self.messages = before.restore()
                raise
            self._running = answer
            return Pieces(answer, self._guard, show_thinking=self.show_thinking)

    def _waiting(self) -> Message | None:
        """Return the last message, where send() added it and no piece of its answer was taken."""
        last = self._running
        if last is None or last.started or not self.messages:
            return None
        return last.asked if self.messages[-1] is last.asked else None

    def _prompts(self, template: ChatTemplate) -> Prompter:
        if self._prompter is None or self._prompter.template is not template:
            self._prompter = Prompter(template, self.session.model.tokenizer)
        return self._prompter

    def _given(self) -> dict[str, Any]:
        """Return what the template gets besides the messages."""
        given = {"tools": self.tools, "documents": self.documents, **self.variables}
        if self.thinking is not None:
            given |= {"enable_thinking": self.thinking, "thinking": self.thinking}
        return given

    def _end_answer(self) -> None:
        """End an answer that is still being given; the caller is inside the guard."""
        if self._running is not None:
            self._running.leave()

    def __repr__(self) -> str:
        return f"<Chat of {len(self.messages)} messages with {self.session.model.name!r}>"


def _template(session: Session, given: ChatTemplate | str | None) -> ChatTemplate:
    return given if isinstance(given, ChatTemplate) else ChatTemplate.of(session.model, given)
