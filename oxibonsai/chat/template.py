"""Chat templates: messages to the tokens that a model was trained on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from oxibonsai.chat.contents import listed, messages_of, traced
from oxibonsai.chat.errors import ChatTemplateError
from oxibonsai.chat.provenance import LITERAL, UNKNOWN, Traced, join, mark, plain
from oxibonsai.chat.wants import Wants

if TYPE_CHECKING:
    from oxibonsai.model.protocols import LoadedModel
    from oxibonsai.model.tokenizer import Tokenizer

_log = logging.getLogger("oxibonsai.chat")

__all__ = ["ChatTemplate", "ChatTemplateError", "Message"]

Message: TypeAlias = Mapping[str, Any]
"""At least "role" and "content"; the template may know more keys."""

_TOKENS: Final = ("bos", "eos", "pad", "unk", "sep", "mask")


@dataclass
class _Compiled:
    """A template with what is known of it."""

    template: Any
    wants: Wants = field(default_factory=Wants)
    was_given_tools: bool = False


class ChatTemplate:
    """A Jinja chat template, rendered in a sandbox with the settings of Hugging Face transformers.

    The template sees messages, tools, documents and variables as they are, in plain types: texts,
    numbers, lists and mappings. Beside its output it is known of each character where it came
    from, so that only what the template itself wrote names a control token.

    Parameters
    ----------
    source : str
        The template.
    tokenizer : Tokenizer
        Whose special tokens the template names.
    special_tokens : mapping of str to str, optional
        Names of tokens that the template asks for, such as ``{"bos_token": "<s>"}``. Those left
        out are undefined in the template.
    name : str
        Of the model, for messages.
    tool_use : str, optional
        The template where tools are given, if that is another one.

    Attributes
    ----------
    source : str
        The template.
    tool_use : str or None
        As given.
    special_tokens : dict of str to str
        As given.

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
        special_tokens: Mapping[str, str] | None = None,
        name: str = "the model",
        tool_use: str | None = None,
    ) -> None:
        for what, text in (("source", source), ("tool_use", tool_use)):
            if not isinstance(text, str) and (what == "source" or text is not None):
                raise TypeError(
                    f"{what} is a {type(text).__name__}; the text of a template is needed"
                )
        self.source = source
        self.tool_use = tool_use
        self.special_tokens = dict(special_tokens or {})
        self._tokenizer = tokenizer
        self._name = name
        try:
            import jinja2  # noqa: F401  # what is missing is named here, not by what needs it

            from oxibonsai.chat.environment import compiled
        except ImportError as e:
            raise ImportError(
                "chat templates need the package jinja2: pip install tokenizers jinja2 rich"
            ) from e
        self._plain = _Compiled(self._wrap(lambda: compiled(source)))
        self._with_tools = self._plain
        if tool_use is not None:
            self._with_tools = _Compiled(self._wrap(lambda: compiled(tool_use)))

    @classmethod
    def of(cls, model: LoadedModel, source: str | None = None) -> ChatTemplate:
        """Return the template in a model's file.

        Parameters
        ----------
        model : Model
            The model.
        source : str, optional
            Another template than the file's, which gets the file's special tokens. The file's
            own for conversations with tools is left out then.

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
        tool_use = None
        if source is None:
            tool_use = tokenizer.chat_templates.get("tool_use")
            source = tokenizer.chat_template
            if source is None:
                source = tokenizer.chat_templates.get("default")
        if source is None:
            raise ChatTemplateError(
                f"{model.name!r} ({model.path}) has no chat template: it continues text, see "
                "Session.generate, and holds no conversation"
            )
        ids = {f"{name}_token": getattr(tokenizer, f"{name}_id", None) for name in _TOKENS}
        return cls(
            source,
            tokenizer,
            special_tokens={
                name: tokenizer.token_bytes(token).decode(errors="replace")
                for name, token in ids.items()
                if token is not None
            },
            name=repr(model.name),
            tool_use=tool_use,
        )

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Iterable[Mapping[str, Any]] | None = None,
        documents: Iterable[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Return the text of a conversation.

        Parameters
        ----------
        messages : sequence of Message
            The conversation. Content that is None or missing is "", and a list of parts
            ``{"type": "text", "text": ...}`` is their text, unless the template reads other forms
            only: None beside tool calls, or parts.
        tools : iterable of mapping, optional
            JSON schemas of functions that the model may call.
        documents : iterable of mapping, optional
            What the model may read.
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
            If these are no messages, or the template does not take them.
        """
        return plain(self._render(messages, tools, documents, add_generation_prompt, variables))

    def encode(
        self,
        messages: Sequence[Message],
        *,
        tools: Iterable[Mapping[str, Any]] | None = None,
        documents: Iterable[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[int]:
        """Return the tokens of a conversation.

        Only the template makes control tokens. The name of one in a message or in anything else
        that the template is given, such as ``<|im_end|>``, stays text, and so does one that is
        put together from both. User-defined tokens, such as ``<think>``, are read wherever they
        stand.

        Parameters
        ----------
        messages : sequence of Message
            As of render().
        tools : iterable of mapping, optional
            As of render().
        documents : iterable of mapping, optional
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
            As of render(); and if a control token's name comes out of an operation that does not
            tell whether the template or a message wrote it.
        """
        traced_text = self._render(messages, tools, documents, add_generation_prompt, variables)
        text = plain(traced_text)
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise ChatTemplateError(
                f"the conversation holds the lone surrogate U+{ord(text[e.start]):04X} behind "
                f"{text[max(0, e.start - 20) : e.start]!r}; UTF-8 cannot hold it"
            ) from None
        tokenizer = self._tokenizer
        literal = _spans(traced_text, (LITERAL,))
        self._refuse_doubt(traced_text, text, literal)
        ids: list[int] = []
        for part, special in tokenizer.specials.split(text, literal):
            ids += [special] if special is not None else tokenizer.encode(part)
        return ids

    def attempt(
        self, messages: Sequence[Message], tools: Iterable[Mapping[str, Any]], **variables: Any
    ) -> str:
        """Return what the template makes of a conversation that nobody has.

        Parameters
        ----------
        messages : sequence of Message
            As of render().
        tools : iterable of mapping
            As of render().
        **variables
            As of render().

        Returns
        -------
        str
            The text, which is "" where the template does not take these messages.
        """
        documents = variables.pop("documents", None)
        try:
            return plain(self._render(messages, tools, documents, False, variables, warn=False))
        except ChatTemplateError:
            return ""

    def _render(
        self,
        messages: Sequence[Message],
        tools: Iterable[Mapping[str, Any]] | None,
        documents: Iterable[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
        *,
        warn: bool = True,
    ) -> Traced:
        given_tools = self._wrap(lambda: listed("tools", tools))
        given = {
            **{name: mark(text, LITERAL) for name, text in self.special_tokens.items()},
            **self._wrap(lambda: {name: traced(value) for name, value in variables.items()}),
            "documents": self._wrap(lambda: listed("documents", documents)),
            "add_generation_prompt": add_generation_prompt,
        }
        used = self._plain if given_tools is None else self._with_tools
        wants = used.wants

        def written(messages: Sequence[Any], tools: list[Any] | None = given_tools) -> Traced:
            values = {**given, "messages": messages, "tools": tools}
            return join([self._wrap(lambda: used.template.render(values))])

        def tried(messages: Sequence[Any], tools: list[Any] | None = given_tools) -> str | None:
            try:
                return plain(written(messages, tools))
            except ChatTemplateError:
                return None

        final = self._wrap(
            lambda: messages_of(
                messages,
                as_parts=lambda role: wants.parts(role, tried),
                without_content=lambda: wants.no_content(tried),
                text_arguments=wants.text_arguments,
            )
        )
        found = written(final)
        if given_tools and warn and not used.was_given_tools:
            used.was_given_tools = True
            if tried(final, None) == found:
                _log.warning(
                    "the chat template of %s writes nothing of the tools that it is given: the "
                    "model does not see them",
                    self._name,
                )
        return found

    def _refuse_doubt(self, traced_text: Traced, text: str, literal: list[tuple[int, int]]) -> None:
        """Refuse text that may name a control token, if it is not known who wrote it."""
        if all(origin != UNKNOWN for _, origin in traced_text.runs):
            return
        specials = self._tokenizer.specials
        taken = set(specials.find(text, literal))
        for start, stop in specials.find(text, _spans(traced_text, (LITERAL, UNKNOWN))):
            if (start, stop) not in taken:
                raise ChatTemplateError(
                    f"the chat template of {self._name} hides whether {text[start:stop]!r} is its "
                    "own or came from a message, so it cannot be encoded: write the name in the "
                    "template itself, or take it out of the messages"
                )

    def _wrap(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except ChatTemplateError:
            raise
        except RecursionError as error:  # a thousand frames that say the same
            raise ChatTemplateError(
                f"the chat template of {self._name}: a macro or a value contains itself without "
                f"end ({error})"
            ) from None
        # Anything can come out of expressions in the template, from values it did not expect.
        except Exception as error:
            kind = type(error)
            what = (
                f"{error}" if kind.__module__.startswith("jinja2") else f"{kind.__name__}: {error}"
            )
            raise ChatTemplateError(f"the chat template of {self._name}: {what}") from error


def _spans(text: Traced, origins: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return the spans, as long as can be, of the characters of some origins."""
    found: list[tuple[int, int]] = []
    place = 0
    for length, origin in text.runs:
        if origin in origins:
            if found and found[-1][1] == place:
                found[-1] = (found[-1][0], place + length)
            else:
                found.append((place, place + length))
        place += length
    return found
