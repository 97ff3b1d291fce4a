"""Names of tokens that end a text, for files that do not say all of them.

A file names one end or a few by their ids, and often not that of a turn. The names are those that
llama.cpp knows (src/llama-vocab.cpp, special_eog_ids).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

__all__ = ["NamedEnds", "named_ends"]

# A token with one of these names ends a text whatever its type, and is a control token, as in
# llama.cpp. That holds for "</s>" and "<eos>" as well, where a file calls them ordinary text: plain
# text with these characters gives the tokens of its parts.
_END_NAMES: Final = frozenset(
    {
        "<|im_end|>",
        "<|endoftext|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<|end_of_text|>",
        "<|return|>",
        "<|call|>",
        "<|calls|>",
        "<|flush|>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<turn|>",
        "<|tool_response>",
        "</s>",
        "<eos>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "[e~[",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",  # DeepSeek: full-width bars, and U+2581
    }
)
# What pads and parts files in completion of code ends a text, too, but where the file says that it
# is unused. Its type stays: in a template's text the name of a user-defined one is read.
_FILE_ENDS: Final = frozenset(
    {
        "<|fim_pad|>",
        "<fim-pad>",
        "<fim_pad>",
        "<PAD>",
        "[PAD]",
        "<|fim_repo|>",
        "<|repo_name|>",
        "<fim-repo>",
        "<REPO>",
        "<reponame>",
        "<|file_sep|>",
    }
)


class NamedEnds(NamedTuple):
    """Ids of tokens that end a text by their names.

    Attributes
    ----------
    control : set of int
        Those that are control tokens by that.
    others : set of int
        Those whose type stays.
    """

    control: set[int]
    others: set[int]


def named_ends(tokens: Iterable[str], unused: Collection[int]) -> NamedEnds:
    """Return the ends of a vocabulary.

    Parameters
    ----------
    tokens : iterable of str
        The vocabulary.
    unused : collection of int
        The tokens that the file calls unused.

    Returns
    -------
    NamedEnds
        Their ids.
    """
    control: set[int] = set()
    others: set[int] = set()
    names: dict[str, int] = {}
    for i, name in enumerate(tokens):
        if name in _END_NAMES:
            control.add(i)
            names[name] = i
        elif name in _FILE_ENDS and i not in unused:
            others.add(i)
    # Two families use a name in another meaning, and tell by their other names.
    calls = "<|call|>" in names or "<|calls|>" in names
    if "<|end|>" in names and calls and ("<|return|>" in names or "<|flush|>" in names):
        control.discard(names["<|end|>"])
    if "</s>" in names and "<|tool_response>" in names:
        control.discard(names["</s>"])
    return NamedEnds(control, others)
