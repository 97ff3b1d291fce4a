"""Conversations by the chat template of a model's file.

::

    chat = Chat(model.session(), system="Answer briefly.")
    for piece in chat.send("Who is Alice?"): print(piece, end="")
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from oxibonsai.model import Session
    from oxibonsai.model.generation import GenerationOptions
    from oxibonsai.tokenizer import Tokenizer

__all__ = ["Chat", "ChatTemplate", "ChatTemplateError", "Message"]

Message: TypeAlias = Mapping[str, Any]
"""At least "role" and "content"; the template may know more keys."""


class ChatTemplateError(ValueError):
    """There is no chat template, or it does not take these messages."""


class ChatTemplate:
    """A Jinja chat template, rendered in a sandbox with the settings of Hugging Face transformers.

    Parameters
    ----------
    source : str
        The template.
    tokenizer : Tokenizer
        Whose special tokens the template names.
    bos_token, eos_token : str
        Given to the template.
    name : str
        Of the model, for messages.

    Raises
    ------
    ChatTemplateError
        For a template that is no Jinja.
    ImportError
        Without jinja2, which ``oxibonsai[model]`` installs.
    """

    def __init__(
        self,
        source: str,
        tokenizer: Tokenizer,
        *,
        bos_token: str = "",
        eos_token: str = "",
        name: str = "the model",
    ) -> None:
        self.source = source
        self._tokenizer = tokenizer
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._name = name
        self._template = self._wrap(lambda: _environment().from_string(source))

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """Return the text of a conversation, up to where the answer begins.

        `variables` go to the template, such as ``enable_thinking``.
        """
        return str(
            self._wrap(
                lambda: self._template.render(
                    messages=[dict(message) for message in messages],
                    add_generation_prompt=add_generation_prompt,
                    **self._tokens,
                    **variables,
                )
            )
        )

    def encode(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """Return the tokens of a conversation.

        Special tokens come from the template alone. Where a message holds the name of one, such as
        ``<|im_end|>``, that is text and stays text: it is veiled while the template runs, so that
        everything else is as if the message had been rendered as it is. In what the model itself
        has said, tokens that are part of the text (user-defined ones, such as ``<think>``) are
        read as such.
        """
        tokenizer = self._tokenizer
        veil = _Veil(tokenizer)
        text = self.render(
            [veil.message(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
        ids: list[int] = []
        for part, special in tokenizer.split_special(text):
            ids += [special] if special is not None else tokenizer.encode(veil.lift(part))
        return ids

    def _wrap(self, call: Callable[[], Any]) -> Any:
        try:
            from jinja2 import TemplateError
        except ImportError as e:
            raise ImportError(
                "chat templates need the package jinja2: pip install tokenizers jinja2 rich"
            ) from e
        try:
            return call()
        # The others come out of expressions in the template, from values that it did not expect.
        except (TemplateError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
            raise ChatTemplateError(f"the chat template of {self._name}: {error}") from error


class _Veil:
    """Hides names of special tokens in messages from what reads them, and shows them again."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._control = _Names(tokenizer.special_names(user_defined=False))
        self._all = _Names(tokenizer.special_names(user_defined=True))
        # Nobody who writes a message knows the number.
        self._key = secrets.token_hex(8)
        self._hidden: list[str] = []

    def message(self, message: Message) -> dict[str, Any]:
        names = self._control if message.get("role") == "assistant" else self._all
        # The role is the program's, not a reader's; everything below it is text.
        return {k: v if k == "role" else self._walk(names, v) for k, v in message.items()}

    def _walk(self, names: _Names, value: Any) -> Any:
        if isinstance(value, str):
            return names.pattern.sub(self._hide, value) if names.pattern else value
        if isinstance(value, Mapping):
            return {k: self._walk(names, v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._walk(names, v) for v in value]
        return value

    def _hide(self, match: re.Match[str]) -> str:
        self._hidden.append(match.group())
        return f"\ue000{self._key}.{len(self._hidden) - 1}\ue001"

    def lift(self, text: str) -> str:
        return re.sub(
            f"\ue000{self._key}\\.([0-9]+)\ue001", lambda m: self._hidden[int(m.group(1))], text
        )


class _Names:
    """Finds names in a text, and at its ends the parts that a neighbour could complete to one."""

    def __init__(self, names: Sequence[str]) -> None:
        self.pattern: re.Pattern[str] | None = None
        if names:
            whole = sorted(names, key=len, reverse=True)
            starts = sorted({n[:i] for n in names for i in range(1, len(n))}, key=len, reverse=True)
            ends = sorted({n[i:] for n in names for i in range(1, len(n))}, key=len, reverse=True)
            self.pattern = re.compile(
                rf"{_any(whole)}|\A(?:{_any(ends)})|(?:{_any(starts)})\Z" if starts else _any(whole)
            )


def _any(texts: Sequence[str]) -> str:
    return "|".join(map(re.escape, texts))


def _environment() -> Any:
    """Return the environment in which Hugging Face transformers renders chat templates."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}``, which marks what the model said: its body is all that counts."""

        tags = {"generation"}  # noqa: RUF012  # as Jinja declares it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # Jinja's own filter escapes for HTML.
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment


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
        self.template = session.model.chat_template if template is None else template
        self.variables = variables
        self._system: list[Message] = []
        if system is not None:
            self._system.append({"role": "system", "content": system})
        self.messages: list[Message] = list(self._system)

    def send(
        self,
        text: str,
        max_tokens: int = 1024,
        temperature: float = 0.0,
        *,
        progress: Callable[[int, int], object] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Generator[str, None, None]:
        """Send a message of the role "user" and yield the answer in pieces.

        The message is fed at the call; what of the answer has come is in the history once the
        iterator ends or is closed. The arguments are those of ``Session.generate``, and of
        ``Session.forward`` for `progress`.

        Raises
        ------
        SessionFullError
            Where the conversation does not fit the session: at the call the history is as it was
            before; in the answer, what has come of it stays.
        """
        self.messages.append({"role": "user", "content": text})
        try:
            self._feed(progress)
            pieces = self.session.stream(max_tokens, temperature, **options)
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
        from oxibonsai.model import SessionFullError

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
        # The last one is fed anew in any case: the answer begins with its logits.
        for held, wanted in zip(session.tokens, ids[:-1], strict=False):
            if held != wanted:
                break
            common += 1
        session.rewind(common)
        session.forward(ids[common:], logits=None, progress=progress)

    def reset(self) -> None:
        """Forget the conversation but the system's message."""
        self.messages[:] = self._system

    def undo(self) -> bool:
        """Forget the last message of the user and what came after; False where there is none."""
        for i in reversed(range(len(self.messages))):
            if self.messages[i].get("role") == "user":
                del self.messages[i:]
                return True
        return False

    def __repr__(self) -> str:
        return f"<Chat of {len(self.messages)} messages with {self.session.model.name!r}>"
