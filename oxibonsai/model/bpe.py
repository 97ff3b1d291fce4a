"""Plain text to tokens, by the merges of a vocabulary in byte characters."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from oxibonsai.gguf import GGUFError

__all__ = ["BytePairEncoder", "merge_results"]

_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def merge_results(merges: Iterable[str], texts: Collection[str]) -> set[str]:
    """Return those of some texts that a merge makes."""
    if not texts:
        return set()
    return {found for merge in merges if (found := merge.replace(" ", "", 1)) in texts}


class BytePairEncoder:
    """Encodes text that has no special tokens.

    Parameters
    ----------
    tokens : sequence of str
        The vocabulary. Empty texts stand for no token, and no text gives a token whose bytes are
        not UTF-8 (with lone surrogates).
    merges : iterable of str
        Two parts each, with a space between them; the first ones go first.
    alphabet : mapping of str to int
        The byte of each byte character.
    control : collection of int
        Tokens that text never gives; none of them is a byte character.
    patterns : sequence of str
        The split into words: each pattern cuts what those before it left into matches and the rest.
    nfc : bool
        Whether text is composed to Unicode's NFC first.
    source : str
        What messages name as the origin.

    Raises
    ------
    GGUFError
        For a vocabulary or merges that mean nothing.
    ImportError
        If the package tokenizers is missing.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        merges: Iterable[str],
        alphabet: Mapping[str, int],
        *,
        control: Collection[int],
        patterns: Sequence[str],
        nfc: bool,
        source: str,
    ) -> None:
        try:
            from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
        except ImportError as e:
            raise ImportError(
                "encoding text needs the package tokenizers: pip install tokenizers jinja2 rich"
            ) from e
        vocabulary = {text: i for i, text in enumerate(tokens) if text}
        n_texts = sum(map(bool, tokens))
        if len(vocabulary) != n_texts:
            raise GGUFError(
                f"{source}: {n_texts - len(vocabulary)} of {len(tokens)} tokens appear twice"
            )
        names = {tokens[i] for i in control if tokens[i]}
        for name in [*names, *filter(_SURROGATE.search, vocabulary.keys() - names)]:
            del vocabulary[name]
        pairs: list[tuple[str, str]] = []
        for i, merge in enumerate(merges):
            left, _, right = merge.partition(" ")
            if not (left and right) or " " in right:
                raise GGUFError(
                    f"{source}: merge {i} is {merge!r}; two parts with one space between "
                    "them are needed"
                )
            # Without these no text becomes a control token.
            if left + right not in names and not _SURROGATE.search(merge):
                pairs.append((left, right))
        self._source = source
        self._first = len(tokens)
        self._intermediate = _add_intermediate(vocabulary, pairs, alphabet, self._first)
        # Bytes that no token stands for, by the ids that stand in for them.
        self._missing = {
            vocabulary[c]: byte for c, byte in alphabet.items() if vocabulary[c] >= self._first
        }
        try:
            self._bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
        except Exception as e:  # tokenizers raises bare Exception
            raise GGUFError(f"{source}: tokenizer.ggml.tokens and merges do not agree: {e}") from e
        if nfc:
            self._bpe.normalizer = normalizers.NFC()
        self._bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text without lone surrogates.

        GGUFError, where a byte of it has no token.
        """
        ids: list[int] = list(self._bpe.encode(text).ids)
        if not self._intermediate:
            return ids
        ids = [j for i in ids for j in self._intermediate.get(i, (i,))]
        if self._missing:
            for i in ids:
                if i in self._missing:
                    raise GGUFError(
                        f"{self._source}: the vocabulary of {self._first} tokens has none for the "
                        f"byte 0x{self._missing[i]:02x}, which this text needs and would lose"
                    )
        return ids


def _add_intermediate(
    vocabulary: dict[str, int],
    pairs: list[tuple[str, str]],
    alphabet: Iterable[str],
    first: int,
) -> dict[int, list[int]]:
    """Give ids from `first` on to bytes and to parts and results of merges that are no tokens.

    Merges go through them, as in llama.cpp. One that is left over in the end stands for the tokens
    of its characters, which are returned for each; a byte, for itself.
    """
    found: dict[int, list[int]] = {}
    texts = {text for left, right in pairs for text in (left, right, left + right)}
    new = list(enumerate(sorted((texts | set(alphabet)) - vocabulary.keys()), first))
    vocabulary.update((text, i) for i, text in new)
    for i, text in new:
        # A character outside the alphabet never occurs in a text.
        found[i] = [vocabulary[c] for c in text if c in vocabulary]
    return found
