"""What a GGUF file says of its tokenizer, as the arguments of `Tokenizer`."""

from __future__ import annotations

import logging
from typing import Any, Final

import numpy as np

from oxibonsai.gguf import GGUFError, GGUFFile, Strings
from oxibonsai.model.splits import DEFAULT

__all__ = ["tokenizer_fields"]

_NO_ID: Final = (-1, 0xFFFFFFFF)  # what files write for a token that there is not
_NAMED: Final = "tokenizer.chat_template."
_ENDS: Final = ("eos_token_id", "eos_token_ids", "eot_token_id", "eom_token_id")

_log = logging.getLogger("oxibonsai.model")


def tokenizer_fields(file: GGUFFile) -> dict[str, Any]:
    """Return the arguments of Tokenizer that a file has.

    Parameters
    ----------
    file : GGUFFile
        The open file.

    Returns
    -------
    dict
        The arguments by their names.

    Raises
    ------
    GGUFError
        If it has no tokenizer, or one of another kind than byte-level BPE.
    """

    def get(key: str, *kinds: type, default: Any = None) -> Any:
        value = file.metadata.get(f"tokenizer.{key}", default)
        if value is not default and not isinstance(value, kinds):
            raise GGUFError(
                f"{file.path}: tokenizer.{key} is a {type(value).__name__}, not "
                f"{' or '.join(kind.__name__ for kind in kinds)}"
            )
        return value

    def ids(key: str) -> list[int]:
        value = get(f"ggml.{key}", int, np.ndarray)
        found = [] if value is None else np.atleast_1d(value).tolist()
        if not all(type(i) is int for i in found):
            raise GGUFError(f"{file.path}: tokenizer.ggml.{key} = {value!r}: no ids of tokens")
        found = [i for i in found if i not in _NO_ID]
        outside = [i for i in found if not 0 <= i < n_tokens]
        if outside:
            _log.warning(
                "%s: tokenizer.ggml.%s: special token id %s is outside the vocabulary of %d: it is "
                "taken as none",
                file.path,
                key,
                ", ".join(map(str, outside)),
                n_tokens,
            )
        return [i for i in found if 0 <= i < n_tokens]

    def one(name: str) -> int | None:
        return next(iter(ids(f"{name}_token_id")), None)

    model = get("ggml.model", str)
    if model is None:
        raise GGUFError(
            f"{file.path}: the model's file has no tokenizer (tokenizer.ggml.model is None)"
        )
    if model != "gpt2":
        raise GGUFError(
            f"{file.path}: tokenizer.ggml.model is {model!r}; only 'gpt2' (byte-level BPE) is "
            "supported"
        )
    lists = []
    for key in ("tokens", "merges"):
        value = file.metadata.get(f"tokenizer.ggml.{key}")
        if not isinstance(value, Strings):
            raise GGUFError(f"{file.path}: tokenizer.ggml.{key} is missing or no array of strings")
        lists.append(value)
    n_tokens = len(lists[0])
    pre = get("ggml.pre", str) or DEFAULT
    if pre == DEFAULT:
        _log.warning(
            "%s: tokenizer.ggml.pre is missing or 'default': text is split as llama.cpp splits "
            "it for such files, which may not be as the model was trained",
            file.path,
        )
    ends = {key: ids(key) for key in _ENDS}
    named = [key.removeprefix(_NAMED) for key in file.metadata if key.startswith(_NAMED)]
    return {
        "tokens": lists[0],
        "merges": lists[1],
        "pre": pre,
        "token_types": get("ggml.token_type", np.ndarray),
        "bos_id": one("bos"),
        "eos_id": next(iter(ends["eos_token_id"]), None),
        "end_ids": [i for found in ends.values() for i in found],
        "add_bos": bool(get("ggml.add_bos_token", bool, int, default=False)),
        "pad_id": one("padding"),
        "unk_id": one("unknown"),
        "chat_template": get("chat_template", str),
        "chat_templates": {name: get(f"chat_template.{name}", str) for name in named},
        "source": file.path,
    }
