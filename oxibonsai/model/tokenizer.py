"""Byte-level BPE from the vocabulary and merges of a GGUF file.

Encoding runs in Hugging Face ``tokenizers``; decoding needs nothing but this module. Text is never
normalised, as in the other programs that read these files, so ``decode(encode(text)) == text``.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from oxibonsai.gguf import GGUFError, GGUFFile, Strings

__all__ = ["StreamDecoder", "Tokenizer"]

_QWEN2: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Names that llama.cpp gives to one and the same split (src/llama-vocab.cpp, PRE_TYPE_QWEN2).
_SPLITS: Final = dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _QWEN2)
_CONTROL: Final = 3
_USER_DEFINED: Final = 4
_END_NAMES: Final = ("<|im_end|>", "<|endoftext|>")


def byte_characters() -> dict[str, int]:
    """Return the character that stands for each byte in a byte-level vocabulary (from GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF: Final = byte_characters()


class StreamDecoder:
    """Turn tokens into text one by one, never giving out half a character.

    Bytes that are not UTF-8 become U+FFFD, as in `Tokenizer.decode`: the pieces of a sequence of
    tokens joined are the text of the sequence.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
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


class Tokenizer:
    """The tokenizer of a model file, made by `from_gguf`.

    Parameters
    ----------
    tokens, merges : iterable of str
        The vocabulary in byte characters, and the merges of BPE, as GGUF holds them.
    pre : str
        Name of the split into words.
    token_types : array of int, optional
        GGUF's type of each token; without it the ids below are the control tokens.
    bos_id, eos_id : int, optional
        Ids of the tokens that start and end a text.
    end_ids : iterable of int
        Further ids that end a text.
    add_bos : bool
        Whether the file asks for `bos_id` before a prompt.
    chat_template : str, optional
        Jinja template of the file.
    source : str
        What messages name as the origin.

    Attributes
    ----------
    pre : str
        Name of the split into words, ``tokenizer.ggml.pre``.
    bos_id : int or None
        Id of the token that starts a text, where the file names one.
    add_bos : bool
        Whether the file asks for `bos_id` before a prompt. `encode` never adds it.
    eos_id : int or None
        Id of the token that ends a text, where the file names one.
    eos_ids : frozenset of int
        Ids that end a text: those the file names, ``<|im_end|>`` and ``<|endoftext|>``.
    special_ids : frozenset of int
        Ids of control tokens, which decode to nothing.
    chat_template : str or None
        Jinja template of the file.
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
        chat_template: str | None = None,
        source: str = "tokenizer",
    ) -> None:
        if pre not in _SPLITS:
            raise GGUFError(
                f"{source}: tokenizer.ggml.pre is {pre!r}; known are {', '.join(_SPLITS)}"
            )
        self._source = source
        self._tokens = list(tokens)
        self._merges = merges
        self.pre = pre
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.add_bos = add_bos
        self.chat_template = chat_template
        ends = set(end_ids) | ({eos_id} if eos_id is not None else set())
        for number in ends | ({bos_id} if bos_id is not None else set()):
            if not 0 <= number < len(self._tokens):
                raise GGUFError(
                    f"{source}: special token id {number} is outside the vocabulary of "
                    f"{len(self._tokens)}"
                )
        if token_types is None:
            control = ends | ({bos_id} if bos_id is not None else set())
            self._added: list[int] = sorted(control)
        else:
            types = np.asarray(token_types)
            if types.shape != (len(self._tokens),):
                raise GGUFError(
                    f"{source}: tokenizer.ggml.token_type has shape {types.shape} for "
                    f"{len(self._tokens)} tokens"
                )
            control = set(np.flatnonzero(types == _CONTROL).tolist())
            self._added = sorted(control | set(np.flatnonzero(types == _USER_DEFINED).tolist()))
        self.special_ids = frozenset(control)
        self.eos_ids = frozenset(ends | {i for i in control if self._tokens[i] in _END_NAMES})

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Tokenizer:
        """Return the tokenizer of a file.

        Parameters
        ----------
        file : GGUFFile
            The open file.

        Returns
        -------
        Tokenizer
            Its tokenizer.

        Raises
        ------
        GGUFError
            If it has none, or one of another kind than byte-level BPE.
        """

        def get(key: str, kind: type, default: Any = None) -> Any:
            value = file.metadata.get(f"tokenizer.{key}", default)
            if value is not default and not isinstance(value, kind):
                raise GGUFError(
                    f"{file.path}: tokenizer.{key} is a {type(value).__name__}, not {kind.__name__}"
                )
            return value

        model = get("ggml.model", str)
        if model != "gpt2":
            raise GGUFError(
                f"{file.path}: tokenizer.ggml.model is {model!r}; only 'gpt2' (byte-level BPE) is "
                "supported"
            )
        lists = []
        for key in ("tokens", "merges"):
            value = file.metadata.get(f"tokenizer.ggml.{key}")
            if not isinstance(value, Strings):
                raise GGUFError(
                    f"{file.path}: tokenizer.ggml.{key} is missing or no array of strings"
                )
            lists.append(value)
        ends = (get(f"ggml.{name}_token_id", int) for name in ("eot", "eom"))
        return cls(
            *lists,
            pre=get("ggml.pre", str, "default"),
            token_types=get("ggml.token_type", np.ndarray),
            bos_id=get("ggml.bos_token_id", int),
            eos_id=get("ggml.eos_token_id", int),
            end_ids=[i for i in ends if i is not None],
            add_bos=get("ggml.add_bos_token", bool, False),
            chat_template=get("chat_template", str),
            source=file.path,
        )

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
        ValueError
            For lone surrogates, which UTF-8 cannot hold.
        ImportError
            If the package tokenizers is missing.
        """
        if not isinstance(text, str):
            raise TypeError(f"text is a {type(text).__name__}, not a str")
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
        """
        parts: list[tuple[str, int | None]] = []
        end = 0
        for match in self._special_pattern.finditer(text) if self._special_pattern else ():
            parts.append((text[end : match.start()], None))
            parts.append((match.group(), self._special_by_name[match.group()]))
            end = match.end()
        parts.append((text[end:], None))
        return [(part, special) for part, special in parts if part]

    def special_names(self, *, user_defined: bool = True) -> list[str]:
        """Return the names of special tokens.

        Parameters
        ----------
        user_defined : bool
            Whether user-defined tokens are included, besides control tokens.

        Returns
        -------
        list of str
            The names.
        """
        return [
            name
            for name, i in self._special_by_name.items()
            if user_defined or i in self.special_ids
        ]

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
        ValueError
            For an id outside the vocabulary.
        """
        raw = b"".join(self.token_bytes(i, skip_special=skip_special) for i in ids)
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
            The bytes; a token may hold part of a character.

        Raises
        ------
        ValueError
            For an id outside the vocabulary.
        """
        token = int(token)
        if not 0 <= token < len(self._tokens):
            raise ValueError(
                f"token id {token} is outside the vocabulary: ids are 0 to {len(self._tokens) - 1}"
            )
        if skip_special and token in self.special_ids:
            return b""
        text = self._tokens[token]
        if token not in self._added_set:
            try:
                return bytes([_BYTE_OF[c] for c in text])
            except KeyError:
                pass  # not written in byte characters: the token is its own text
        return text.encode("utf-8", "surrogateescape")

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

    @cached_property
    def _added_set(self) -> frozenset[int]:
        return frozenset(self._added)

    @cached_property
    def _special_by_name(self) -> dict[str, int]:
        return {self._tokens[i]: i for i in self._added if self._tokens[i]}

    @cached_property
    def _special_pattern(self) -> re.Pattern[str] | None:
        # Longest first: a name that begins another must not win over it.
        names = sorted(self._special_by_name, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names))) if names else None

    def _encode(self, text: str) -> list[int]:
        return list(self._bpe.encode(text).ids) if text else []

    @cached_property
    def _bpe(self) -> Any:
        """The encoder, built when text is first encoded."""
        try:
            from tokenizers import Regex, Tokenizer, models, pre_tokenizers
        except ImportError as e:
            raise ImportError(
                "encoding text needs the package tokenizers: pip install tokenizers jinja2 rich"
            ) from e
        vocabulary = {text: i for i, text in enumerate(self._tokens)}
        if len(vocabulary) != len(self._tokens):
            raise GGUFError(
                f"{self._source}: {len(self._tokens) - len(vocabulary)} of {len(self._tokens)} "
                "tokens appear twice"
            )
        missing = [b for c, b in _BYTE_OF.items() if c not in vocabulary]
        if missing:
            raise GGUFError(
                f"{self._source}: the vocabulary of {len(self._tokens)} has no token for "
                f"{len(missing)} of 256 bytes, first 0x{missing[0]:02x}; text with them would be "
                "lost"
            )
        # Without them a merge that makes a control token out of plain text is an error below.
        for i in self.special_ids:
            del vocabulary[self._tokens[i]]
        pairs: list[tuple[str, str]] = []
        for i, merge in enumerate(self._merges):
            left, _, right = merge.partition(" ")
            if not (left and right) or " " in right:
                raise GGUFError(
                    f"{self._source}: merge {i} is {merge!r}; two parts with one space between "
                    "them are needed"
                )
            pairs.append((left, right))
        try:
            bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
        except Exception as e:  # tokenizers raises bare Exception
            raise GGUFError(
                f"{self._source}: tokenizer.ggml.tokens and merges do not agree: {e}"
            ) from e
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_SPLITS[self.pre]), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        return bpe
