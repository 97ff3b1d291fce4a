"""Byte-level BPE from the vocabulary and merges of a GGUF file.

Encoding runs in Hugging Face ``tokenizers``; decoding needs nothing but this module. By default,
text is not normalised, as in the other programs that read these files, so ``decode(encode(text)) ==
text``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from oxibonsai.gguf import GGUFError, GGUFFile
from oxibonsai.model.arguments import flag, integer, sequence_of_ids
from oxibonsai.model.bpe import BytePairEncoder, merge_results
from oxibonsai.model.endnames import named_ends
from oxibonsai.model.specials import SpecialNames
from oxibonsai.model.splits import SPLITS
from oxibonsai.model.streamdecoder import StreamDecoder
from oxibonsai.model.tokenizerfile import tokenizer_fields

__all__ = ["StreamDecoder", "Tokenizer"]

# Types of tokens in GGUF. What stands for text that has no token is treated as a control token.
_UNKNOWN: Final = 2
_CONTROL: Final = 3
_USER_DEFINED: Final = 4
_UNUSED: Final = 5


def byte_characters() -> dict[str, int]:
    """Return the character that stands for each byte in a byte-level vocabulary (from GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF: Final = byte_characters()


class Tokenizer:
    """The tokenizer of a model file, made by `from_gguf`.

    Parameters
    ----------
    tokens, merges : iterable of str
        The vocabulary in byte characters, and the merges of BPE, as GGUF holds them.
    pre : str
        Name of the split into words.
    token_types : array of int, optional
        GGUF's type of each token, and any number behind them; without it the ids below are the
        control tokens, besides known ends.
    bos_id, eos_id : int, optional
        Ids of the tokens that start and end a text.
    end_ids : iterable of int
        Further ids that end a text.
    add_bos : bool
        Whether the file asks for `bos_id` before a prompt.
    pad_id, unk_id : int, optional
        Ids of the tokens that pad a text and that stand for what has no token.
    nfc : bool
        Whether text is composed to Unicode's NFC before it is split, as by Hugging Face's
        tokenizers of qwen2, qwen3 and qwen35.
    n_rows : int
        Rows of the model's embedding. A model may have more than there are tokens; those are ids
        of unused tokens.
    chat_template : str, optional
        Jinja template of the file.
    chat_templates : mapping of str to str, optional
        Further templates by their names.
    source : str
        What messages name as the origin.

    Attributes
    ----------
    pre : str
        Name of the split into words, ``tokenizer.ggml.pre``.
    bos_id : int or None
        Id of the token that starts a text, where the file names one.
    add_bos : bool
        Whether the file asks for `bos_id` before a prompt, and has one. `encode` never adds it.
    eos_id : int or None
        Id of the token that ends a text, where the file names one.
    pad_id, unk_id : int or None
        As `eos_id`, of the token that pads a text and the one that stands for what has none.
    eos_ids : frozenset of int
        Ids that end a text: those the file names, and those with a known name, such as
        ``<|im_end|>``, whatever their type.
    special_ids : frozenset of int
        Ids of control tokens, which decode to nothing and never come from plain text. Known ends
        are among them. The token of a single byte comes from text and decodes to it all the same.
    nfc : bool
        As given.
    chat_template : str or None
        Jinja template of the file.
    chat_templates : dict of str to str
        Further templates of the file by their names, such as "tool_use".
    """

    def __init__(
        self,
        tokens: Iterable[str],
        merges: Iterable[str],
        *,
        pre: str,
        token_types: npt.ArrayLike | None = None,
        bos_id: int | None = None,
        eos_id: int | None = None,
        end_ids: Iterable[int] = (),
        add_bos: bool = False,
        pad_id: int | None = None,
        unk_id: int | None = None,
        nfc: bool = False,
        n_rows: int = 0,
        chat_template: str | None = None,
        chat_templates: Mapping[str, str] | None = None,
        source: str = "tokenizer",
    ) -> None:
        if pre not in SPLITS:
            raise GGUFError(
                f"{source}: tokenizer.ggml.pre is {pre!r}; known are {', '.join(SPLITS)}"
            )
        self._source = source
        self._tokens = list(tokens)
        self._merges = merges
        self.pre = pre
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.pad_id = pad_id
        self.unk_id = unk_id
        self.add_bos = add_bos and bos_id is not None
        self.nfc = nfc
        self.chat_template = chat_template
        self.chat_templates = dict(chat_templates or {})
        ends = {*end_ids, *([] if eos_id is None else [eos_id])}
        for number in [*ends, bos_id, pad_id, unk_id]:
            if number is not None and not 0 <= number < len(self._tokens):
                raise GGUFError(
                    f"{source}: special token id {number} is outside the vocabulary of "
                    f"{len(self._tokens)}"
                )
        user_defined: set[int] = set()
        unused: set[int] = set()
        if token_types is None:
            control = ends | ({bos_id} if bos_id is not None else set())
        else:
            types = self._checked_types(token_types)
            control = set(np.flatnonzero((types == _CONTROL) | (types == _UNKNOWN)).tolist())
            user_defined = set(np.flatnonzero(types == _USER_DEFINED).tolist())
            unused = set(np.flatnonzero(types == _UNUSED).tolist())
        named = named_ends(self._tokens, unused)
        control |= named.control
        self.special_ids = frozenset(control)
        self._silent = frozenset(i for i in control if self._tokens[i] not in _BYTE_OF)
        self._bare = frozenset({*(unused - control), *range(len(self._tokens), n_rows)})
        self._user_defined = user_defined - control
        self._n_ids = max(len(self._tokens), n_rows)
        self.eos_ids = frozenset(ends | named.control | named.others)

    def _checked_types(self, token_types: npt.ArrayLike) -> npt.NDArray[np.integer[Any]]:
        types = np.asarray(token_types)
        if types.dtype.kind not in "iu" or types.ndim != 1 or types.size < len(self._tokens):
            raise GGUFError(
                f"{self._source}: tokenizer.ggml.token_type has shape {types.shape} for "
                f"{len(self._tokens)} tokens, and dtype {types.dtype}: an integer for each token "
                "is needed"
            )
        return types[: len(self._tokens)]

    @classmethod
    def from_gguf(cls, file: GGUFFile, *, nfc: bool = False, n_rows: int = 0) -> Tokenizer:
        """Return the tokenizer of a file.

        Parameters
        ----------
        file : GGUFFile
            The open file.
        nfc : bool
            As of Tokenizer; files do not say it.
        n_rows : int
            As of Tokenizer.

        Returns
        -------
        Tokenizer
            Its tokenizer.

        Raises
        ------
        GGUFError
            If it has none, or one of another kind than byte-level BPE.
        """
        return cls(**tokenizer_fields(file), nfc=nfc, n_rows=n_rows)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self._tokens)

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Return the token ids of `text`, without a token for its beginning.

        Parameters
        ----------
        text : str
            Any text without lone surrogates.
        parse_special : bool
            Read the names of control and user-defined tokens, such as ``<|im_end|>``, as those
            tokens. Only for text that a chat template made: by default they are ordinary text, so
            that what a user types cannot act as a special token.

        Returns
        -------
        list of int
            The ids.

        Raises
        ------
        TypeError
            For a text that is no str, or a parse_special that is no bool.
        ValueError
            For lone surrogates, which UTF-8 cannot hold.
        GGUFError
            For a byte that the file's vocabulary lacks, or a vocabulary that means nothing.
        ImportError
            If the package tokenizers is missing.
        """
        if not isinstance(text, str):
            raise TypeError(f"text is a {type(text).__name__}, not a str")
        parse_special = flag("parse_special", parse_special)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as e:
            raise ValueError(
                f"text holds the lone surrogate U+{ord(text[e.start]):04X} at {e.start}; UTF-8 "
                "cannot hold it"
            ) from None
        if not parse_special:
            return self._encode(text)
        ids: list[int] = []
        for part, special in self.split_special(text):
            ids += [special] if special is not None else self._encode(part)
        return ids

    def prompt_ids(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Return the token ids of a text that a model is to continue.

        They begin with the token for the beginning of a text where the file asks for it
        (`add_bos`), as in llama.cpp.

        Parameters
        ----------
        text : str
            As of encode().
        parse_special : bool
            As of encode(); a text that begins with the name of that token gets no second one.

        Returns
        -------
        list of int
            The ids.

        Raises
        ------
        TypeError, ValueError, ImportError
            As of encode().
        """
        ids = self.encode(text, parse_special=parse_special)
        first = self.bos_id
        if not self.add_bos or first is None or (parse_special and ids[:1] == [first]):
            return ids
        return [first, *ids]

    def split_special(self, text: str) -> list[tuple[str, int | None]]:
        """Return the parts of `text`, each with the id where it is a special token's name.

        Parameters
        ----------
        text : str
            A text.

        Returns
        -------
        list of (str, int or None)
            Names of control and user-defined tokens with their ids; the text between them with
            None.

        Raises
        ------
        TypeError
            For a text that is no str.
        """
        if not isinstance(text, str):
            raise TypeError(f"text is a {type(text).__name__}, not a str")
        return self.specials.split(text)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD.

        Parameters
        ----------
        ids : iterable of int
            The tokens.
        skip_special : bool
            Whether control tokens are left out; otherwise they give their names.

        Returns
        -------
        str
            The text.

        Raises
        ------
        TypeError
            For what are no ids, or a skip_special that is no bool.
        ValueError
            For an id outside the vocabulary.
        """
        skip_special = flag("skip_special", skip_special)
        found = sequence_of_ids("ids", ids)
        raw = b"".join(self.token_bytes(i, skip_special=skip_special) for i in found)
        return raw.decode("utf-8", errors="replace")

    def token_bytes(self, token: int, *, skip_special: bool = False) -> bytes:
        """Return the bytes that `token` stands for.

        Parameters
        ----------
        token : int
            The token.
        skip_special : bool
            Whether a control token gives no bytes; otherwise it gives its name.

        Returns
        -------
        bytes
            The bytes; a token may hold part of a character. An unused token has none.

        Raises
        ------
        TypeError
            For what are no ids, or a skip_special that is no bool.
        ValueError
            For an id outside the vocabulary.
        """
        if type(token) is not int:
            token = integer("token", token)
        skip: Any = skip_special
        if type(skip) is not bool:
            skip = flag("skip_special", skip)
        if not 0 <= token < self._n_ids:
            raise ValueError(
                f"token id {token} is outside the vocabulary: ids are 0 to {self._n_ids - 1}"
            )
        if skip and token in self._silent:
            return b""
        # The merges of a file are looked through only where a token may be unused.
        if token in self._bare and token in self.unused_ids:
            return b""
        if token not in self._added and (spelt := self._spelt(token)) is not None:
            return spelt
        # Not written in byte characters: the token is its own text.
        return self._name(token)

    def stream(self, *, skip_special: bool = True) -> StreamDecoder:
        """Return a decoder for tokens that come one by one.

        Parameters
        ----------
        skip_special : bool
            As of decode().

        Returns
        -------
        StreamDecoder
            The decoder.
        """
        return StreamDecoder(self, skip_special=skip_special)

    def textless_ids(self, name: str) -> list[int]:
        """Return the tokens of a name that decode to nothing: control and unused ones.

        Parameters
        ----------
        name : str
            A text, such as ``<|im_start|>``.

        Returns
        -------
        list of int
            Their ids, often none.
        """
        return self._textless.get(name, [])

    def holds_textless(self, text: str) -> bool:
        """Return whether a text holds the name of a token that decodes to nothing.

        Parameters
        ----------
        text : str
            A text.

        Returns
        -------
        bool
            Whether it does.
        """
        return next(self._textless_names.find(text), None) is not None

    def named_bytes(self, token: int) -> bytes:
        """Return the bytes of a token, or the name of one that decodes to nothing.

        Parameters
        ----------
        token : int
            The token.

        Returns
        -------
        bytes
            The bytes; none for a row of the embedding without a token.

        Raises
        ------
        TypeError, ValueError
            As of token_bytes().
        """
        found = self.token_bytes(token)
        return found or (self._name(token) if token < len(self._tokens) else b"")

    @cached_property
    def _textless_names(self) -> SpecialNames:
        return SpecialNames({name: ids[0] for name, ids in self._textless.items()}, {})

    @cached_property
    def _textless(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for i, name in enumerate(self._tokens):
            if name and (i in self._silent or i in self.unused_ids):
                found.setdefault(name, []).append(i)
        return found

    @cached_property
    def unused_ids(self) -> frozenset[int]:
        """Ids that stand for nothing and fill the vocabulary up.

        Those that the file calls so, but for bytes and results of merges, which come from text, and
        rows of the embedding without a token.
        """
        return self._bare - self._from_text(self._bare)

    def _from_text(self, ids: Iterable[int]) -> set[int]:
        """Return those of some tokens that plain text gives: bytes, and results of merges."""
        of = {self._tokens[i]: i for i in ids if i < len(self._tokens) and self._spelt(i)}
        longer = of.keys() - _BYTE_OF.keys()
        return {of[text] for text in (of.keys() - longer) | merge_results(self._merges, longer)}

    def _spelt(self, token: int) -> bytes | None:
        """Return the bytes that a token's byte characters write; None where it has others."""
        try:
            return bytes([_BYTE_OF[c] for c in self._tokens[token]])
        except KeyError:
            return None

    def _name(self, token: int) -> bytes:
        return self._tokens[token].encode("utf-8", "surrogateescape")

    @cached_property
    def _added(self) -> frozenset[int]:
        """Tokens that stand for their names; not those that text gives for other bytes."""
        added = self.special_ids | self._user_defined
        others = [i for i in added - self._silent if self._spelt(i) != self._name(i)]
        return added - self._from_text(others)

    @cached_property
    def specials(self) -> SpecialNames:
        """The names of control and user-defined tokens."""
        names: tuple[dict[str, int], dict[str, int]] = ({}, {})
        for i in sorted(self._added):
            names[i not in self.special_ids][self._tokens[i]] = i
        return SpecialNames(*names)

    def _encode(self, text: str) -> list[int]:
        return self._encoder.encode(text) if text else []

    @cached_property
    def _encoder(self) -> BytePairEncoder:
        """The encoder, built when text is first encoded."""
        return BytePairEncoder(
            self._tokens,
            self._merges,
            _BYTE_OF,
            control=self._silent,
            patterns=SPLITS[self.pre],
            nfc=self.nfc,
            source=self._source,
        )
