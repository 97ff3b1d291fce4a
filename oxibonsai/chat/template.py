"""Chat templates: messages to the tokens that a model was trained on."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from oxibonsai.model.protocols import LoadedModel
    from oxibonsai.model.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "ChatTemplateError", "Message"]

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

    @classmethod
    def of(cls, model: LoadedModel) -> ChatTemplate:
        """Return the template in a model's file.

        Parameters
        ----------
        model : Model
            The model.

        Returns
        -------
        ChatTemplate
            Its template.

        Raises
        ------
        ChatTemplateError
            If it has none.
        """
        tokenizer = model.tokenizer
        if tokenizer.chat_template is None:
            raise ChatTemplateError(
                f"{model.name!r} ({model.path}) has no chat template: it continues text, see "
                "Session.generate, and holds no conversation"
            )

        def name_of(token: int | None) -> str:
            return "" if token is None else tokenizer.token_bytes(token).decode()

        return cls(
            tokenizer.chat_template,
            tokenizer,
            bos_token=name_of(tokenizer.bos_id),
            eos_token=name_of(tokenizer.eos_id),
            name=repr(model.name),
        )

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """Return the text of a conversation.

        Parameters
        ----------
        messages : sequence of Message
            The conversation.
        add_generation_prompt : bool
            Whether the text ends where the answer begins.
        **variables
            For the template, such as ``enable_thinking``.

        Returns
        -------
        str
            The text.

        Raises
        ------
        ChatTemplateError
            If the template does not take these messages.
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

        Only the template makes special tokens. The name of one in a message, such as
        ``<|im_end|>``, stays text: a placeholder hides it while the template runs. In the model's
        own messages user-defined tokens, such as ``<think>``, are read as tokens.

        Parameters
        ----------
        messages : sequence of Message
            As of render().
        add_generation_prompt : bool
            As of render().
        **variables
            As of render().

        Returns
        -------
        list of int
            The tokens.

        Raises
        ------
        ChatTemplateError
            As of render().
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
